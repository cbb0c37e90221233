"""Processes that begin with everything imported: forked from a server that has imported it once.

The server only imports. It has no threads, which a fork would not copy.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from adaface.distributed.startup import run_and_leave

ROOT = Path(__file__).resolve().parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "tests.support.health_worker",
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
    with environment_of_server():
        processes = [
            _CONTEXT.Process(target=_run, args=(target, words, file))
            for words, file in zip(arguments, errors, strict=True)
        ]
        for process in processes:
            process.start()
    try:
        for process in processes:
            process.join(300)
    finally:
        for process in processes:
            process.kill()
    told = "\n".join(file.read_text() for file in errors if file.exists())
    assert [process.exitcode for process in processes] == [0] * len(processes), told


class Program:
    """A Python program as its own process, started without the seconds of its imports.

    It is as `python -m module` or `python script`, with two differences: what Python itself does on the way out, such
    as the functions of atexit, is that of `multiprocessing`, and its standard streams are as Python opens them for
    files.

    Args:
        name: of a module, or of a script (with a suffix) in the repository's folder.
        arguments: words after the program's name.
        output: file that what it prints is appended to.
        errors: the same for its standard error; by default also `output`.
        variables: its environment variables; those of this process when None.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        output: Path,
        errors: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        given = dict(os.environ if variables is None else variables)
        words = (name, arguments, output, errors or output, given)
        with environment_of_server():
            self._process: BaseProcess = _CONTEXT.Process(target=_be_program, args=words)
            self._process.start()

    def wait(self, timeout: float) -> int:
        """Wait for the end; return the exit status, or raise `subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def run_program(name: str, arguments: list[str], folder: Path, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a program of this repository to its end; see `Program`.

    Args:
        name: of a module, or of a script in the repository's folder.
        arguments: words after the program's name.
        folder: for what it prints.
        timeout: seconds after which it is killed.
    """
    output, errors = folder / "stdout.txt", folder / "stderr.txt"
    program = Program(name, arguments, output, errors)
    try:
        status = program.wait(timeout)
    finally:
        program.kill()
    return subprocess.CompletedProcess([name, *arguments], status, output.read_text(), errors.read_text())


def _be_program(name: str, arguments: list[str], output: Path, errors: Path, variables: dict[str, str]) -> None:
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    for stream, file in ((1, output), (2, errors)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, stream)
        os.close(opened)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = [name, *arguments]
    if Path(name).suffix == ".py":
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


@contextmanager
def environment_of_server() -> Iterator[None]:
    """For the server, when it starts here: it imports the project, and its processes compute with one thread."""
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(target: Callable[..., int], arguments: tuple[Any, ...], error: Path) -> None:
    """Be one of the processes; write what goes wrong to a file."""
    try:
        status = run_and_leave(lambda: target(*arguments))
    except BaseException:
        error.write_text(traceback.format_exc())
        raise
    if status:
        raise SystemExit(status)
