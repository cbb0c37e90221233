"""Files that state their size twice: Pillow's answer is a face of 112x112, that of OpenCV's libraries another size."""

import io
import struct
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from adaface.alignment.photograph import decode_photograph
from adaface.data.decoded_size import is_decoded_to
from adaface.data.image_header import read_header
from adaface.data.image_list import read_color_image
from adaface.data.images import decode_image

SIDE, WIDTH, HEIGHT = 112, 600, 500
SHORT, LONG, SLONG8 = 3, 4, 17
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
FACE = PICTURE[:SIDE, :SIDE]


def saved(image: np.ndarray, kind: str, **options: Any) -> bytes:
    """Encode (H, W, 3) BGR or (H, W) gray with Pillow."""
    file = io.BytesIO()
    Image.fromarray(image if image.ndim == 2 else image[..., ::-1]).save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def image_header_box(side: int = SIDE, components: int = 3) -> bytes:
    return box(b"ihdr", struct.pack(">IIHBBBB", side, side, components, 7, 7, 0, 0))


def with_second_header(jp2: bytes) -> bytes:
    """Append another header of an image to the box of headers, which has a length of its own."""
    start = jp2.index(b"jp2h") - 4
    end = start + int.from_bytes(jp2[start : start + 4], "big")
    return jp2[:start] + box(b"jp2h", jp2[start + 8 : end] + image_header_box()) + jp2[end:]


def tiff(tags: Iterable[tuple[int, int, int]], order: str = "<", is_big: bool = False) -> bytes:
    """A gray TIFF without compression.

    Args:
        tags: number, type and value of each tag, beside those of a gray image; type SLONG8 is written behind them.
        order: of the bytes.
        is_big: the 64-bit variant.
    """
    more = [(258, SHORT, 8), (259, SHORT, 1), (262, SHORT, 1), (277, SHORT, 1), (278, LONG, HEIGHT)]
    pixels = [(273, LONG, 0), (279, LONG, WIDTH * HEIGHT)]
    entries = sorted([*tags, *more, *pixels], key=lambda tag: tag[0])
    start, step, counts = (16, 20, "QQ") if is_big else (8, 12, "HI")
    behind = start + struct.calcsize(f"<{counts[0]}") + step * len(entries) + (8 if is_big else 4)
    longs = b"".join(struct.pack(f"{order}q", value) for _, kind, value in entries if kind == SLONG8)
    directory, place = b"", behind
    for number, kind, value in entries:
        if number == 273:
            value = behind + len(longs)
        if kind == SLONG8:
            value, place = (value, place) if is_big else (place, place + 8)
        packed = struct.pack(f"{order}{'H' if kind == SHORT else 'q' if kind == SLONG8 and is_big else 'I'}", value)
        directory += struct.pack(f"{order}HH{counts[1]}", number, kind, 1) + packed.ljust(8 if is_big else 4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    version = struct.pack(f"{order}HHHQ", 43, 8, 0, start) if is_big else struct.pack(f"{order}HI", 42, start)
    count = struct.pack(f"{order}{counts[0]}", len(entries))
    return mark + version + count + directory + bytes(8 if is_big else 4) + longs + bytes(WIDTH * HEIGHT)


TWICE = {
    "a second ihdr": with_second_header(saved(PICTURE, "JPEG2000")),
    "SLONG8, then SHORT": tiff([(256, SLONG8, WIDTH), (256, SHORT, SIDE), (257, SLONG8, HEIGHT), (257, SHORT, SIDE)]),
    "a comment inside of a number": b"P5\n112#500 255\n\n112 255\n" + bytes(112 * 500),
}


@pytest.mark.parametrize("what", TWICE)
def test_the_libraries_disagree(what):
    """Otherwise the checks could go."""
    with Image.open(io.BytesIO(TWICE[what])) as image:
        assert image.size == (SIDE, SIDE)
    pixels = decoded(TWICE[what])
    assert pixels is not None
    assert pixels.shape[0] == HEIGHT


@pytest.mark.parametrize("what", TWICE)
def test_a_size_that_is_stated_twice_is_damaged(what, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it is decoded"))
    path = tmp_path / "face"
    path.write_bytes(TWICE[what])
    readers = (
        lambda: decode_image(TWICE[what], str(path)),
        lambda: decode_photograph(TWICE[what], str(path)),
        lambda: read_color_image(path),
    )
    for read in readers:
        with pytest.raises(ValueError, match=r"face is not a readable image \(.* bytes\); the data is damaged"):
            read()


def test_each_size_in_a_tiff_counts(monkeypatch):
    """Of a tile, OpenCV reserves the memory, up to a gigabyte."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it is decoded"))
    size = [(256, SHORT, SIDE), (257, SHORT, SIDE)]
    assert read_header(tiff(size), "it")[1:] == (SIDE, SIDE)
    for more in (
        [(322, SLONG8, 18_000), (323, SLONG8, 18_000)],
        [(322, SHORT, SIDE), (323, SHORT, SIDE), (323, SHORT, 18_000)],
        [(257, SHORT, HEIGHT)],
    ):
        with pytest.raises(ValueError, match="the data is damaged"):
            decode_image(tiff([*size, *more]), "it")


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize("order, is_big", [("<", False), (">", False), ("<", True)])
def test_a_tiff_whose_tags_have_the_whole_file_each_is_damaged(order, is_big, monkeypatch):
    """OpenCV's library makes a copy for each, 4 GB of a file of 1 MB."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it is decoded"))
    size = [(256, SHORT, SIDE), (257, SHORT, SIDE)]

    def with_tags(number: int, kind: int, count: int) -> bytes:
        data = bytearray(tiff([*size, *((40_000 + n, LONG, 0) for n in range(number))], order, is_big))
        start, step, form = (24, 20, "HHQQ") if is_big else (10, 12, "HHII")
        for n in range(number):  # behind those of a gray image
            struct.pack_into(f"{order}{form}", data, start + (9 + n) * step, 40_000 + n, kind, count, 8)
        return bytes(data)

    whole = len(tiff(size)) // 8
    assert read_header(with_tags(1, 12, whole), "it")[1:] == (SIDE, SIDE)
    assert read_header(with_tags(3, 12, 8 * whole), "it")[1:] == (SIDE, SIDE)  # there is no such content to copy
    for kind in (5, 12):  # fractions and doubles
        with pytest.raises(ValueError, match="the data is damaged"):
            decode_image(with_tags(3, kind, whole), "it")


def test_a_codestream_with_more_components_than_colors_is_damaged():
    """OpenJPEG decodes all of them, whatever the box around says."""
    whole = saved(FACE, "JPEG2000")
    place = whole.index(b"\xff\x4f\xff\x51") + 40
    assert whole[place : place + 2] == b"\0\3"
    assert is_decoded_to((SIDE, SIDE), whole, "JPEG 2000")
    assert not is_decoded_to((SIDE, SIDE), whole[:place] + b"\x40\0" + whole[place + 2 :], "JPEG 2000")


def segment(code: int, content: bytes) -> bytes:
    return struct.pack(">HH", code, 2 + len(content)) + content


def coding_style(layers: int = 1, precinct: int | None = None) -> bytes:
    """The content of a COD: no levels; the exponents of the size of a precinct, or 2^15."""
    start = struct.pack(">BBHB", precinct is not None, 0, layers, 0) + b"\0\2\2\0\1"
    return start if precinct is None else start + bytes([precinct])


def codestream(side: int, main: bytes, tile: bytes = b"", tile_side: int = 0, length: int | None = None) -> bytes:
    """A JPEG 2000 whose tile has no pixels: a decoder makes them gray.

    Args:
        side: of the image.
        main: the COD of the header.
        tile: segments of the header of the first tile-part.
        tile_side: 0 for one tile.
        length: of the first tile-part, instead of the right one.
    """
    size = (
        struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, tile_side or side, tile_side or side, 0, 0, 3) + b"\7\1\1" * 3
    )
    header = b"\xff\x4f" + segment(0xFF51, size) + segment(0xFF52, main) + segment(0xFF5C, b"\x40\x40")
    body = tile + b"\xff\x93" + bytes(16)
    start = segment(0xFF90, struct.pack(">HIBB", 0, 12 + len(body) if length is None else length, 0, 1))
    return header + start + body + b"\xff\xd9"


def as_jp2(stream: bytes, side: int) -> bytes:
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    color = box(b"colr", b"\1\0\0" + struct.pack(">I", 16))
    return start + box(b"jp2h", image_header_box(side) + color) + box(b"jp2c", stream)


PLAIN, TINY = coding_style(), coding_style(65_535, 0x00)
MANY_PARTS = {
    "packets": codestream(SIDE, TINY),
    "precincts": codestream(4000, coding_style(1, 0x00)),
    "precincts of a component of a tile": codestream(
        4000, coding_style(1, 0xF0), segment(0xFF53, b"\0\1\0\2\2\0\1\x00")
    ),
    "tiles": codestream(4000, PLAIN, tile_side=16),
    "packets of a tile": codestream(SIDE, PLAIN, segment(0xFF52, TINY)),
    "packets of a tile without a length": codestream(SIDE, PLAIN, segment(0xFF52, TINY), length=0),
    "packets behind an unknown segment": codestream(SIDE, PLAIN, b"\xff\x30\0\x20" + segment(0xFF52, TINY)),
    "a tile-part that ends in its header": codestream(SIDE, PLAIN, segment(0xFF64, b"\0\1hello"), length=13),
    "no size for a level": codestream(SIDE, b"\1" + PLAIN[1:5] + b"\1" + PLAIN[6:]),
    "tile-parts": codestream(SIDE, PLAIN)[:-2] + codestream(SIDE, PLAIN)[-32:-2] * 70_000,
}


@pytest.mark.parametrize("is_jp2", [False, True])
@pytest.mark.parametrize("what", MANY_PARTS)
def test_a_jpeg_2000_of_too_many_parts_is_damaged(what, is_jp2, monkeypatch):
    """A decoder takes gigabytes, or hours, for a file of 100 bytes."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it is decoded"))
    data = MANY_PARTS[what]
    (side,) = struct.unpack_from(">I", data, 8)
    data = as_jp2(data, side) if is_jp2 else data
    for read in (decode_image, decode_photograph):
        with pytest.raises(ValueError, match="the data is damaged"):
            read(data, "it")


@pytest.mark.parametrize("is_jp2", [False, True])
def test_a_jpeg_2000_of_few_parts_is_read(is_jp2):
    for stream in (
        codestream(SIDE, PLAIN),
        codestream(SIDE, coding_style(20, 0x66), length=0),
        codestream(SIDE, coding_style(1, 0x00)),
    ):
        data = as_jp2(stream, SIDE) if is_jp2 else stream
        assert read_header(data, "it")[1:] == (SIDE, SIDE)
        assert decode_image(data, "it").shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"precinct_size": (32, 32), "codeblock_size": (16, 16)},
        {"tile_size": (64, 64), "progression": "RPCL", "plt": True},
        {"quality_mode": "rates", "quality_layers": list(range(40, 0, -2)), "precinct_size": (64, 64)},
    ],
)
def test_small_parts_of_an_ordinary_jpeg_2000_are_no_damage(options):
    data = saved(PICTURE, "JPEG2000", **options)
    np.testing.assert_array_equal(decode_photograph(data, "it"), decoded(data))


@pytest.mark.parametrize("flags", [0, 2])
def test_a_frame_on_a_smaller_canvas_is_refused_by_the_decoder(flags):
    """WEBP, still and animated, and GIF need no check."""
    sides = (SIDE - 1).to_bytes(3, "little") * 2
    canvas = b"VP8X" + struct.pack("<II", 10, flags) + sides
    body = b"WEBP" + canvas + saved(PICTURE, "WEBP")[12:]
    assert decoded(b"RIFF" + struct.pack("<I", len(body)) + body) is None
    gif = saved(PICTURE[..., 0], "GIF")
    assert decoded(gif) is not None
    assert decoded(gif[:6] + struct.pack("<HH", SIDE, SIDE) + gif[10:]) is None


def codestream_box(jp2: bytes, length: bytes) -> bytes:
    """Give the box of the codestream, the last one, another form of its length."""
    start = jp2.index(b"jp2c") - 4
    return jp2[:start] + length[:4] + b"jp2c" + length[4:] + jp2[start + 8 :]


def valid_files() -> dict[str, bytes]:
    gray, jp2 = FACE[..., 0], saved(FACE, "JPEG2000")
    rest = len(jp2) - jp2.index(b"jp2c") - 4
    size = [(256, LONG, WIDTH), (257, SHORT, HEIGHT)]
    pixels = gray.tobytes()
    return {
        "jp2": jp2,
        "jp2, to the end of the file": codestream_box(jp2, struct.pack(">I", 0)),
        "jp2, long length": codestream_box(jp2, struct.pack(">IQ", 1, 16 + rest)),
        "j2k": saved(FACE, "JPEG2000", no_jp2=True),
        "gray jp2": saved(gray, "JPEG2000"),
        "tiff": tiff(size),
        "tiff of Motorola": tiff(size, ">"),
        "BigTIFF": tiff(size, is_big=True),
        "tiff of Pillow": saved(FACE, "TIFF", compression="tiff_lzw"),
        "tiff of OpenCV": cv2.imencode(".tiff", FACE)[1].tobytes(),
        "pgm": b"P5\n# by hand\n112 # wide\n\t#\n 112\r\n255\n" + pixels,
        "plain pgm": b"P2 112 112 255\n" + " ".join(map(str, gray.ravel())).encode() + b"\n",
        "pbm": b"P4\n112 112\n" + np.packbits(gray > 127, axis=1).tobytes(),
        "ppm of OpenCV": cv2.imencode(".ppm", FACE)[1].tobytes(),
    }


@pytest.mark.parametrize("what", valid_files())
def test_valid_files_are_read_as_before(what, tmp_path):
    data = valid_files()[what]
    expected = decoded(data)
    assert expected is not None
    header = read_header(data, what)
    assert (header.height, header.width) == expected.shape[:2]
    (tmp_path / "face").write_bytes(data)
    three = expected if expected.ndim == 3 else cv2.cvtColor(expected, cv2.COLOR_GRAY2BGR)
    np.testing.assert_array_equal(read_color_image(tmp_path / "face"), three)


@pytest.mark.parametrize("what", valid_files())
def test_the_first_part_of_a_file_is_answered(what):
    data = valid_files()[what]
    format_name, *size = read_header(data, what)
    answers = [is_decoded_to(tuple(size), data[:length], format_name) for length in range(min(len(data), 400))]
    assert not any(answers[:10])
    assert set(answers) <= {False, True}


def test_a_directory_beyond_all_files_is_damaged():
    whole = tiff([(256, SHORT, SIDE), (257, SHORT, SIDE)], is_big=True)
    assert is_decoded_to((SIDE, SIDE), whole, "TIFF")
    for place in (len(whole), 2**63 - 1, 2**64 - 1):
        assert not is_decoded_to((SIDE, SIDE), whole[:8] + struct.pack("<Q", place) + whole[16:], "TIFF")
    assert not is_decoded_to((SIDE, SIDE), whole[:16] + struct.pack("<Q", 2**40) + whole[24:], "TIFF")
