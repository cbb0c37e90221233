"""Scans of a JPEG are counted before it is decoded."""

import io

import numpy as np
import pytest
from PIL import Image

from alignment.jpeg_scans import MOST_SCANS, count_scans
from alignment.photograph import decode_photograph


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
    with pytest.raises(ValueError, match=r"^bomb\.jpg has more than 100 scans, .*: save it anew$"):
        decode_photograph(bomb, "bomb.jpg")


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"\xff\xda\x00\x00" * 3, bytes(99)]
)
def test_what_is_cut_off_or_no_jpeg_ends_the_count(data):
    assert 0 <= count_scans(data) <= 3
