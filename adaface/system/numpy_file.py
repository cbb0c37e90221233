"""Read `.npy` and `.npz` files; whatever is wrong with one is a ValueError.

A damaged header is Python source to NumPy, and a damaged archive can ask for any compression, so that reading fails
with one of a dozen exceptions.
"""

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

DAMAGED = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, SyntaxError, RecursionError, MemoryError,
    OverflowError, ZeroDivisionError, RuntimeError, SystemError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_array(path: Path, *, memory_map: bool = False, writable: bool = False) -> np.ndarray:
    """Read a `.npy`.

    Args:
        path: the file.
        memory_map: map the file instead of reading it.
        writable: map it for writing.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, contains objects, or is longer than its header announces.
    """
    mode: Literal["r", "r+"] = "r+" if writable else "r"
    try:
        _check_header_length(path)
        array = np.load(path, mmap_mode=mode, allow_pickle=False)  # mapped: nothing is reserved for what is not there
        if not isinstance(array, np.memmap):
            raise ValueError("it is an archive")
        if extra := path.stat().st_size - array.offset - array.nbytes:
            raise ValueError(f"it has {extra:,} bytes more than its header announces")
        return array if memory_map or writable else np.array(array)
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or not a .npy file ({describe(error)})") from error


def _check_header_length(path: Path) -> None:
    """Raise ValueError if the header announces more bytes than the file has, for which NumPy would reserve memory."""
    with path.open("rb") as file:
        start = file.read(12)
    # from version 2 on, the length takes four bytes
    if start[:6] == b"\x93NUMPY" and start[6] > 1 and int.from_bytes(start[8:], "little") > path.stat().st_size:
        raise ValueError("its header announces more bytes than the file has")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a `.npz` as ``numpy.savez`` writes it, without compression.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, compressed, or contains objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if {member.compress_type for member in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ValueError("its arrays are compressed in a way that NumPy does not use")
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("its arrays are compressed, or announce more bytes than the file has")
            if damaged := archive.testzip():  # NumPy stops reading before the checksum is compared
                raise ValueError(f"the checksum of {damaged} is wrong")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # NumPy returns other members as bytes
            raise ValueError("not all of its members are arrays")
        return arrays
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or not a .npz file ({describe(error)})") from error


def describe(error: BaseException) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
