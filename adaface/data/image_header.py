"""Format, size and scans of an encoded image, read from its first bytes before anything is decoded.

An image announces its size in a few bytes, and can announce any size: 100 kB of PNG decode to gigabytes. Every decoder
of the project checks the header first.

Sources: ITU-T T.81, annex B (JPEG: a marker is FF and a code; in the data of a scan, FF is followed by 00 or a restart
marker), the PNG specification (IHDR), ISO/IEC 14496-12 (the file type box of AVIF and HEIC). Pillow reads the headers
of the other formats, and `decoded_size.py` checks that the decoder finds the same size.
"""

import functools
import importlib
import importlib.util
import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from PIL import Image

from adaface.data.decoded_size import boxes, is_decoded_to

PHOTOGRAPH_PIXELS = 178_000_000  # 534 MB when decoded
_PIXELS_PER_BYTE = 2000  # a PNG of one color has up to 1032 with 8 bits per pixel, and 8256 with one bit
_FEW_PIXELS = 16_000_000  # a plain area of so many is decoded however small its file is
SIGNATURE_BYTES = 64  # what `image_format` needs of a file
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"P7\n", "PAM"),
    (b"PF\n", "PFM"),
    (b"Pf\n", "PFM"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"\x01\xda\x00\x01", "SGI"),
    (b"\x01\xda\x01\x01", "SGI"),
    (b"\xb1\x68\xde\x3a", "DCX"),
    (b"icns", "ICNS"),
    (b"BLP1", "BLP"),
    (b"BLP2", "BLP"),
    (b"DanM", "MSP"),
    (b"LinS", "MSP"),
    (b"/* XPM */", "XPM"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"IIRS", "camera raw"),
    (b"IIU\x00", "camera raw"),
)
_BITMAP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)  # of Windows and OS/2; "BM" alone starts many texts
_PATTERNS = (
    (re.compile(rb"P[1-6]\s"), "PPM"),
    (re.compile(rb"\n[\x00\x02-\x05]\x01[\x01\x02\x04\x08]"), "PCX"),  # version, compressed, bits
    (re.compile(rb"\x00\x00[\x01\x02]\x00[^\x00]\x00.{3}\x00", re.DOTALL), "ICO"),  # or a cursor; number of pictures
    (re.compile(rb"\x28\x00{3}.{8}\x01\x00[\x01\x04\x08\x10\x18\x20]\x00[\x00-\x06]\x00{3}", re.DOTALL), "DIB"),
    (re.compile(rb"%!PS-Adobe-\d\.\d EPSF"), "EPS"),  # others are documents
    (re.compile(rb"\s*#define[ \t]+\S*_width[ \t]+\d"), "XBM"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "JPEG 2000", "AVIF")
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "JPEG2000", "AVIF")

MOST_SCANS = 100  # each is as slow to decode as a whole image; a progressive photograph has about ten
_USUAL_SCANS, _MOST_SCANNED_PIXELS = 20, 1_500_000_000  # more scans than usual are read up to so many pixels in all
_SHORT_FILE, _FACE_PIXELS = 2**16, 112 * 112  # neither header nor scans of a face so short take long
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # except those without a length
_SIZE_MARKERS = frozenset((*range(0xC0, 0xD0),)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_TIFF_TILE = (322, 323)  # width and height
_DCT_MARKERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_SCAN, _END, _JPEG_END = 0xDA, 0xD9, b"\xff\xd9"
_LONGEST_RUN = 256  # of equal bytes, and one more for each block of 8x8 pixels
_MOST_PARTS, _MOST_FILLING = (
    20_000,
    2**16,
)  # of a header; Pillow takes 2 microseconds for each, and for a byte of filling
_SMALL_CHUNK = 256  # bytes of pixels
_PORTABLE_HEADER = re.compile(  # width, height, and the largest value of what is not black or white
    rb"P[14](?:(?:\s|#[^\r\n]*[\r\n])+[0-9]+){2}|P[2356](?:(?:\s|#[^\r\n]*[\r\n])+[0-9]+){3}"
)
_PNG_INFLATED = (b"iCCP", b"zTXt", b"iTXt")
_PNG_CHECKED = (b"IHDR", b"PLTE", b"IDAT", b"tRNS")
PILLOW_ERRORS = (  # of damaged files; a MemoryError is not the file's fault
    OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError, KeyError, IndexError, OverflowError,
    ZeroDivisionError, AttributeError, AssertionError, RuntimeError,
)  # fmt: skip


class ImageHeader(NamedTuple):
    """What an encoded image announces.

    Attributes:
        format: such as ``JPEG``.
        width: in px, before a rotation by EXIF.
        height: in px.
    """

    format: str
    width: int
    height: int


def image_format(start: bytes) -> str:
    """Recognize an image by its signature.

    Args:
        start: the first ``SIGNATURE_BYTES`` of the file, or all of it.

    Returns:
        Such as ``JPEG``, readable or not (see ``readable_formats``); empty if it is no image.
    """
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BITMAP_HEADER_SIZES:
        return "BMP"
    for pattern, name in _PATTERNS:
        if pattern.match(start):
            return name
    return _container_format(start) if start[4:8] == b"ftyp" else ""


def _container_format(start: bytes) -> str:
    """Return the image format of an ISO media file, from its brands; empty for a video."""
    length = min(int.from_bytes(start[:4], "big"), len(start))
    brands = [start[8:12], *(start[place : place + 4] for place in range(16, length - 3, 4))]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in _HEIC_BRANDS for brand in brands):
        return "HEIC"
    return "camera raw" if brands[0] == b"crx " else ""


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats that can be decoded; HEIC is one of them if the package ``pillow-heif`` is installed."""
    return (*_READABLE, "HEIC") if importlib.util.find_spec("pillow_heif") else _READABLE


def why_unreadable(format_name: str) -> str:
    """Return why images of a format are not read, and what to do; empty for a readable format.

    Args:
        format_name: from ``image_format``.
    """
    if format_name in readable_formats():
        return ""
    if not format_name:
        return "not an image"
    article = "an" if format_name.startswith(("A", "E", "I", "O", "MSP", "SGI", "X")) else "a"
    what = f"{article} {format_name} {'file' if format_name == 'camera raw' else 'image'}"
    if format_name == "HEIC":
        return f"{what}: pip install pillow-heif to read it, or convert it to JPEG"
    return f"{what}: convert it to JPEG or PNG"


def read_header(data: bytes, what: str) -> ImageHeader:
    """Read the header of an encoded image.

    Args:
        data: the whole image.
        what: name of the image, for messages.

    Raises:
        ValueError: not an image, of a format that is not read, without a valid header, or a JPEG with too many scans.
    """
    name = image_format(data[:SIGNATURE_BYTES])
    if not name:
        raise ValueError(f"{what} is not a readable image ({len(data)} bytes{_first_bytes(data)})")
    if reason := why_unreadable(name):
        raise ValueError(f"{what}: {reason}")
    if len(data) > _SHORT_FILE and _is_buried(data, name):
        size = None
    else:
        size = _png_size(data) if name == "PNG" else _jpeg_size(data) if name == "JPEG" else _size_by_pillow(data, name)
    if name == "PNG" and size is not None and not _png_is_whole(data):  # OpenCV does not compare the checksums
        size = None
    if size is None:
        raise ValueError(f"{what} is not a readable image ({len(data)} bytes); the data is damaged")
    if name == "JPEG" and (len(data) > _SHORT_FILE or math.prod(size) > _FACE_PIXELS):
        _check_scans(count_scans(data), *size, what)
    return ImageHeader(name, *size)


def check_header(data: bytes, what: str, most_pixels: int = PHOTOGRAPH_PIXELS) -> ImageHeader:
    """Read the header of an image that is going to be decoded, and reject what would take too much memory or time.

    Args:
        data: the whole image.
        what: name of the image, for messages.
        most_pixels: maximum width times height; 16 million for a file with more than 2000 pixels per byte.

    Raises:
        ValueError: not an image, of a format that is not read, too large, or a JPEG with too many scans.
    """
    header = read_header(data, what)
    pixels = header.width * header.height
    if _FEW_PIXELS < pixels > _PIXELS_PER_BYTE * len(data):
        raise ValueError(
            f"{what} announces {header.width}x{header.height} px in {len(data):,} bytes, too few for a photograph: it "
            "is not decoded"
        )
    if pixels > most_pixels:
        raise ValueError(
            f"{what} is {header.width}x{header.height} px, more than the maximum of {most_pixels:,} pixels: make it "
            "smaller first"
        )
    return header


def _check_scans(scans: int, width: int, height: int, what: str) -> None:
    if scans > MOST_SCANS:
        number = f"more than {MOST_SCANS} scans"
    elif scans > _USUAL_SCANS and scans * width * height > _MOST_SCANNED_PIXELS:
        number = f"{scans} scans of {width}x{height} px"
    else:
        return
    raise ValueError(f"{what} has {number}, each as slow to decode as a whole image: save it again")


def _first_bytes(data: bytes) -> str:
    return f" that start with {data[:4].hex(' ')}" if data else ""


def _is_buried(data: bytes, format_name: str) -> bool:
    """Return whether so much stands before the pixels, or between them, that it takes seconds to pass it."""
    if format_name == "PPM":
        return not _PORTABLE_HEADER.match(data, 0, _MOST_FILLING)
    walks = {"JPEG": _segments_before_scan, "PNG": _chunks_without_pixels, "JPEG 2000": _boxes_before_codestream}
    filling = 0
    for number, skipped in enumerate(walks[format_name](data) if format_name in walks else ()):
        filling += skipped
        if number > _MOST_PARTS or filling > _MOST_FILLING:
            return True
    return False


def _segments_before_scan(jpeg: bytes) -> Iterator[int]:
    """Yield the number of bytes before each segment that belong to none."""
    position = 2
    while marker := _MARKER.search(jpeg, position):
        yield marker.start() - position
        start = marker.end()
        if jpeg[start - 1] in (_SCAN, _END):
            break
        position = start + max(2, int.from_bytes(jpeg[start : start + 2], "big"))


def _chunks_without_pixels(png: bytes) -> Iterator[int]:
    """Yield 0 for each chunk of a PNG with few or no pixels; some filling if it may be inflated a thousandfold."""
    position = 8
    while (kind := png[position + 4 : position + 8]) and kind != b"IEND":
        length = int.from_bytes(png[position : position + 4], "big")
        if kind not in (b"IDAT", b"fdAT") or length < _SMALL_CHUNK:
            is_inflated = kind in _PNG_INFLATED and not (kind == b"iTXt" and _is_plain_text(png[position + 8 :][:81]))
            yield min(length, 512) // 2 if is_inflated else 0  # 256 may be of any length
        position += 12 + length


def _is_plain_text(start: bytes) -> bool:
    """Return whether an ``iTXt`` is not compressed: its keyword of up to 79 bytes and a zero are followed by a zero."""
    keyword, _, rest = start.partition(b"\0")
    return rest[:1] == b"\0" and 0 < len(keyword) < 80


def _boxes_before_codestream(jp2: bytes) -> Iterator[int]:
    """Yield 0 for each box that Pillow reads."""
    for kind, _ in boxes(jp2, opened=(b"jp2h",)):
        yield 0
        if kind == b"jp2c":
            break


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _png_is_whole(data: bytes) -> bool:
    """Return whether the checksums of the chunks that decide about pixels are right, and the size is given once."""
    position, headers = 8, 0
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if kind in _PNG_CHECKED and zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        headers += kind == b"IHDR"
        if headers > 1:  # Pillow takes the last one
            return False
        if kind == b"IEND":
            break
        position = end + 4
    return True


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height from the frame header, the first SOF segment; None if scans after it are lost."""
    position = 2
    while marker := _MARKER.search(data, position):
        start = marker.end()
        code, length = data[start - 1], int.from_bytes(data[start : start + 2], "big")
        if code in _SIZE_MARKERS:  # length (2), precision (1), height (2), width (2)
            if len(data) < start + 7:
                return None
            height, width = struct.unpack_from(">HH", data, start + 3)
            return None if code in _DCT_MARKERS and _has_hole(data, start, width, height) else (width, height)
        if code in (_SCAN, _END):
            return None
        position = start + max(2, length)
    return None


def _has_hole(jpeg: bytes, start: int, width: int, height: int) -> bool:
    """Return whether a part of the scans was lost, such as a sector: decoders make gray or colored blocks of it.

    A flat block of 8x8 can take as few as two bits, which may be zero, in each of four channels: a byte.
    """
    length = _LONGEST_RUN + 4 * -(-width // 16) * -(-height // 16)
    for lost in (b"\0", b"\xff"):
        if lost in jpeg[start::length]:  # a run of this length contains one of these
            place = jpeg.find(lost * min(length, len(jpeg)), start)
            if place >= 0 and jpeg.find(_JPEG_END, start, place) < 0:  # what follows the end is no part of the image
                return True
    return False


def open_with_pillow(file: BinaryIO) -> Image.Image:
    """Open an image with Pillow, without decoding it. No format is tried that starts another program.

    Args:
        file: an image file at its start.

    Raises:
        ValueError: it has no valid header; the message is Pillow's.
    """
    formats = list(_PILLOW_FORMATS)
    if "HEIC" in readable_formats():
        importlib.import_module("pillow_heif").register_heif_opener()
        formats.append("HEIF")
    try:
        return Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(f"it is too large: {error}") from error
    except PILLOW_ERRORS as error:
        raise ValueError(f"it has no valid header ({error})") from error


def _size_by_pillow(data: bytes, format_name: str) -> tuple[int, int] | None:
    try:
        image = open_with_pillow(io.BytesIO(data))
    except ValueError:
        return None
    tags = getattr(image, "tag_v2", {})
    tile = [tags.get(tag, 0) for tag in _TIFF_TILE]
    if all(isinstance(side, int) for side in tile) and math.prod(tile) > _FEW_PIXELS // 4 + math.prod(image.size):
        return None  # a decoder reserves the memory of a whole tile
    return image.size if is_decoded_to(image.size, data, format_name) else None


def count_scans(jpeg: bytes) -> int:
    """Count the scans of a JPEG, up to one more than ``MOST_SCANS``; as many are 20,000 other segments.

    Args:
        jpeg: content of the file; data after its end, such as a video, is ignored.
    """
    position, scans = 0, 0
    for _ in range(_MOST_PARTS):
        marker = _MARKER.search(jpeg, position)
        if scans > MOST_SCANS or marker is None or jpeg[marker.end() - 1] == _END:
            return scans
        scans += jpeg[marker.end() - 1] == _SCAN
        position = marker.end() + max(2, int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big"))
    return MOST_SCANS + 1
