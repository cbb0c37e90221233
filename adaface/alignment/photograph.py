"""Read photographs in the usual formats as upright 8-bit BGR images.

Gray images get three equal channels, CMYK is converted, 16 bits are divided by 256, transparent areas are black, only
the first image of a file is read, and the orientation in EXIF is applied.

``Photographs`` is a list of aligned faces: each photograph is read and its largest face detected and warped on demand.

Source: Pillow decodes, a JPEG on request at a fraction of its size (libjpeg scales its blocks). The number of pixels
and the scans of a JPEG are read from the header first.
"""

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaface.alignment.detector import MTCNN, choose_faces
from adaface.alignment.warp import warp_face
from adaface.data.image_header import PHOTOGRAPH_PIXELS, PILLOW_ERRORS, check_header, open_with_pillow
from adaface.data.image_list import ImageFiles, NoFaceError
from adaface.data.images import pillow_to_bgr

_HOW = "the largest face that MTCNN finds, version 1"  # increase the number when crops change


def read_photograph(path: Path, *, most_pixels: int = PHOTOGRAPH_PIXELS) -> np.ndarray:
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
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    return decode_photograph(encoded, str(path), most_pixels=most_pixels)


def decode_photograph(encoded: bytes, name: str, *, most_pixels: int = PHOTOGRAPH_PIXELS) -> np.ndarray:
    """Return a photograph, (H, W, 3) uint8 BGR.

    Args:
        encoded: content of an image file.
        name: name for messages.
        most_pixels: images with more pixels, as announced by the header, are rejected.

    Raises:
        ValueError: not an image, damaged, or too large; the message contains ``name``.
    """
    return decode_reduced(encoded, name, most_pixels=most_pixels)[0]


def decode_reduced(
    encoded: bytes, name: str, *, most_pixels: int = PHOTOGRAPH_PIXELS, enough_pixels: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a photograph, and the size of the file's image; a large JPEG is shrunk while it is decoded.

    Args:
        encoded: content of an image file.
        name: name for messages.
        most_pixels: images with more pixels, as announced by the header, are rejected.
        enough_pixels: the sides of a JPEG are divided by 2, 4 or 8 as long as it keeps so many pixels; None: by 1.

    Returns:
        (H, W, 3) uint8 BGR, with fewer than four times ``enough_pixels`` if it is a JPEG; width and height before the
        division, upright.

    Raises:
        ValueError: not an image, damaged, or too large; the message contains ``name``.
        MemoryError: there is no memory for its pixels; the message contains ``name``.
    """
    header = check_header(encoded, name, most_pixels)
    size = header.width, header.height
    try:
        image = open_with_pillow(io.BytesIO(encoded))
        if enough_pixels is not None and enough_pixels < math.prod(size):
            scale = math.sqrt(enough_pixels / math.prod(size))
            image.draft(None, (math.ceil(size[0] * scale), math.ceil(size[1] * scale)))  # ignored but for JPEG
        image.load()
        stored = image.size
        pixels = pillow_to_bgr(image)
        rotated = pixels.shape[1::-1] != stored
        return pixels, size[::-1] if rotated else size
    except MemoryError as error:
        raise MemoryError(f"for the pixels of {name}, {size[0]}x{size[1]} px") from error
    except PILLOW_ERRORS as error:
        raise ValueError(f"{name} is damaged: {error}") from error


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
            NoFaceError: the photograph has no face.
            ValueError: it cannot be read.
        """
        image = read_photograph(self.paths[index])
        faces = choose_faces(_detector().detect(image), "largest", image.shape)
        if not faces:
            raise NoFaceError(f"no face was found in {self.paths[index]}")
        return warp_face(image, faces[0].landmarks)

    def fingerprint(self) -> str:
        """Return a digest of names, sizes and modification times."""
        return ImageFiles(self.name, self.paths, prepared_as=_HOW).fingerprint()


@functools.cache
def _detector() -> MTCNN:
    """Return the detector of this process: loading takes a moment, and all threads share it."""
    return MTCNN()
