"""The size to which an image is decoded, for the formats whose headers Pillow reads and whose pixels OpenCV decodes.

A file can state its size twice. Where Pillow takes one statement and the library behind OpenCV the other, an image that
was checked as a face of 112x112 px is decoded to gigabytes. Here is what that library takes:

- JPEG 2000 (OpenJPEG): the SIZ segment of the first codestream. Pillow: the last ``ihdr`` box before it.
- TIFF (libtiff): the first tag of a number, of any integer type. Pillow skips types that it does not know.
- PBM, PGM, PPM (OpenCV itself): a comment separates numbers. Pillow: it may stand inside of a number.

BMP, GIF and WEBP state their size once, or OpenCV compares: its decoders refuse a frame that does not fit the canvas.

A JPEG 2000 of 100 bytes can also divide its pixels into billions of packets, each of which takes memory and time; and
thousands of tags of a TIFF can have the whole file as their content, of which libtiff makes as many copies.

Sources: ITU-T T.800, annex A (segments; tile-parts: A.4.2), B.6 (precincts) and annex I (boxes); TIFF 6.0, section 2,
and its 64-bit variant; netpbm's ppm(5).
"""

import math
import re
import struct
from collections.abc import Collection, Iterator

_CODESTREAM = b"\xff\x4f\xff\x51"  # start of codestream, SIZ
_MOST_COMPONENTS = 4  # of a codestream: each takes as much memory as the image
_FEW_TILES, _FEW_PRECINCTS, _FEW_PACKETS = 4096, 200_000, 1_000_000  # 9 kB, 1 kB and 60 ns each
_TILE_PIXELS, _PRECINCT_PIXELS, _PACKET_PIXELS = 64 * 64, 128, 16  # one more is allowed for each so many pixels
_MOST_SEGMENTS = 2**17  # of the headers of a codestream and of its tile-parts
_COD, _COC, _TILE_PART, _DATA = 0xFF52, 0xFF53, 0xFF90, 0xFF93
_SEGMENTS = frozenset(  # those that OpenJPEG knows; it looks for them behind others in steps of two bytes
    bytes.fromhex("50 51 52 53 55 57 58 59 5c 5d 5e 5f 60 61 63 64 74 75 77 78 90")
)
_TIFF_SIZES = (256, 257, 322, 323)  # width, height, width and height of a tile
_TIFF_INTEGERS = (3, 4, 6, 8, 9, 16)  # types that Pillow knows too: all but SLONG8
_TIFF_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
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
            return _states_sizes_once(data) and _tag_bytes(data) <= 2 * len(data)  # two tags may share their content
        if format_name == "PPM":
            numbers = _PORTABLE_HEADER.match(data)
            return numbers is not None and (int(numbers[1]), int(numbers[2])) == size
    except (struct.error, OverflowError, IndexError):  # the file, or one of its parts, ends before, or never
        return False
    return True


def _codestream_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of the first codestream of a JPEG 2000.

    None for more components than colors, or for parts so small that they take more memory and time than the pixels.
    """
    contents = (content for kind, content in boxes(data) if kind == b"jp2c")
    start = 0 if data.startswith(_CODESTREAM) else next(contents, len(data))
    if not data.startswith(_CODESTREAM, start):
        return None
    # after length and profile; left, top: what is cut off; a tile; the same of the tiles
    right, bottom, left, top, width, height, first_left, first_top, components = struct.unpack_from(
        ">8IH", data, start + 8
    )
    size = right - left, bottom - top
    if components > _MOST_COMPONENTS or not width or not height:
        return None
    pixels = math.prod(size)
    tiles = -(-(right - first_left) // width) * -(-(bottom - first_top) // height)
    precincts, layers = 0, 1
    for code, content, is_of_tile in _coding_styles(data, start + 4):
        if code == _COD:
            layers = max(layers, *struct.unpack_from(">H", content, 2))
        tile = _precincts(
            content[1:] if code == _COC else content[:1] + content[5:], min(size[0], width), min(size[1], height)
        )
        precincts += tile * (1 if code == _COC else components) * (1 if is_of_tile else tiles)
    is_small = (
        tiles <= _FEW_TILES + pixels // _TILE_PIXELS
        and precincts <= _FEW_PRECINCTS + pixels // _PRECINCT_PIXELS
        and precincts * layers <= _FEW_PACKETS + pixels // _PACKET_PIXELS
    )
    return size if is_small else None


def _precincts(style: bytes, width: int, height: int) -> int:
    """Return at how many places a decoder looks for the precincts of one component of a tile: as many or more.

    Args:
        style: whether sizes are given, the number of levels, four other bytes, and a size for each resolution, the
            lowest first: the exponents of height and width, four bits each.
        width: of the tile, in px.
        height: of the tile, in px.
    """
    levels = style[1]
    sizes = style[6 : 7 + levels] if style[0] & 1 else b"\xff" * (levels + 1)
    if len(sizes) <= levels:
        raise IndexError("a coding style ends before its sizes")
    # For some orders of packets it goes through all columns and rows, of whatever resolution.
    columns = max(-(-width >> (size & 15) + levels - number) for number, size in enumerate(sizes))
    rows = max(-(-height >> (size >> 4) + levels - number) for number, size in enumerate(sizes))
    return columns * rows * (levels + 1)


def _coding_styles(data: bytes, position: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield code and content of each segment of a coding style, and whether it is one of a tile.

    Args:
        data: the whole image.
        position: where a segment of the codestream starts, but for its code.
    """
    position += int.from_bytes(data[position : position + 2], "big")
    tile_part = -1
    for _ in range(_MOST_SEGMENTS):
        code, length = struct.unpack_from(">HH", data, position)
        if code == _DATA and tile_part >= 0:
            (tile_part_length,) = struct.unpack_from(">I", data, tile_part + 6)
            end = tile_part + max(14, tile_part_length)  # 12 is written for an empty one
            if tile_part_length and end < position + 2:
                raise IndexError("a tile-part ends before its data")
            if not tile_part_length or data[end : end + 2] != _TILE_PART.to_bytes(2, "big"):  # 0: the last one
                return
            position = end
            continue
        if code in (_COD, _COC):
            yield code, data[position + 4 : position + 2 + length], tile_part >= 0
        elif code == _TILE_PART:
            tile_part = position
        is_known = code >> 8 == 0xFF and code & 0xFF in _SEGMENTS
        position += 2 + length if is_known else 2
    raise IndexError("a codestream of too many segments")


def boxes(data: bytes, opened: Collection[bytes] = ()) -> Iterator[tuple[bytes, int]]:
    """Yield the kind of each box of a JP2, and where its content starts.

    Args:
        data: the whole image.
        opened: kinds of boxes whose content is boxes, which follow.
    """
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        header = 8
        if length == 1:
            header, length = 16, int.from_bytes(data[position + 8 : position + 16], "big")
        yield kind, position + header
        if length < header:  # 0: it takes the rest of the file
            return
        position += header if kind in opened else length


def _states_sizes_once(tiff: bytes) -> bool:
    """Return whether the first directory of a TIFF has each tag of a size once at most, of a type that all read."""
    sizes = [(tag, kind) for tag, kind, _, _ in _tags(tiff) if tag in _TIFF_SIZES]
    return len(dict(sizes)) == len(sizes) and all(kind in _TIFF_INTEGERS for _, kind in sizes)


def _tag_bytes(tiff: bytes) -> int:
    """Return how many bytes the tags of the first directory have together, but for those that are not in the file."""
    sizes = [
        (count * _TIFF_TYPE_BYTES[kind], place) for _, kind, count, place in _tags(tiff) if kind < len(_TIFF_TYPE_BYTES)
    ]
    return sum(size for size, place in sizes if place + size <= len(tiff))


def _tags(tiff: bytes) -> list[tuple[int, int, int, int]]:
    """Return number, type, count and place of the tags of the first directory."""
    order, is_big = "<" if tiff[:2] == b"II" else ">", b"+" in tiff[2:4]
    (start,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}I", tiff, 8 if is_big else 4)
    (count,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}H", tiff, start)
    if count > _MOST_TAGS:
        raise IndexError(f"a directory of {count} tags")
    tag = struct.Struct(f"{order}HHQQ" if is_big else f"{order}HHII")
    first = start + (8 if is_big else 2)
    return [tag.unpack_from(tiff, first + number * tag.size) for number in range(count)]
