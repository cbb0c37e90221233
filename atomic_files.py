"""Files that are whole or absent: written under a temporary name in the same folder, then renamed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when it is complete.

    Args:
        path: final path; the folder must exist. An existing file is replaced at the end, or kept when the block
            raises.

    Yields:
        The open binary file, `.<name>.part` in the same folder.
    """
    final = Path(path)
    part = final.with_name(f".{final.name}.part")
    try:
        part.unlink(missing_ok=True)  # what a kill left may be another name of a file that is in use, or a link to it
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(final)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(part):
            error.filename = str(final)  # of which the user knows
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    r"""Write a file so that nobody ever sees a part of it, not even after a kill or on a full disk.

    Args:
        path: the file; what was there before is replaced.
        content: text (written as UTF-8; of a file name that is none, the other bytes as ``\udcff``) or bytes.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    with atomic_file(path) as file:
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
