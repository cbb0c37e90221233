"""Read photographs of any usual kind: upright, three colours, eight bits.

Grey becomes three equal channels, CMYK is converted, 16 bits are divided by 256, transparency lies on black, of several
pictures in a file the first is taken, and the camera's orientation (EXIF) is followed.

A JPEG's scans are counted before it is decoded: each costs a pass over all its pixels, however few its bytes. A
progressive photograph has about ten; a file of some kilobytes can repeat one scan thousands of times, and would take a
decoder hours.

``Photographs`` is a list of aligned faces: each photograph is read, and its largest face found and warped, on demand.

Sources: Pillow decodes. The number of pixels is read from the header first, and only formats that Pillow decodes by
itself are tried: no file makes it start another program. ITU-T T.81, annex B, for scans: markers are FF and a code; in
a scan's data FF is followed by 00 or a restart marker.
"""

import contextlib
import functools
import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from adaface.alignment.detector import MTCNN, choose_faces
from adaface.alignment.warp import warp_face
from adaface.data.image_list import ImageFiles

MOST_PIXELS = 178_000_000  # about what Pillow opens without being told to; 534 MB when decoded
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "JPEG2000")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError, KeyError, IndexError, MemoryError)
MOST_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # but for those that have no length
_SCAN, _END = 0xDA, 0xD9
_HOW = "the largest face that MTCNN finds, version 1"  # another number where crops become different


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


def count_scans(jpeg: bytes) -> int:
    """Count the scans of a JPEG, up to one more than ``MOST_SCANS``.

    Args:
        jpeg: content of the file; what follows its end, such as a film, is not looked at.
    """
    position, scans = 0, 0
    while scans <= MOST_SCANS and (found := _MARKER.search(jpeg, position)):
        code, length = jpeg[found.end() - 1], jpeg[found.end() : found.end() + 2]
        if code == _END:
            break
        scans += code == _SCAN
        position = found.end() + max(2, int.from_bytes(length, "big"))
    return scans


@dataclass(frozen=True)
class Photographs:
    """The largest face of each photograph; an ``data.image_list.ImageList``.

    Attributes:
        name: what they are.
        paths: (N,) files.
    """

    name: str
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Return one face, (112, 112, 3) uint8 BGR.

        Raises:
            ValueError: no photograph, or no face in it.
        """
        image = read_photograph(self.paths[index])
        faces = choose_faces(_detector().detect(image), "largest", image.shape)
        if not faces:
            raise ValueError(f"no face was found in {self.paths[index]}")
        return warp_face(image, faces[0].landmarks)

    def fingerprint(self) -> str:
        """Return a digest of names, sizes and times of change."""
        return ImageFiles(self.name, self.paths, prepared_as=_HOW).fingerprint()


@functools.cache
def _detector() -> MTCNN:
    """One for each process: it takes a moment to load, and serves all threads."""
    return MTCNN()
