"""Aligned face images: format detection, decoding, encoding; sequences that read an image on demand."""

import contextlib
import io
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, overload

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from adaface.data.image_header import PILLOW_ERRORS, open_with_pillow, read_header
from adaface.data.pair_pickle import EncodedImage
from adaface.system.command_line import is_out_of_memory

IMAGE_SHAPE = (112, 112, 3)
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_SAMPLING_444 = 0x111111
_JPEG_QUALITY = 95
_ORIENTATION = ExifTags.Base.Orientation
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def decode_image(encoded: EncodedImage, what: str) -> np.ndarray:
    """Decode one aligned face.

    Args:
        encoded: JPEG or PNG (any format that OpenCV reads) as bytes or as a one-dimensional uint8 array; or the pixels
            themselves, a (112, 112, 3) uint8 array in RGB order as old `.bin` files hold them.
        what: name of the image for the error message, such as `train.rec, key 17`.

    Returns:
        (112, 112, 3) uint8 BGR.

    Raises:
        ValueError: not an image, damaged, not color, or not 112x112.
    """
    if isinstance(encoded, np.ndarray):
        if encoded.ndim != 1:
            return _pixels_to_bgr(encoded, what)
        encoded = encoded.tobytes()
    header = read_header(encoded, what)
    if (header.height, header.width) != IMAGE_SHAPE[:2]:  # before it is decoded: it may announce any size
        raise ValueError(_wrong_size(header.height, header.width, what))
    # ANYCOLOR keeps one channel for a grayscale image, so that it is detected without decoding again.
    image = decode_pixels(encoded, header.format, cv2.IMREAD_ANYCOLOR)
    if image is None:
        raise ValueError(f"{what} is not a readable image ({len(encoded)} bytes); the data is damaged")
    if image.shape != IMAGE_SHAPE:
        raise ValueError(_wrong_shape(image, what))
    return image


def as_bgr(image: Any, what: str) -> np.ndarray:
    """Return an image as BGR: an array as it is, a Pillow image as its file is read.

    Args:
        image: uint8 array (H, W, 3), BGR by contract, or a Pillow image.
        what: name of the image for the error message.

    Raises:
        ValueError: neither, or a Pillow image that cannot be decoded; what other objects turn into as an array may be
            of any color order.
    """
    if isinstance(image, Image.Image):
        try:
            return pillow_to_bgr(image)
        except PILLOW_ERRORS as error:
            raise ValueError(f"{what} cannot be converted: {error}") from error
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{what} is a {type(image).__name__}, expected a uint8 array in BGR order, or a Pillow image")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{what} is {image.dtype} of shape {image.shape}, expected uint8 of (H, W, 3) in BGR order")
    return image


def pillow_to_bgr(image: Image.Image) -> np.ndarray:
    """Return a Pillow image of any mode as (H, W, 3) uint8 BGR, upright.

    Gray images get three equal channels, 16 bits are divided by 256, transparent areas are black, and the orientation
    in EXIF is applied if it can be read. A deep image without a file has 8 bits if no level is above 255.

    Args:
        image: it is not changed.

    Raises:
        ValueError: floating-point pixels. Other errors of Pillow: it is damaged.
    """
    image.load()  # an error here is not one of EXIF
    of_file = bool(image.format)
    with contextlib.suppress(*PILLOW_ERRORS):
        if image.getexif().get(_ORIENTATION, 1) != 1:  # an upright image would be copied
            image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP:
        gray = np.asarray(image).astype(np.int64).clip(0, 65535)
        if of_file or gray.max() > 255:  # without a file, it may be a converted image of 8 bits
            gray >>= 8
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.ascontiguousarray(np.asarray(image if image.mode == "RGB" else image.convert("RGB"))[..., ::-1])


def decode_pixels(encoded: bytes, format_name: str, flags: int) -> np.ndarray | None:
    """Decode an image whose header was checked, by OpenCV; by Pillow what OpenCV does not read.

    AVIF too: its pixels may be of another size than announced, which takes OpenCV a sixfold of Pillow's memory.

    Args:
        encoded: the whole image.
        format_name: its format, from its header.
        flags: of OpenCV, such as ``cv2.IMREAD_COLOR``.

    Returns:
        (H, W, 3) uint8 BGR, or (H, W) where the flags allow gray; None if it is damaged.

    Raises:
        MemoryError: there is no memory for its pixels.
    """
    try:
        if format_name in ("HEIC", "AVIF"):
            image = open_with_pillow(io.BytesIO(encoded))
            if image.mode == "L" and not flags & cv2.IMREAD_COLOR:
                return np.asarray(image)
            return pillow_to_bgr(image)
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except (cv2.error, *PILLOW_ERRORS) as error:
        if is_out_of_memory(error):  # OpenCV's code -4
            raise MemoryError(f"for the pixels of a {format_name} image: {error}") from error
        return None


def _wrong_shape(image: np.ndarray, what: str) -> str:
    """Describe why an image is not (112, 112, 3)."""
    if image.ndim == 2 or image.shape[2] != 3:
        return f"{what}: a grayscale image, not color; expected 112x112 color faces (remove it or convert it)"
    return _wrong_size(image.shape[0], image.shape[1], what)


def _wrong_size(height: int, width: int, what: str) -> str:
    return f"{what}: {width}x{height} px, expected a face aligned to 112x112: adaface align <photographs> <faces>"


def _pixels_to_bgr(pixels: np.ndarray, what: str) -> np.ndarray:
    """Check RGB pixels of an old `.bin` and turn them into BGR."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape != IMAGE_SHAPE:
        raise ValueError(
            f"{what}: an array of shape {pixels.shape} and type {pixels.dtype}, expected encoded bytes or "
            f"(112, 112, 3) uint8 RGB pixels"
        )
    return np.ascontiguousarray(pixels[:, :, ::-1])


def image_suffix(data: bytes, what: str) -> str:
    """Detect a complete JPEG or PNG by its first and last bytes, without decoding it.

    Args:
        data: encoded image.
        what: name for the error message.

    Returns:
        `.jpg` or `.png`.

    Raises:
        ValueError: anything else, or an image whose end is missing.
    """
    for start, end, suffix in ((_JPEG_START, _JPEG_END, ".jpg"), (_PNG_START, _PNG_END, ".png")):
        if data.startswith(start):
            # Some encoders pad the end; entropy-coded data never contains the end marker.
            if data.endswith(end) or data.rfind(end) > 0:
                return suffix
            raise ValueError(f"{what} holds a {suffix[1:]} image without its end ({len(data)} bytes)")
    if not data:
        raise ValueError(f"{what} holds no image (0 bytes)")
    raise ValueError(f"{what} holds no JPEG or PNG ({len(data)} bytes that start with {data[:4].hex(' ')})")


def swap_red_blue(data: bytes, suffix: str, what: str) -> bytes:
    """Swap red and blue of an encoded image; exact for PNG, lossy for JPEG.

    Args:
        data: encoded 112x112 color image.
        suffix: `.jpg` or `.png`, the format to write.
        what: name for the error message.

    Returns:
        The encoded image, JPEG at quality 95 without color subsampling.

    Raises:
        ValueError: not a 112x112 color image.
    """
    return encode_image(np.ascontiguousarray(decode_image(data, what)[:, :, ::-1]), suffix)


def encode_image(image: np.ndarray, suffix: str) -> bytes:
    """Encode a color image.

    Args:
        image: (H, W, 3) uint8 BGR.
        suffix: `.jpg` or `.png`.

    Returns:
        The encoded image, JPEG at quality 95 without color subsampling.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLING_444]
    done, encoded = cv2.imencode(suffix, image, options if suffix == ".jpg" else [])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image as {suffix}")
    return encoded.tobytes()


class LazyImages(Sequence[np.ndarray]):
    """Images, each (112, 112, 3) uint8 BGR, read on access.

    Args:
        location: where they are, for messages.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Return one image, (112, 112, 3) uint8 BGR.

        Args:
            index: 0 to the number of images - 1.
        """

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        count = len(self)
        position = int(index) + count if index < 0 else int(index)
        if not 0 <= position < count:
            raise IndexError(f"{self.location} has {count} images, got index {index}")
        return self.read(position)
