"""Locks between processes, released automatically when the process that holds them ends.

A lock is ``flock`` on a file or a folder. Forked children, such as data workers, close it, so that it never outlives
the process that took it. On a file system without locks, nothing is locked. On a network file system a lost host keeps
its locks for a while (about 90 seconds with NFS 4); a run waits for that.

The package filelock would need the same code around it: its ``FileLock`` cannot lock folders, raises if the file system
has no locks, and locks a file that its holder has renamed in the meantime, as the embedding cache does.
"""

import contextlib
import errno
import functools
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_DYING_SEC = 5.0  # a killed process with much memory takes a while to exit
_LOST_HOST_SEC = 120.0
_POLL_INTERVAL_SEC = 0.2


class RunLock:
    """The lock of a run folder, held from ``take`` to the end of this object's ``with`` block."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._path = Path()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        if self._file in _open_locks():  # false in a forked child, whose copy is closed
            with contextlib.suppress(OSError):
                self._path.unlink()  # while it is held: no other process can have locked this file
            release(self._file)

    def take(self, folder: Path) -> Path:
        """Take the lock of a run folder.

        Args:
            folder: an existing folder.

        Returns:
            The folder.

        Raises:
            RuntimeError: another running process holds it.
        """
        path, began, noted = folder / LOCK, time.monotonic(), False
        while (file := try_lock(path)) is None:
            holder = _holder(path)
            here = f"{holder} ".endswith(f" on {platform.node()} ")
            if time.monotonic() - began > (_DYING_SEC if here else _LOST_HOST_SEC):
                raise RuntimeError(
                    f"the run folder {folder} is in use by {holder}: wait for its end, stop it, or give another "
                    "--run_folder; two runs in one folder would overwrite each other's checkpoints"
                )
            if not noted:
                logger.info(f"note: the run folder {folder} is in use by {holder}; waiting for a moment")
                noted = True
            time.sleep(_POLL_INTERVAL_SEC)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        self._file, self._path = file, path
        return folder


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock during a block.

    Args:
        path: a file, created if absent, or an existing folder.
        refusal: error message if another process holds it.

    Raises:
        RuntimeError: another process holds it.
        OSError: it cannot be opened.
    """
    file = try_lock(path)
    if file is None:
        raise RuntimeError(refusal)
    try:
        yield
    finally:
        release(file)


@contextlib.contextmanager
def locked_when_free(path: Path, note: str) -> Iterator[None]:
    """Wait for a lock, and hold it during a block.

    Args:
        path: a file, created if absent, or an existing folder.
        note: warning that is logged once if it has to wait.

    Raises:
        OSError: it cannot be opened.
    """
    noted = False
    while (file := try_lock(path)) is None:
        if not noted:
            logger.warning(note)
            noted = True
        time.sleep(_POLL_INTERVAL_SEC)
    try:
        yield
    finally:
        release(file)


def try_lock(path: Path) -> int | None:
    """Open and lock a file if the file system supports locks; return None if another process holds it.

    Args:
        path: a file, created if absent, or an existing folder.

    Raises:
        OSError: it cannot be opened.
    """
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            os.close(file)
            return None
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file), path.stat()):
            _open_locks().add(file)
            return file
    os.close(file)  # its holder has deleted it since: the path is now another file, or none
    return try_lock(path)


def lock_open_file(file: int) -> bool:
    """Lock an open file until it is closed, also by the children of this process; return False if another has it.

    Args:
        file: descriptor of the file. If its file system has no locks, nothing is locked.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD
    return True


def holder_of(file: int) -> str:
    """Return which process holds the lock of an open file, such as ``process 1234``, as far as this system tells.

    Args:
        file: descriptor of the file.
    """
    inode = os.fstat(file).st_ino
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()  # number: FLOCK ADVISORY WRITE pid major:minor:inode start end
            if words[1] == "FLOCK" and int(words[5].rpartition(":")[2]) == inode:
                return f"process {words[4]}"
    return "another process"


def release(file: int) -> None:
    """Release a lock.

    Args:
        file: from ``try_lock``.
    """
    if file in _open_locks():
        _open_locks().remove(file)
        os.close(file)


@functools.cache
def _open_locks() -> set[int]:
    """Return the set of this process's locked files, which its forked children close."""
    files: set[int] = set()

    def close_all() -> None:
        while files:
            os.close(files.pop())

    os.register_at_fork(after_in_child=close_all)
    return files


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip() or "another process"
    return "another process"
