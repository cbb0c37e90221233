"""Atomic files and folders: written under a temporary name in the same folder, then renamed."""

import errno
import functools
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adaface.system.locks import holder_of, lock_open_file

_CHUNK_BYTES = 1 << 20
CANNOT_GROW = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # codes of writes that found no space


def part_path(path: str | os.PathLike[str]) -> Path:
    """Return the temporary path of a file or folder while it is written, `.<name>.part` in the same folder.

    Args:
        path: its final path.
    """
    final = Path(path)
    return final.with_name(f".{final.name}.part")


@dataclass(frozen=True)
class FileState:
    """State of a file from which something was derived.

    Attributes:
        size: in bytes.
        modified_ns: time of its last modification.
        sha256: of its content, 64 hexadecimal digits.
    """

    size: int
    modified_ns: int
    sha256: str

    def still_of(self, path: Path) -> bool:
        """Return whether a file is unchanged: it has this size and time or, as copies have another time, this content.

        Args:
            path: an existing file.

        Raises:
            OSError: it cannot be read.
        """
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a device may have no end
            return False
        if (status.st_size, status.st_mtime_ns) == (self.size, self.modified_ns):
            return True
        return status.st_size == self.size and state_of(path).sha256 == self.sha256


def state_of(path: Path) -> FileState:
    """Return the state of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        return FileState(status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())


def checksum_of(path: Path) -> int:
    """Return the CRC-32 of a file; computed once in a process, as long as its size and time stay the same.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    return _checksum(str(path.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _checksum(path: str, size: int, modified_ns: int) -> int:
    checksum = 0
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path for a file, folder or link, and rename it to its final path at the end of the block.

    Use it for libraries that need a path instead of the open file of ``atomic_file``.

    Args:
        path: final path; its parent must exist. An existing file or link is replaced at the end, or kept when the
            block raises. An existing folder is replaced only if it is empty.

    Yields:
        The temporary path; nothing exists there.

    Raises:
        OSError: it cannot be written.
    """
    part = part_path(path)
    with _only_writer(part.with_name(f"{part.name}.lock"), Path(path)):
        _delete(part)  # left by a killed process
        try:
            yield part
            part.replace(path)
        except BaseException as error:
            name_full_file(error, Path(path))
            _delete(part)
            raise


@contextmanager
def _only_writer(lock: Path, final: Path) -> Iterator[None]:
    """Hold a lock file during a block, and delete it at the end; raise FileExistsError if another process has it."""
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    held = lock_open_file(file)
    try:
        if not held:
            raise _is_written(file, final)
        if not _is(lock, os.fstat(file)):  # deleted by its last holder in this moment
            raise _begun_at_once(final)
        yield
    finally:
        if held and _is(lock, os.fstat(file)):
            lock.unlink()  # while it is held: nobody else can have locked this file
        os.close(file)


def _delete_left_over(path: Path, final: Path) -> None:
    """Delete the temporary file of a killed process; raise FileExistsError if its writer is alive."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # and nothing is deleted: another process may have created it by now
    except OSError:  # a link: nobody is writing to it
        path.unlink(missing_ok=True)
        return
    try:
        status = os.fstat(file)
        if status.st_nlink <= 1:  # another name of a file in use is no part of ours
            if not lock_open_file(file):
                raise _is_written(file, final)
            if not _is(path, status):  # another process has just deleted it, and creates its own
                raise _begun_at_once(final)
        path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _begun_at_once(final: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "another process writes it at the same time", str(final))


def _is_written(file: int, final: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, f"{holder_of(file)} is writing it: wait for it, or stop it", str(final))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raise FileExistsError if the output of a command with ``--output`` and ``--overwrite`` exists.

    Args:
        path: the output.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; use --overwrite to replace it, or another --output")


@contextmanager
def atomic_file(
    path: str | os.PathLike[str], *, to_disk: bool = True, several_writers: bool = False, overwrite: bool = True
) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its final name only when it is complete.

    Args:
        path: final path; the folder must exist. An existing file is replaced at the end, or kept when the block
            raises.
        to_disk: also survive a power failure, not only a killed process (fsync).
        several_writers: allow several processes to write the same file at the same time; the last one wins.
        overwrite: whether an existing file is replaced; it is looked for when no other process can be writing it.

    Yields:
        The open binary file, `.<name>.part` in the same folder.

    Raises:
        FileExistsError: the file exists, and is not to be replaced.
        OSError: it cannot be written, or another process writes the same file at the same time.
    """
    final = Path(path)
    part = part_path(final if not several_writers else f"{final}.{os.getpid()}.{secrets.token_hex(4)}")
    own = None
    try:
        # not opened for writing: it may be a hard or symbolic link to a file that is in use
        _delete_left_over(part, final)
        with _created(part, final) as file:
            own = os.fstat(file.fileno())
            if not lock_open_file(file.fileno()) or not _is(part, own):  # before it was locked, another one came
                raise _begun_at_once(final)
            if not overwrite:
                refuse_existing(final)  # now, since another process may have completed it a moment ago
            yield file
            file.flush()
            if to_disk:
                os.fsync(file.fileno())
            if not _is(part, own):  # where there are no locks; the other's incomplete file must not get the name
                raise _begun_at_once(final)
            part.replace(final)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(part):
            error.filename = str(final)  # the path that the user knows
        name_full_file(error, final)
        if own is not None and _is(part, own):
            part.unlink()
        raise


def _created(part: Path, final: Path) -> BinaryIO:
    try:
        return part.open("xb")
    except FileExistsError as error:
        raise _begun_at_once(final) from error


def name_full_file(error: BaseException, path: Path) -> None:
    """Name the file in the error of a write that failed for lack of space, which Python does not; others are unchanged.

    Args:
        error: of the write.
        path: the file.
    """
    if isinstance(error, OSError) and error.filename is None and error.errno in CANNOT_GROW:
        error.filename = str(path)


def _is(path: Path, status: os.stat_result) -> bool:
    """Return whether a path still refers to the file with this status."""
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False


def write_atomically(path: str | os.PathLike[str], content: str | bytes, *, to_disk: bool = True) -> None:
    r"""Write a file atomically: it is never visible incomplete, even after a kill or on a full disk.

    Args:
        path: the file; an existing one is replaced.
        content: text (written as UTF-8; undecodable bytes of file names as ``\udcff``) or bytes.
        to_disk: as in ``atomic_file``.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    with atomic_file(path, to_disk=to_disk) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def with_home(path: str) -> str:
    """Return a path with the home folder in place of ``~`` at its start, as a shell does where ``~`` begins a word.

    Args:
        path: such as ``~/faces``; ``~somebody`` stays as it is.
    """
    return os.path.expanduser(path) if path == "~" or path.startswith("~/") else path  # noqa: PTH111


def make_writable_folder(folder: Path, option: str) -> None:
    """Create a folder if necessary, and check before a long computation that files can be created in it.

    Args:
        folder: path given by the user.
        option: the option that gives it, such as ``--cache``, for the message.

    Raises:
        ValueError: it is a file, or begins with ``~``.
        OSError: it cannot be created, or is not writable.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option} {folder} is a file: give a folder")
    if folder.parts[:1] == ("~",) and not Path("~").exists():  # a shell leaves it in --option=~/folder
        raise ValueError(f"{option} {folder}: `~` is not a folder here: give {with_home(str(folder))}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{option} {folder} cannot be created ({error.strerror}): give another") from error
    check_writable(folder, f"{option} {folder}")


def check_output_folder(folder: Path, option: str) -> None:
    """Raise the error of ``make_writable_folder`` if it can be foreseen; create nothing.

    Args:
        folder: path given by the user.
        option: as in ``make_writable_folder``.

    Raises:
        ValueError: it is a file, or begins with ``~``.
        OSError: it cannot be created, or is not writable.
    """
    absolute = folder.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    may_fail = not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK) or folder.parts[:1] == ("~",)
    if existing == absolute or may_fail:
        make_writable_folder(folder, option)


def check_writable(folder: Path, description: str, *, advice: str = "give another") -> None:
    """Check before a long computation that files can be created in a folder.

    Args:
        folder: an existing folder.
        description: what to call it in the message.
        advice: what to do, for the message.

    Raises:
        OSError: no file can be created.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{description} is not writable ({error.strerror}): {advice}") from error
