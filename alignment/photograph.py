"""Read photographs of any usual kind: upright, three colours, eight bits.

Grey becomes three equal channels, CMYK is converted, 16 bits are divided by 256, transparency lies on black, of several
pictures in a file the first is taken, and the camera's orientation (EXIF) is followed.

Source: Pillow decodes. The number of pixels is read from the header first, and only formats that Pillow decodes by
itself are tried: no file makes it start another program.
"""

import contextlib
import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from alignment.jpeg_scans import MOST_SCANS, count_scans

MOST_PIXELS = 178_000_000  # about what Pillow opens without being told to; 534 MB when decoded
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "JPEG2000")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError, KeyError, IndexError, MemoryError)


def read_photograph(path: Path, *, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Return a photograph, (H, W, 3) uint8 BGR.

    Args:
        path: of the file.
        most_pixels: refused where the header announces more.

    Raises:
        ValueError: no file, no image, a damaged or a too large one; the message names it.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the file of a photograph")
    try:
        with path.open("rb") as file:
            return _decoded(file, str(path), most_pixels)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def decode_photograph(encoded: bytes, name: str, *, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Return a photograph, (H, W, 3) uint8 BGR.

    Args:
        encoded: content of an image file.
        name: what to call it in messages.
        most_pixels: refused where the header announces more.

    Raises:
        ValueError: no image, a damaged or a too large one; the message names it.
    """
    return _decoded(io.BytesIO(encoded), name, most_pixels)


def _decoded(file: BinaryIO, name: str, most_pixels: int) -> np.ndarray:
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except _BROKEN as error:
        raise ValueError(f"{name} is no image of a kind that can be read ({', '.join(_FORMATS)})") from error
    if image.width * image.height > most_pixels:
        raise ValueError(
            f"{name} is {image.width}x{image.height} px, more than the {most_pixels:,} pixels that are read: "
            "make it smaller first"
        )
    if image.format in ("JPEG", "MPO"):
        _check_scans(file, name)
    try:
        image.load()
        return np.ascontiguousarray(_colours(_upright(image))[..., ::-1])
    except _BROKEN as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _check_scans(file: BinaryIO, name: str) -> None:
    place = file.tell()
    file.seek(0)
    scans = count_scans(file.read())
    file.seek(place)
    if scans > MOST_SCANS:
        raise ValueError(
            f"{name} has more than {MOST_SCANS} scans, each of which takes as long as a whole image: save it anew"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Return the image as its camera was held, or as it is where that cannot be read."""
    with contextlib.suppress(*_BROKEN):
        ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies what is upright already
    return image


def _colours(image: Image.Image) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB."""
    if image.mode in _DEEP:
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("its pixels are fractions, expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
