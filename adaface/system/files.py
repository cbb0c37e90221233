"""Files and folders that are whole or absent: written under a temporary name in the same folder, then renamed."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def part_path(path: str | os.PathLike[str]) -> Path:
    """Return the temporary name of a file or folder that is being written, `.<name>.part` in the same folder.

    Args:
        path: its final path.
    """
    final = Path(path)
    return final.with_name(f".{final.name}.part")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write a file, folder or link to, which gets its final name at the end of the block.

    For what cannot be written through the open file of ``atomic_file``.

    Args:
        path: final path; its parent must exist. An existing file or link is replaced at the end, or kept when the
            block raises; of folders only an empty one is.

    Yields:
        The temporary path, at which there is nothing.

    Raises:
        OSError: it cannot be written.
    """
    part = part_path(path)
    _delete(part)  # what a kill left
    try:
        yield part
        part.replace(path)
    except BaseException:
        _delete(part)
        raise


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_file(
    path: str | os.PathLike[str], *, to_disk: bool = True, several_writers: bool = False
) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when it is complete.

    Args:
        path: final path; the folder must exist. An existing file is replaced at the end, or kept when the block
            raises.
        to_disk: whether it is to be whole after a power cut too, and not only after a kill.
        several_writers: whether several processes may write the same file at the same time; the last one wins.

    Yields:
        The open binary file, `.<name>.part` in the same folder.

    Raises:
        OSError: it cannot be written, or someone else writes the same file at the same time.
    """
    final = Path(path)
    part = part_path(final if not several_writers else f"{final}.{os.getpid()}.{secrets.token_hex(4)}")
    own = None
    try:
        part.unlink(missing_ok=True)  # what a kill left may be another name of a file that is in use, or a link to it
        with part.open("xb") as file:
            own = os.fstat(file.fileno())
            yield file
            file.flush()
            if to_disk:
                os.fsync(file.fileno())
            if not _is(part, own):  # another's half, which must not get the name
                raise FileExistsError(errno.EEXIST, "another process writes it at the same time", str(final))
            part.replace(final)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(part):
            error.filename = str(final)  # of which the user knows
        if own is not None and _is(part, own):
            part.unlink()
        raise


def _is(path: Path, status: os.stat_result) -> bool:
    """Whether a path leads to a file whose status was taken."""
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False


def write_atomically(path: str | os.PathLike[str], content: str | bytes, *, to_disk: bool = True) -> None:
    r"""Write a file so that nobody ever sees a part of it, not even after a kill or on a full disk.

    Args:
        path: the file; what was there before is replaced.
        content: text (written as UTF-8; of a file name that is none, the other bytes as ``\udcff``) or bytes.
        to_disk: as of ``atomic_file``.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    with atomic_file(path, to_disk=to_disk) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def check_writable(folder: Path, told: str) -> None:
    """Raise now, and not after hours, where no file can be made in a folder.

    Args:
        folder: that exists.
        told: what to call it in the message.

    Raises:
        OSError: none can.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{told} cannot be written into ({error.strerror}): give another") from error
