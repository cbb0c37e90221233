"""Read photographs in the usual formats as upright 8-bit BGR images.

Gray images get three equal channels, CMYK is converted, 16 bits are divided by 256, transparent areas are black, only
the first image of a file is read, and the orientation in EXIF is applied.

The scans of a JPEG are counted before decoding: each costs a pass over all pixels, however few bytes it has. A
progressive photograph has about ten; a file of a few kilobytes can repeat one scan thousands of times, and would keep a
decoder busy for hours.

``Photographs`` is a list of aligned faces: each photograph is read and its largest face detected and warped on demand.

Sources: Pillow decodes. The number of pixels is read from the header first, and only formats that Pillow decodes itself
are tried: no file starts another program. Scans: ITU-T T.81, annex B: a marker is FF and a code; in the data of a scan,
FF is followed by 00 or a restart marker.
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

MOST_PIXELS = 178_000_000  # about Pillow's default limit; 534 MB when decoded
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "JPEG2000")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError, KeyError, IndexError, MemoryError)
MOST_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # except those without a length
_SCAN, _END = 0xDA, 0xD9
_HOW = "the largest face that MTCNN finds, version 1"  # increase the number when crops change


def read_photograph(path: Path, *, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Return a photograph, (H, W, 3) uint8 BGR.

    Args:
        path: image file.
        most_pixels: images with more pixels, as announced by the header, are rejected.

    Raises:
        ValueError: no such file, not an image, damaged, or too large; the message names the file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected an image file")
    try:
        with path.open("rb") as file:
            return _decoded(file, str(path), most_pixels)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def decode_photograph(encoded: bytes, name: str, *, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Return a photograph, (H, W, 3) uint8 BGR.

    Args:
        encoded: content of an image file.
        name: name for messages.
        most_pixels: images with more pixels, as announced by the header, are rejected.

    Raises:
        ValueError: not an image, damaged, or too large; the message contains ``name``.
    """
    return _decoded(io.BytesIO(encoded), name, most_pixels)


def _decoded(file: BinaryIO, name: str, most_pixels: int) -> np.ndarray:
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except _BROKEN as error:
        raise ValueError(f"{name} is not an image in a supported format ({', '.join(_FORMATS)})") from error
    if image.width * image.height > most_pixels:
        raise ValueError(
            f"{name} is {image.width}x{image.height} px, more than the maximum of {most_pixels:,} pixels: "
            "make it smaller first"
        )
    if image.format in ("JPEG", "MPO"):
        _check_scans(file, name)
    try:
        image.load()
        return np.ascontiguousarray(_as_rgb(_upright(image))[..., ::-1])
    except _BROKEN as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _check_scans(file: BinaryIO, name: str) -> None:
    place = file.tell()
    file.seek(0)
    scans = count_scans(file.read())
    file.seek(place)
    if scans > MOST_SCANS:
        raise ValueError(
            f"{name} has more than {MOST_SCANS} scans, each as slow to decode as a whole image: save it again"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Return the image rotated as its EXIF orientation says, or unchanged if that cannot be read."""
    with contextlib.suppress(*_BROKEN):
        ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies upright images
    return image


def _as_rgb(image: Image.Image) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB."""
    if image.mode in _DEEP:
        gray = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def count_scans(jpeg: bytes) -> int:
    """Count the scans of a JPEG, up to one more than ``MOST_SCANS``.

    Args:
        jpeg: content of the file; data after its end, such as a video, is ignored.
    """
    position, scans = 0, 0
    while scans <= MOST_SCANS and (marker := _MARKER.search(jpeg, position)):
        code, length = jpeg[marker.end() - 1], jpeg[marker.end() : marker.end() + 2]
        if code == _END:
            break
        scans += code == _SCAN
        position = marker.end() + max(2, int.from_bytes(length, "big"))
    return scans


@dataclass(frozen=True)
class Photographs:
    """The aligned largest face of each photograph; a ``data.image_list.ImageList``.

    Attributes:
        name: name of the list.
        paths: (N,) image files.
    """

    name: str
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Return one face, (112, 112, 3) uint8 BGR.

        Raises:
            ValueError: the photograph cannot be read, or has no face.
        """
        image = read_photograph(self.paths[index])
        faces = choose_faces(_detector().detect(image), "largest", image.shape)
        if not faces:
            raise ValueError(f"no face was found in {self.paths[index]}")
        return warp_face(image, faces[0].landmarks)

    def fingerprint(self) -> str:
        """Return a digest of names, sizes and modification times."""
        return ImageFiles(self.name, self.paths, prepared_as=_HOW).fingerprint()


@functools.cache
def _detector() -> MTCNN:
    """Return the detector of this process: loading takes a moment, and all threads share it."""
    return MTCNN()
