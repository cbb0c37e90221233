"""The audit through its command line: 200 planted faults, untouched data, records, kills, the cleaned index."""

import csv
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import main
from adaface.audit import report, run
from adaface.audit.run import AuditOptions
from adaface.commands import audit as audit_command
from adaface.commands import convert
from adaface.data.image_list import ImageList
from adaface.data.images import decode_image
from adaface.data.sources.base import fingerprint_of
from adaface.data.sources.folder import FolderSource
from adaface.metrics.outcome import Embedded
from adaface.models.registry import build_model
from adaface.records import identity_labels
from adaface.records import index as record_index
from adaface.records.reader import ImageHeader, RecordWriter, pack
from tests.support.opened_data import data_module
from tests.support.planted_faults import (
    EACH,
    KINDS,
    NEEDS_MODEL,
    Fault,
    above_notes,
    make_clean_copy,
    not_found,
    plant,
    read_findings,
)

ROOT = Path(__file__).resolve().parents[2]
MOST_FALSE_ALARMS = 0.02


class Data:
    """An untouched image folder, a copy of it with 200 faults, and the test set that some of these leaked from."""

    def __init__(self, folder: Path) -> None:
        self.clean, self.test_set = make_clean_copy(folder)
        self.faulty = folder / "faulty"
        self.faults = plant(self.clean, self.faulty, self.test_set)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Data:
    return Data(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="session")
def audited(data, tmp_path_factory) -> Path:
    """Output of the audit of the faulty copy, without a model."""
    output = tmp_path_factory.mktemp("audited") / "out"
    assert audit(data.faulty, output, "--test_sets", data.test_set, "--apply") == 1
    return output


def audit(path: Path, output: Path, *more: object) -> int:
    return audit_command.main([str(path), "--output", str(output), *map(str, more)])


def named(findings: list[dict[str, str]]) -> list[tuple[str, str, str, str]]:
    """Findings by sample, without paths."""
    return sorted((row["kind"], row["identity"], row["sample"], row["other_sample"]) for row in findings)


def write_rec(folder: Path, images: list[tuple[float, bytes]]) -> Path:
    """`train.rec` of labels and encoded images, keys from 1 on; no header record, so that labels may be any."""
    folder.mkdir(parents=True)
    with RecordWriter(folder / "train.rec") as writer:
        for key, (label, encoded) in enumerate(images, 1):
            writer.write(key, pack(ImageHeader(label, key), encoded))
    return folder


# --- what is found ----------------------------------------------------------------------------------------------


def test_every_planted_fault_that_needs_no_model_is_found(data, audited):
    assert len(data.faults) == 200
    assert {kind: sum(fault.kind == kind for fault in data.faults) for kind in KINDS} == dict.fromkeys(KINDS, EACH)
    visible = [fault for fault in data.faults if fault.kind != NEEDS_MODEL]
    assert not_found(visible, read_findings(audited)) == []


def test_nothing_is_found_that_was_not_planted(data, audited):
    planted = {(fault.identity, fault.image) for fault in data.faults}

    def is_planted(row: dict[str, str]) -> bool:
        images = [Path(row[column]) for column in ("image", "other_image")]
        return any((image.parent.name, image.name) in planted for image in images) or (row["identity"], "") in planted

    extra = [row for row in above_notes(read_findings(audited)) if not is_planted(row)]
    assert len(extra) <= MOST_FALSE_ALARMS * len(FolderSource(data.faulty, flawed=True)), extra


def test_the_untouched_copy_gives_few_false_alarms(data, tmp_path, capsys):
    status = audit(data.clean, tmp_path / "out", "--test_sets", data.test_set)
    alarms = above_notes(read_findings(tmp_path / "out"))
    assert len(alarms) <= MOST_FALSE_ALARMS * len(FolderSource(data.clean)), alarms
    assert status == (3 if alarms else 0)
    facts = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (facts["images"], facts["identities"], facts["test_sets"]) == (576, 48, {"lfw": 40})
    assert "576 images of 48 identities" in capsys.readouterr().out


def test_a_fault_that_is_not_there_is_missed(data, audited):
    """The search for planted faults is one that can fail."""
    absent = [Fault("unreadable", "0", "absent.jpg"), Fault("empty or single", "0")]
    assert not_found(absent, read_findings(audited)) == absent


def test_records_and_the_folder_of_them_have_the_same_findings(data, tmp_path):
    source = FolderSource(data.faulty, flawed=True)
    records = [(float(source.label(i)), source.read(i) or b"nothing") for i in range(len(source))]
    rec = write_rec(tmp_path / "rec", records)
    images = tmp_path / "imgs"  # as `convert.py` names them
    for key, (label, image) in enumerate(records, 1):
        path = images / f"{label:g}" / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    for path in (rec, images):
        assert audit(path, tmp_path / f"{path.name}_out", "--test_sets", data.test_set, "--apply") == 1
    found = [named(read_findings(tmp_path / name)) for name in ("rec_out", "imgs_out")]
    assert len(found[0]) > 150
    assert found[0] == found[1]
    # an index of one is an index of the other
    indices = [(tmp_path / name / "cleaned_index.csv").read_text().splitlines() for name in ("rec_out", "imgs_out")]
    assert indices[0][0] == indices[1][0]
    assert [line.split(",")[:4] for line in indices[0]] == [line.split(",")[:4] for line in indices[1]]


def test_gaps_and_damaged_labels_of_records(data, tmp_path):
    source = FolderSource(data.clean)
    labels = [0, 0, 1, 1, 4, 4, 4, float("nan"), 2.5, -1, 1e9]
    rec = write_rec(tmp_path / "rec", [(label, source.read(12 * i)) for i, label in enumerate(labels)])
    assert audit(rec, tmp_path / "out", "--apply") == 1
    findings = read_findings(tmp_path / "out")
    assert [row["text"] for row in findings if row["kind"] == "label gap"] == ["no images of label 2 to 3 (2 of 5)"]
    damaged = [re.search(r"key (\d+): its label is (\S+),", row["text"]).groups() for row in findings if row["kind"] == "damaged label"]  # fmt: skip # noqa: E501
    assert damaged == [("8", "nan"), ("9", "2.5"), ("10", "-1"), ("11", "1e+09")]
    module = data_module(
        tmp_path,
        train_data_path="rec",
        val_data_path="none",
        batch_size=2,
        train_data_index=str(tmp_path / "out" / "cleaned_index.csv"),
    )
    assert list(module.class_names) == ["0", "1", "4"]
    assert module.dataset.source.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_images_that_the_header_record_announces_are_missing(data, tmp_path):
    source = FolderSource(data.clean)
    (tmp_path / "rec").mkdir()
    with RecordWriter(tmp_path / "rec" / "train.rec") as writer:
        writer.write(0, pack(ImageHeader(np.array([7, 9], np.float32)), b""))
        for key in (1, 2, 4, 5):
            writer.write(key, pack(ImageHeader(float(key > 2), key), source.read(12 * key)))
    assert audit(tmp_path / "rec", tmp_path / "out") == 1
    rows = [row for row in read_findings(tmp_path / "out") if row["kind"] == "missing image"]
    assert [(row["level"], row["text"]) for row in rows] == [
        ("warning", f"{tmp_path / 'rec' / 'train.rec'}: the header record announces 6 images, there are 4")
    ]


@pytest.mark.parametrize("several", [False, True])
def test_records_with_another_label_than_their_identity_record(data, tmp_path, monkeypatch, several):
    """A large file is opened by its identity records and a sample of the headers; key 9 is not in the sample."""
    monkeypatch.setattr(record_index, "_LARGE", 12)
    monkeypatch.setattr(identity_labels, "_SAMPLED", 2)
    source = FolderSource(data.clean)
    folder = write_rec(tmp_path / "other", [(label, source.read(144 + 12 * label)) for label in (0, 1)])
    (tmp_path / "rec").mkdir()
    with RecordWriter(tmp_path / "rec" / "train.rec") as writer:
        writer.write(0, pack(ImageHeader(np.array([13, 15], np.float32)), b""))
        for key in range(1, 13):
            label = 0.0 if key == 9 else float(key > 6)
            writer.write(key, pack(ImageHeader(label, key), source.read(key)))
        for key, pair in ((13, (1, 7)), (14, (7, 13))):
            writer.write(key, pack(ImageHeader(np.array(pair, np.float32), key), b""))
    path = f"{folder},{tmp_path / 'rec'}" if several else tmp_path / "rec"
    for _ in range(2):  # the second audit takes it from the cache
        assert audit(path, tmp_path / "out", "--apply") == 1
        (row,) = [row for row in read_findings(tmp_path / "out") if row["kind"] == "other label"]
        assert (row["level"], row["identity"]) == ("error", "rec/1" if several else "1")
        assert row["text"] == "the label in its record is 0"
        assert "train.rec, key 9, " in row["image"]
    assert ",other label: the label in its record is 0" in (tmp_path / "out" / "cleaned_index.csv").read_text()


def test_a_data_set_with_red_and_blue_swapped_everywhere(data, tmp_path):
    source = FolderSource(data.clean)
    images = []
    for sample in range(0, len(source), 6):
        pixels = cv2.imdecode(np.frombuffer(source.read(sample), np.uint8), cv2.IMREAD_COLOR)
        images.append((float(source.label(sample)), cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()))
    rec = write_rec(tmp_path / "rec", images)
    assert audit(rec, tmp_path / "out") == 1
    assert {row["kind"] for row in read_findings(tmp_path / "out")} == {"data set swapped"}
    assert audit(rec, tmp_path / "right", "--swap_color_channel") == 0
    assert read_findings(tmp_path / "right") == []


# --- what a model says ----------------------------------------------------------------------------------------------


class StandIn:
    """Stands in for a good model: knows who each untouched picture is of, and is a little unsure.

    No network that a test can train tells drawn people apart so well; what a trained one finds is asked below.
    """

    def __init__(self, clean: Path) -> None:
        source, rng = FolderSource(clean), np.random.default_rng(5)
        people = rng.normal(size=(len(source.class_names), 64))
        self.known = {}
        for sample, label in enumerate(source.labels):
            noise = rng.normal(size=64) * 0.7
            self.known[decode_image(source.read(sample), "").tobytes()] = people[label] + noise

    def __call__(self, images: ImageList, view: str = "fused") -> Embedded:
        found = np.array([self._vector(images.read(index)) for index in range(len(images))], np.float32)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return Embedded(found / lengths, lengths, np.ones(len(images), bool))

    def _vector(self, image: np.ndarray) -> np.ndarray:
        stranger = np.random.default_rng(zlib.crc32(image.tobytes())).normal(size=64)
        return self.known.get(image.tobytes(), stranger)


def asked(path: Path, output: Path, model: StandIn, test_set: Path, *, apply: bool = False) -> int:
    options = AuditOptions(str(path), test_sets=str(test_set), output=str(output), apply=apply)
    return run.audit(options, lambda folder: (model, "a stand-in"))


def test_all_200_planted_faults_are_found_with_a_good_model(data, tmp_path):
    model = StandIn(data.clean)
    assert asked(data.faulty, tmp_path / "faulty", model, data.test_set, apply=True) == 1
    findings = read_findings(tmp_path / "faulty")
    assert not_found(data.faults, findings) == []
    # an image of another person is trained as that one
    moved = {fault.image: fault for fault in data.faults if fault.kind == NEEDS_MODEL}
    with (tmp_path / "faulty" / "cleaned_index.csv").open(newline="") as file:
        next(file)
        trained = {Path(row["image"]).name: row["train_as"] for row in csv.DictReader(file)}
    assert {trained[name] for name in moved} <= {name.partition("_of_")[2].removesuffix(".jpg") for name in moved}
    assert all(trained[name] == name.partition("_of_")[2].removesuffix(".jpg") for name in moved)
    # and on the untouched copy there are few alarms
    asked(data.clean, tmp_path / "clean", model, data.test_set)
    assert len(above_notes(read_findings(tmp_path / "clean"))) <= MOST_FALSE_ALARMS * len(FolderSource(data.clean))


def test_a_trained_network_is_asked_by_the_command_line(data, tmp_path, capsys):
    """Of random weights, so that it has nothing to say."""
    torch.manual_seed(0)
    weights = {f"model.{name}": value for name, value in build_model("ir_mini").state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "random.ckpt")
    few = tmp_path / "few"
    for label in ("1", "2", "3"):
        shutil.copytree(data.clean / label, few / label)
    (few / "1" / "bad.jpg").write_bytes(b"")
    words = ["--checkpoint", tmp_path / "random.ckpt"]
    assert audit(few, tmp_path / "out", *words) == 1
    out = capsys.readouterr().out
    assert "note: The model" in out
    assert [row["kind"] for row in above_notes(read_findings(tmp_path / "out"))] == ["unreadable image"]
    kept = list((tmp_path / "out" / "cache" / "embeddings").glob("images-*.npy"))
    assert [len(np.load(path)) for path in kept] == [36]
    written = kept[0].stat().st_mtime_ns
    assert audit(few, tmp_path / "out", *words) == 1  # embeds nothing again
    assert kept[0].stat().st_mtime_ns == written


# --- how it is done -----------------------------------------------------------------------------------------------


def test_the_number_of_threads_changes_nothing(data, audited, tmp_path):
    for threads in (1, 5):
        output = tmp_path / str(threads)
        assert audit(data.faulty, output, "--test_sets", data.test_set, "--apply", "--threads", threads) == 1
        for name in ("audit.csv", "cleaned_index.csv"):
            assert (output / name).read_bytes() == (audited / name).read_bytes()


def test_a_killed_audit_goes_on_where_it_was(data, audited, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "adaface", "audit", str(data.faulty), "--output", str(output), "--apply"]
    command += ["--test_sets", str(data.test_set), "--threads", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 250
    while not (tables := list(output.glob("cache/scan-*.npy"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    table = np.load(tables[0], mmap_mode="r+")
    table[:300] = np.load(next((audited / "cache").glob("scan-*.npy")))[:300]  # as if it had come so far
    table["warmth"][0] = 0.125
    table.flush()
    assert audit(data.faulty, output, "--test_sets", data.test_set, "--apply") == 1
    for name in ("audit.csv", "cleaned_index.csv"):
        assert (output / name).read_bytes() == (audited / name).read_bytes()
    assert np.load(tables[0])["warmth"][0] == 0.125  # what was done was not done again
    assert audit(data.faulty, output, "--test_sets", data.test_set, "--overwrite") == 1
    assert np.load(tables[0])["warmth"][0] != 0.125


def test_changed_data_is_looked_at_anew(data, tmp_path):
    faces = shutil.copytree(data.clean, tmp_path / "faces")
    assert audit(faces, tmp_path / "out") == 0
    next((faces / "7").iterdir()).write_bytes(b"no image")
    assert audit(faces, tmp_path / "out") == 1
    assert [row["kind"] for row in read_findings(tmp_path / "out")] == ["unreadable image"]
    assert len(list((tmp_path / "out" / "cache").glob("scan-*.npy"))) == 1


def test_ctrl_c_ends_with_130(data, tmp_path, monkeypatch, capsys):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adaface.audit.run.duplicate_findings", stop)
    assert audit(data.clean, tmp_path / "out") == 130
    assert "run the same command to continue" in capsys.readouterr().err


def test_paths_in_findings_begin_in_the_folder_of_the_data():
    text = "imgs/old_imgs/.3.jpg: a hidden file, the same pixels as imgs/0/1.jpg (imgs/x/imgs/2.jpg)"
    assert report._without_location(text, "imgs") == (
        "old_imgs/.3.jpg: a hidden file, the same pixels as 0/1.jpg (x/imgs/2.jpg)"
    )
    assert report._without_location("/a+b/imgs/0/1.jpg of /a+b/imgs2/0/1.jpg", "/a+b/imgs") == (
        "0/1.jpg of /a+b/imgs2/0/1.jpg"
    )


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else_and_escapes_names(data, tmp_path):
    faces = tmp_path / "<b>faces"
    hostile = '"><script>alert(1)</script>&{{ 7 * 7 }}'.replace("/", "\N{FRACTION SLASH}")
    images = sorted((data.clean / "3").glob("*.jpg"))
    for name, some in {hostile: images[:3], "4": images[3:6]}.items():
        (faces / name).mkdir(parents=True)
        for image in some:
            shutil.copy(image, faces / name)
    shutil.copy(images[0], faces / hostile / "copy of <i>.jpg")
    (faces / hostile / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    assert audit(faces, tmp_path / "out", "--apply") == 1
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert (
        "<script" not in page
        and "<b>" not in page
        and "<i>" not in page
        and "49" not in re.sub(r"base64,\S+", "", page)
    )
    assert "&lt;script&gt;alert(1)" in page
    assert "copy of &lt;i&gt;.jpg" in page
    assert "{{ 7 * 7 }}/<wbr>37.<wbr>jpg" in page  # lines break between folders and words, not inside of a word
    assert "the same pixels as" in page and f"as {faces}" not in page  # the folder is in the title
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,|#)[^"]*', page) == []
    assert "http" not in re.sub(r"base64,\S+", "", page).replace("http-equiv", "")
    assert {row["kind"] for row in read_findings(tmp_path / "out")} == {"unreadable image", "duplicate inside"}
    module = data_module(
        tmp_path,
        train_data_path=faces.name,
        val_data_path="none",
        batch_size=2,
        train_data_index=str(tmp_path / "out" / "cleaned_index.csv"),
    )
    assert len(module.dataset) == 6


def test_a_page_of_many_findings_stays_small(data, tmp_path):
    faces = tmp_path / "faces"
    for label in range(60):
        (faces / str(label)).mkdir(parents=True)
        for place in range(2):
            (faces / str(label) / f"{place}.jpg").write_bytes(
                b"" if place else next((data.clean / "3").glob("*")).read_bytes()
            )
    assert audit(faces, tmp_path / "out") == 1
    assert "The first 48 of 60; audit.csv lists all of them." in (tmp_path / "out" / "audit.html").read_text()
    assert sum(row["kind"] == "unreadable image" for row in read_findings(tmp_path / "out")) == 60


# --- the cleaned index ----------------------------------------------------------------------------------------------


def test_training_takes_exactly_the_images_of_the_index(data, audited, tmp_path):
    index = audited / "cleaned_index.csv"
    root = tmp_path / "root"
    shutil.copytree(data.faulty, root / "faces")
    module = data_module(root, train_data_path="faces", val_data_path="none", batch_size=8, train_data_index=str(index))
    with index.open(newline="") as file:
        next(file)
        rows = list(csv.DictReader(file))
    source = module.dataset.source
    used = [row for row in rows if row["use"] == "1"]
    assert [source.describe(i).removeprefix(str(root / "faces")) for i in range(len(source))] == [
        row["image"].removeprefix(str(data.faulty)) for row in used
    ]
    assert [module.class_names[label] for label in source.labels] == [row["train_as"] for row in used]
    assert all(row["why"] for row in rows if row["use"] == "0")
    gone = {Path(row["image"]).name for row in rows if row["use"] == "0"}
    assert {fault.image for fault in data.faults if fault.image and fault.kind != NEEDS_MODEL} <= gone
    bad = [i for i in range(len(source)) if module.dataset[0, i][0].shape != (112, 112, 3)]  # raises where one is bad
    assert not bad
    words = ["--data_root", str(root), "--train_data_path", "faces", "--gpus", "0", "--arch", "ir_mini"]
    words += ["--batch_size", "8", "--num_workers", "0", "--fast_dev_run", "--output_dir", str(tmp_path / "runs")]
    assert main.main([*words, "--train_data_index", str(index)]) == 0
    (manifest,) = (tmp_path / "runs").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["data"] == {"fingerprint": fingerprint_of(source), "classes": 47}
    assert main.main(words) == 2  # the folder as it is: identities without images


def test_test_sets_may_be_folders_and_lie_around_the_output(data, tmp_path):
    """As in `--audit faces_emore/imgs --test_sets faces_emore`, and of two sets of one name."""
    shutil.copytree(data.clean, tmp_path / "emore" / "imgs")
    shutil.copy(data.test_set, tmp_path / "emore")
    assert convert.main(["--rec_path", str(tmp_path / "emore"), "--make_validation_memfiles"]) == 0
    for label in ("5", "9"):
        shutil.copytree(data.clean / label, tmp_path / "probes" / "lfw" / label)
    path = tmp_path / "emore" / "imgs"
    sets = f"{path.parent},{tmp_path / 'probes' / 'lfw'}"
    assert audit_command.main([str(path), "--test_sets", sets]) == 1
    output = tmp_path / "emore" / "imgs_audit"
    assert json.loads((output / "audit.json").read_text())["test_sets"] == {"lfw": 40, "lfw (2)": 24}
    findings = read_findings(output)
    assert {(row["kind"], row["identity"]) for row in findings} == {("leaked image", "5"), ("leaked image", "9")}
    assert len(findings) == 24


def test_images_of_another_program_are_noted(data, tmp_path):
    faces = tmp_path / "faces"
    assert convert.main(["--pack", str(data.clean), "--output", str(faces)]) == 0
    shutil.copytree(data.clean, faces / "imgs", ignore=shutil.ignore_patterns(".convert.json"))
    assert audit(faces, tmp_path / "out") in (0, 1)
    notes = json.loads((tmp_path / "out" / "audit.json").read_text())["notes"]
    assert notes[0].startswith(f"{faces / 'imgs'} was written by another program; only its numbers")


def test_photographs_that_are_not_aligned_get_the_command_that_aligns_them(data, tmp_path, capsys):
    few = tmp_path / "few"
    shutil.copytree(data.clean / "1", few / "1")
    assert audit(few, tmp_path / "before") == 0
    assert "adaface align" not in capsys.readouterr().out
    cv2.imwrite(str(few / "1" / "photograph.png"), np.full((300, 200, 3), 90, np.uint8))
    assert audit(few, tmp_path / "out") == 1
    assert "note: python -m adaface align <PHOTOGRAPHS> <FACES> aligns photographs" in capsys.readouterr().out


def png_that_says(side: int) -> bytes:
    """A file of less than a hundred bytes whose head tells of side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", bytes(20)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8200, 2**30])
def test_a_small_file_of_very_many_pixels_is_not_decoded(data, tmp_path, side):
    faces = tmp_path / "faces"
    for label in ("1", "2"):
        shutil.copytree(data.clean / label, faces / label)
    (faces / "1" / "large.png").write_bytes(png_that_says(side))
    (faces / "1" / "small.png").write_bytes(png_that_says(300))
    assert audit(faces, tmp_path / "out") == 1
    large, small = (row for row in read_findings(tmp_path / "out") if row["kind"] == "unreadable image")
    assert large["text"] == (f"it announces {side}x{side} px in 77 bytes, too few for a photograph: it is not decoded")
    assert small["text"] == "a damaged PNG image (77 bytes)"


def test_too_little_is_left_to_train_on(data, tmp_path, capsys):
    shutil.copytree(data.clean / "3", tmp_path / "faces" / "3")
    assert audit(tmp_path / "faces", tmp_path / "out", "--apply") == 0
    out = capsys.readouterr().out
    assert "at least 2 identities are needed" in out
    assert "next: python main.py" not in out


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "no training data in"),
        (["empty"], "no training data in"),
        (["clean", "--test_sets", "absent.bin"], "--test_sets: absent.bin does not exist"),
        (["clean", "--test_sets", "empty"], "contains neither verification sets nor images"),
        (["clean", "--test_sets", "a.txt"], "neither a .bin file nor a folder"),
        (["clean", "--output", "clean/out"], "where it would be taken for an identity"),
        (["empty/../clean", "--test_sets", "clean", "--output", "clean/7/out"], "where it would be taken for an"),
        (["clean", "--output", "a.txt"], "is a file, expected a folder"),
        (["clean", "--output", "full"], "contains files that are not from an audit"),
        (["clean", "--output", "/proc/x"], "--output /proc/x cannot be created (No such file or directory): give"),
        (["clean", "--checkpoint", "absent.ckpt"], "absent.ckpt"),
        (["clean", "--checkpoint", "a.txt"], "a.txt"),
        (["clean", "--model", "adaface_ir101_webface21m"], "adaface_ir101_webface12m"),
        (["clean", "--model", "x", "--checkpoint", "a.txt"], "both name a model"),
        (["clean", "--arch", "ir_50"], "--arch is the architecture of a model"),
        (["clean", "--threads", "-1"], "--threads must be at least 1"),
        (["clean", "--pack", "clean"], "unknown option --pack"),
        (["clean", "--images_root", "x"], "unknown option --images_root"),
        ([], "required: DATA"),
        (["clean", "--test_set", "x"], "did you mean --test_sets?"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_a_line(data, tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "clean").symlink_to(data.clean)
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    for name in ("a.txt", "full/notes.txt"):
        (tmp_path / name).write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert audit_command.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_a_second_audit_of_the_same_folder_is_kept_out(data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"

    def again(*_: object, **__: object) -> list[object]:
        assert audit(data.clean, output) == 2
        return []

    monkeypatch.setattr("adaface.audit.run.duplicate_findings", again)
    audit(data.clean, output)
    assert "another audit is writing to" in capsys.readouterr().err
