"""The sharded head: time of a step by sample rate, memory of weight, gradient and momentum by number of processes.

    python -m bench.partial_fc

A step is loss, backward and fused SGD with momentum, of the head alone, in one process: B = 128, D = 512, C = 100,000.
The baseline of the first row is the dense head, of the others the sharded one with all its classes. Memory is that of
W processes over gloo at C = 1,000,000, by the kernel's count of each process's peak; the baseline is the dense head's
divided by W.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adaface.heads.base import Head
from adaface.heads.margins import build_head
from adaface.heads.partial_fc import PartialFC, build_sharded_head
from adaface.heads.sharded_optimizer import step_on_touched_rows
from bench._head_memory import D
from bench.timing import Side, compare, compare_memory, options, report

_OPTIONS = (0.4, 0.01, 0.333, 64.0)  # m, t_alpha, h, s
_LR = 1e-6  # the weights stay what they are, so that every step is the same work
_TOLERANCE = 1e-5
_MEMORY_TARGET = 1 / 1.1  # within 10% of the dense head's share


class Steps:
    """Training steps of a head on one batch.

    Args:
        head: dense or sharded.
        batch: embeddings, norms and labels.
    """

    def __init__(self, head: Head, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        self.head, self.batch = head, batch
        self.optimizer = torch.optim.SGD(head.parameters(), lr=_LR, momentum=0.9, weight_decay=5e-4, fused=True)
        step_on_touched_rows(self.optimizer, [head.kernel])

    def __call__(self) -> float:
        """Take one step, with other sampled classes than the last; return the loss."""
        if isinstance(self.head, PartialFC):
            self.head.sampling_seed += 1
        self.optimizer.zero_grad()
        self.batch[0].grad = None
        loss = self.head.loss(*self.batch)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def same_loss(baseline: float, candidate: float) -> dict[str, Any]:
    """Raise unless the losses of the first step agree."""
    difference = abs(candidate / baseline - 1)
    if not difference < _TOLERANCE:
        raise AssertionError(f"the losses differ by {difference:.1e} of their size")
    return {"difference of the loss": f"{difference:.1e}"}


def fewer_negatives(baseline: float, candidate: float) -> dict[str, Any]:
    """Raise unless the loss over sampled classes is the smaller one, as fewer negatives have to make it."""
    if not 0 < candidate < baseline:
        raise AssertionError(f"loss {candidate} over the sampled classes, {baseline} over all")
    return {"loss": f"{candidate:.2f} over the sampled classes, {baseline:.2f} over all"}


def measure_time(quick: bool, repeats: int, output: Path) -> None:
    """Time the dense head against the sharded one, and the latter's sample rates against each other."""
    B, C = (16, 4_000) if quick else (128, 100_000)
    torch.manual_seed(0)
    batch = (F.normalize(torch.randn(B, D)).requires_grad_(), torch.rand(B, 1) * 30 + 5, torch.randint(0, C, (B,)))
    whole = build_head("adaface", D, C, *_OPTIONS)

    def steps(rate: float) -> Steps:
        sharded = build_sharded_head("adaface", D, C, *_OPTIONS, sample_rate=rate)
        sharded.load_state_dict(whole.state_dict())
        return Steps(sharded, batch)

    sides = {rate: Side(f"sample_rate {rate:g}", steps(rate)) for rate in (1.0, 0.3, 0.1)}
    for baseline, rate, target, check in (
        (Side("dense head", Steps(whole, batch)), 1.0, 0.9, same_loss),
        (sides[1.0], 0.3, 2, fewer_negatives),
        (sides[1.0], 0.1, 4, fewer_negatives),
    ):
        row = f"head step, --sample_rate {rate:g} against {baseline.name}, B={B}, C={C:,}"
        compared = compare(
            row, baseline, sides[rate], count=B, unit="samples", target=target, check=check, repeats=repeats
        )
        report(compared, __file__, output)


def peaks(kind: str, classes: int, processes: int) -> list[int]:
    """Return the peak bytes of each of W processes with a dense or sharded head (on Linux).

    Args:
        kind: ``dense`` or ``sharded``.
        classes: C.
        processes: W.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "bench._head_memory", kind, str(classes)]
        started = [
            subprocess.Popen(
                [*words, str(rank), str(processes), folder],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(processes)
        ]
        outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"a process with the {kind} head failed")
    return [json.loads(output)["peak_bytes"] for output in outputs]


def measure_memory(quick: bool, output: Path) -> None:
    """Compare each process's peak with its share of the dense head's."""
    C = 2_000 if quick else 1_000_000
    dense = peaks("dense", C, 1)[0]
    for W in (2,) if quick else (1, 2, 4):
        sharded = peaks("sharded", C, W)
        computed = 12 * D * C / W
        result = compare_memory(
            f"memory of weight, gradient and momentum per process, W={W}, C={C:,}",
            (f"dense head / {W}", dense / W),
            ("sharded head, the largest process", max(sharded)),
            target=_MEMORY_TARGET,
            details={
                "measured against computed": f"{max(sharded) / computed:.3f} ({computed / 1e6:,.0f} MB)",
                "processes": ", ".join(f"{size / 1e6:,.0f} MB" for size in sharded),
            },
        )
        report(result, __file__, output)


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    measure_time(chosen.quick, chosen.repeats, chosen.output)
    measure_memory(chosen.quick, chosen.output)


if __name__ == "__main__":
    main()
