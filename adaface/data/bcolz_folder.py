"""The official bcolz folders of face images: checked, then opened by bcolz, which relies on what they say.

Source: bcolz's folder layout (`meta/sizes`, `meta/storage`, `data/__<number>.blp`) and the header of a Blosc buffer.
Differences: bcolz believes the descriptions and the headers, and writes behind its buffers if they are wrong.
"""

import importlib
import math
import struct
from pathlib import Path
from typing import Any

from adaface.data.images import IMAGE_SHAPE
from adaface.system.json_file import read_object

_IMAGE_BYTES = 4 * math.prod(IMAGE_SHAPE)  # float32
_MOST_IMAGES_OF_CHUNK = 2000  # bcolz reserves 300 MB for them


def open_bcolz(path: Path) -> Any:
    """Open the images of a bcolz folder.

    Args:
        path: the folder.

    Returns:
        The array of bcolz, float32 (2P, 3, 112, 112), read by chunks on access.

    Raises:
        ValueError: the folder is damaged, or of other contents.
        RuntimeError: bcolz is not installed.
    """
    _check_bcolz(path)
    bcolz = bcolz_package()
    try:
        return bcolz.open(str(path), mode="r")
    except Exception as error:  # bcolz raises many kinds of exceptions
        raise ValueError(f"{path}: damaged bcolz folder ({error}); convert the set again") from error


def bcolz_package() -> Any:
    """Import bcolz on demand.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        bcolz = importlib.import_module("bcolz")
    except ImportError as error:
        raise RuntimeError(f"bcolz folders need a package ({error}): pip install bcolz-zipline") from error
    bcolz.set_nthreads(1)  # its threads would not survive the fork of a data worker
    return bcolz


def _check_bcolz(path: Path) -> None:
    """Check the description and the headers of a bcolz folder before bcolz opens it, which relies on both.

    Objects there are pickles, and a wrong size in a header is read from and written to memory of others.
    """
    try:
        shape = read_object(path / "meta" / "sizes")["shape"]
        storage = read_object(path / "meta" / "storage")
        dtype, chunk = storage["dtype"], storage["chunklen"]
        if dtype != "float32" or not isinstance(shape, list) or shape[1:] != [3, 112, 112]:
            raise ValueError(f"an array {shape} of {dtype}, expected float32 [2P, 3, 112, 112]")
        if not (type(shape[0]) is type(chunk) is int and 0 < shape[0] < 2**31 and 0 < chunk <= _MOST_IMAGES_OF_CHUNK):
            raise ValueError(f"{shape[0]} images in chunks of {chunk}")
        for number in range(-(-shape[0] // chunk)):
            _check_bcolz_chunk(path / "data" / f"__{number}.blp", min(chunk, shape[0] - number * chunk))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: damaged bcolz folder ({error}); convert the set again") from None


def _check_bcolz_chunk(file: Path, images: int) -> None:
    """Raise ValueError unless a chunk is a whole Blosc buffer of at least so many images, behind a header."""
    with file.open("rb") as opened:
        header = opened.read(32)[16:]
    if len(header) < 16:
        raise ValueError(f"{file.name} is truncated")
    _, _, flags, number_bytes, size, block, stored = struct.unpack("<4B3I", header)
    least, most = (count * _IMAGE_BYTES for count in (images, _MOST_IMAGES_OF_CHUNK))
    right = number_bytes == 4 and least <= size <= most and size % _IMAGE_BYTES == 0 and 0 < block <= size
    copied = flags & 2  # instead of compressed
    if not right or stored != file.stat().st_size - 16 or (copied and stored != size + 16):
        raise ValueError(f"the header of {file.name} does not fit {images} images, or its length")
