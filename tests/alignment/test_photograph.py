import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from adaface.alignment.photograph import decode_photograph, decode_reduced, read_photograph
from adaface.data.image_header import MOST_SCANS, check_header, count_scans
from adaface.data.images import decode_image
from tests.support.photographs import astronaut

ORIENTATION = 0x0112
# what a viewer does to each orientation -> what undoes it
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red():
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[:10, :20] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG2000"])
def test_a_red_image_stays_red(kind):
    image = decode_photograph(encoded(red(), kind), "red")
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    np.testing.assert_allclose(image[30, 30], (0, 0, 200), atol=4)
    np.testing.assert_allclose(image[4, 8], (255, 255, 255), atol=4)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("PNG", "P"), ("PNG", "RGBA")])
def test_red_in_other_modes(kind, mode):
    image = decode_photograph(encoded(red().convert(mode), kind), "red")
    np.testing.assert_allclose(image[30, 30], (0, 0, 200), atol=4)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("JPEG", "L"), ("PNG", "1"), ("PNG", "LA")])
def test_grey_has_three_equal_channels(kind, mode):
    image = decode_photograph(encoded(red().convert(mode), kind), "grey")
    assert image.shape == (40, 60, 3)
    assert (image == image[..., :1]).all()
    assert image[4, 8, 0] > 250
    assert image.min() < 100


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits(suffix):
    pixels = np.asarray(red())[..., ::-1].astype(np.uint16) * 257
    deep = decode_photograph(cv2.imencode(suffix, pixels)[1].tobytes(), "deep")
    assert deep[30, 30].tolist() == [0, 0, 200]
    grey = decode_photograph(cv2.imencode(suffix, np.ascontiguousarray(pixels[..., 2]))[1].tobytes(), "grey")
    assert grey[30, 30].tolist() == [200, 200, 200]


def test_transparency_lies_on_black():
    pixels = np.full((2, 2, 4), 200, dtype=np.uint8)
    pixels[0, :, 3] = (0, 255)
    image = decode_photograph(encoded(Image.fromarray(pixels), "PNG"), "window")
    assert image[0].tolist() == [[0, 0, 0], [200, 200, 200]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_the_orientation_of_the_camera(kind, orientation):
    upright = Image.fromarray(astronaut()[40:200:2, 150:300:2, ::-1])
    turn = TURNS[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    stored = upright if turn is None else upright.transpose(turn)
    image = decode_photograph(encoded(stored, kind, exif=exif, **options), "turned")
    assert image.shape == (80, 75, 3)
    assert np.abs(image[..., ::-1].astype(int) - np.asarray(upright)).mean() < 3


@pytest.mark.parametrize("orientation", TURNS)
def test_a_jpeg_is_shrunk_to_no_fewer_pixels_than_asked_for(orientation):
    upright = Image.fromarray(astronaut()[40:200, 150:300, ::-1])
    turn, exif = TURNS[orientation], Image.Exif()
    exif[ORIENTATION] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    data = encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0)
    for enough, shape in ((None, (160, 150)), (160 * 150, (160, 150)), (80 * 75 + 1, (160, 150)), (80 * 75, (80, 75))):
        image, size = decode_reduced(data, "it", enough_pixels=enough)
        assert (image.shape, size) == ((*shape, 3), (150, 160))
    expected = np.asarray(upright.reduce(2)).astype(int)
    assert np.abs(image[..., ::-1] - expected).mean() < 3
    assert decode_reduced(data, "it", enough_pixels=1)[0].shape == (20, 19, 3)
    assert decode_reduced(encoded(upright, "PNG"), "it", enough_pixels=1)[0].shape == (160, 150, 3)


def test_a_shrunk_jpeg_keeps_its_color_and_its_damage_is_told():
    for mode in ("RGB", "L", "CMYK"):
        data = encoded(Image.new("RGB", (160, 80), (200, 40, 20)).convert(mode), "JPEG", quality=95)
        image, _ = decode_reduced(data, "it", enough_pixels=100)
        assert image.shape == (10, 20, 3)
        expected = decode_photograph(data, "it")[0, 0]
        assert np.abs(image.astype(int) - expected).max() < 3
    with pytest.raises(ValueError, match="it is damaged"):
        decode_reduced(data[: len(data) // 2], "it", enough_pixels=100)


def test_jpeg_is_decoded_as_opencv_does():
    data = encoded(Image.fromarray(astronaut()[..., ::-1]), "JPEG", quality=90)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decode_photograph(data, "a").astype(int) - expected).mean() < 1


def test_the_first_of_several_pictures():
    blue = Image.new("RGB", (60, 40), (0, 0, 255))
    image = decode_photograph(encoded(red(), "TIFF", save_all=True, append_images=[blue]), "two")
    assert image[30, 30].tolist() == [0, 0, 200]


def huge_png():
    """A few bytes that announce 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a readable image"),
        (b"hello", "is not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "an EPS image: convert it"),
        (encoded(red(), "PNG")[:90], "is not a readable image .* the data is damaged"),
        (encoded(red(), "JPEG")[:700], "is damaged"),
        (
            encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
            "is damaged: its pixels are floating-point numbers",
        ),
        (huge_png(), "announces .* too few for a photograph"),
    ],
    ids=["empty", "text", "program", "PNG cut off", "JPEG cut off", "fractions", "huge"],
)
def test_files_that_are_refused_by_name(data, message, tmp_path):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"holiday\.jpg:? {message}"):
        read_photograph(path)


def test_the_number_of_pixels_is_bounded_before_they_are_decoded(monkeypatch):
    data = encoded(red(), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="wide is 60x40 px, more than the maximum of 2,399 pixels"):
        decode_photograph(data, "wide", most_pixels=2399)


def test_as_many_pixels_as_allowed():
    assert decode_photograph(encoded(red(), "PNG"), "fits", most_pixels=2400).shape == (40, 60, 3)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected an image file"):
        read_photograph(tmp_path)
    with pytest.raises(ValueError, match=r"absent\.jpg cannot be read: No such file"):
        read_photograph(tmp_path / "absent.jpg")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_does_no_harm():
    data = encoded(red(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    assert decode_photograph(data, "odd").shape == (40, 60, 3)


def jpeg(**options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    whole = jpeg(progressive=True)
    last = whole.rindex(b"\xff\xda")
    tables = whole.rindex(b"\xff\xc4", 0, last)  # a scan comes with its own table
    return whole[:tables] + whole[tables:-2] * scans + whole[-2:]


@pytest.mark.parametrize("options, scans", [({}, 1), ({"progressive": True}, 10)])
def test_the_scans_of_ordinary_files(options, scans):
    assert count_scans(jpeg(**options)) == scans
    assert decode_photograph(jpeg(**options), "a.jpg").shape == (64, 80, 3)


def test_markers_inside_of_metadata_and_behind_the_end_do_not_count():
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 500  # a description
    assert count_scans(jpeg(exif=exif.tobytes())) == 1
    comment = jpeg(comment=b"\xff\xda\x00\x02" * 500)
    assert count_scans(comment + b"\xff\xda\x00\x02" * 500) == 1  # as of a film behind the picture
    assert decode_photograph(comment + b"\xff\xda\x00\x02" * 500, "film.jpg").shape == (64, 80, 3)


def test_a_file_of_thousands_of_scans_is_refused_before_it_is_decoded(monkeypatch):
    assert decode_photograph(scan_bomb(40), "slow.jpg").shape == (64, 80, 3)  # so the file below is a real one
    bomb = scan_bomb(5000)
    assert count_scans(bomb) == MOST_SCANS + 1

    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(ValueError, match=r"^bomb\.jpg has more than 100 scans, .*: save it again$"):
        decode_photograph(bomb, "bomb.jpg")


def test_many_scans_of_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    """The header is all that counts, so that of the file here announces more than it has."""
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    few, many = scan_bomb(10), scan_bomb(90)
    assert (count_scans(few), count_scans(many)) == (19, 99)

    def enlarged(data: bytes) -> bytes:
        place = data.index(b"\xff\xc2") + 5
        return data[:place] + struct.pack(">HH", 4000, 4000) + data[place + 4 :]

    assert check_header(enlarged(few), "large.jpg")[1:] == (4000, 4000)
    with pytest.raises(ValueError, match=r"^large\.jpg has 99 scans of 4000x4000 px, each .*: save it again$"):
        decode_photograph(enlarged(many), "large.jpg")


def test_the_scans_of_a_face_are_counted(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (112, 112)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    assert decode_image(whole[:-2] + last * 50 + whole[-2:], "face").shape == (112, 112, 3)
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="face has more than 100 scans"):
        decode_image(whole[:-2] + last * 10_000 + whole[-2:], "face")


def test_thousands_of_segments_between_scans_are_as_slow():
    whole = jpeg(progressive=True)
    last = whole.rindex(b"\xff\xda")
    assert count_scans(whole[:last] + b"\xff\xfe\0\2" * 19_000 + whole[last:]) == 10
    assert count_scans(whole[:last] + b"\xff\xfe\0\2" * 20_000 + whole[last:]) == MOST_SCANS + 1


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"\xff\xda\x00\x00" * 3, bytes(99)]
)
def test_what_is_cut_off_or_no_jpeg_ends_the_count(data):
    assert 0 <= count_scans(data) <= 3
