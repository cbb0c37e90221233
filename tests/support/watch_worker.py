"""Processes under the watch that end in many ways, for test_watch.py.

python watch_worker.py FOLDER

Each scenario is a run of a few processes, forked from this one; what rank R of it prints is in FOLDER/<scenario>_R.txt,
how it ended in FOLDER/<scenario>_R.status. Those that wait do so for nothing, as on a GPU whose collective never ends.
"""

import contextlib
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist

from adaface.distributed.startup import ReportedElsewhereError
from adaface.distributed.watch import InterruptedTrainingError, ProcessWatch
from tests.support import launched

SCENARIOS = {  # how each process ends
    "killed": ("waits", "waits", "killed"),
    "first killed": ("killed", "waits", "waits"),
    "data worker": ("waits", "killed but for a data worker"),
    "error": ("waits", "error"),
    "gloo": ("gloo", "killed"),
    "timeout": ("timeout", "timeout"),
    "done": ("done", "done late", "done"),
    "welcomed late": ("done", "done late", "done"),
    "interrupted": ("interrupted", "interrupted", "interrupted"),
    "terminated": ("terminated", "killed"),
    "terminated after an error": ("terminated", "error"),
}
WAIT_SEC = 300


class LateWatch(ProcessWatch):
    """Its thread that accepts connections is slow, as on a busy machine."""

    def _accept(self, server, token):
        time.sleep(1)
        super()._accept(server, token)


class SlowWatch(ProcessWatch):
    """Its thread that sees a death is slow, as on a busy machine."""

    def _lose(self, peer, how):
        time.sleep(0.5)
        super()._lose(peer, how)


class SlowReader(ProcessWatch):
    """Its thread that reads messages is slow, as on a busy machine."""

    def _watch(self, connection, lines, peer):
        time.sleep(0.5)
        super()._watch(connection, lines, peer)


WATCHES = {"welcomed late": LateWatch, "terminated": SlowWatch, "terminated after an error": SlowReader}


@contextlib.contextmanager
def told_of_interrupts(watch, trainer):
    """Tell the watch of an interrupt as Lightning does, before the exception leaves its loop."""
    try:
        yield
    except KeyboardInterrupt as error:
        watch.on_exception(trainer, None, error)
        raise


def end(how: str, others: list[int]) -> None:
    if how == "killed but for a data worker" and os.fork() == 0:
        time.sleep(WAIT_SEC)
        os._exit(0)
    if how.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "error":
        raise ValueError("its own error")
    if how == "interrupted":
        raise InterruptedTrainingError(Path("last.ckpt"))
    if how in ("gloo", "terminated"):  # what follows the death of the other one
        while launched.is_alive(others[0]):
            time.sleep(0.01)
    if how == "gloo":  # what a collective raises where another process is gone
        raise RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    if how == "terminated":  # by torchrun, which has seen the death of the other one
        raise KeyboardInterrupt
    if how == "timeout":
        raise RuntimeError("Timed out waiting 1000ms for recv operation to complete")
    if how == "done late":
        time.sleep(2)
    if how == "waits":
        time.sleep(WAIT_SEC)


def run(folder: Path, scenario: str, rank: int) -> int:
    """Be one process of a scenario; return the exit status."""
    ends = SCENARIOS[scenario]
    meeting = f"file://{folder}/{scenario.replace(' ', '_')}"
    limit = timedelta(seconds=WAIT_SEC)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(ends), timeout=limit)
    watch = WATCHES.get(scenario, ProcessWatch)({"--lr": 0.1}, lambda: "go on so", 7.0)
    trainer = SimpleNamespace(world_size=len(ends), strategy=SimpleNamespace(launcher=None))
    try:
        with watch:
            watch.setup(trainer, None, "fit")
            watch.setup(trainer, None, "test")
            dist.barrier()
            with told_of_interrupts(watch, trainer):
                end(ends[rank], [peer.pid for peer in watch._peers if peer.rank != rank])
    except ReportedElsewhereError:
        return 12
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def fork(folder: Path, scenario: str, rank: int) -> int:
    """Start one process of a scenario; return its number."""
    number = os.fork()
    if number:
        return number
    status = 99
    try:
        output = os.open(folder / f"{scenario}_{rank}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = run(folder, scenario, rank)
    finally:
        os._exit(status)


def main(folder: Path) -> None:
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    started = {(s, rank): fork(folder, s, rank) for s, ends in SCENARIOS.items() for rank in range(len(ends))}
    for (scenario, rank), number in started.items():
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        (folder / f"{scenario}_{rank}.status").write_text(str(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
