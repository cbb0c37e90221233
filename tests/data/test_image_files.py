import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from adaface.alignment.photograph import decode_photograph, read_photograph
from adaface.commands import align as align_command
from adaface.data.image_files import find_image_files, is_litter, list_classes, summary
from adaface.data.image_list import ImageFiles, read_color_image
from adaface.data.images import decode_image, decode_pixels
from adaface.data.sources.folder import FolderSource
from adaface.inference.sample_images import check_image_folder, find_images
from tests.support.photographs import head

IMAGE = np.full((112, 112, 3), 90, np.uint8)
JPEG = cv2.imencode(".jpg", IMAGE)[1].tobytes()
HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(40)


def write(root, *names, content=JPEG):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def skipped(found):
    return {entry.name: (entry.reason, entry.photograph) for entry in found.skipped}


@pytest.mark.parametrize(
    "name", ["a.jfif", "a.jpe", "a.jpg_large", "a.JPG", "a", "a.mpo", "a.avif", "a.gif", "a.jp2", "a.dat", "a.txt"]
)
def test_content_decides_what_an_image_is(tmp_path, name):
    write(tmp_path, name)
    found = find_image_files(tmp_path)
    assert (found.names, found.skipped, found.litter) == ([name], [], 0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".ppm", ".tiff", ".webp", ".avif", ".gif", ".jp2"])
def test_each_format_is_found_under_a_name_without_extension(tmp_path, suffix):
    write(tmp_path, "person/1", content=cv2.imencode(suffix, IMAGE)[1].tobytes())
    assert find_image_files(tmp_path).names == ["person/1"]
    source = FolderSource(tmp_path)
    assert (len(source), source.path(0)) == (1, str(tmp_path / "person" / "1"))


def heic(image: np.ndarray, orientation: int = 1) -> bytes:
    """Encode (H, W, 3) BGR, or (H, W) gray; skips where the encoder is not installed."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif, of requirements-dev.txt")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(image[..., ::-1] if image.ndim == 3 else image).save(file, "HEIF", quality=95, exif=exif.tobytes())
    return file.getvalue()


def test_heic_is_found_and_decoded_like_other_photographs(tmp_path):
    face = cv2.resize(cv2.cvtColor(head(), cv2.COLOR_BGR2RGB), (112, 112))  # red hair where there was blue
    face[:30] = (0, 0, 255)  # BGR
    write(tmp_path, "ann/1.heic", content=heic(face))
    assert find_image_files(tmp_path).names == ["ann/1.heic"]
    path = tmp_path / "ann" / "1.heic"
    for image in (
        read_photograph(path),
        read_color_image(path),
        decode_image(path.read_bytes(), "it"),
        ImageFiles("faces", [path]).read(0),
    ):
        assert image.shape == (112, 112, 3) and image.dtype == np.uint8
        assert np.abs(image.astype(int) - face).mean() < 4
        assert (image[10, 50] > (-1, -1, 200)).all() and (image[10, 50] < (60, 60, 256)).all(), "red stays red"


def test_heic_is_upright_and_gray_or_damaged_ones_are_told(tmp_path):
    wide = np.zeros((100, 160, 3), np.uint8)
    wide[:, :80] = (0, 200, 0)
    turned = heic(wide, orientation=6)  # a quarter turn clockwise: the left half becomes the upper one
    for image in (decode_photograph(turned, "it"), decode_pixels(turned, "HEIC", cv2.IMREAD_COLOR)):
        assert image.shape == (160, 100, 3)
        assert image[20, 50, 1] > 150 and image[140, 50, 1] < 50
    gray = heic(np.full((112, 112), 90, np.uint8))
    with pytest.raises(ValueError, match="it: a grayscale image, not color"):
        decode_image(gray, "it")
    assert np.abs(decode_photograph(gray, "it").astype(int) - 90).max() < 4
    for damaged in (turned[:-100], turned[: len(turned) // 2], HEIC):
        with pytest.raises(ValueError, match=r"it is (damaged|not a readable image)"):
            decode_photograph(damaged, "it")


def test_every_file_is_an_image_skipped_or_litter(tmp_path, without_heif):
    write(tmp_path, "1.jpg", "sub/2.png", "sub/deeper/3", ".hidden.jpg", ".old/4.jpg")
    write(tmp_path, "notes.txt", "alignment.csv", ".DS_Store", "sub/Thumbs.db", "sub/._2.png", content=b"text")
    write(tmp_path, "@eaDir/1.jpg", "__MACOSX/1.jpg", "sub/.ipynb_checkpoints/2.png")
    write(tmp_path, "phone.heic", content=HEIC)
    write(tmp_path, "camera.NEF", "camera.gpr", content=b"II*\x00" + bytes(60))
    write(tmp_path, "new.jxl", content=b"\xff\x0a" + bytes(60))
    write(tmp_path, "empty", content=b"")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe")
    found = find_image_files(tmp_path)
    assert found.names == ["1.jpg", "sub/2.png", "sub/deeper/3"]
    assert found.litter == 4
    assert skipped(found) == {
        ".hidden.jpg": ("a hidden file", True),
        ".old/4.jpg": ("in a hidden folder", True),
        "notes.txt": ("not an image", False),
        "empty": ("not an image", False),
        "phone.heic": ("a HEIC image: pip install pillow-heif to read it, or convert it to JPEG", True),
        "camera.NEF": ("a camera raw file: convert it to JPEG or PNG", True),
        "camera.gpr": ("a camera raw file: convert it to JPEG or PNG", True),
        "new.jxl": ("a JPEG XL image: convert it to JPEG or PNG", True),
        "lost.jpg": ("a link to nothing", True),
        "pipe": ("not a regular file", False),
    }
    assert found.photographs_skipped == 7
    lines = summary(found, "photographs")
    assert lines[0] == "17 files: 3 photographs, 10 skipped, 4 system files"
    assert len(lines) == 11
    assert all("skipped" in line for line in lines)


def test_images_of_formats_that_are_not_read_are_missed(tmp_path):
    """Such as Pillow and OpenCV write; a TARGA has no signature."""
    picture = Image.new("RGB", (8, 8), "red")
    for kind in ("SGI", "PCX", "DDS", "TGA", "ICO", "ICNS", "DIB", "EPS"):
        picture.save(tmp_path / f"1.{kind.lower()}", kind)
    for kind in ("PCX", "MSP", "XBM", "DIB"):
        picture.convert("1").save(tmp_path / f"1bit.{kind.lower()}", kind)
    picture.convert("P").save(tmp_path / "1.blp", "BLP")
    (tmp_path / "1.xpm").write_text("/* XPM */\nstatic char *red[] = {")
    (tmp_path / "1.dcx").write_bytes(b"\xb1\x68\xde\x3a" + bytes(60))
    (tmp_path / "1.cur").write_bytes(b"\0\0\2\0\1\0\x20\x20\0\0" + bytes(60))
    for suffix, pixels in ((".ras", np.uint8), (".hdr", np.float32), (".pfm", np.float32), (".pam", np.uint8)):
        assert cv2.imwrite(str(tmp_path / f"2{suffix}"), np.ones((8, 8, 3), pixels))
    found = find_image_files(tmp_path)
    assert (found.names, found.photographs_skipped) == ([], 15)  # icons are not missed
    assert all(reason.endswith("image: convert it to JPEG or PNG") for reason, _ in skipped(found).values())


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0\n",
        b"#define WIDTH 3\n",
        b"\0\0\1\0" + bytes(60),
        b"\x28\0\0\0" + bytes(60),
        b"\n\5 text",
        b"\0",
    ],
)
def test_what_begins_almost_like_an_image_is_none(tmp_path, content):
    write(tmp_path, "a", content=content)
    assert skipped(find_image_files(tmp_path)) == {"a": ("not an image", False)}


def test_damaged_images_are_missed_whatever_their_extension(tmp_path):
    write(tmp_path / "in", "empty.HEIC", "empty.txt", content=b"")
    write(tmp_path / "in", "zeros.jfif", "zeros.avif", "zeros.gif", "zeros.bin", content=bytes(1000))
    write(tmp_path / "in", "page.jpg_large", "page.PNG_large", content=b"<html>404")
    write(tmp_path / "in", "whole.png", content=cv2.imencode(".png", head())[1].tobytes())
    found = find_image_files(tmp_path / "in")
    damaged = ("damaged: its content is not an image", True)
    assert (found.names, skipped(found)) == (
        ["whole.png"],
        {
            "empty.HEIC": ("an empty file", True),
            "empty.txt": ("not an image", False),
            "page.PNG_large": damaged,
            "page.jpg_large": damaged,
            "zeros.avif": damaged,
            "zeros.bin": ("not an image", False),
            "zeros.gif": damaged,
            "zeros.jfif": damaged,
        },
    )
    assert align_command.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "zeros.avif,skipped,0,1," in (tmp_path / "out" / "alignment.csv").read_text()


def test_a_long_list_of_skipped_files_names_photographs_first(tmp_path, without_heif):
    write(tmp_path, *(f"{number:02}.txt" for number in range(14)), content=b"text")
    write(tmp_path, "z.heic", content=HEIC)
    lines = summary(find_image_files(tmp_path))
    assert lines[0] == "15 files: 0 images, 15 skipped"
    assert lines[1].startswith("  skipped z.heic: a HEIC image")
    assert lines[-1] == "  ... and 5 more"
    assert len(lines) == 12


def test_links_are_followed_and_loops_refused(tmp_path):
    write(tmp_path / "elsewhere", "ann/1.jpg", "ann/deep/2.jpg")
    faces = tmp_path / "faces"
    write(faces, "ben/1.jpg", "cat/1.jpg")
    (faces / "ann").symlink_to(tmp_path / "elsewhere" / "ann")
    (faces / "ben" / "2.jpg").symlink_to(faces / "cat" / "1.jpg")
    expected = ["ann/1.jpg", "ann/deep/2.jpg", "ben/1.jpg", "ben/2.jpg", "cat/1.jpg"]
    assert find_image_files(faces).names == expected
    source = FolderSource(faces)
    assert [os.path.relpath(source.path(index), faces) for index in range(len(source))] == expected
    assert [path.relative_to(faces).as_posix() for path in find_images(faces)] == expected
    (faces / "cat" / "again").symlink_to(faces)
    for walk in (find_image_files, FolderSource, find_images):
        with pytest.raises(ValueError, match=r"again.*: a link leads back to a folder above it; remove the link"):
            walk(faces)
    (faces / "cat" / "again").unlink()
    (faces / "dan").symlink_to(faces / "dan")
    for walk in (find_image_files, FolderSource, find_images):
        with pytest.raises(
            ValueError, match=r"dan: this link leads back to itself, or through too many others; remove it"
        ):
            walk(faces)


def test_links_that_meet_again_and_again_are_refused(tmp_path):
    """Two links in each of 30 folders to the next one: a billion paths, none of which leads back."""
    for number in range(30):
        folder = tmp_path / "chain" / str(number)
        write(folder, f"{number}.jpg")
        if number < 29:
            for name in ("left", "right"):
                (folder / name).symlink_to(tmp_path / "chain" / str(number + 1))
    faces = tmp_path / "faces"
    write(faces, "ann/1.jpg")
    (faces / "ann" / "first").symlink_to(tmp_path / "chain" / "0")
    for walk in (find_image_files, FolderSource, find_images):
        with pytest.raises(
            ValueError, match=r"(left|right): more than 100 links lead to this folder, below other links"
        ):
            walk(faces)


def test_a_folder_may_be_linked_from_many_places(tmp_path):
    write(tmp_path / "elsewhere", "deep/1.jpg")
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(200):
        (faces / f"{number:03}").symlink_to(tmp_path / "elsewhere")
    assert find_image_files(faces).names == [f"{number:03}/deep/1.jpg" for number in range(200)]


def test_the_order_is_that_of_torchvision(tmp_path):
    names = ["p/a/c/1.jpg", "p/a-b/1.jpg", "p/a/1.jpg", "p/b.jpg", "p/B.jpg", "p/a.jpg"]
    write(tmp_path, *names)
    expected = [
        os.path.relpath(f"{root}/{name}", tmp_path)
        for root, _, files in sorted(os.walk(tmp_path, followlinks=True))
        for name in sorted(files)
    ]
    assert find_image_files(tmp_path).names == expected
    source = FolderSource(tmp_path)
    assert [os.path.relpath(source.path(index), tmp_path) for index in range(len(source))] == expected


def test_images_beside_the_class_folders_are_skipped_and_named(tmp_path):
    write(tmp_path, "ann/1.jpg", "stray.jpg", ".hidden/1.jpg")
    write(tmp_path, ".DS_Store", "list.csv", content=b"text")
    classes, outside = list_classes(tmp_path)
    assert classes == ["ann"]
    assert outside.litter == 1
    assert skipped(outside) == {
        "stray.jpg": ("not in a folder of a class", True),
        ".hidden/1.jpg": ("in a hidden folder", True),
        "list.csv": ("not an image", False),
    }


def test_each_file_below_a_hidden_folder_is_skipped(tmp_path, monkeypatch):
    faces = tmp_path / "faces"
    write(
        faces,
        "ann/1.jpg",
        "ann/.old/2.jpg",
        "ann/.old/deep/3",
        ".svn/4.jpg",
        ".Trash-1000/4.jpg",
        "$RECYCLE.BIN/S-1-5/4.jpg",
        "System Volume Information/4.jpg",
        "lost+found/4.jpg",
        "#recycle/4.jpg",
        "@Recycle/4.jpg",
        ".@__thumb/s1004.jpg",
        ".old/.cache/5.jpg",
        ".old/out/6.png",
    )
    write(faces, "ann/.old/notes.txt", "ann/.old/Thumbs.db", content=b"text")
    (faces / "ann" / ".old" / "again").symlink_to(faces)
    (faces / ".link").symlink_to(faces)
    (faces / ".locked").mkdir()
    scan = os.scandir

    def scandir(path):
        if os.fspath(path).endswith(".locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_image_files(faces, omit=faces / ".old" / "out")
    beside = {
        ".link": ("a hidden link to a folder", False),
        ".locked": ("a hidden folder that cannot be read: Permission denied", False),
    }
    in_class = {
        "ann/.old/2.jpg": ("in a hidden folder", True),
        "ann/.old/again": ("in a hidden folder", False),
        "ann/.old/deep/3": ("in a hidden folder", True),
        "ann/.old/notes.txt": ("in a hidden folder", False),
    }
    assert (found.names, skipped(found), found.litter) == (["ann/1.jpg"], beside | in_class, 1)
    source = FolderSource(faces)
    assert skipped(source.listing) == beside | in_class | {".old/out/6.png": ("in a hidden folder", True)}
    assert (len(source), len(source.flaws)) == (1, 3)


def test_names_longer_than_255_bytes(tmp_path):
    names = [f"p/{'d' * 200}/{'e' * 200}/{number}.jpg" for number in range(3)]
    write(tmp_path, *names)
    source = FolderSource(tmp_path)
    assert [os.path.relpath(source.path(index), tmp_path) for index in range(3)] == names


def test_alignment_says_what_it_skipped_and_ends_with_status_1(tmp_path, capsys, without_heif):
    photographs = tmp_path / "in"
    write(photographs, "ann/1.txt.jpg", content=cv2.imencode(".png", IMAGE)[1].tobytes())
    write(photographs, "ben/1.heic", content=HEIC)
    assert align_command.main([str(photographs), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "2 files: 1 photographs, 1 skipped" in printed
    assert "skipped ben/1.heic: a HEIC image" in printed
    assert "ben/1.heic,skipped,0,1," in (tmp_path / "out" / "alignment.csv").read_text()


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "._a.jpg", ".lock", ".a.png.part", "desktop.ini"])
def test_litter(name):
    assert is_litter(name)


@pytest.mark.parametrize("name", ["a.jpg", "_a.jpg", "Thumbs.db.jpg", "part", "lock"])
def test_other_files_are_no_litter(name):
    assert not is_litter(name)


def test_pictures_in_a_multi_picture_file_of_a_phone(tmp_path):
    first, second = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    first.save(tmp_path / "a.mpo", format="MPO", save_all=True, append_images=[second])
    assert find_image_files(tmp_path).names == ["a.mpo"]


def test_a_folder_without_any_file_is_told_before_it_is_listed(tmp_path):
    for name in ("empty/below", "linked", "photos"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "linked" / "there").symlink_to(tmp_path / "photos")
    for check in (check_image_folder, find_images):
        with pytest.raises(FileNotFoundError, match=r"no images in .*empty; it contains below: give a folder"):
            check(tmp_path / "empty")
        with pytest.raises(ValueError, match=r"a\.jpg is a file, expected a folder of images"):
            check(tmp_path / "photos" / "a.jpg")
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
            check(tmp_path / "absent")
    check_image_folder(tmp_path / "linked")
    assert find_images(tmp_path / "linked") == [tmp_path / "linked" / "there" / "a.jpg"]
