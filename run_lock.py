"""One run in a folder at a time: a lock that vanishes with the process that holds it, however that ends.

The lock is ``flock`` on ``.lock`` in the run folder, which also says who has it. Data workers close it, so that it
never outlives the process that trains. On a network file system a host that is lost keeps its locks for a while (about
90 seconds with NFS 4), which is waited for; a file system without locks is used without.
"""

import contextlib
import errno
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_DYING_SEC = 5.0  # a killed process with much memory is not gone at once
_LOST_HOST_SEC = 120.0
_ASK_EVERY_SEC = 0.5


class RunLock:
    """Holds the lock of one run folder from ``take`` to the end of this object's ``with`` block.

    Args:
        say: prints a note for the user.
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self._say = say
        self._file: int | None = None
        self._path = Path()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the lock back."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()  # while it is held: nobody else has this file and believes to hold the lock
            self._close()

    def take(self, folder: Path) -> Path:
        """Take the lock of a run folder.

        Args:
            folder: it exists.

        Returns:
            The folder.

        Raises:
            RuntimeError: another live run has it.
        """
        path, began, told = folder / LOCK, time.monotonic(), False
        while (file := try_lock(path)) is None:
            holder = _holder(path)
            here = f"{holder} ".endswith(f" on {platform.node()} ")
            if time.monotonic() - began > (_DYING_SEC if here else _LOST_HOST_SEC):
                raise RuntimeError(
                    f"the run folder {folder} is in use by {holder}: wait for its end, stop it, or give another "
                    "--run_folder; two runs in one folder would overwrite each other's checkpoints"
                )
            if not told:
                self._say(f"note: the run folder {folder} is in use by {holder}; waiting for a moment")
                told = True
            time.sleep(_ASK_EVERY_SEC)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        self._file, self._path = file, path
        os.register_at_fork(after_in_child=self._close)
        return folder

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def try_lock(path: Path) -> int | None:
    """Return a file, open and locked as far as the file system can; None where another process has it.

    Args:
        path: the file; made where it is absent.

    Raises:
        OSError: it cannot be opened.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            os.close(file)
            return None
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file), path.stat()):
            return file
    os.close(file)  # who had it has given it back since, and deleted it: the name is that of another file, or of none
    return try_lock(path)


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip() or "another process"
    return "another process"
