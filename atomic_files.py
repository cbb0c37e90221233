"""Small files that are whole or absent: written under a temporary name, then renamed."""

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that nobody ever sees a part of it, not even after a kill or a full disk.

    Args:
        path: the file; what was there before is replaced.
        content: text (written as UTF-8) or bytes.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
