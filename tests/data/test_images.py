"""Encoded faces decoded; sequences that read an image when it is asked for."""

import io
import itertools
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from adaface.alignment.photograph import decode_photograph
from adaface.data.image_header import read_header
from adaface.data.image_list import read_color_image
from adaface.data.images import LazyImages, as_bgr, decode_image

NOISE = np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8)
FACE = cv2.resize(NOISE, (112, 112), interpolation=cv2.INTER_CUBIC)  # smooth enough for JPEG


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def test_red_stays_red() -> None:
    red = np.zeros((112, 112, 3), np.uint8)
    red[:, :, 2] = 255  # BGR
    for encoded in (encode(red), np.frombuffer(encode(red), np.uint8), red[:, :, ::-1]):
        np.testing.assert_array_equal(decode_image(encoded, "red"), red)
    blue, green, strong = decode_image(encode(red, ".jpg"), "red")[50, 50]
    assert strong > 250
    assert max(blue, green) < 5


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", r"key 7 is not a readable image \(0 bytes\)"),
        (b"no image at all", "key 7 is not a readable image"),
        (encode(FACE, ".jpg")[:300], "key 7 is not a readable image"),
        (encode(FACE[:, :, 0], ".jpg"), "key 7: a grayscale image"),
        (encode(FACE[:, :, 0], ".png"), "key 7: a grayscale image"),
        (
            encode(FACE[:, :96]),
            "key 7: 96x112 px, expected a face aligned to 112x112: adaface align <photographs> <faces>",
        ),
        (np.zeros((112, 112), np.uint8), r"key 7: an array of shape \(112, 112\)"),
        (np.zeros((100, 112, 3), np.uint8), r"key 7: an array of shape \(100, 112, 3\)"),
    ],
)
def test_bad_images_are_named(encoded: bytes | np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_image(encoded, "key 7")


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT"])
def test_a_png_with_a_wrong_checksum_is_damaged(chunk: bytes) -> None:
    """OpenCV does not compare the checksums, and would return another image."""
    whole = encode(FACE)
    start = whole.index(chunk)
    size = int.from_bytes(whole[start - 4 : start], "big")
    damaged = bytearray(whole)
    damaged[start + 4 + size // 2] ^= 1
    with pytest.raises(ValueError, match=r"key 7 is not a readable image .* the data is damaged"):
        decode_image(bytes(damaged), "key 7")


def buried(kind: str, parts: int, filling: int = 0) -> bytes:
    """Return an image with so many parts without pixels, and bytes of filling, before its pixels."""
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    if kind == "PPM":
        return b"P6 112\n#" + b"x" * filling + b"\n112\n255\n" + picture.tobytes()
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    whole = file.getvalue()
    if kind == "JPEG":
        first = whole.index(b"\xff\xc4")  # behind the size
        return whole[:2] + b"\xff" * filling + whole[2:first] + b"\xff\xfe\0\2" * parts + whole[first:]
    if kind == "PNG":
        place, chunk = whole.index(b"IDAT") - 4, struct.pack(">I", 0) + b"puRe"
        return whole[:place] + (chunk + struct.pack(">I", zlib.crc32(chunk[4:]))) * parts + whole[place:]
    place, box = whole.index(b"jp2h") - 4, struct.pack(">I4s", 8, b"free")
    length = int.from_bytes(whole[place : place + 4], "big")
    inside = struct.pack(">I", length + 8 * (parts // 2)) + whole[place + 4 : place + length] + box * (parts // 2)
    return whole[:place] + box * (parts - parts // 2) + inside + whole[place + length :]


@pytest.mark.parametrize(
    "kind, few, many",
    [
        ("PPM", (0, 60_000), (0, 70_000)),
        ("JPEG", (19_000, 60_000), (0, 70_000)),
        ("JPEG", (19_000, 60_000), (21_000, 0)),
        ("PNG", (19_000, 0), (21_000, 0)),
        ("JPEG2000", (19_000, 0), (21_000, 0)),
    ],
)
def test_pixels_behind_much_else_are_damaged(
    kind: str, few: tuple[int, int], many: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would pass 30 MB of it in 14 seconds."""
    np.testing.assert_array_equal(decode_image(buried(kind, *few), "it"), decode_image(buried(kind, 0), "it"))
    for opener in ("adaface.data.image_header.open_with_pillow", "adaface.alignment.photograph.open_with_pillow"):
        monkeypatch.setattr(opener, lambda _: pytest.fail("it is opened"))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it is decoded"))
    for read in (decode_image, decode_photograph):
        with pytest.raises(ValueError, match="the data is damaged"):
            read(buried(kind, *many), "it")


@pytest.mark.parametrize("start", [b"iCCPk\0\0", b"zTXtk\0\0", b"iTXtk\0\1\0\0\0"])
def test_a_png_of_hundreds_of_chunks_that_inflate_is_damaged(start: bytes) -> None:
    """Each of 1 kB takes a megabyte, and a millisecond."""
    content = start + zlib.compress(bytes(1_000_000), 9)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    whole = encode(FACE)
    place = whole.index(b"IDAT") - 4
    assert read_header(whole[:place] + chunk * 250 + whole[place:], "it")[1:] == (112, 112)
    with pytest.raises(ValueError, match="the data is damaged"):
        read_header(whole[:place] + chunk * 260 + whole[place:], "it")


def test_a_png_of_hundreds_of_plain_texts_is_read() -> None:
    content = b"iTXtComment\0\0\0\0\0" + b"a" * 900
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    whole = encode(FACE)
    place = whole.index(b"IDAT") - 4
    np.testing.assert_array_equal(decode_image(whole[:place] + chunk * 300 + whole[place:], "it"), FACE)


def test_a_png_of_many_chunks_of_pixels_is_read() -> None:
    start = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
    content = b"IDAT" + bytes(256)
    chunk = struct.pack(">I", 256) + content + struct.pack(">I", zlib.crc32(content))
    place = start.index(b"IDAT") - 4
    assert read_header(start[:place] + chunk * 21_000 + start[place:], "it")[1:] == (2, 2)


def test_a_png_that_gives_its_size_twice_is_damaged() -> None:
    """Pillow takes the last one, which is not the one that is checked."""
    whole = encode(FACE)
    with pytest.raises(ValueError, match="the data is damaged"):
        decode_photograph(whole[:33] + whole[8:33] + whole[33:], "key 7")


def test_a_tiff_with_a_huge_tile_is_not_decoded() -> None:
    """A decoder reserves the memory of a whole tile: of this file, a gigabyte."""
    side, length = 18_000, 10
    tags = {256: 112, 257: 112, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: length}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    for decode in (decode_image, decode_photograph):
        with pytest.raises(ValueError, match="key 7 is not a readable image"):
            decode(tiff, "key 7")


def test_an_avif_is_upright_and_decoded_by_pillow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its pixels may be of another size than announced, for which OpenCV reserves gigabytes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(FACE[..., ::-1]).save(tmp_path / "a.avif", exif=exif, quality=95)
    monkeypatch.setattr(cv2, "imdecode", None)
    upright = read_color_image(tmp_path / "a.avif").astype(int)
    assert abs(upright - np.rot90(FACE, -1)).mean() < 5
    Image.fromarray(FACE[..., 0]).save(tmp_path / "gray.avif")
    with pytest.raises(ValueError, match="key 7: a grayscale image"):
        decode_image((tmp_path / "gray.avif").read_bytes(), "key 7")


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its message would have a good file removed."""

    def reserve_exabytes(*_: object) -> np.ndarray:
        return cv2.copyMakeBorder(FACE, 0, 1 << 30, 0, 1 << 30, cv2.BORDER_CONSTANT)

    def find_no_memory(*_: object) -> np.ndarray:
        raise MemoryError

    (tmp_path / "a.png").write_bytes(encode(FACE))
    Image.fromarray(FACE).save(tmp_path / "a.avif")
    monkeypatch.setattr(cv2, "imdecode", reserve_exabytes)
    for read in (lambda: read_color_image(tmp_path / "a.png"), lambda: decode_image(encode(FACE), "it")):
        with pytest.raises(MemoryError, match=r"for the pixels of a PNG image: .*Insufficient memory"):
            read()
    for module in ("adaface.data.images", "adaface.alignment.photograph"):
        monkeypatch.setattr(f"{module}.pillow_to_bgr", find_no_memory)
    with pytest.raises(MemoryError):
        read_color_image(tmp_path / "a.avif")
    with pytest.raises(MemoryError, match="for the pixels of a photograph, 112x112 px"):
        decode_photograph(encode(FACE), "a photograph")


@pytest.mark.parametrize("lost", [b"\0", b"\xff"])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_jpeg_that_lacks_a_sector_is_damaged(lost: bytes, place: float) -> None:
    """Its decoder would make gray blocks of it, without an error."""
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    whole = file.getvalue()
    start = int(place * len(whole)) // 512 * 512
    damaged = whole[:start] + lost * 512 + whole[start + 512 :]
    for decode in (decode_image, decode_photograph):
        assert decode(whole, "it").shape == decode(whole + bytes(9000) + whole, "it").shape == (112, 112, 3)
        with pytest.raises(ValueError, match=r"it is not a readable image .*; the data is damaged"):
            decode(damaged, "it")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_flat_jpeg_is_whole(mode: str, progressive: bool) -> None:
    for size in ((112, 112), (9, 3000), (1200, 900)):
        for subsampling, color in itertools.product((0, 2), (0, 77, 255)):
            file = io.BytesIO()
            flat = Image.new(mode, size, color if mode == "L" else (color,) * len(mode))
            flat.save(file, "JPEG", optimize=True, progressive=progressive, subsampling=subsampling)
            assert decode_photograph(file.getvalue(), "it").shape == (size[1], size[0], 3)


def test_a_png_whose_text_has_a_wrong_checksum_is_read() -> None:
    whole = encode(FACE)
    text = b"\0\0\0\x05tEXta\0bcdNONE"
    assert np.array_equal(decode_image(whole[:33] + text + whole[33:] + b"behind the end", "key 7"), FACE)


class GreyImages(LazyImages):
    """Three images, each of its own grey level."""

    def __len__(self) -> int:
        return 3

    def read(self, index: int) -> np.ndarray:
        return np.full((112, 112, 3), index, np.uint8)


def picture(mode: str) -> tuple[Image.Image, str]:
    """A Pillow image of a mode, one half transparent where the mode can be, and a file format for it."""
    ramp = np.add.outer(np.arange(112), np.arange(112)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16) * 257), "PNG"
    image = Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], axis=2))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.where(ramp > 100, 255, 0).astype(np.uint8)))
    image = image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    return image, "TIFF" if mode == "CMYK" else "PNG"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "CMYK", "1", "I;16"])
def test_a_pillow_image_is_what_its_file_is(mode: str) -> None:
    image, kind = picture(mode)
    file = io.BytesIO()
    image.save(file, kind)
    before = image.copy()
    assert np.array_equal(as_bgr(image, "it"), decode_photograph(file.getvalue(), "it"))
    assert (image.mode, image.tobytes()) == (before.mode, before.tobytes())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pillow_image_is_upright(orientation: int) -> None:
    image, file = picture("RGB")[0].crop((0, 0, 80, 112)), io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = orientation
    image.save(file, "PNG", exif=exif)
    assert np.array_equal(as_bgr(Image.open(file), "it"), decode_photograph(file.getvalue(), "it"))


def test_a_pillow_image_that_states_no_range_is_refused() -> None:
    with pytest.raises(ValueError, match="it cannot be converted: its pixels are floating-point numbers"):
        as_bgr(Image.new("F", (112, 112)), "it")


def test_images_are_read_by_place_from_either_end_and_by_slice() -> None:
    images = GreyImages("somewhere")
    assert [int(image[0, 0, 0]) for image in images] == [0, 1, 2]
    assert int(images[-1][0, 0, 0]) == 2
    assert [int(image[0, 0, 0]) for image in images[::-2]] == [2, 0]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"somewhere has 3 images, got index {index}"):
            images[index]


def test_a_device_in_a_list_of_names_is_not_read():
    with pytest.raises(ValueError, match=r"/dev/zero is a device, not an image file"):
        read_color_image(Path("/dev/zero"))
