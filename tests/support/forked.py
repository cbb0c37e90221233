"""Processes of several ranks that begin with everything imported: forked from a server that has imported it once."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaface.distributed.startup import run_and_leave

ROOT = Path(__file__).resolve().parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "tests.support.lightning_worker",
        "tests.support.sharded_checkpoint_worker",
        "tests.support.sharded_worker",
    ]
)


def run_processes(target: Callable[..., int], arguments: list[tuple[Any, ...]], folder: Path) -> None:
    """Run a function once for each tuple of arguments, each time in a process of its own; all must return 0.

    Args:
        target: a function of a module; leaves the process group that it joins, as a command does.
        arguments: of each process.
        folder: for the errors of the processes.
    """
    errors = [folder / f"error_{number}.txt" for number in range(len(arguments))]
    before = dict(os.environ)
    # of the server, when it starts here: it imports the project, and its processes compute with one thread
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        processes = [
            _CONTEXT.Process(target=_run, args=(target, words, file))
            for words, file in zip(arguments, errors, strict=True)
        ]
        for process in processes:
            process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        for process in processes:
            process.join(300)
    finally:
        for process in processes:
            process.kill()
    told = "\n".join(file.read_text() for file in errors if file.exists())
    assert [process.exitcode for process in processes] == [0] * len(processes), told


def _run(target: Callable[..., int], arguments: tuple[Any, ...], error: Path) -> None:
    """Be one of the processes; write what goes wrong to a file."""
    try:
        status = run_and_leave(lambda: target(*arguments))
    except BaseException:
        error.write_text(traceback.format_exc())
        raise
    if status:
        raise SystemExit(status)
