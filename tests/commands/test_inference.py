import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from adaface.alignment.detector import MTCNN
from adaface.alignment.warp import warp_face
from adaface.commands import inference
from adaface.commands.inference import main
from adaface.commands.inference_options import build_parsers, check_paths, parse
from adaface.data.image_list import ImageFiles
from adaface.inference.embedder import Embedder
from adaface.inference.gallery import read_embeddings
from adaface.inference.grouping import group_faces
from tests.checkpoints.test_download import write_official
from tests.inference.test_embedder import faces, write_checkpoint
from tests.support.photographs import astronaut

ROOT = Path(__file__).resolve().parents[2]
STORED = {"cosine": 0.5, "wanted_far": 0.001, "sets": "lfw, agedb_30"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt", adaface_threshold=STORED)


@pytest.fixture
def people(tmp_path, monkeypatch) -> Path:
    """Six faces of three people in the working folder: the second of each is the first, slightly changed."""
    monkeypatch.chdir(tmp_path)
    for person in range(3):
        folder = Path("people", f"person {person}")
        folder.mkdir(parents=True)
        face = cv2.GaussianBlur(faces(1, seed=person)[0], (0, 0), 8)
        face = cv2.normalize(face, None, 0, 230, cv2.NORM_MINMAX)
        cv2.imwrite(str(folder / "0.png"), face)
        cv2.imwrite(str(folder / "1.png"), face + 3)
    return Path("people")


@pytest.fixture
def run(capsys, checkpoint):
    def run_(*words: str, model: Sequence[str] | None = None, expected: int = 0) -> str:
        model = ["--checkpoint", str(checkpoint)] if model is None else model
        assert main([*words, *model]) == expected
        output = capsys.readouterr()
        return output.out if expected in (0, 1) else output.err

    return run_


def embedded(checkpoint: Path, *paths: str) -> tuple[np.ndarray, np.ndarray]:
    return Embedder.load(checkpoint).embed(np.stack([cv2.imread(path) for path in paths]))


def test_compare(run, people, checkpoint):
    paths = ["people/person 0/0.png", "people/person 0/1.png", "people/person 1/0.png"]
    out = run("compare", *paths, "--threshold", "0.99", "--save", "picture.png")
    embeddings, norms = embedded(checkpoint, *paths)
    rows = [line for line in out.splitlines() if re.match(r" +[123]  people", line)]
    for row, line in enumerate(rows):
        numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", line.split(".png")[1])]
        np.testing.assert_allclose(numbers, [norms[row, 0], *(embeddings[row] @ embeddings.T)], atol=0.0051)
    assert [line.count("*") for line in rows] == [1, 1, 0]  # both of person 0, not with themselves
    assert "* same person if the cosine is at least 0.99 (set by --threshold)" in out
    assert cv2.imread("picture.png").shape[0] > 400


def test_the_threshold_of_the_model_decides(run, people, tmp_path):
    same = ["people/person 0/0.png", "people/person 0/1.png"]
    out = run("compare", *same)
    assert "at least 0.50 (stored in the model: FAR 0.001 on lfw, agedb_30)" in out
    assert out.endswith("decision: same person\n")
    assert run("compare", *same, "--threshold", "1").endswith("decision: different people\n")
    without = write_checkpoint(tmp_path / "without.ckpt")
    out = run("compare", *same, "--save", "x.png", model=["--checkpoint", str(without)])
    assert "no decision: the model has no threshold. Set --threshold, or calibrate one" in out
    assert "decision:" not in out.replace("no decision:", "")
    assert "*" not in out
    strange = write_checkpoint(tmp_path / "strange.ckpt", adaface_threshold={"cosine": "high"})
    error = run("compare", *same, model=["--checkpoint", str(strange)], expected=2)
    assert "the threshold 'high' (stored in the model) is not a cosine" in error
    for stored, message in (
        ([1], "threshold is [1], expected a mapping with its cosine"),
        ({"cosine": True}, "True (stored"),
    ):
        write_checkpoint(strange, adaface_threshold=stored)
        assert message in run("compare", *same, model=["--checkpoint", str(strange)], expected=2)


def test_the_picture_shows_the_colours_and_frames_of_the_faces(people, checkpoint, run):
    red = np.full((112, 112, 3), (0, 0, 255), np.uint8)  # BGR
    cv2.imwrite("red.png", red)
    cv2.imwrite("red $again.png", red)
    run("compare", "red.png", "red $again.png", "--save", "x.png")
    picture = cv2.imread("x.png").reshape(-1, 3)
    assert (picture == (0, 0, 255)).all(1).mean() > 0.2
    assert not (picture == (255, 0, 0)).all(1).any()
    green = (picture == (0x73, 0x9E, 0x00)).all(1).sum()
    run("compare", "red.png", "red $again.png", "--save", "x.png", "--threshold", "1")
    fewer = (cv2.imread("x.png").reshape(-1, 3) == (0x73, 0x9E, 0x00)).all(1).sum()
    assert green > 500
    assert fewer in (0, green)  # the cosine of equal faces is 1 up to rounding


def test_embed(run, people, checkpoint):
    out = run("embed", "people", "--out", "faces.npz")
    assert "6 faces of people saved to faces.npz" in out
    read = read_embeddings(Path("faces.npz"), Embedder.load(checkpoint).fingerprint)
    assert read.names == [f"person {person}/{number}.png" for person in range(3) for number in range(2)]
    embeddings, norms = embedded(checkpoint, *(f"people/{name}" for name in read.names))
    np.testing.assert_allclose(read.embeddings, embeddings, atol=1e-5)
    np.testing.assert_allclose(read.norms, norms[:, 0], rtol=1e-4)


def test_skipped_photographs_are_told_by_line_and_status(run, people, without_heif):
    Path("people/person 0/phone.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    Path("people/.DS_Store").touch()
    out = run("embed", "people", "--out", "faces.npz", expected=1)
    assert "8 files: 6 images, 1 skipped, 1 system files" in out
    assert "skipped person 0/phone.heic: a HEIC image" in out
    assert run("search", "people", "people/person 1/0.png", expected=1).count("phone.heic") == 1
    Path("people/person 0/phone.heic").unlink()
    Path("people/notes.txt").write_text("no photograph")
    assert "skipped notes.txt: not an image" in run("embed", "people", "--out", "faces.npz")


def test_a_stopped_embedding_goes_on(run, people, monkeypatch):
    read, taken = ImageFiles.read, []

    def stopping(self, index):
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(index)
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "read", stopping)
    monkeypatch.setattr("adaface.inference.embedding_cache.usable_cores", lambda: 1)
    error = run("embed", "people", "--out", "faces.npz", "--batch_size", "1", expected=130)
    assert "embeddings of folders are kept; run the same command to continue" in error
    assert not Path("faces.npz").exists()
    monkeypatch.setattr(ImageFiles, "read", lambda self, index: taken.append(index) or read(self, index))
    run("embed", "people", "--out", "faces.npz", "--batch_size", "1")
    assert len(taken) < 4 + 6
    assert read_embeddings(Path("faces.npz")).norms.min() > 0


def test_search(run, people):
    run("embed", "people", "--out", "faces.npz")
    shutil.copy("people/person 2/1.png", "someone.png")
    for gallery in ("faces.npz", "people"):
        out = run("search", gallery, "someone.png", "--top", "3", "--csv", "found.csv")
        with Path("found.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["face"] for row in rows][:2] == ["person 2/1.png", "person 2/0.png"]
        assert [row["rank"] for row in rows] == ["1", "2", "3"]
        assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-4)
        assert [row["same"] for row in rows] == [str(int(float(row["similarity"]) >= 0.5)) for row in rows]
        assert rows[0]["probe"] == "someone.png"
        assert rows[0]["probe_quality"] == pytest.approx(rows[0]["face_quality"])
        assert "1 probe in a gallery of 6 faces, the 3 most similar of each:" in out
        assert re.search(r"1 +1\.0000\*  person 2/1\.png \(quality \d", out)


def test_photographs_that_changed_behind_a_gallery_are_told(run, people):
    run("embed", "people", "--out", "faces.npz")
    shutil.copy("people/person 2/1.png", "someone.png")
    Path("people/person 0/1.png").touch()
    assert "have changed" not in run("search", "faces.npz", "someone.png")
    shutil.copy("someone.png", "people/person 0/1.png")
    Path("people/person 1/1.png").unlink()
    out = run("search", "faces.npz", "someone.png", expected=1)
    assert "note: 2 of 6 images of faces.npz have changed in " in out
    assert "since, or are gone (person 0/1.png, person 1/1.png): embed the folder again" in out
    run("embed", "people", "--out", "faces.npz")
    assert "have changed" not in run("search", "faces.npz", "someone.png")


def test_probes_of_every_kind(run, people):
    run("embed", "people", "--out", "faces.npz")
    out = run("search", "faces.npz", "people/person 0", "faces.npz", "people/person 1/0.png", "--top", "99")
    assert "9 probes in a gallery of 6 faces, the 6 most similar of each" in out


def test_group(run, people, monkeypatch):
    cv2.imwrite("people/lonely.png", np.full((112, 112, 3), 30, np.uint8))
    out = run("group", "people", "--threshold", "0.99", "--folders", "by person")
    assert re.search(r"^person 1: 2 faces, mean similarity [01]\.\d{4}: person \d/\d\.png, person ", out, re.MULTILINE)
    assert "in no group: 1 face: lonely.png\n7 faces: 6 of 3 people, 1 in no group" in out
    assert "same person if the mean cosine is at least 0.99 (set by --threshold)" in out
    with Path("people.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = {}
    for row in rows:
        groups.setdefault(row["person"], set()).add(row["face"])
    pairs = [{f"person {number}/0.png", f"person {number}/1.png"} for number in range(3)]
    assert set(groups) == {"", "1", "2", "3"} and groups.pop("") == {"lonely.png"}
    assert sorted(groups.values(), key=min) == pairs
    assert cv2.imread("people.png").shape == (4 * 90, 20 * 66, 3)
    copied = {path.relative_to("by person").as_posix(): path for path in Path("by person").rglob("*.png")}
    assert set(copied) == {f"person_000{row['person']}/{row['face']}" for row in rows if row["person"]}
    for name, path in copied.items():
        assert path.read_bytes() == Path("people", *Path(name).parts[1:]).read_bytes()
    # the second time, no image is embedded again, and the new folder is not overwritten
    monkeypatch.setattr(Embedder, "embed", lambda *_, **__: pytest.fail("embedded again"))
    assert "7 faces: 6 of 3 people" in run("group", "people", "--threshold", "0.99")
    assert "--folders by person exists" in run("group", "people", "--folders", "by person", expected=2)


def test_a_folder_that_another_process_has_just_filled_is_told_before_any_file_is_written(run, people, monkeypatch):
    def group_slowly(*arguments):
        Path("by person/person_0001").mkdir(parents=True)
        Path("by person/person_0001/0.png").write_bytes(b"another's")
        return group_faces(*arguments)

    monkeypatch.setattr(inference, "group_faces", group_slowly)
    before = set(Path().rglob("*.csv")) | set(Path().rglob("*.png"))
    error = run("group", "people", "--folders", "by person", expected=2)
    assert error.endswith("--folders by person exists, expected a new folder\n") and error.count("\n") == 1
    added = (set(Path().rglob("*.csv")) | set(Path().rglob("*.png"))) - before
    assert added == {Path("by person/person_0001/0.png")}


def test_a_folder_of_nobody_is_empty(run, people):
    for image in people.glob("*/1.png"):
        image.unlink()
    out = run("group", "people", "--threshold", "1", "--folders", "by person")
    assert "images of 0 people copied to by person" in out
    assert list(Path("by person").iterdir()) == []


def test_group_needs_a_threshold_and_names_what_it_skips(run, people, tmp_path):
    without = write_checkpoint(tmp_path / "without.ckpt")
    error = run("group", "people", model=["--checkpoint", str(without)], expected=2)
    assert "no decision: the model has no threshold. Set --threshold, or calibrate one" in error
    assert not Path("people.csv").exists()
    (people / "person 0" / "1.png").write_bytes(b"broken")
    out = run("group", "people", "--most_unreadable", "0.5", expected=1)
    assert "skipped 1 of 6 images, unreadable: person 0/1.png" in out
    assert re.search(r"^5 faces: \d of \d (people|person), \d in no group$", out, re.MULTILINE)
    assert "at least 0.50 (stored in the model: FAR 0.001 on lfw, agedb_30)" in out


def test_photographs_are_aligned_where_asked_for(run, people):
    cv2.imwrite("photo.png", astronaut())
    cv2.imwrite("aligned.png", warp_face(astronaut(), MTCNN().detect(astronaut())[0].landmarks))
    cv2.imwrite("wall.png", np.full((300, 400, 3), 90, np.uint8))
    assert "expected an aligned face of 112x112" in run("compare", "photo.png", "aligned.png", expected=2)
    assert "no face was found in wall.png" in run("compare", "photo.png", "wall.png", "--align", expected=2)
    Path("photos").mkdir()
    shutil.copy("photo.png", "photos")
    run("embed", "photos", "--out", "photos.npz", "--align")
    shutil.copy("photo.png", "photos/again.png")
    out = run("group", "photos", "--align", "--folders", "by person")
    assert "2 faces: 2 of 1 person, 0 in no group" in out and "images of 1 person copied to by person" in out
    Path("photos/again.png").unlink()
    shutil.copy("wall.png", "photos")  # not every photograph has a face
    out = run("group", "photos", "--align", expected=1)
    assert "skipped 1 of 2 images, no face or unreadable: wall.png" in out and out.count("1 face: 1 in no group") == 1
    assert "1 of 2 images of photos cannot be read (50 %, 0.1 %" in run(
        "embed", "photos", "--align", "--most_unreadable", "0.001", "--out", "photos.npz", expected=2
    )
    Path("photos/wall.png").unlink()
    Path("crops").mkdir()
    shutil.copy("aligned.png", "crops")
    run("embed", "crops", "--out", "crops.npz")
    photo, crop = (np.load(file)["embeddings"] for file in ("photos.npz", "crops.npz"))
    np.testing.assert_allclose(photo, crop, atol=1e-5)


def test_a_published_model_by_its_name(run, people, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAFACE_MODELS", str(tmp_path / "models"))
    write_official(tmp_path / "models" / "adaface_ir18_casia.ckpt")
    opened = []

    def load(path, arch=None, device="cpu", color=None):  # the network itself is too slow for this test
        opened.append(Path(path))
        raise ValueError("seen")

    monkeypatch.setattr("adaface.inference.embedding_cache.Embedder.load", load)
    words = ("compare", "people/person 0/0.png", "people/person 0/1.png")
    assert "seen" in run(*words, model=["--model", "adaface_ir18_casia"], expected=2)
    assert opened == [tmp_path / "models" / "adaface_ir18_casia.ckpt"]
    assert "did you mean adaface_ir18_casia" in run(*words, model=["--model", "adaface_ir18_casio"], expected=2)


def test_embeddings_of_another_model_are_refused(run, people, tmp_path):
    other = write_checkpoint(tmp_path / "other.ckpt", "ir_mini")
    changed = torch.load(other, weights_only=True)
    next(iter(changed["state_dict"].values())).view(-1)[0] += 1e-3
    torch.save(changed, other)
    run("embed", "people", "--out", "faces.npz", model=["--checkpoint", str(other)])
    error = run("search", "faces.npz", "people/person 0/0.png", expected=2)
    assert "faces.npz was written with another model (ir_mini, fingerprint ir_mini-" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "people", "people/person 0/0.png"], "people is a folder, expected an image file"),
        (["compare", "none.png", "people/person 0/0.png"], "there is no image none.png"),
        (["compare", "people/person 0/0.png"], "give two or more images"),
        (["compare", "corrupt.png", "large.png"], "corrupt.png is not a readable image"),
        (["compare", "large.png", "large.png"], "large.png is 224x200 px, expected an aligned face"),
        (["compare", "a.png", "b.png", "--save", "x.jpg"], "a file name that ends in .png"),
        (["compare", "a.png", "b.png", "--save", "none/x.png"], "there is no folder none"),
        (["compare", *["a.png"] * 41, "--save", "x.png"], "--save draws at most 40 faces, got 41 images"),
        (["compare", "a.png", "b.png", "--threshold", "2"], "is not a cosine from -1 to 1"),
        (["compare", "a.png", "b.png", "--batch_size", "0"], "--batch_size must be at least 1"),
        (["compare", "a.png", "b.png", "--model", "adaface_ir50_ms1mv2"], "give --model with the name"),
        (["embed", "empty", "--out", "x.npz"], "no images in empty"),
        (["embed", "people", "--out", "/proc/x.npz"], "the folder /proc is not writable"),
        (["embed", "people", "--out", ""], "must be a file name that ends in .npz"),
        (["embed", "people", "--otu", "x.npz"], "did you mean --out"),
        (["embed", "none", "--out", "x.npz"], "there is no folder none"),
        (["embed", "large.png", "--out", "x.npz"], "large.png is a file, expected a folder"),
        (["embed", "bad", "--out", "x.npz"], "1 of 1 images of bad cannot be read"),
        (["embed", "bad", "--out", "x.npz", "--most_unreadable", "1"], "bad contains no usable image"),
        (["embed", "people", "--out", "x.npy"], "a file name that ends in .npz"),
        (["embed", "people", "--out", "x.npz", "--most_unreadable", "2"], "--most_unreadable must be between 0 and 1"),
        (["search", "empty", "large.png"], "no images in empty"),
        (["search", "large.png", "large.png"], "large.png is not a gallery"),
        (["search", "none", "large.png"], "there is no none"),
        (["search", "text.npz", "large.png"], "text.npz is not a file of `adaface embed`"),
        (["search", "people", "corrupt.png"], "corrupt.png is not a readable image"),
        (["search", "people", "people", "--top", "0"], "--top must be at least 1"),
        (["search", "people", "people", "--tpo", "1"], "did you mean --top"),
        (["group", "empty"], "no images in empty"),
        (["group", "people", "--save", "people/x.png"], "--save people/x.png lies in people, so that the next run"),
        (["group", "people", "--folders", "people/x"], "give another --folders"),
        (["group", "people", "--folders", "large.png"], "--folders large.png exists, expected a new folder"),
        (["group", "people", "--folders", "none/x"], "--folders none/x: there is no folder none"),
        (["group", "people", "--folders", "/proc/x"], "--folders /proc/x: the folder /proc is not writable"),
        (["group", "people", "--csv", "x.txt"], "a file name that ends in .csv"),
        (["group", "people", "--most_unreadable", "2"], "--most_unreadable must be between 0 and 1"),
        (["find", "people"], "invalid choice: 'find'"),
        (["serve", "--port", "65536"], "--port must be between 0 and 65535, got 65536"),
        (["serve", "--port", "x"], "invalid int value: 'x'"),
        (["serve", "--align"], "unknown option --align"),
        (["serve", "--host", "no host"], "there is no host 'no host'"),
        (["serve", "--threshold", "2"], "is not a cosine from -1 to 1"),
    ],
)
def test_mistakes_are_told_in_a_line(run, people, words, message):
    Path("empty").mkdir()
    Path("bad").mkdir()
    for corrupt in ("corrupt.png", "bad/x.png", "text.npz"):
        Path(corrupt).write_bytes(b"no image")
    cv2.imwrite("large.png", np.zeros((200, 224, 3), np.uint8))
    error = (
        run(*words, "--cache", "", expected=2) if words[0] in ("embed", "search", "group") else run(*words, expected=2)
    )
    assert error.startswith(f"adaface {words[0]}: error: ") or " images/s" in error
    assert message in error
    assert not Path("x.npz").exists()


def test_unreadable_images_are_left_out_and_named(run, people):
    (people / "person 0" / "1.png").write_bytes(b"broken")
    out = run("embed", "people", "--out", "x.npz", "--most_unreadable", "0.5", expected=1)
    assert "skipped 1 of 6 images, unreadable: person 0/1.png" in out
    assert len(read_embeddings(Path("x.npz"))) == 5


def test_a_checkpoint_with_other_keys_lists_them(run, people, tmp_path):
    path = write_checkpoint(tmp_path / "x.ckpt")
    changed = torch.load(path, weights_only=True)
    first = next(iter(changed["state_dict"]))
    del changed["state_dict"][first]
    torch.save({"state_dict": {**changed["state_dict"], "model.more": torch.zeros(1)}}, path)
    error = run("embed", "people", "--out", "x.npz", model=["--checkpoint", str(path)], expected=2)
    missing = first.removeprefix("model.")
    assert f"ir_mini, except for 1 entries missing ({missing}), 1 entries unexpected (more)" in error


def test_names_of_any_bytes_are_shown_and_drawn(run, people):
    names = [os.fsdecode(b"n\xff.png"), "two\nlines \x1b[1m.png"]
    for name in names:
        shutil.copy("people/person 0/0.png", name)
    shown = ["n\\udcff.png", "two\\nlines \\x1b[1m.png"]
    out = run("compare", *names, "--save", "x.png")
    assert all(f"  {row}  {name}" in out for row, name in zip((1, 2), shown, strict=True))
    assert cv2.imread("x.png") is not None
    Path("odd").mkdir()
    for name in names:
        shutil.move(name, "odd")
    out = run("search", "odd", "people/person 0/0.png", "--cache", "")
    assert all(f"  {name} (quality" in out for name in shown)


def test_damaged_files_are_told_once(people, checkpoint, capfd, recwarn, monkeypatch):
    model = ["--checkpoint", str(checkpoint)]
    encoded = Path("people/person 0/0.png").read_bytes()
    Path("cut.png").write_bytes(encoded[: len(encoded) // 2])
    assert main(["compare", "cut.png", "cut.png", *model]) == 2
    error = capfd.readouterr().err
    assert (error.count("\n"), "cut.png is not a readable image" in error) == (1, True)
    Image.new("L", (9_500, 9_500)).save("large.png")  # of which Pillow warns
    monkeypatch.setattr(MTCNN, "detect", lambda self, image: [])
    assert main(["compare", "large.png", "large.png", "--align", *model]) == 2
    assert capfd.readouterr().err == "adaface compare: error: no face was found in large.png\n"
    assert not [warning for warning in recwarn if "Bomb" in str(warning.category)]


def test_every_option_is_explained():
    for command in build_parsers()[1].values():
        assert all(action.help for action in command._actions)
    assert set(build_parsers()[1]) == set(inference._COMMANDS)


def test_inference_is_the_command_line(people, checkpoint):
    words = [sys.executable, str(ROOT / "inference.py"), "compare", "people/person 0/0.png", "people/person 0/1.png"]
    done = subprocess.run([*words, "--checkpoint", str(checkpoint)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("decision: same person\n")
    assert done.stderr == ""


def test_a_pipe_is_read_once(tmp_path, checkpoint):
    """Such as <(curl ...) of a shell; here nobody would ever write to it."""
    os.mkfifo(tmp_path / "pipe")
    check_paths(parse(["compare", str(tmp_path / "pipe"), str(tmp_path / "pipe"), "--checkpoint", str(checkpoint)]))
