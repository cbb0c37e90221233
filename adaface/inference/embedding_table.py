"""The file of the embeddings of a list of images: a `.npy` of float32 (N, D + 2) that is filled row by row.

A row is an embedding, its norm, and a state, which is written last: to do (0), done (1), unreadable (2) or without a
face (3). The processes of an evaluation write into the file, so that an interrupted one resumes where it stopped.

What could not be read is tried again with each evaluation, since it may have been a share that was away for a moment:
neither the size nor the time of a file tells.

An unfinished file is named `.<name>.part`; it gets its final name when all rows are filled, so that no incomplete file
is read. One process at a time fills it and holds its lock; others that need the same file wait until it is complete.
"""

import contextlib
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from adaface.system.files import CANNOT_GROW, part_path
from adaface.system.locks import locked_when_free
from adaface.system.numpy_file import read_array

TO_DO, DONE, UNREADABLE, FACELESS = range(4)
_UNIT_TOLERANCE = 1e-3
_ROWS_AT_ONCE = 16_384


def load_or_fill(file: Path, shape: tuple[int, int], fill: Callable[[Path], None], *, mapped: bool) -> np.ndarray:
    """Load a table from a file, or fill it first if the file does not exist.

    Args:
        file: the file, in an existing folder.
        shape: shape of the table.
        fill: called with the path of the unfinished file; opens it with ``open_table`` and fills it.
        mapped: memory-map the file instead of reading it.

    Raises:
        ValueError: the file is damaged.
        OSError: the file cannot be written.
    """
    if not file.is_file():
        _fill(file, fill)
    return _load(file, shape, mapped)


def fill_again(file: Path, fill: Callable[[Path], None]) -> None:
    """Fill rows of a complete table again, in place: those who have mapped it see complete rows all the time.

    Does nothing if this user may not write into the file.

    Args:
        file: the file.
        fill: called with the path of the file; opens it with ``reopen_table`` and changes rows.
    """
    if not os.access(file, os.W_OK):
        return
    part = part_path(file)
    with locked_when_free(part, _waiting_for(file)):
        try:
            fill(file)
        finally:
            part.unlink(missing_ok=True)  # it was only the lock


def reopen_table(file: Path) -> np.memmap:
    """Open a table that another process has made, or that is complete, for writing; it is never made anew.

    Args:
        file: the file.

    Raises:
        OSError: it is gone, or cannot be mapped.
        ValueError: it is damaged.
    """
    return cast(np.memmap, read_array(file, writable=True))


def open_table(part: Path, shape: tuple[int, int]) -> np.memmap:
    """Open the unfinished file of an interrupted evaluation, or a new one, for writing.

    Args:
        part: the file.
        shape: shape of the table.

    Raises:
        OSError: there is no disk space for it.
    """
    with contextlib.suppress(ValueError, OSError):  # absent, or its header is incomplete
        table = reopen_table(part)
        if table.shape == shape and table.dtype == np.float32:
            return table
    try:
        table = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        _reserve(part)
    except OSError as error:
        if error.errno not in CANNOT_GROW:
            raise
        part.unlink(missing_ok=True)
        what, action = "no space", "free some space"
        if error.errno == errno.EFBIG:
            what, action = "the limit of the file size (ulimit -f) is too low", "raise it"
        raise OSError(
            f"{what} for {4e-6 * math.prod(shape):.1f} MB of embeddings in {part.parent}: {action}, or give another "
            f"--cache ({os.strerror(error.errno)})"
        ) from error
    return table


def check_rows(table: np.ndarray, file: Path) -> None:
    """Raise ValueError if rows are not filled: a page that a disk has lost is zero.

    Args:
        table: a complete table.
        file: its file, for the message.
    """
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = table[start : start + _ROWS_AT_ONCE]
        done = rows[rows[:, -1] == DONE]
        lengths, norms = np.linalg.norm(done[:, :-2], axis=1), done[:, -2]
        whole = np.where(norms == 0, lengths == 0, np.abs(lengths - 1) < _UNIT_TOLERANCE)  # 0: both views cancel out
        if not (np.isin(rows[:, -1], (DONE, UNREADABLE, FACELESS)).all() and whole.all() and np.isfinite(norms).all()):
            raise ValueError(f"{file} is damaged: its embeddings are no unit vectors, or missing; delete it")


def _fill(file: Path, fill: Callable[[Path], None]) -> None:
    """Fill a table, or wait until another process has filled it."""
    part = part_path(file)
    with locked_when_free(part, _waiting_for(file)):
        if file.is_file():  # the other process has finished
            part.unlink()
            return
        fill(part)
        part.replace(file)


def _waiting_for(file: Path) -> str:
    return f"note: another process is writing {file.name}; waiting for it"


def _load(file: Path, shape: tuple[int, int], mapped: bool) -> np.ndarray:
    try:
        table = read_array(file, memory_map=mapped)
        content = f"shape {table.shape} of {table.dtype}"
    except ValueError:  # NumPy's message recommends to allow pickles
        table, content = None, "incomplete"
    if table is None or table.shape != shape or table.dtype != np.float32:
        raise ValueError(f"{file} is damaged ({content}, expected shape {shape} of float32): delete it")
    return table


def _reserve(part: Path) -> None:
    """Reserve the disk space of a new file: if it were missing later, writing to the mapping would kill the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    file = os.open(part, os.O_RDWR)
    try:
        os.posix_fallocate(file, 0, part.stat().st_size)
    finally:
        os.close(file)
