"""Shared by all commands: error reporting and exit status."""

import contextlib
import contextvars
import difflib
import errno
import importlib.util
import io
import itertools
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from adaface.system.interrupt import INTERRUPTED as INTERRUPTED
from adaface.system.interrupt import interruptible
from adaface.system.screen import log_to_screen
from adaface.system.threads import in_main_thread

logger = logging.getLogger(__name__)

# exit statuses of all commands, docs/inference.md explains them; 0: done
DONE_WITH_PROBLEMS = 1  # something was left out, or problems were found
FAILED = 2
NOBODY_READS = 141  # as of a program ended by SIGPIPE
# reported in one line, without a traceback
EXPECTED_ERRORS = (ValueError, FileNotFoundError, RuntimeError, OSError, MemoryError)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_LONGEST_LINE = 1500  # letters of a message
_LONGEST_DETAILS = 300
_MOST_COMPARED = 10_000  # names of a folder with a misspelled one
_OUT_OF_MEMORY = re.compile(  # of PyTorch, oneDNN, ONNX Runtime, C++ and the system
    r"can't allocate memory|Cannot allocate memory|could not create a (memory object|primitive(?! desc))|bad_alloc"
    r"|Failed to allocate memory|Insufficient memory|can't start new thread|failed to map segment"
)
_left_out: contextvars.ContextVar[list[bool] | None] = contextvars.ContextVar("left_out", default=None)


_SCRIPTS = {"train": "main.py", "convert": "convert.py"}  # at the root of the repository, the official names


def invocation(command: str) -> str:
    """Return a command as the user would type it, depending on how this program was started.

    Args:
        command: such as ``train``; empty for the program itself.
    """
    started = Path(sys.argv[0])
    if started.name == "adaface":
        return f"adaface {command}".rstrip()
    if command in _SCRIPTS and (started.parent.name, started.name) != ("adaface", "__main__.py"):
        return f"python {_SCRIPTS[command]}"
    return f"python -m adaface {command}".rstrip()


def program_name(command: str) -> str:
    """Return the name of a command in front of its errors: ``main.py``, ``adaface evaluate``.

    Args:
        command: such as ``train``.
    """
    return invocation(command).removeprefix("python ").removeprefix("-m ")


def check_packages(what: str, packages: Mapping[str, str]) -> None:
    """Raise RuntimeError if optional packages are not installed; the message contains the command that installs them.

    Args:
        what: what needs the packages, such as "the page".
        packages: names to install, by names to import.
    """
    missing = [package for name, package in packages.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"{what} needs packages that are not installed: pip install {' '.join(missing)}")


def nearest(name: str, known: Iterable[str], *, count: int = 1, always: str = "") -> str:
    """Return a hint with the known names most similar to ``name``, or all of them if none is similar.

    Args:
        name: what was typed; case does not matter.
        known: valid names.
        count: maximum number of similar names.
        always: text after the similar names, and instead of the list of all names if none is similar.
    """
    known = list(known)
    close = _most_similar(name, known, count)
    hint = f"did you mean {' or '.join(close)}?" if close else ""
    if always:
        return f"{hint} {always}".lstrip()
    return hint or f"choose from: {', '.join(known)}"


def _most_similar(name: str, known: Iterable[str], count: int) -> list[str]:
    by_lower = {one.lower(): one for one in known}
    return [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)]


def nearest_path(word: str, *, root: str = "", files: bool = False, always: str = "") -> str:
    """Return a hint with the path that exists and is most similar to a misspelled one.

    Args:
        word: path that does not exist, or is of the wrong kind.
        root: folder that it is relative to.
        files: look for a file instead of a folder.
        always: text after the hint, and alone if there is no similar path.
    """
    path = Path(root, word)
    wrong = next((one for one in (path, *path.parents) if one.parent.is_dir()), path)  # its first part that is wrong
    rest = path.relative_to(wrong).parts
    with contextlib.suppress(OSError), os.scandir(wrong.parent) as entries:
        names = [
            entry.name
            for entry in itertools.islice(entries, _MOST_COMPARED)
            if not entry.name.startswith(".") and entry.name != wrong.name
            if (entry.is_file() if files and not rest else entry.is_dir())
        ]
        for name in _most_similar(wrong.name, sorted(names), 1):
            found = wrong.with_name(name)
            found = found.joinpath(*rest) if found.joinpath(*rest).exists() else found
            shown = found.relative_to(root) if found.is_relative_to(root) else found
            return f"did you mean {shown}? {always}".rstrip()
    return always


@interruptible()
@log_to_screen()
def run_to_status(program: str, job: Callable[[], int], *, stopped: str) -> int:
    """Run a command and return its exit status; expected errors, Ctrl-C and SIGTERM are reported in one line.

    Meanwhile the screen shows what the library logs.

    Args:
        program: prefix of the line.
        job: the whole command, parsing included; returns the exit status.
        stopped: message if the user stopped it.

    Returns:
        The job's exit status (1 in place of 0 after ``mark_incomplete``), 2 after an error, 130 if stopped, or 141 if
        the reader of its output has exited.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        with terminated_as_interrupted(), output_written(), full_memory_told():
            return _completed(job)
    except KeyboardInterrupt:
        logger.warning(f"\n{program}: stopped; {stopped}")
        return INTERRUPTED
    except EXPECTED_ERRORS as error:
        return report_error(program, error, notes=getattr(error, "__notes__", ()))


@log_to_screen()
def check_to_status(program: str, check: Callable[[], None]) -> int:
    """Check the options of a command that follows; errors are reported as by ``run_to_status``.

    What Ctrl-C does is left to the command.

    Args:
        program: prefix of the line.
        check: raises an error of ``EXPECTED_ERRORS``.

    Returns:
        0 if the command can follow, 2 after an error, 130 if stopped.
    """
    try:
        with output_written(), full_memory_told():
            check()
    except KeyboardInterrupt:
        logger.warning(f"\n{program}: stopped; nothing was done")
        return INTERRUPTED
    except EXPECTED_ERRORS as error:
        return report_error(program, error, notes=getattr(error, "__notes__", ()))
    return 0


@contextlib.contextmanager
def full_memory_told() -> Iterator[None]:
    """Raise MemoryError in place of the ImportError of a library that found no memory."""
    try:
        yield
    except ImportError as error:
        if is_out_of_memory(error):
            raise MemoryError("while a library was loaded") from error
        raise


@contextlib.contextmanager
def output_written() -> Iterator[None]:
    """Flush stdout after a block, and after ``--help``: output that cannot be written is an error like any other."""
    try:
        yield
    except SystemExit:
        _flush_output()
        raise
    _flush_output()


def _flush_output() -> None:
    if sys.stdout is not None:  # Python without a console
        sys.stdout.flush()


def report_error(program: str, error: Exception, *, notes: Iterable[str] = ()) -> int:
    """Log an expected error in one line and return the exit status.

    Args:
        program: prefix of the line.
        error: of ``EXPECTED_ERRORS``.
        notes: lines below it.

    Returns:
        2; or 141 without logging anything if the reader of the output has exited.
    """
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return NOBODY_READS
    try:
        _flush_output()
    except OSError:  # most likely the same error; without this, Python would report it again at exit
        _discard_output()
    logger.error("\n".join([f"{program}: error: {one_line(error)}", *notes]))
    return FAILED


def mark_incomplete() -> None:
    """Let the running command end with status 1: it left a part of its input out, and has said which."""
    marks = _left_out.get()
    if marks is not None:
        marks.append(True)


def _completed(job: Callable[[], int]) -> int:
    marks: list[bool] = []
    token = _left_out.set(marks)
    try:
        return job() or (DONE_WITH_PROBLEMS if marks else 0)
    finally:
        _left_out.reset(token)


def _nobody_reads() -> bool:
    """Return whether the output goes to a program that has exited, such as ``head``."""
    output = select.poll()
    try:
        output.register(sys.stdout, select.POLLOUT)
    except (OSError, TypeError, ValueError):  # no file
        return False
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0)):
        return False
    _discard_output()
    return True


def _discard_output() -> None:
    """Redirect the rest of the output to the null device, because Python flushes its buffer at exit."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def one_line(error: Exception) -> str:
    """Return the message of an expected error in one line.

    Args:
        error: of ``EXPECTED_ERRORS``.
    """
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        place = f" for {error.filename}" if error.filename else ""
        return f"no space left on the disk{place}; free some, then run the same command again. No file is incomplete"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        place = f"{error.filename}: " if error.filename else ""
        return (
            f"{place}the file would be larger than the limit of this shell (ulimit -f) or file system allows: raise it"
        )
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return "too many open files: raise the limit of this shell (ulimit -n), or use fewer workers and processes"
    if is_out_of_memory(error):
        details = printable(" ".join(str(error).split()))[:_LONGEST_DETAILS]
        return (
            f"out of memory{f' ({details})' if details else ''}: give a smaller --batch_size if the command has one, "
            "close other programs, or raise the limit (ulimit -v)"
        )
    message = str(error)
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes) and error.filename:
        message = f"{os.fsdecode(error.filename)}: {error.strerror}"
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST_LINE:  # it quotes a damaged file; what to do stands at the end
        line = f"{line[: _LONGEST_LINE * 2 // 3]} ... {line[-_LONGEST_LINE // 3 :]}"
    return line


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be allocated, whichever library says it.

    Args:
        error: of any kind; not one that says it as this module does.
    """
    told = str(error)
    return isinstance(error, MemoryError) or (not told.startswith("out of ") and bool(_OUT_OF_MEMORY.search(told)))


def counted(count: int, one: str, several: str) -> str:
    """Return a number with its noun, such as ``1 face`` and ``2 faces``.

    Args:
        count: the number.
        one: singular of the noun.
        several: plural.
    """
    return f"{count:,} {one if count == 1 else several}"


def printable(text: str) -> str:
    r"""Escape line breaks and control characters: file names may contain any bytes.

    Args:
        text: such as a file name; unprintable characters become ``\n``, ``\x1b``, ``\udcff``.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C during a block; does nothing outside of the main thread."""
    if not in_main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def warnings_as_notes(*, shown: bool = True) -> Iterator[None]:
    """Show warnings (such as a stale .idx) as one line each, without the source line that raised them.

    Args:
        shown: whether to show them; one of several processes is enough.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always" if shown else "ignore", UserWarning)
        warnings.showwarning = lambda message, *_, **__: logger.info(f"note: {message}")
        yield
