"""The size to which an image is decoded, for the formats whose headers Pillow reads and whose pixels OpenCV decodes.

A file can state its size twice. Where Pillow takes one statement and the library behind OpenCV the other, an image that
was checked as a face of 112x112 px is decoded to gigabytes. Here is what that library takes:

- JPEG 2000 (OpenJPEG): the SIZ segment of the first codestream. Pillow: the last ``ihdr`` box before it.
- TIFF (libtiff): the first tag of a number, of any integer type. Pillow skips types that it does not know.
- PBM, PGM, PPM (OpenCV itself): a comment separates numbers. Pillow: it may stand inside of a number.

BMP, GIF and WEBP state their size once, or OpenCV compares: its decoders refuse a frame that does not fit the canvas.

Sources: ITU-T T.800, A.5.1 (SIZ) and annex I (boxes); TIFF 6.0, section 2, and its 64-bit variant; netpbm's ppm(5).
"""

import re
import struct

_CODESTREAM = b"\xff\x4f\xff\x51"  # start of codestream, SIZ
_MOST_COMPONENTS = 4  # of a codestream: each takes as much memory as the image
_TIFF_SIZES = (256, 257, 322, 323)  # width, height, width and height of a tile
_TIFF_INTEGERS = (3, 4, 6, 8, 9, 16)  # types that Pillow knows too: all but SLONG8
_MOST_TAGS = 4096  # as in libtiff
_PORTABLE_HEADER = re.compile(rb"P[1-6]\s(?:\s|#[^\r\n]*[\r\n])*([0-9]{1,10})\s(?:\s|#[^\r\n]*[\r\n])*([0-9]{1,10})\s")


def is_decoded_to(size: tuple[int, int], data: bytes, format_name: str) -> bool:
    """Return whether OpenCV decodes an image to the size that Pillow has read from its header.

    Args:
        size: width and height in px, from Pillow.
        data: the whole image.
        format_name: from ``image_header.image_format``.
    """
    try:
        if format_name == "JPEG 2000":
            return _codestream_size(data) == size
        if format_name == "TIFF":
            return _states_sizes_once(data)
        if format_name == "PPM":
            numbers = _PORTABLE_HEADER.match(data)
            return numbers is not None and (int(numbers[1]), int(numbers[2])) == size
    except (struct.error, OverflowError):  # the file ends before
        return False
    return True


def _codestream_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of the first codestream of a JPEG 2000; None for more components than colors."""
    start = 0 if data.startswith(_CODESTREAM) else _first_codestream(data)
    if not data.startswith(_CODESTREAM, start):
        return None
    # length of the segment, profile; size and offset of the image, size and offset of a tile; components
    right, bottom, left, top, *_, components = struct.unpack_from(">8IH", data, start + 8)
    return (right - left, bottom - top) if components <= _MOST_COMPONENTS else None


def _first_codestream(data: bytes) -> int:
    """Return where the content of the first box of a codestream starts; the end of the file if there is none."""
    position = 0
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        header = 16 if length == 1 else 8
        if kind == b"jp2c":
            return position + header
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
        if length < header:  # 0: it takes the rest of the file
            break
        position += length
    return len(data)


def _states_sizes_once(tiff: bytes) -> bool:
    """Return whether the first directory of a TIFF has each tag of a size once at most, of a type that all read."""
    order, is_big = "<" if tiff[:2] == b"II" else ">", b"+" in tiff[2:4]
    (start,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}I", tiff, 8 if is_big else 4)
    (count,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}H", tiff, start)
    first, step = (start + 8, 20) if is_big else (start + 2, 12)
    if count > _MOST_TAGS:
        return False
    tags = [struct.unpack_from(f"{order}HH", tiff, first + number * step) for number in range(count)]
    sizes = [(tag, kind) for tag, kind in tags if tag in _TIFF_SIZES]
    return len(dict(sizes)) == len(sizes) and all(kind in _TIFF_INTEGERS for _, kind in sizes)
