"""Conversion: `.rec` to folders and back, `.bin` to sets, pairs files; stopping, resuming, bad input."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import bcolz
import cv2
import numpy as np
import pytest

from adaface.commands import convert
from adaface.conversion import pack, unpack_rec
from adaface.data import pair_sets, pair_writers
from adaface.data.images import decode_image
from adaface.data.pair_pickle import read_bin, write_bin
from adaface.data.sources import finder
from adaface.records import reader
from adaface.system.locks import locked

PROJECT = Path(convert.__file__).parents[2]


def smooth_image(seed: int) -> np.ndarray:
    """(112, 112, 3) uint8 BGR, smooth enough for JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return cv2.resize(noise, (112, 112), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


IMAGES = [smooth_image(seed) for seed in range(6)]
SUFFIXES = [".jpg", ".jpg", ".png", ".jpg", ".jpg", ".png"]
ENCODED = [encode(image, suffix) for image, suffix in zip(IMAGES, SUFFIXES, strict=True)]
LABELS = [0, 0, 1, 10, 10, 2]
RED = np.zeros((112, 112, 3), np.uint8)
RED[:, :, 2] = 255  # BGR


def write_rec(folder: Path, payloads: list[bytes], labels: list[float], identities: int | None = None) -> Path:
    """Write train.rec the way InsightFace does: header record, images, identity records."""
    folder.mkdir(exist_ok=True)
    count, classes = len(payloads), identities if identities is not None else len(set(labels))
    with reader.RecordWriter(folder / "train.rec") as writer:
        header = reader.ImageHeader(np.array([count + 1, count + 1 + classes], np.float32))
        writer.write(0, reader.pack(header, b""))
        for key, (payload, label) in enumerate(zip(payloads, labels, strict=True), 1):
            writer.write(key, reader.pack(reader.ImageHeader(float(label), key), payload))
        for key in range(count + 1, count + 1 + classes):
            writer.write(key, reader.pack(reader.ImageHeader(np.array([1, 2], np.float32), key), b""))
    return folder


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A small InsightFace folder with train.rec and two sets."""
    folder = write_rec(tmp_path / "faces", ENCODED, LABELS)
    write_bin(folder / "lfw.bin", ENCODED, [True, False, True])
    write_bin(folder / "mine.bin", ENCODED[:4], [True, False])
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every visible file."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def times_below(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}


def run(*words: object) -> int:
    return convert.main([str(word) for word in words])


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must fail with status 2 and one line on stderr; return the line."""
    capsys.readouterr()
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("convert.py: error: ")
    return lines[0]


# --- train.rec -> imgs ------------------------------------------------------------------------------------------


def test_everything_is_converted_and_bytes_are_copied(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--rec_path", faces) == 0
    expected = {
        f"{label}/{key}{suffix}": data
        for key, (label, suffix, data) in enumerate(zip(LABELS, SUFFIXES, ENCODED, strict=True), 1)
    }
    assert files_below(faces / "imgs") == expected
    for name, count in (("lfw", 6), ("mine", 4)):
        pair_set = pair_sets.open_pair_set(faces, name)
        assert pair_sets.find_pair_sets(faces)[name] == faces / f"{name}_images.npy"
        for index, image in enumerate(pair_set.images):
            np.testing.assert_array_equal(image, decode_image(ENCODED[index], "expected"))
        assert len(pair_set.images) == count
    out = capsys.readouterr().out
    assert "6 images, 4 identities" in out
    assert "0 skipped" in out
    assert f"next: python main.py --data_root {faces.parent} --train_data_path faces/imgs --val_data_path faces" in out
    assert "labels have gaps and go up to 10" in out


def test_parts_can_be_chosen(faces: Path) -> None:
    assert run("--rec_path", faces, "--make_validation_memfiles") == 0
    assert not (faces / "imgs").exists()
    assert (faces / "lfw_list.npy").is_file()
    (faces / "lfw_list.npy").unlink()
    assert run("--rec_path", faces, "--make_image_files") == 0
    assert (faces / "imgs" / "10" / "4.jpg").is_file()
    assert not (faces / "lfw_list.npy").exists()


@pytest.mark.parametrize("damaged", ["[1]", "null", '"text"', "[" * 100_000])
def test_a_set_with_a_damaged_journal_is_converted_again(faces: Path, damaged: str, capsys) -> None:
    run("--rec_path", faces, "--make_validation_memfiles")
    (faces / ".lfw.convert.json").write_text(damaged)
    capsys.readouterr()
    assert run("--rec_path", faces, "--make_validation_memfiles") == 0
    assert "lfw.bin: already converted" not in capsys.readouterr().out
    assert json.loads((faces / ".lfw.convert.json").read_text())["form"] == "memfile"


def test_finished_work_is_left_alone(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--rec_path", faces)
    before = times_below(faces)
    for part in ("train.rec", "lfw.bin", "mine.bin"):  # a copy of the folder has other times
        os.utime(faces / part, ns=(1, 1))
    capsys.readouterr()
    assert run("--rec_path", faces) == 0
    assert capsys.readouterr().out.count("already converted") == 2  # the sets; the images are checked by index
    assert run("--rec_path", faces) == 0
    assert capsys.readouterr().out.count("nothing to do") == 3
    after = times_below(faces)
    changed = {Path(name).name for name in after if after[name] != before.get(name)}
    assert changed == {"train.rec", "lfw.bin", "mine.bin", ".convert.json"}


@pytest.mark.parametrize("another_time", [False, True])
@pytest.mark.parametrize(("gone", "left"), [("1", "5 of the 6"), ("10", "4 of the 6")])
def test_finished_work_of_which_images_are_gone_is_told(
    faces: Path, capsys, gone: str, left: str, another_time
) -> None:
    words = ["--rec_path", str(faces), "--make_image_files"]
    assert run(*words) == 0
    for path in (faces / "imgs" / gone).iterdir():  # the folder of the identity stays
        path.unlink()
    if another_time:
        os.utime(faces / "train.rec", ns=(1, 1))
    capsys.readouterr()
    assert run(*words) == 1
    told = capsys.readouterr()
    assert "nothing to do" not in told.out
    assert (
        f"{faces / 'imgs'}: only {left} converted images are there, of 3 of the 4 identities; --overwrite converts all "
        "again" in told.out + told.err
    )
    assert not list((faces / "imgs" / gone).iterdir())
    assert run(*words, "--overwrite") == 0
    assert run(*words) == 0
    assert "already converted (6 images, 4 identities); nothing to do" in capsys.readouterr().out


def test_records_without_header_record(tmp_path: Path) -> None:
    """Record 0 with flag 0: every key is an image."""
    with reader.RecordWriter(tmp_path / "train.rec") as writer:
        for key in (5, 0, 3):
            writer.write(key, reader.pack(reader.ImageHeader(7.0, key), ENCODED[key]))
    assert run("--rec_path", tmp_path) == 0
    assert sorted(files_below(tmp_path / "imgs")) == ["7/0.jpg", "7/3.jpg", "7/5.png"]


def test_a_changed_rec_is_not_mixed_with_the_old_one(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--rec_path", faces)
    write_rec(faces, ENCODED[:3], LABELS[:3])
    assert "was converted from another train.rec; use --overwrite" in error_of(capsys, "--rec_path", faces)
    assert run("--rec_path", faces, "--overwrite") == 0
    assert sorted(files_below(faces / "imgs")) == ["0/1.jpg", "0/2.jpg", "1/3.png"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_foreign_image_folders_are_not_touched(
    faces: Path, capsys: pytest.CaptureFixture[str], overwrite: list[str]
) -> None:
    (faces / "imgs" / "0").mkdir(parents=True)
    (faces / "imgs" / "0" / "1.jpg").write_bytes(b"mine")
    message = error_of(capsys, "--rec_path", faces, *overwrite)
    assert "move it" in message
    assert files_below(faces / "imgs") == {"0/1.jpg": b"mine"}


KILLED_CONVERSION = """
import os, signal, sys, threading
from adaface.commands import convert
from adaface.conversion import unpack_rec

unpack_rec._JOURNAL_EVERY, unpack_rec._IMAGES_AT_ONCE = 100, 20
write, left, alone = unpack_rec._write, int(sys.argv[2]), threading.Lock()

def count_down(path, data):
    global left
    with alone:  # the other thread would go on between the half file and the kill
        left -= 1
        if left == 0:
            write(path, data[:100])
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, data)

unpack_rec._write = count_down
sys.exit(convert.main(["--rec_path", sys.argv[1]]))
"""


def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle of a file: the second run finds it, and writes only what was missing."""
    rng = np.random.default_rng(0)
    payloads = [b"\xff\xd8\xff" + rng.bytes(6000) + b"\xff\xd9" for _ in range(400)]
    labels = [key // 20 for key in range(400)]
    folder = write_rec(tmp_path / "faces", payloads, labels)
    expected = {f"{label}/{key}.jpg": data for key, (label, data) in enumerate(zip(labels, payloads, strict=True), 1)}
    command = [sys.executable, "-c", KILLED_CONVERSION, str(folder)]
    first = subprocess.run([*command, "250"], cwd=PROJECT, stdout=subprocess.DEVNULL)
    assert first.returncode == -signal.SIGKILL
    partly = files_below(folder / "imgs")
    whole = {name: data for name, data in partly.items() if expected[name] == data}
    assert (len(whole), len(partly)) == (249, 250)
    # the main thread counts what the others have written: at most 4 parts of 20 later, then it notes every 100th
    noted = json.loads((folder / "imgs" / ".convert.json").read_text())["done"]
    assert noted in (100, 200)
    with pytest.raises(ValueError, match="is not complete"):
        finder.open_training_source(str(folder), "imgs")
    times_before = times_below(folder / "imgs")

    again = subprocess.run([*command, "0"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert files_below(folder / "imgs") == expected
    times_after = times_below(folder / "imgs")
    rewritten = {
        Path(name).relative_to(folder / "imgs").as_posix()
        for name, when in times_before.items()
        if times_after.get(name) != when
    }
    assert rewritten == {".convert.json", *(partly.keys() - whole.keys())}
    assert f"{noted} records were converted before" in again.stdout


def test_a_full_disk_says_so_and_the_next_run_goes_on(
    faces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write, calls = os.write, []

    def write(handle: int, data: bytes) -> int:
        calls.append(handle)
        if len(calls) == 4:
            return real_write(handle, bytes(data)[:10])  # a nearly full disk takes a part
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(unpack_rec.os, "write", write)
        message = error_of(capsys, "--rec_path", faces, "--make_image_files")
    assert f"no space left on the disk for {faces}/imgs/10/4.jpg; free some" in message
    assert sorted(files_below(faces / "imgs")) == ["0/1.jpg", "0/2.jpg", "1/3.png"]
    assert run("--rec_path", faces, "--make_image_files") == 0
    assert sorted(files_below(faces / "imgs").values()) == sorted(ENCODED)


def test_ctrl_c(faces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unpack_rec, "_write", interrupt)
        assert run("--rec_path", faces) == 130
    assert "run the same command to continue" in capsys.readouterr().err
    assert run("--rec_path", faces) == 0
    assert len(files_below(faces / "imgs")) == 6


def test_two_conversions_at_once_are_refused(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(faces, ""):
        assert "another conversion" in error_of(capsys, "--rec_path", faces)
    assert run("--rec_path", faces) == 0


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", r"holds no image \(0 bytes\)"),
        (b"BM" + bytes(100), "holds no JPEG or PNG"),
        (ENCODED[0][:-2], "holds a jpg image without its end"),
        (ENCODED[2][:-8], "holds a png image without its end"),
    ],
    ids=["empty", "bmp", "cut-jpeg", "cut-png"],
)
def test_a_record_without_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], payload: bytes, message: str
) -> None:
    folder = write_rec(tmp_path / "faces", [*ENCODED[:3], payload, ENCODED[4]], LABELS[:5])
    with pytest.raises(ValueError, match=r"key 4 \(label 10\): the record " + message):
        unpack_rec.convert_images([folder / "train.rec"], folder / "imgs")
    assert "--skip_bad_images" in error_of(capsys, "--rec_path", folder)
    assert run("--rec_path", folder, "--skip_bad_images") == 1
    out = capsys.readouterr().out
    assert "4 images" in out
    assert "1 skipped" in out
    assert "keys 4 " in out
    assert sorted(files_below(folder / "imgs")) == ["0/1.jpg", "0/2.jpg", "1/3.png", "10/5.jpg"]


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 2.0**70])
def test_labels_must_be_class_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str], label: float) -> None:
    folder = write_rec(tmp_path / "faces", ENCODED[:2], [0, label])
    message = error_of(capsys, "--rec_path", folder)
    assert f"key 2: label {label}, expected a class number" in message
    assert not (folder / "imgs").exists()


def test_another_number_of_identities_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--rec_path", write_rec(tmp_path / "faces", ENCODED[:2], [0, 1], identities=3)) == 0
    assert "announces 3 identities, its images have 2" in capsys.readouterr().out


def test_announced_images_that_are_missing_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_rec(tmp_path / "faces", ENCODED, LABELS)
    file = reader.RecordFile(folder / "train.rec")
    with reader.RecordWriter(folder / "train.rec") as writer:
        for key in (0, 1, 2, 4):
            writer.write(key, file.read(key))
    assert run("--rec_path", folder) == 1
    out = capsys.readouterr().out
    assert out.count("the header record announces 6 images, there are 3.") == 1
    assert "3 images, 2 identities, 3 announced images missing" in out
    assert run("--rec_path", folder) == 1  # nothing to do
    assert "3 announced images missing); nothing to do" in capsys.readouterr().out
    journal = folder / "imgs" / unpack_rec.JOURNAL
    old = {name: value for name, value in json.loads(journal.read_text()).items() if name != "missing"}
    journal.write_text(json.dumps(old))  # of an earlier version
    assert run("--rec_path", folder) == 0
    journal.write_text(json.dumps(old | {"done": 1}))
    assert run("--rec_path", folder) == 1


def test_a_truncated_rec(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rec = faces / "train.rec"
    rec.write_bytes(rec.read_bytes()[:3000])
    message = error_of(capsys, "--rec_path", faces)
    assert "train.rec" in message
    assert "truncated" in message
    assert not (faces / "imgs").exists()


def test_overwrite_keeps_the_old_images_when_the_new_rec_is_bad(
    faces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--rec_path", faces)
    before = files_below(faces / "imgs")
    rec = faces / "train.rec"
    rec.write_bytes(rec.read_bytes()[:3000])
    assert "truncated" in error_of(capsys, "--rec_path", faces, "--overwrite")
    assert files_below(faces / "imgs") == before


def test_a_missing_idx_is_made_up_for(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (faces / "train.idx").unlink()
    assert run("--rec_path", faces) == 0
    assert sorted(files_below(faces / "imgs").values()) == sorted(ENCODED)
    captured = capsys.readouterr()
    assert "note: " in captured.out
    assert "train.idx" in captured.out
    assert captured.err == ""


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "readme.txt").write_text("x")
    assert "no train.rec or *.bin; found: readme.txt" in error_of(capsys, "--rec_path", tmp_path)
    assert "no train.rec; found" in error_of(capsys, "--rec_path", tmp_path, "--make_image_files")
    assert "no *.bin; found" in error_of(capsys, "--rec_path", tmp_path, "--make_validation_memfiles")
    assert "is not a folder" in error_of(capsys, "--rec_path", tmp_path / "none")


def test_real_faces(lfw112: Path, tmp_path: Path) -> None:
    """The first records of a .rec that mxnet wrote."""
    records = reader.RecordFile(lfw112 / "train.rec")
    chosen = np.arange(*records.image_range())[:40]
    payloads, labels = [records.read_image(int(p)) for p in chosen], records.labels[chosen].tolist()
    folder = write_rec(tmp_path / "faces", payloads, labels)
    assert run("--rec_path", folder) == 0
    assert sorted(files_below(folder / "imgs").values()) == sorted(payloads)


# --- .bin -> sets -----------------------------------------------------------------------------------------------


def test_bcolz_format(faces: Path) -> None:
    assert run("--rec_path", faces, "--validation_format", "bcolz") == 0
    stored = bcolz.carray(rootdir=str(faces / "lfw"), mode="r")
    expected = decode_image(ENCODED[0], "expected").transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(stored[0], expected, atol=1e-6)
    assert not (faces / "lfw_images.npy").exists()
    assert pair_sets.find_pair_sets(faces)["lfw"] == faces / "lfw"


def test_a_changed_bin_is_converted_again(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--rec_path", faces)
    write_bin(faces / "lfw.bin", ENCODED[::-1], [False, False, True])
    before = (faces / "mine_images.npy").stat().st_mtime_ns
    assert run("--rec_path", faces) == 0
    pair_set = pair_sets.open_pair_set(faces, "lfw")
    assert pair_set.issame.tolist() == [False, False, True]
    np.testing.assert_array_equal(pair_set.images[0], decode_image(ENCODED[5], "expected"))
    assert (faces / "mine_images.npy").stat().st_mtime_ns == before
    assert "lfw.bin: 3 pairs (1 same) as memfile" in capsys.readouterr().out


def test_bcolz_after_memfile_is_what_is_read(faces: Path) -> None:
    run("--rec_path", faces, "--make_validation_memfiles")
    write_bin(faces / "lfw.bin", ENCODED[:2], [True])
    run("--rec_path", faces, "--make_validation_memfiles", "--validation_format", "bcolz")
    assert len(pair_sets.open_pair_set(faces, "lfw").images) == 2


def test_sets_of_the_official_converter_are_kept(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair_writers.write_bcolz(faces, "lfw", IMAGES[::-1], [True, False, True])
    run("--rec_path", faces, "--make_validation_memfiles", "--validation_format", "bcolz")
    assert "written by another program and is kept" in capsys.readouterr().out
    np.testing.assert_array_equal(pair_sets.open_pair_set(faces, "lfw").images[0], IMAGES[5])
    run("--rec_path", faces, "--make_validation_memfiles", "--validation_format", "bcolz", "--overwrite")
    np.testing.assert_array_equal(pair_sets.open_pair_set(faces, "lfw").images[0], decode_image(ENCODED[0], "lfw"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (encode(smooth_image(0)[:, :100]), "image 3 (pair 1): 100x112 px"),
        (encode(smooth_image(0)[:, :, 0]), "image 3 (pair 1): a grayscale image"),
        (b"nothing", "image 3 (pair 1) is not a readable image"),
    ],
)
def test_bad_images_of_a_set_are_named(
    faces: Path, capsys: pytest.CaptureFixture[str], image: bytes, message: str
) -> None:
    write_bin(faces / "lfw.bin", [*ENCODED[:3], image], [True, False])
    for form in ("memfile", "bcolz"):
        command = ("--rec_path", faces, "--make_validation_memfiles", "--validation_format", form)
        assert message in error_of(capsys, *command)
    assert not any((faces / name).exists() for name in ("lfw_images.npy", "lfw_list.npy", "lfw"))
    write_bin(faces / "lfw.bin", ENCODED, [True, False, True])
    assert run(*command) == 0
    assert len(pair_sets.open_pair_set(faces, "lfw").images) == 6


# --- the way back -----------------------------------------------------------------------------------------------


def image_folder(root: Path) -> Path:
    for name, image, data in (
        ("b/2.jpg", 0, ENCODED[0]),
        ("b/10.jpg", 1, ENCODED[1]),
        ("a/x.png", 2, ENCODED[2]),
        ("a/y.bmp", 3, encode(IMAGES[3], ".bmp")),
        ("a/note.txt", 0, b"no image"),
    ):
        del image
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_pack_and_convert_round_trip(tmp_path: Path) -> None:
    source, output = image_folder(tmp_path / "people"), tmp_path / "packed"
    assert run("--pack", source, "--output", output) == 0
    assert (output / "property").read_text().strip() == "2,112,112"
    records = reader.RecordFile(output / "train.rec")
    assert records.keys.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.asarray(records.header(0).label).tolist() == [5, 7]
    assert np.asarray(records.header(5).label).tolist() == [1, 3]
    assert np.asarray(records.header(6).label).tolist() == [3, 5]
    assert records.num_identities() == 2
    assert run("--rec_path", output) == 0
    files = files_below(output / "imgs")
    # ImageFolder order: a/x.png, a/y.bmp, b/10.jpg, b/2.jpg
    assert list(files) == ["0/1.png", "0/2.png", "1/3.jpg", "1/4.jpg"]
    assert [files["0/1.png"], files["1/3.jpg"], files["1/4.jpg"]] == [ENCODED[2], ENCODED[1], ENCODED[0]]
    np.testing.assert_array_equal(decode_image(files["0/2.png"], "bmp"), IMAGES[3])


def test_pack_refuses_and_skips_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = image_folder(tmp_path / "people"), tmp_path / "people_rec"
    (source / "a" / "small.png").write_bytes(encode(IMAGES[0][:50, :50], ".png"))
    (source / "c").mkdir()
    (source / "c" / "z.jpg").write_bytes(b"nothing")
    assert "small.png: 50x50 px, expected a face aligned to 112x112: adaface align" in error_of(
        capsys, "--pack", source
    )
    assert not (output / "train.rec").exists()
    assert not (output / "train.idx").exists()
    assert run("--pack", source, "--skip_bad_images") == 1
    out = capsys.readouterr().out
    assert "4 images, 2 identities" in out
    assert "2 skipped" in out
    assert len(range(*reader.RecordFile(output / "train.rec").image_range())) == 4
    assert "exists; use --overwrite" in error_of(capsys, "--pack", source)


def test_pack_needs_classes_with_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in error_of(capsys, "--pack", tmp_path / "none")
    assert "no class folders in" in error_of(capsys, "--pack", tmp_path)
    (tmp_path / "a").mkdir()
    assert "1 of 1 class folders in" in error_of(capsys, "--pack", tmp_path)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Images in LFW's layout."""
    root = tmp_path / "lfw"
    for index, name in enumerate(("A/A_0001.jpg", "A/A_0002.jpg", "B_C/B_C_0001.png", "B_C/B_C_0012.jpg")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ENCODED[index])
    return root


LFW_PAIRS = "1\t2\nA\t1\t2\nB_C\t1\t12\nA\t1\tB_C\t1\nA\t2\tB_C\t12\n"
CSV_PAIRS = """path1,path2,same
A/A_0001.jpg,A/A_0002.jpg,1
B_C/B_C_0001.png, B_C/B_C_0012.jpg,true
A/A_0001.jpg,B_C/B_C_0001.png,0
"A/A_0002.jpg",B_C/../B_C/B_C_0012.jpg,False
"""


@pytest.mark.parametrize(
    "text",
    [LFW_PAIRS, LFW_PAIRS.replace("1\t2\n", "2\n", 1), LFW_PAIRS.replace("\t", " "), CSV_PAIRS, CSV_PAIRS[17:]],
    ids=["lfw", "lfw-short-header", "lfw-spaces", "csv", "csv-no-header"],
)
def test_pairs_files(people: Path, tmp_path: Path, text: str) -> None:
    listed = tmp_path / "pairs.txt"
    listed.write_text(text)
    assert run("--pairs", listed, "--images_root", people) == 0
    images, issame = read_bin(tmp_path / "pairs.bin")
    assert images == [ENCODED[i] for i in (0, 1, 2, 3, 0, 2, 1, 3)]
    assert issame.tolist() == [True, True, False, False]


def test_pairs_of_images_of_any_extension(people: Path, tmp_path: Path) -> None:
    for before, name in (
        ("A/A_0001.jpg", "A_0001.JPG"),
        ("A/A_0002.jpg", "A_0002.jfif"),
        ("B_C/B_C_0001.png", "B_C_0001"),
        ("B_C/B_C_0012.jpg", "B_C_0012.jpg_large"),
    ):
        (people / before).rename((people / before).with_name(name))
        (people / before).with_suffix(".txt").write_text("no image")
    listed = tmp_path / "pairs.txt"
    listed.write_text(LFW_PAIRS)
    assert run("--pairs", listed, "--images_root", people) == 0
    assert read_bin(tmp_path / "pairs.bin")[0] == [ENCODED[i] for i in (0, 1, 2, 3, 0, 2, 1, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("A 1 2\n", "line 1: 'A 1 2'; expected LFW's header"),
        ("1 1\nA 1 2\n", "1 pairs, but its header announces 2"),
        ("1 1\nA 1 2\nA x B_C 1\n", "line 3: 'x' is not an image number"),
        ("1 1\nA 1 2\nA ² B_C 1\n", "line 3: '²' is not an image number"),
        (f"1 1\nA 1 2\nA {'1' * 5000} B_C 1\n", "is not an image number"),
        ("² 1\nA 1 2\n", "expected LFW's header"),
        ("path1,path2,fold,same\na,b,1,1\n", "line 1: 4 fields, expected path1,path2,same"),
        ("1 1\nA 1 2\nA 1 B_C 1 1\n", "line 3: 5 fields"),
        ("1 1\nA 1 2\nA 1 B_C 2\n", "line 3: neither"),
        ("1 1\nA 1 2\n../lfw2 1 A 1\n", "line 3: '../lfw2/../lfw2_0001' is outside of --images_root"),
        ("path1,path2,same\n", "contains no pairs"),
        ("a,b\n", "line 1: 2 fields"),
        ("A/A_0001.jpg,A/A_0002.jpg,yess\n", "line 1: the third field is 'yess'"),
        ("A/A_0001.jpg,A/A_0002.jpg,1\nA/A_0001.jpg,A/A_0002.jpg,2\n", "line 2: the third field is '2'"),
        ("A/A_0001.jpg,A/none.jpg,1\n", "none.jpg does not exist"),
        ("A/A_0001.jpg,../secret.jpg,1\n", "is outside of --images_root"),
        ("A/A_0001.jpg,/etc/hostname,1\n", "is outside of --images_root"),
    ],
)
def test_bad_pairs_files(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    listed = tmp_path / "pairs.csv"
    listed.write_text(text)
    assert message in error_of(capsys, "--pairs", listed, "--images_root", people)
    assert not (tmp_path / "pairs.bin").exists()


def test_pairs_that_another_process_has_written_meanwhile_are_kept(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, encoded_file = tmp_path / "pairs.bin", pack._encoded_file

    def overtaken(path: Path, swap: bool) -> bytes:
        output.write_bytes(b"another's")
        return encoded_file(path, swap)

    monkeypatch.setattr(pack, "_encoded_file", overtaken)
    (tmp_path / "pairs.csv").write_text(CSV_PAIRS)
    words = ("--pairs", tmp_path / "pairs.csv", "--images_root", people)
    assert f"{output} exists; use --overwrite to replace it" in error_of(capsys, *words)
    assert output.read_bytes() == b"another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lfw", "pairs.bin", "pairs.csv"]
    assert run(*words, "--overwrite") == 0
    assert len(read_bin(output)[0]) == 8


def test_records_that_another_process_has_written_meanwhile_are_kept(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, usable = tmp_path / "packed", pack._usable

    def overtaken(classes: list[list[Path]]) -> tuple[list[list[Path]], list[str]]:
        output.mkdir(exist_ok=True)
        (output / "train.rec").write_bytes(b"another's")
        return usable(classes)

    monkeypatch.setattr(pack, "_usable", overtaken)
    words = ("--pack", people, "--output", output, "--skip_bad_images")
    assert f"{output / 'train.rec'} exists; use --overwrite to replace it" in error_of(capsys, *words)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {"train.rec": b"another's"}
    assert run(*words, "--overwrite") == 0
    assert len(range(*reader.RecordFile(output / "train.rec").image_range())) == 4


@pytest.mark.parametrize(
    ("job", "output", "message"),
    [
        ("pack", "/proc/x", "--output /proc/x cannot be created (No such file or directory): give another"),
        ("pack", "/proc", "--output /proc is not writable"),
        ("pairs", "/proc/x/a.bin", "--output /proc/x/a.bin: the folder /proc/x cannot be created"),
        ("pairs", "/proc/a.bin", "--output /proc/a.bin: the folder /proc is not writable"),
    ],
)
def test_folders_that_cannot_be_written_to_are_told_before_the_work(
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job: str,
    output: str,
    message: str,
) -> None:
    monkeypatch.setattr(pack, "_encoded_file", lambda *_: pytest.fail("the work has begun"))
    (tmp_path / "pairs.csv").write_text(CSV_PAIRS)
    jobs = {"pack": ("--pack", people), "pairs": ("--pairs", tmp_path / "pairs.csv", "--images_root", people)}
    assert message in error_of(capsys, *jobs[job], "--output", output)


def test_single_letter_people_are_different_people(people: Path, tmp_path: Path) -> None:
    """`A 1 A 2` in the four-column form counts as a different pair, whatever the names."""
    (tmp_path / "pairs.txt").write_text("1 1\nA 1 2\nA 1 A 2\n")
    listed = pack.read_pairs(tmp_path / "pairs.txt", people)
    assert [same for *_, same in listed] == [True, False]


# --- colours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_red_stays_red_through_every_writer(tmp_path: Path, swap: bool, suffix: str) -> None:
    """folder -> .rec -> folder, list -> .bin -> both sets; with swapped images and the option, too."""
    option = ["--swap_color_channel"] if swap else []
    stored = encode(RED[:, :, ::-1] if swap else RED, suffix)
    source = tmp_path / "people" / "a"
    source.mkdir(parents=True)
    (source / f"red{suffix}").write_bytes(stored)
    (tmp_path / "list.csv").write_text(f"a/red{suffix},a/red{suffix},1\n")
    packed, plain = tmp_path / "packed", write_rec(tmp_path / "plain", [stored], [0])
    assert run("--pack", source.parent, "--output", packed, *option) == 0
    listed = ("--pairs", tmp_path / "list.csv", "--images_root", source.parent)
    assert run(*listed, "--output", packed / "red.bin", *option) == 0
    write_bin(plain / "red.bin", [stored, stored], [True])
    assert run("--rec_path", packed) == 0
    assert run("--rec_path", plain, *option) == 0
    seen = []
    for folder in (packed, plain):
        seen.append(cv2.imread(str(folder / "imgs" / "0" / f"1{suffix}")))
        seen.append(pair_sets.open_pair_set(folder, "red").images[0])
        assert run("--rec_path", folder, "--validation_format", "bcolz", *(option if folder is plain else [])) == 0
        seen.append(pair_sets.open_pair_set(folder, "red").images[1])
    for image in seen:
        assert int(image[:, :, 2].min()) > 240
        assert int(image[:, :, :2].max()) < 15
        if suffix == ".png":
            np.testing.assert_array_equal(image, RED)


def test_swap_is_lossless_for_png_and_close_for_jpeg(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--rec_path", faces, "--make_image_files", "--swap_color_channel") == 0
    png = cv2.imread(str(faces / "imgs" / "1" / "3.png"))
    np.testing.assert_array_equal(png[:, :, ::-1], IMAGES[2])
    jpeg = cv2.imread(str(faces / "imgs" / "0" / "1.jpg"))
    difference = np.abs(jpeg[:, :, ::-1].astype(int) - decode_image(ENCODED[0], "expected"))
    assert difference.mean() < 2
    assert "another --swap_color_channel" in error_of(capsys, "--rec_path", faces, "--make_image_files")


# --- command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "a"], "--checkpoint needs --output"),
        ([], "give one of --rec_path, --pack, --pairs, --checkpoint; got none"),
        (["--rec_path", "a", "--pack", "b"], "got --rec_path, --pack"),
        (
            ["--rec_path", "a", "--make_image_file"],
            "unknown option --make_image_file; did you mean --make_image_files?",
        ),
        (["--rec", "a"], "unknown option --rec; did you mean --rec_path?"),
        (["--rec_path", "a", "--validation_format", "npz"], "invalid choice: 'npz'"),
        (["--rec_path", "a", "--output", "b"], "--output has no effect with --rec_path"),
        (["--pack", "a", "--make_image_files"], "--make_image_files has no effect with --pack"),
        (["--pairs", "a"], "--pairs needs --images_root"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(capsys, *words)


def test_help_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "convert.py", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "lossy" in done.stdout
    wrong = subprocess.run(
        [sys.executable, "convert.py", "--rec_path", "does-not-exist"], cwd=PROJECT, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


@pytest.mark.parametrize("moment", ["property", "train.idx", "train.rec"])
def test_a_pack_that_is_killed_between_its_files_can_be_started_again(moment, tmp_path):
    source = tmp_path / "people"
    for name in ("ann", "bob"):
        (source / name).mkdir(parents=True)
        cv2.imwrite(str(source / name / "1.png"), np.full((112, 112, 3), len(name), np.uint8))
    words = ["--pack", str(source), "--output"]
    assert convert.main([*words, str(tmp_path / "whole")]) == 0
    program = f"""
import os
from pathlib import Path
from adaface.commands import convert
replace = Path.replace
def replace_and_die(self, target):
    replace(self, target)
    if Path(target).name == {moment!r}:
        os._exit(9)
Path.replace = replace_and_die
convert.main({[*words, str(tmp_path / "killed")]})
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=False).returncode == 9
    kept = moment == "train.rec"
    assert (tmp_path / "killed" / "train.rec").exists() == kept
    assert convert.main([*words, str(tmp_path / "killed")]) == (2 if kept else 0)
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "killed" / file.name).read_bytes() == file.read_bytes()
