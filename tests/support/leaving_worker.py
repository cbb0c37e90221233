"""Processes that leave a run in many ways, for test_startup.py.

python leaving_worker.py FOLDER

Each scenario is two processes, forked from this one, that end as Python scripts do. The threads of gloo get only the
time that nobody else wants, as on a loaded machine: they are then late in dropping the tensors of a collective.
"""

import atexit
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adaface.distributed.startup import run_and_leave
from adaface.system.lightning_internals import distributed

FAILURES = ("status", "exception", "exit")
SCENARIOS = ("success", "wrapped model", "referred to", *FAILURES)
ASLEEP_SEC = 300  # more than the test waits
kept = []


def job(scenario: str, rank: int) -> int:
    model = DistributedDataParallel(nn.Linear(6, 8)) if scenario in ("wrapped model", "referred to") else None
    if model is not None:
        model(torch.randn(4, 6)).sum().backward()
    for _ in range(3):
        values = torch.ones(3)
        dist.all_reduce(values)
    if scenario == "referred to":
        kept.append(model)
    if scenario in FAILURES:
        if rank == 1:
            time.sleep(ASLEEP_SEC)  # until it is killed, when process 0 has ended
            os._exit(0)
        dist.all_reduce(torch.ones(3), async_op=True)  # never answered
        if scenario == "exception":
            raise KeyError("unexpected")
        if scenario == "exit":
            sys.exit(3)
        return 2
    return 0


def threads() -> list[str]:
    """Names of this process's threads that belong to gloo."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


def late() -> None:
    """Let all other threads of this process run when nothing else does."""
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != os.getpid():
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))


def lightning_waits() -> None:
    print("Lightning waits", flush=True)


def run(folder: Path, scenario: str, rank: int) -> None:
    """Be one process of a scenario, and end as a script does."""
    torch.set_num_threads(1)
    distributed._destroy_dist_connection = lightning_waits  # as registered for a group of NCCL
    atexit.register(lightning_waits)
    atexit.register(lambda: print("exit function", flush=True))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{scenario}", rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    late()
    status = run_and_leave(lambda: job(scenario, rank))
    print(f"left with threads {threads()}", flush=True)
    assert not dist.is_initialized()
    sys.exit(status)


def fork(folder: Path, scenario: str, rank: int) -> int:
    """Start one process of a scenario; return its number."""
    number = os.fork()
    if number == 0:
        output = os.open(folder / f"{scenario}_{rank}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        run(folder, scenario, rank)
    return number


def main(folder: Path) -> None:
    started = {scenario: [fork(folder, scenario, rank) for rank in range(2)] for scenario in SCENARIOS}
    outcomes = {}
    for scenario, numbers in started.items():
        outcomes[scenario] = []
        for rank, number in enumerate(numbers):
            if rank and scenario in FAILURES:
                os.kill(number, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            output = (folder / f"{scenario}_{rank}.txt").read_text()
            outcomes[scenario].append({"status": status, "output": output})
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
