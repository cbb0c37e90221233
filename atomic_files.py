"""Files that are whole or not there: written to a temporary name in the same folder, then renamed."""

import os
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
        The open binary file, `.<name>.partial` in the same folder.
    """
    final = Path(path)
    partial = final.with_name(f".{final.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all.

    Args:
        path: final path.
        text: its content.
    """
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))
