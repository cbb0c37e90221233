import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from adaface.alignment.tree import crop_stems
from adaface.alignment.warp import ARCFACE_TEMPLATE, warp_face
from adaface.commands import align as align_command
from adaface.data.image_list import read_color_image
from adaface.system.locks import RunLock
from tests.support.photographs import ASTRONAUT_LANDMARKS, astronaut, head, two_heads

ROOT = Path(__file__).resolve().parents[2]
ORIENTATION = 0x0112


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def align(*words):
    return align_command.main(list(map(str, words)))


def table(output):
    with (output / "alignment.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_tree_of_photographs(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "ann" / "1.png", astronaut())
    write(source / "ben" / "deep" / "2.jpg", head())
    write(source / "ben" / "wall.png", np.full((90, 90, 3), 128, np.uint8))
    (source / "ben" / "note.jpg").write_text("no image")
    (source / "readme.txt").write_text("not looked at")
    assert align(source, output, "--threads", 2) == 1
    crop = read_color_image(output / "ann" / "1.png")
    assert crop.shape == (112, 112, 3)
    assert np.abs(crop.astype(float) - warp_face(astronaut(), ASTRONAUT_LANDMARKS)).mean() < 16
    assert read_color_image(output / "ben" / "deep" / "2.png").shape == (112, 112, 3)
    rows = table(output)
    assert [(row["file"], row["status"], row["faces_found"], row["crop"]) for row in rows] == [
        ("ann/1.png", "aligned", "1", "ann/1.png"),
        ("ben/deep/2.jpg", "aligned", "1", "ben/deep/2.png"),
        ("ben/note.jpg", "unreadable", "0", ""),
        ("ben/wall.png", "no face", "0", ""),
    ]
    assert abs(float(rows[0]["nose_x"]) - ASTRONAUT_LANDMARKS[2, 0]) < 3
    assert "not a readable image (8 bytes that start with 6e 6f 20 69)" in rows[2]["reason"]
    printed = capsys.readouterr().out
    assert "4 photographs: 2 faces in" in printed
    assert "no face from 2 photographs (1 unreadable, 1 no face)" in printed
    assert "ben/wall.png: no face" in printed
    assert sorted(path.name for path in output.rglob("*.*")) == ["1.png", "2.png", "alignment.csv", "alignment.json"]


def test_turned_grey_cmyk_and_deep_photographs_give_the_same_crop(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    upright = Image.fromarray(head()[..., ::-1])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright.save(source / "plain.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(source / "turned.png", exif=exif)
    upright.convert("CMYK").save(source / "cmyk.tif")
    upright.convert("L").save(source / "grey.jpg", quality=95)
    write(source / "deep.png", head().astype(np.uint16) * 257)
    assert align(source, output) == 0
    crops = {row["file"]: read_color_image(output / row["crop"]).astype(float) for row in table(output)}
    assert len(crops) == 5
    plain = crops["plain.png"]
    for name in ("turned.png", "cmyk.tif", "deep.png"):
        assert np.array_equal(crops[name], plain), name
    grey = crops["grey.jpg"]
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey.mean(axis=2) - plain.mean(axis=2)).mean() < 12


def test_colours_stay(tmp_path):
    """A face on a ground of pure red: the corners of the crop are of the ground."""
    source, output = tmp_path / "in", tmp_path / "out"
    image = np.zeros((300, 300, 3), np.uint8)
    image[..., 2] = 255
    image[95:155, 130:170] = astronaut()[75:155, 200:253][:60, :40]
    write(source / "a.png", image)
    landmarks = tmp_path / "marks.txt"
    landmarks.write_text("a.png 135 110 165 110 150 125 138 140 162 140\n")
    assert align(source, output, "--landmarks", landmarks) == 0
    assert read_color_image(output / "a.png")[111, 111].tolist() == [0, 0, 255]


def test_the_faces_that_are_wanted(tmp_path):
    source = tmp_path / "in"
    write(source / "two.png", two_heads())
    sizes = {}
    for which in ("largest", "central", "all"):
        assert align(source, tmp_path / which, "--faces", which, "--format", "jpg") == 0
        rows = table(tmp_path / which)
        assert all(row["faces_found"] == "2" for row in rows)
        sizes[which] = [float(row["bottom"]) - float(row["top"]) for row in rows]
    assert sizes["all"] == [*sizes["largest"], *sizes["central"]]
    assert sizes["largest"][0] > 1.7 * sizes["central"][0]
    assert [row["crop"] for row in rows] == ["two_0.jpg", "two_1.jpg"]
    crops = [read_color_image(tmp_path / "all" / row["crop"]).astype(float) for row in rows]
    assert np.abs(crops[0] - crops[1]).mean() < 20  # the same face in two sizes


def test_a_landmark_file_instead_of_the_detector(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(align_command, "MTCNN", lambda *_: pytest.fail("detected"))
    source, output, landmarks = tmp_path / "in", tmp_path / "out", tmp_path / "marks.txt"
    for name in ("a/1.png", "a/2.png", "a/3.png"):
        write(source / name, astronaut())
    points = " ".join(map(str, ASTRONAUT_LANDMARKS.ravel()))
    landmarks.write_text(f"a/1.png {points} 0.5\na/3.png {'7 ' * 10} 0.5\n")
    assert align(source, output, "--landmarks", landmarks) == 2
    assert "the landmarks of 1 of 2 faces do not fit their photographs (50.0 %, 0.1 % are" in capsys.readouterr().err
    assert align(source, output, "--landmarks", landmarks, "--most_misplaced", 0.5) == 1
    assert np.array_equal(read_color_image(output / "a" / "1.png"), warp_face(astronaut(), ASTRONAUT_LANDMARKS))
    assert [(row["status"], row["score"]) for row in table(output)] == [
        ("aligned", "0.5000"), ("no landmarks", ""), ("no transform", "0.5000"),
    ]  # fmt: skip
    landmarks.write_text(f"a/1.png {points}\n../in/a/2.png {points}\n")
    assert align(source, tmp_path / "other", "--landmarks", landmarks) == 2
    assert "names 1 of 2 photographs that are not in" in capsys.readouterr().err


def test_photographs_that_were_enlarged_after_their_landmarks_were_found(tmp_path, capsys):
    source, landmarks = tmp_path / "in", tmp_path / "marks.txt"
    for number in range(20):
        write(source / f"{number}.png", np.full((448, 448, 3), 128, np.uint8))
    points = " ".join(map(str, ARCFACE_TEMPLATE.ravel()))
    landmarks.write_text("".join(f"{number}.png {points}\n" for number in range(20)))
    assert align(source, tmp_path / "out", "--landmarks", landmarks) == 2
    told = capsys.readouterr().err
    assert "have another scale than the landmark file" in told
    assert "(--most_misplaced 1 aligns them all the same)" in told
    assert not (tmp_path / "out").exists()
    assert align(source, tmp_path / "out", "--landmarks", landmarks, "--most_misplaced", 1) == 0


def test_a_killed_alignment_goes_on_and_leaves_what_an_uninterrupted_one_does(tmp_path):
    source, output, whole = tmp_path / "in", tmp_path / "out", tmp_path / "whole"
    for number in range(24):
        write(source / f"{number:02d}.png", head() if number % 5 else head()[:40])
    words = [
        sys.executable,
        "-m",
        "adaface",
        "align",
        str(source),
        str(output),
        "--threads",
        "2",
        "--smallest_face_px",
        "12",
    ]
    started = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 250
    while time.monotonic() < deadline and started.poll() is None:
        if (output / "alignment.csv").is_file() and (output / "alignment.csv").read_bytes().count(b"\n") > 4:
            break
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    assert started.wait(timeout=10) == -signal.SIGKILL, "it was over before it could be killed"
    done = {path: path.stat().st_mtime_ns for path in output.glob("*.png")}
    assert 0 < len(done) < 19
    listed = {row["crop"] for row in table(output) if row["crop"]}
    assert align(source, output, "--threads", 2, "--smallest_face_px", 12) == 1
    kept = [path for path, changed in done.items() if path.stat().st_mtime_ns == changed]
    assert listed - {""} <= {path.name for path in kept}
    assert align(source, whole, "--threads", 1, "--smallest_face_px", 12) == 1
    assert (output / "alignment.csv").read_bytes() == (whole / "alignment.csv").read_bytes()
    assert len(list(whole.glob("*.png"))) == 19
    for path in whole.glob("*.png"):
        assert (output / path.name).read_bytes() == path.read_bytes()
    assert not [path for path in output.iterdir() if path.name.endswith(".part")]


def test_done_photographs_are_not_read_again_and_new_ones_are(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "a.png", head())
    assert align(source, output) == 0
    write(source / "b.png", head())
    os.utime(source / "a.png", ns=(0, 0))  # another time, but the same content
    (output / "a.png").write_bytes(b"a face of before")
    assert align(source, output) == 0
    assert "2 photographs, 1 of them before: 2 faces" in capsys.readouterr().out
    assert (output / "a.png").read_bytes() == b"a face of before"
    assert [row["modified_ns"] == "0" for row in table(output)] == [True, False]


def test_a_photograph_replaced_under_its_name_is_aligned_again(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "a.png", head())
    write(source / "b.png", np.full((90, 90, 3), 128, np.uint8))
    write(source / "c.png", two_heads())
    assert align(source, output, "--faces", "all") == 1
    assert sorted(path.name for path in output.glob("*.png")) == ["a_0.png", "c_0.png", "c_1.png"]
    before = (output / "a_0.png").read_bytes()
    status = (source / "b.png").stat()
    write(source / "a.png", cv2.flip(head(), 1))
    write(source / "b.png", head())
    os.utime(source / "b.png", ns=(status.st_atime_ns, status.st_mtime_ns))  # as of a copy that keeps times
    write(source / "c.png", head())
    assert align(source, output, "--faces", "all") == 0
    assert "3 photographs: 3 faces" in capsys.readouterr().out
    assert sorted(path.name for path in output.glob("*.png")) == ["a_0.png", "b_0.png", "c_0.png"]
    assert (output / "a_0.png").read_bytes() != before


def test_the_face_of_a_deleted_photograph_is_deleted(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "a.png", head())
    write(source / "b.png", head())
    assert align(source, output) == 0
    (output / "mine.png").write_bytes(b"not of this program")
    (source / "a.png").unlink()
    capsys.readouterr()
    assert align(source, output) == 0
    assert "deleted 1 face of earlier runs whose photographs are gone or skipped" in capsys.readouterr().out
    assert sorted(path.name for path in output.glob("*.png")) == ["b.png", "mine.png"]


def test_the_face_of_a_photograph_that_is_skipped_now_is_deleted(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    write(tmp_path / "elsewhere.png", head())
    write(source / "whole.png", head())
    (source / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (source / "replaced.jfif").write_bytes((source / "whole.png").read_bytes())
    assert align(source, output) == 0
    (tmp_path / "elsewhere.png").unlink()
    (source / "replaced.jfif").write_bytes(b"<html>404")
    capsys.readouterr()
    for deleted in (True, False):
        assert align(source, output) == 1
        assert ("deleted 2 faces" in capsys.readouterr().out) == deleted
        assert [path.name for path in output.glob("*.png")] == ["whole.png"]
        assert [row["status"] for row in table(output)] == ["aligned", "skipped", "skipped"]


def test_folders_of_people_whose_faces_are_gone_are_deleted(tmp_path):
    """Training takes an empty folder for a person without images."""
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "ann" / "a.png", head())
    write(source / "ben" / "deep" / "b.png", head())
    write(source / "cat" / "c.png", head())
    write(source / "dan" / "d.png", head())
    assert align(source, output) == 0
    (output / "cat" / "mine.txt").write_text("not of this program")
    (source / "ann").rename(source / "eve")
    (source / "ben" / "deep" / "b.png").unlink()
    (source / "cat" / "c.png").unlink()
    write(source / "dan" / "d.png", np.zeros_like(head()))  # no face
    assert align(source, output) == 1
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["cat", "eve"]


def test_a_folder_is_deleted_after_a_kill_between_its_faces_and_itself(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "ann" / "a.png", head())
    write(source / "ben" / "b.png", head())
    assert align(source, output) == 0
    shutil.rmtree(source / "ann")
    for crop in (output / "ann").iterdir():
        crop.unlink()
    assert align(source, output) == 0
    assert [path.name for path in output.iterdir() if path.is_dir()] == ["ben"]


def test_a_table_of_version_0_2_is_done_again(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "a.png", head())
    assert align(source, output) == 0
    lines = [line.rsplit(",", 3)[0] for line in (output / "alignment.csv").read_text().splitlines()]
    (output / "alignment.csv").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert align(source, output) == 0
    assert "1 photograph: 1 face in" in capsys.readouterr().out
    assert table(output)[0]["sha256"]


def test_the_output_may_lie_in_the_folder_of_the_photographs(tmp_path):
    write(tmp_path / "a.png", head())
    for _ in range(2):
        assert align(tmp_path, tmp_path / "faces") == 0
    assert [row["file"] for row in table(tmp_path / "faces")] == ["a.png"]


def test_faces_of_an_earlier_alignment_among_the_photographs_are_told(tmp_path, capsys):
    write(tmp_path / "in" / "ann" / "a.png", head())
    assert align(tmp_path / "in", tmp_path / "in" / "faces") == 0
    assert "note" not in capsys.readouterr().out
    align(tmp_path / "in", tmp_path / "in" / "faces2")
    told = f"note: {tmp_path / 'in' / 'faces'} is the output of an earlier alignment: 1 face in it is aligned"
    assert told in capsys.readouterr().out
    align(tmp_path / "in" / "faces", tmp_path / "out")  # as the user says
    assert "note" not in capsys.readouterr().out


def test_an_empty_crop_is_made_again(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "a.png", head())
    assert align(source, output) == 0
    whole = (output / "a.png").read_bytes()
    (output / "a.png").write_bytes(b"")
    capsys.readouterr()
    assert align(source, output) == 0
    assert "1 photograph: 1 face in" in capsys.readouterr().out
    assert (output / "a.png").read_bytes() == whole


def test_photographs_of_the_same_name_and_other_suffixes():
    names = ["x/a.jpg", "x/a.png", "x/b.jpg", "a.jpg"]
    assert crop_stems(names) == {"x/a.jpg": "x/a.jpg", "x/a.png": "x/a.png", "x/b.jpg": "x/b", "a.jpg": "a"}
    for names in (["a.jpg", "a.jpg.tif", "a.png"], ["x.jpg", "x.y", "x.y.jpg"]):
        assert crop_stems(names) == {name: name for name in names}


@pytest.mark.parametrize("faces", ["largest", "all"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_second_photograph_of_the_same_stem(faces, suffix, tmp_path, capsys):
    source, output, number = tmp_path / "in", tmp_path / "out", "_0" if faces == "all" else ""
    write(source / f"x{suffix}", head())
    write(source / "y.png", head())
    assert align(source, output, "--faces", faces) == 0
    first = (output / f"x{number}.png").read_bytes()
    write(tmp_path / "other.png", cv2.flip(head(), 1))
    (tmp_path / "other.png").rename(source / "x")
    capsys.readouterr()
    for done in (1, 3):
        assert align(source, output, "--faces", faces) == 0
        assert f"3 photographs, {done} of them before: 3 faces" in capsys.readouterr().out
        crops = [f"x{number}.png", f"x{suffix}{number}.png", f"y{number}.png"]
        assert [row["crop"] for row in table(output)] == crops
        assert sorted(path.name for path in output.glob("*.png")) == sorted(crops)
        assert (output / crops[1]).read_bytes() == first != (output / crops[0]).read_bytes()
    (source / "x").unlink()
    assert align(source, output, "--faces", faces) == 0
    assert [row["crop"] for row in table(output)] == [f"x{number}.png", f"y{number}.png"]
    assert (output / f"x{number}.png").read_bytes() == first


def test_a_crop_that_a_table_of_before_lists_twice_is_made_again(tmp_path):
    """It shows the face of the second photograph, which is gone."""
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "x.png", head())
    assert align(source, output) == 0
    right = (output / "x.png").read_bytes()
    lines = (output / "alignment.csv").read_text().splitlines()
    (output / "alignment.csv").write_text("\n".join([lines[0], lines[1].replace("x.png", "x", 1), lines[1], ""]))
    (output / "x.png").write_bytes(b"another face")
    assert align(source, output) == 0
    assert [row["file"] for row in table(output)] == ["x.png"]
    assert (output / "x.png").read_bytes() == right


def test_two_alignments_into_one_folder(tmp_path, monkeypatch, capsys):
    write(tmp_path / "in" / "a.png", head())
    output = tmp_path / "out"
    output.mkdir()
    monkeypatch.setattr("adaface.system.locks._DYING_SEC", 0.1)
    with RunLock() as lock:
        lock.take(output)
        assert align(tmp_path / "in", output) == 2
    assert "another alignment is writing to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent", "out"], "absent is not there, expected a folder of photographs"),
        (["file.jpg", "out"], "file.jpg is a file, expected a folder of photographs"),
        (["in", "file.jpg"], "file.jpg is a file, expected a folder for the faces"),
        (["in", "/proc/out"], "FACES /proc/out cannot be created (No such file or directory): give another"),
        (["empty", "out"], "no photographs in empty; readable are JPEG, PNG"),
        (["in", "in"], "in is given for both photographs and faces"),
        (["in", "out", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["in", "out", "--smallest_face_px", "3"], "smallest face of 3 px"),
        (["in", "out", "--landmarks", "x", "--smallest_face_px", "30"], "has no effect with --landmarks"),
        (["in", "out", "--landmarks", "absent.txt"], "absent.txt is not a file; expected landmarks"),
        (["in", "out", "--face", "all"], "unknown option --face; did you mean --faces?"),
        (["in", "out", "--faces", "any"], "invalid choice: 'any'"),
    ],
)
def test_what_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(Path("in/a.png"), head())
    Path("empty").mkdir()
    Path("file.jpg").write_bytes(b"")
    assert align(*words) == 2
    told = capsys.readouterr().err
    assert told.startswith("adaface align: error: ")
    assert message in told
    assert told.count("\n") == 1
    assert not Path("out", "alignment.csv").exists()
