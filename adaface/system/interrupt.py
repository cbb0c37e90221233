"""Ctrl-C in the process of a command: one line and status 130, from its first statement to its last.

Python's own handler ends an import with a traceback, and a second Ctrl-C the cleanup after the first. A process that
was started with Ctrl-C ignored, as shells do for jobs in the background, goes on ignoring it, but for a server.
"""

import atexit
import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130  # exit status
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPED = b"\nadaface: stopped; nothing was done\n"
_STOPPED_TWICE = b"\nadaface: stopped at once; files that were already saved are complete\n"
_process = 0  # id of the process that runs a command


def end_on_interrupt(*, in_background: bool = False) -> None:
    """End this process with a line if Ctrl-C or SIGTERM arrives before its command begins: during imports.

    Args:
        in_background: also where Ctrl-C is ignored, as in jobs that a shell starts in the background; for a server,
            which is stopped so.
    """
    global _process
    if not _process:
        # The last of these functions, as it is the first registered. Python then restores the default handlers, with
        # which Ctrl-C would end the process without its exit status. SIGTERM still ends it, if it hangs.
        atexit.register(signal.pthread_sigmask, signal.SIG_BLOCK, [signal.SIGINT])
    _process = os.getpid()
    with contextlib.suppress(ValueError):  # not in the main thread, where no Ctrl-C arrives
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            handler = signal.getsignal(number)
            if handler is default or (in_background and handler is signal.SIG_IGN):
                signal.signal(number, _at_start)


def is_process_of_command() -> bool:
    """Return whether ``end_on_interrupt`` was called in this process: it runs a command and nothing else."""
    return _process == os.getpid()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """During a command, the first Ctrl-C raises KeyboardInterrupt, and a second one ends the process.

    After it, Ctrl-C and SIGTERM end the process without a word. Does nothing unless ``end_on_interrupt`` was called.
    """
    from adaface.system.threads import in_main_thread  # here, as imports take time before ``end_on_interrupt``

    if in_main_thread() and signal.getsignal(signal.SIGTERM) is _at_start:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not in_main_thread() or signal.getsignal(signal.SIGINT) is not _at_start:
        yield
        return
    signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _at_end)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _at_end)


@contextlib.contextmanager
def stop_signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM that arrive meanwhile take effect afterwards; a process forked meanwhile holds them too."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _at_start(number: int, frame: FrameType | None) -> None:
    _leave(_STOPPED)


def _first(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _second)
    raise KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> None:
    _leave(_STOPPED_TWICE)


def _at_end(number: int, frame: FrameType | None) -> None:
    _leave(b"")


def _leave(line: bytes) -> None:
    """End the process; one that it has forked gets a KeyboardInterrupt, as from Python's own handler."""
    if os.getpid() != _process:
        raise KeyboardInterrupt
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one line for all processes of a training
        with contextlib.suppress(OSError):
            os.write(2, line)
    os._exit(INTERRUPTED)
