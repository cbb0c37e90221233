"""Training steps on a CPU whose cores another process uses as well, against the settings of GNU's OpenMP library.

    python -m bench.busy_machine

The threads of a parallel region wait for the next one. They spin, in libgomp 300,000 times, before they sleep; a thread
that spins keeps a core from the one that it waits for, once there are fewer cores than busy threads. The commands set
a lower number (`adaface/system/threads.py`). Both sides are processes of their own, since libgomp reads the number when
it is loaded. The neighbor is one process that computes all the time.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from adaface.system.threads import SPIN_COUNT, SPINNING, usable_cores
from bench.timing import Side, compare, options, report

_OF_LIBGOMP = 300_000
_ENVIRONMENT = ("OMP_NUM_THREADS", *SPINNING)
_IDLE_TARGET, _BUSY_TARGET = 0.97, 4
_WORKER = """
import sys
import torch
from adaface.heads.margins import build_head
from adaface.models.backbone import EMBEDDING_SIZE
from adaface.models.registry import build_model
arch, batch_size, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
model, head = build_model(arch).train(), build_head("adaface", EMBEDDING_SIZE, 100, 0.4, 0.01, 0.333, 64.0)
images, labels = torch.rand(batch_size, 3, 112, 112) * 2 - 1, torch.randint(0, 100, (batch_size,))
sgd = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=1e-6, momentum=0.9, weight_decay=5e-4, fused=True)
print(torch.get_num_threads(), flush=True)
for _ in sys.stdin:
    for _ in range(steps):
        loss = head.loss(*model(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    print(float(loss.detach()), flush=True)
"""
_NEIGHBOR = "while True: sum(range(1000))"


class Training:
    """A process that trains on request.

    Args:
        spin_count: ``GOMP_SPINCOUNT`` of the process.
        arch: network.
        batch_size: images of a step.
        steps: steps of a request.
    """

    def __init__(self, spin_count: int, arch: str, batch_size: int, steps: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
        environment["GOMP_SPINCOUNT"] = str(spin_count)
        words = [sys.executable, "-c", _WORKER, arch, str(batch_size), str(steps)]
        self._process = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.threads = int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that trains has ended with status {self._process.wait()}")
        return line

    def run(self) -> float:
        """Train, and return the last loss."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def neighbor() -> Iterator[None]:
    """Keep one core busy during a block, as a program started in another terminal does."""
    process = subprocess.Popen([sys.executable, "-c", _NEIGHBOR], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    batch_size, steps = (2, 1) if chosen.quick else (32, 2)
    with contextlib.ExitStack() as open_processes:
        sides = []
        for name, spin_count in (("libgomp", _OF_LIBGOMP), ("adaface", SPIN_COUNT)):
            training = Training(spin_count, "ir_mini", batch_size, steps)
            open_processes.callback(training.close)
            sides.append(Side(f"{name}, GOMP_SPINCOUNT {spin_count:,}", training.run))
        baseline, candidate = sides
        for row, target, others in (
            ("beside a busy process", _BUSY_TARGET, neighbor()),
            ("on an idle machine", _IDLE_TARGET, contextlib.nullcontext()),
        ):
            with others:
                result = compare(
                    f"training, ir_mini B={batch_size}, {row}", baseline, candidate, count=batch_size * steps,
                    unit="images", target=target, check=lambda *_: {"threads": training.threads},
                    repeats=chosen.repeats,
                )  # fmt: skip
            report({**result, "details": {**result["details"], "cores": usable_cores()}}, __file__, chosen.output)


if __name__ == "__main__":
    main()
