"""The files that embeddings are kept in: one evaluation at a time fills one, and none is read that is not whole.

A table is a `.npy` of float32 that has `.<name>.part` as its name until all of it is filled. The process that fills it
holds the lock of that file; another one that needs the same table waits, and reads what the first has made.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from locks import locked_when_free

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def load_or_fill(file: Path, shape: tuple[int, int], fill: Callable[[Path], None], *, mapped: bool) -> np.ndarray:
    """Return a table, filled where it is not there.

    Args:
        file: its final name, in a folder that exists.
        shape: of the table.
        fill: is given the name of the unfinished file, opens it by ``open_table``, and fills it.
        mapped: map it from the file instead of reading it.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be written.
    """
    if not file.is_file():
        _fill(file, shape, fill)
    return _load(file, shape, mapped)


def open_table(part: Path, shape: tuple[int, int]) -> np.memmap:
    """Open the unfinished file of an evaluation that was stopped, or a new one, for writing.

    Args:
        part: the file.
        shape: of the table.

    Raises:
        OSError: there is no space for it.
    """
    with contextlib.suppress(ValueError, EOFError, OSError):  # absent, or killed before its header was whole
        table = np.lib.format.open_memmap(part, mode="r+")
        if table.shape == shape and table.dtype == np.float32:
            return table
    table = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    _reserve(part)
    return table


def _fill(file: Path, shape: tuple[int, int], fill: Callable[[Path], None]) -> None:
    """Fill a table, or wait until another evaluation has."""
    part = file.with_name(f".{file.name}.part")
    note = f"note: another evaluation makes {file.name}; waiting for it"
    with locked_when_free(part, lambda: print(note, file=sys.stderr)):
        if file.is_file():  # the other was first
            part.unlink()
            return
        fill(part)
        part.replace(file)


def _load(file: Path, shape: tuple[int, int], mapped: bool) -> np.ndarray:
    try:
        table = np.load(file, mmap_mode="r" if mapped else None)
        found = f"shape {table.shape} of {table.dtype}"
    except (ValueError, EOFError):  # numpy recommends to load without protection: not passed on
        table, found = None, "no whole table"
    if table is None or table.shape != shape or table.dtype != np.float32:
        raise ValueError(f"{file} is damaged ({found}, expected shape {shape} of float32): delete it")
    return table


def _reserve(part: Path) -> None:
    """Take the space of a new file now: where it is missing later, writing into the mapping kills the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    size = part.stat().st_size
    file = os.open(part, os.O_RDWR)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in _NO_SPACE:
            part.unlink()
            raise OSError(
                f"no space for {size / 1e6:.1f} MB of embeddings in {part.parent}: make room, or give another --cache "
                f"({os.strerror(error.errno)})"
            ) from error
    finally:
        os.close(file)
