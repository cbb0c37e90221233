import contextlib
import csv
import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from adaface.checkpoints.published import PUBLISHED, RANK_1
from adaface.commands.evaluate import main, parse
from adaface.commands.evaluate_options import PROTOCOLS, build_parser
from adaface.data.chosen_sets import find_sets
from adaface.data.pair_pickle import write_bin
from adaface.data.pair_writers import write_memfile
from adaface.evaluation.published import (
    Measurement,
    compare,
    comparison_table,
    find_published,
)
from adaface.evaluation.verification import open_pair_lists
from adaface.inference.embedder import Embedder
from tests.inference.test_embedder import faces, write_checkpoint

IDENTITIES, IMAGES = 12, 4


def person(identity: int, number: int) -> np.ndarray:
    """A coarse pattern for each identity, noise for each image: random weights tell them apart, mostly."""
    pattern = np.random.default_rng(identity).integers(40, 216, (4, 4, 3)).astype(np.uint8)
    image = cv2.resize(pattern, (112, 112), interpolation=cv2.INTER_CUBIC).astype(int)
    noise = np.random.default_rng(1000 * identity + number).integers(-120, 121, (14, 14, 3))
    noise = cv2.resize(noise.astype(np.int16), (112, 112))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "faces_emore").mkdir()
    for name, seed in (("lfw", 0), ("agedb_30", 1)):
        rng = np.random.default_rng(seed)
        images, issame = [], []
        for number in range(60):
            same = number % 2 == 0
            first, second = rng.choice(IDENTITIES, 2, replace=False)
            images += [person(first, number), person(first if same else second, number + 500)]
            issame.append(same)
        encoded = [cv2.imencode(".png", image)[1].tobytes() for image in images]
        write_bin(root / "faces_emore" / f"{name}.bin", encoded, issame)
    for identity in range(IDENTITIES):
        folder = root / "people" / f"person {identity}"
        folder.mkdir(parents=True)
        for number in range(IMAGES):
            cv2.imwrite(str(folder / f"{number}.png"), person(identity, number))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "adaface_ir18_casia.ckpt")


@pytest.fixture
def run(tmp_path, checkpoint, capsys):
    def run_(protocol: str, *words: str, model: Path | None = checkpoint, expected: int = 0) -> str:
        of_model = ["--checkpoint", str(model)] if model else []
        always = ["--cache", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")]
        assert main([protocol, *of_model, *always, *words]) == expected
        output = capsys.readouterr()
        return output.out if expected in (0, 1) else output.err

    return run_


def folder_in(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "out").iterdir()
    return folder


def test_pairs_of_all_sets(run, root, tmp_path):
    out = run("pairs", "--root", str(root), "--report", "--quality")
    folder = folder_in(tmp_path)
    assert f"results are in {folder}" in out
    with (folder / "results.csv").open() as file:
        rows = {row["set"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["agedb_30", "lfw"]
    for row in rows.values():
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
        assert row["pairs"] == "60"
    assert out.count("rank correlation of norm and degradation") == 2
    assert len(re.findall("^  (the norm (falls|rises|does not)|no conclusion)", out, re.MULTILINE)) == 2
    for name in ("results.json", "roc.png", "similarity.png", "report.html"):
        assert (folder / name).stat().st_size
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "adaface evaluate pairs" in manifest["command"]
    assert "ir_mini" in manifest["model"]


def test_one_set_a_quick_look_and_a_bin_by_its_path(run, root):
    assert "quick test: 20 of 60 pairs" in run("pairs", "--root", str(root), "--sets", "lfw", "--limit", "20")
    out = run("pairs", "--root", str(root / "faces_emore" / "lfw.bin"))
    assert "agedb_30" not in out


def test_the_threshold_is_found_and_stored(run, root, tmp_path):
    model = write_checkpoint(tmp_path / "m.ckpt", epoch=7)
    out = run("pairs", "--root", str(root), "--target_far", "0.1", "--store_threshold", model=model)
    assert "threshold for FAR 0.1: cosine" in out
    stored = Embedder.load(model).threshold
    assert stored["sets"] == "agedb_30, lfw"
    assert stored["wanted_far"] == 0.1
    assert -1 < stored["cosine"] < 1
    assert torch.load(model, weights_only=True)["epoch"] == 7
    error = run("pairs", "--root", str(root), "--target_far", "0.001", model=model, expected=2)
    assert "60 impostor pairs are too few to measure a false accept rate of 0.001" in error


def test_a_private_folder(run, root, tmp_path):
    out = run("folder", "--root", str(root / "people"), "--report")
    assert "f1_score" in out
    with (folder_in(tmp_path) / "outcomes.csv").open() as file:
        numbers = {row["number"]: float(row["value"] or "nan") for row in csv.DictReader(file)}
    assert numbers["rank-1"] > 100 * 2 / IDENTITIES
    content = json.loads((folder_in(tmp_path) / "outcomes.json").read_text())
    assert content["outcomes"][0]["protocol"] == "folder"
    page = (folder_in(tmp_path) / "report.html").read_text()
    wrong = round(numbers["rank-1"]) < 100
    assert ("Wrong matches, most similar" in page) == wrong == (" taken for " in page)


@pytest.fixture
def two_models(tmp_path) -> list[str]:
    models = [str(write_checkpoint(tmp_path / f"{name}.ckpt", "ir_mini")) for name in "ab"]
    other = torch.load(models[1], weights_only=True)
    for value in other["state_dict"].values():
        if value.dtype == torch.float32 and value.dim() == 4:
            value.copy_(value.flip(0))
    torch.save(other, models[1])
    return models


def test_two_models_on_the_same_pairs(run, root, tmp_path, two_models):
    words = ["pairs", "--root", str(root), "--compare", *two_models, "--target_far", "0.1", "--report"]
    out = run(*words, model=None)
    assert "pairs: " in out
    for block in ("accuracy", "AUC", "TAR at FAR 0.1"):
        assert re.search(rf"^{block} +agedb_30 +lfw", out, re.MULTILINE)
    assert out.count("b.ckpt - a.ckpt") == 3
    with (folder_in(tmp_path) / "comparison.csv").open() as file:
        rows = {(row["model"], row["condition"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(f"{name}.ckpt", of) for name in "ab" for of in ("agedb_30", "lfw")}
    first, second = rows["a.ckpt", "lfw"], rows["b.ckpt", "lfw"]
    assert float(second["accuracy_difference"]) == pytest.approx(float(second["accuracy"]) - float(first["accuracy"]))
    assert float(second["AUC_low"]) < float(second["AUC"]) < float(second["AUC_high"])
    assert 0 <= float(second["TAR at FAR 0.1_p_value"]) <= 1
    assert (folder_in(tmp_path) / "comparison.png").stat().st_size


def test_a_model_is_no_better_than_itself(run, root, tmp_path):
    same = [str(write_checkpoint(tmp_path / f"{name}.ckpt", "ir_mini")) for name in "ab"]
    run("pairs", "--root", str(root), "--sets", "lfw", "--compare", *same, "--target_far", "0.1", model=None)
    with (folder_in(tmp_path) / "comparison.csv").open() as file:
        row = list(csv.DictReader(file))[1]
    for name in ("accuracy", "AUC", "TAR at FAR 0.1"):
        assert (float(row[f"{name}_difference"]), float(row[f"{name}_p_value"])) == (0, 1)


def test_too_few_pairs_for_a_comparison(run, root, two_models):
    words = ["pairs", "--root", str(root), "--compare", *two_models]
    assert "has 30 genuine and 30 impostor pairs; a comparison at FAR 0.01" in run(*words, model=None, expected=2)
    assert "for one model: leave out --compare" in run(*words, "--quality", model=None, expected=2)


def test_a_set_without_impostors_is_not_compared_at_a_higher_far(run, root, tmp_path, two_models):
    images = [np.full((112, 112, 3), 20 * number, np.uint8) for number in range(8)]
    write_memfile(tmp_path, "mine", images, np.ones(4, bool))
    error = run("pairs", "--root", str(tmp_path), "--compare", *two_models, model=None, expected=2)
    assert "4 genuine and 0 impostor pairs" in error and "leave the set out, or add pairs" in error
    assert "--target_far" not in error


def test_a_report_warns_of_a_set_without_impostors(run, tmp_path):
    images = [np.full((112, 112, 3), 20 * number, np.uint8) for number in range(8)]
    write_memfile(tmp_path, "mine", images, np.ones(4, bool))
    run("pairs", "--root", str(tmp_path), "--report")
    report = (folder_in(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert "mine has no impostor pairs: its accuracy says nothing about the model" in report


def test_two_models_on_clear_and_blurred_images(run, root, tmp_path, two_models):
    out = run("folder", "--root", str(root / "people"), "--compare", *two_models, "--report", model=None)
    assert (folder_in(tmp_path) / "degraded.png").stat().st_size
    assert "clear" in out
    assert "blurred" in out
    with (folder_in(tmp_path) / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["condition"]) for row in rows] == [
        ("a.ckpt", "clear"), ("a.ckpt", "blurred"), ("b.ckpt", "clear"), ("b.ckpt", "blurred"),
    ]  # fmt: skip
    assert (folder_in(tmp_path) / "comparison.png").stat().st_size
    assert "b.ckpt" in (folder_in(tmp_path) / "report.html").read_text()


def test_the_paper_says_what_it_could_check(run, root):
    out = run("paper", "--root", str(root))
    assert "published results of ir_18 CASIA-WebFace" in out
    assert out.count("not checked: data not found") == 3
    assert "outside the interval: lfw\n" in out
    run("paper", "--root", str(root), "--strict", expected=1)
    assert "published results of ir_50 MS1MV2" in run("paper", "--root", str(root), "--published", "ir_50 ms1mv2")


def test_two_processes_print_what_one_prints(run, root):
    one = run("pairs", "--root", str(root), "--sets", "lfw", "--cache", "")
    two = run("pairs", "--root", str(root), "--sets", "lfw", "--cache", "", "--devices", "2")
    assert [line for line in one.splitlines() if line.startswith("lfw ")] == [
        line for line in two.splitlines() if line.startswith("lfw ")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pairs"], "--root is required"),
        (["pairs", "--root", "ROOT", "--checkpoint", ""], "give the model to evaluate with --checkpoint or --model"),
        (["pairs", "--root", "nowhere"], "--root nowhere does not exist"),
        (["pairs", "--root", "ROOT", "--chekpoint", "x"], "did you mean --checkpoint"),
        (["pairs", "--root", "ROOT", "--sets", "cfp_fp"], "no set cfp_fp in .*; found: agedb_30, lfw"),
        (["pairs", "--root", "ROOT/people/person 1"], "no verification sets .* found: 0.png"),
        (["pairs", "--root", "ROOT", "--pooling", "concat"], "--pooling has no effect with pairs"),
        (["pairs", "--root", "ROOT", "--arch", "ir_50"], "holds weights of ir_mini"),
        (["pairs", "--root", "ROOT", "--limit", "-1"], "--limit must be at least 0, got -1"),
        (
            ["folder", "--root", "ROOT/people", "--seed", str(2**64)],
            "--seed must be below 2.*64, got 18446744073709551616",
        ),
        (["pairs", "--root", "ROOT", "--cache", __file__], "--cache .* is a file: give a folder"),
        (["pairs", "--root", "ROOT", "--cache", "/proc/x"], "--cache /proc/x cannot be created .*: give another"),
        (["pairs", "--root", "ROOT", "--output_dir", "/proc/x"], "--output_dir /proc/x cannot be created"),
        (["pairs", "--root", "ROOT", "--output_dir", __file__], "--output_dir .* is a file"),
        (["pairs", "--root", "ROOT", "--store_threshold"], "--store_threshold needs --target_far"),
        (["pairs", "--root", "ROOT", "--target_far", "2"], "--target_far must be above 0 and below 1"),
        (["pairs", "--root", "ROOT", "--most_unreadable", "5"], "--most_unreadable must be between 0 and 1"),
        (["folder", "--root", "ROOT/people", "--strength", "7"], "--strength must be between 0 and 1"),
        (["folder", "--root", "ROOT/people", "--unknown_share", "1"], "--unknown_share must be at least 0 and below 1"),
        (["folder", "--root", "ROOT/faces_emore"], "faces_emore"),
        (["ijbc", "--root", "ROOT"], "IJB-C is incomplete in"),
        (["tinyface", "--root", "ROOT"], "TinyFace is incomplete in"),
        (["paper", "--root", "ROOT/people"], "no data of the paper in"),
        (["paper", "--root", "ROOT", "--published", "ir_50 MSMV2"], "did you mean 'ir_50 MS1MV2'"),
        (["lfw", "--root", "ROOT"], "invalid choice: 'lfw'"),
        (["pairs", "--root", "ROOT", "--accelerator", "gpu"], "PyTorch finds 0"),
    ],
)
def test_mistakes_are_told_in_a_line(run, root, words, message):
    error = run(*(word.replace("ROOT", str(root)) for word in words), expected=2)
    assert error.startswith("adaface evaluate: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_a_threshold_that_cannot_be_stored_is_told_before_the_work(run, root, tmp_path, monkeypatch):
    def full(*_, dir, **__):  # a read-only file system: root may write anywhere else
        if Path(dir) != tmp_path / "out":
            raise OSError(errno.EROFS, "Read-only file system")
        return contextlib.nullcontext()

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    words = ["pairs", "--root", str(root), "--target_far", "0.1", "--store_threshold", "--cache", ""]
    error = run(*words, expected=2)
    assert "--store_threshold writes to the checkpoint, but its folder" in error
    assert "is not writable (Read-only file system): copy the checkpoint to another folder" in error


def test_a_threshold_of_a_read_only_file_is_told_before_the_work(run, root, monkeypatch):
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))  # root may write
    words = ["pairs", "--root", str(root), "--target_far", "0.1", "--store_threshold", "--cache", ""]
    error = run(*words, expected=2)
    assert re.search(
        r"--store_threshold writes to the checkpoint, but .*\.ckpt is read-only: copy the checkpoint", error
    )


def test_what_was_taken_of_another_programs_weights_is_said(run, root, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    path = tmp_path / "other.pth"
    torch.save({"model": weights}, path)
    out = run("pairs", "--root", str(root), "--color", "bgr", model=path)
    assert f"note: {path}: {len(weights)} weights under no prefix of its part `model` are taken; bgr images" in out


def test_a_model_of_another_program_is_compared_with_one_of_ours(run, root, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    first = next(key for key, value in weights.items() if value.ndim == 4)
    path = tmp_path / "rgb.pth"
    torch.save(weights | {first: weights[first].flip(1)}, path)
    words = ["pairs", "--root", str(root), "--target_far", "0.1", "--color", "rgb", "--compare", str(checkpoint)]
    out = run(*words, str(path), model=None)
    assert f"note: {path}: {len(weights)} weights under no prefix are taken; rgb images" in out
    assert "+0.00" in out, "both embed alike"
    assert "none of the models is: omit it" in run(*words, str(checkpoint), model=None, expected=2)


def test_a_checkpoint_of_the_wrong_kind(run, root, tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    assert "has no `model.*` weights" in run("pairs", "--root", str(root), model=tmp_path / "other.ckpt", expected=2)
    (tmp_path / "text.ckpt").write_text("hello")
    assert "is damaged or not a checkpoint" in run(
        "pairs", "--root", str(root), model=tmp_path / "text.ckpt", expected=2
    )


def test_an_unknown_checkpoint_needs_a_row_of_the_table(run, root, tmp_path):
    error = run("paper", "--root", str(root), model=write_checkpoint(tmp_path / "mine.ckpt"), expected=2)
    assert (
        "mine.ckpt is not a published checkpoint's name: no model of ir_mini is published: evaluate it with " in error
    )


def test_a_model_of_a_published_architecture_gets_the_rows_of_it():
    rows = "'ir_18 CASIA-WebFace', 'ir_18 VGGFace2', 'ir_18 WebFace4M'"
    with pytest.raises(ValueError, match=f"published checkpoint's name: set --published to the row .* with: {rows}$"):
        find_published("", arch="ir_18", file="mine.ckpt")


def test_quality_leaves_out_what_cannot_be_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr("adaface.evaluation.protocols._MOST_DEGRADED", 8)
    images = [person(number % IDENTITIES, number) for number in range(40)]
    encoded = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    encoded[3] = b"broken"
    write_bin(tmp_path / "lfw.bin", encoded, [number % 2 == 0 for number in range(20)])
    words = [
        "pairs",
        "--root",
        str(tmp_path / "lfw.bin"),
        "--most_unreadable",
        "0.03",
        "--target_far",
        "0.5",
        "--quality",
    ]
    out = run(*words, "--sets", " lfw, ", expected=1)  # 1 of 40 images, and 1 of the 8 that would be degraded
    assert "1 of 40 images could not be read" in out
    assert "rank correlation of norm and degradation" in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 100


def test_a_folder_whose_name_is_no_text(run, root, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/people\xff")
    shutil.copytree(root / "people", folder)
    assert "folder: people\\udcff" in run("folder", "--root", folder, "--report")
    content = json.loads((folder_in(tmp_path) / "outcomes.json").read_text())
    assert content["outcomes"][0]["data"] == "people\udcff"
    assert "people\\udcff" in (folder_in(tmp_path) / "report.html").read_text()


def test_a_model_by_its_name(run, root, checkpoint, tmp_path, monkeypatch):
    words = ("paper", "--root", str(root), "--model", "adaface_ir18_casia")
    monkeypatch.setenv("ADAFACE_MODELS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gdown", None)  # as if it were not installed
    assert f"save it as {tmp_path / 'adaface_ir18_casia.ckpt'}" in run(*words, model=None, expected=2)
    monkeypatch.setitem(sys.modules, "gdown", sys)
    monkeypatch.setattr(
        "adaface.checkpoints.download.find_model", lambda name: checkpoint
    )  # of the published name, but small
    assert "published results of ir_18 CASIA-WebFace" in run(*words, model=None)
    assert "give the model to evaluate with --checkpoint or --model" in run(*words, expected=2)  # both
    assert "did you mean adaface_ir18_vgg2" in run(
        "pairs", "--root", "x", "--model", "adaface_ir18_vgg", model=None, expected=2
    )


def test_every_option_is_explained():
    for action in build_parser()._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize(
    ("protocol", "own", "others"),
    [
        ("pairs", ["--sets", "--quality", "--target_far", "--compare"], ["--pooling", "--gallery_images", "--strict"]),
        ("ijbc", ["--pooling"], ["--sets", "--compare", "--seed"]),
        ("folder", ["--gallery_images", "--degrade", "--compare"], ["--sets", "--pooling", "--published"]),
        ("paper", ["--published", "--strict", "--sets"], ["--compare", "--quality"]),
    ],
)
def test_a_protocol_has_its_own_help(protocol, own, others, capsys):
    for words in ([protocol, "--help"], ["--help", protocol]):
        with pytest.raises(SystemExit):
            parse(words)
        text = capsys.readouterr().out
        assert PROTOCOLS[protocol] in text
        assert all(f"  {option} " in text for option in ["--root", "--checkpoint", *own])
        assert not any(f"  {option} " in text for option in others)
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert f"  {protocol} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            ["pairs", "--targetfar", "3", "--root", "x"],
            r"\(python -m adaface evaluate pairs --help lists the options\)",
        ),
        (["folder", "--seed"], r"\(python -m adaface evaluate folder --help lists the options\)"),
        (["folder", "--root", ""], r"\(python -m adaface evaluate folder --help lists the options\)"),
        (["ijb", "--root", "x"], r"did you mean ijbc\? .* \(python -m adaface evaluate --help lists the protocols\)"),
        (["--root", "x"], r"required: protocol \(python -m adaface evaluate --help lists the protocols\)"),
        (["ijb", "--help"], r"did you mean ijbc\? .* \(python -m adaface evaluate --help lists the protocols\)"),
        (["--help", "ijb"], r"did you mean ijbc\? .* \(python -m adaface evaluate --help lists the protocols\)"),
    ],
)
def test_a_mistake_names_the_help_that_lists_what_was_wrong(words, hint):
    with pytest.raises(ValueError, match=hint):
        parse(words)


def test_sets_are_found_below_the_root(root):
    assert find_sets(root) == {"agedb_30": root / "faces_emore", "lfw": root / "faces_emore"}
    assert parse(["pairs", "--checkpoint", "x", "--root", "y", "--sets", "lfw,cfp_fp"]).sets == ["lfw", "cfp_fp"]


def write_pairs(folder: Path, first: int = 0, name: str = "lfw") -> None:
    """A set of two pairs of different people."""
    folder.mkdir(exist_ok=True)
    images = [cv2.imencode(".png", person(first + number, number))[1].tobytes() for number in range(4)]
    write_bin(folder / f"{name}.bin", images, [True, False])


def test_different_sets_of_one_name_in_two_subfolders_are_refused(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    refusal = rf"different sets lfw, in {a} and in {b}: give one of these folders as --root, or move one set away"
    write_pairs(a)
    write_pairs(a, name="mine")
    write_pairs(b, first=1)
    with pytest.raises(ValueError, match=refusal):
        find_sets(tmp_path)
    assert find_sets(tmp_path, ["mine"]) == {"mine": a}
    write_pairs(b)  # as several data sets come with the same lfw.bin
    assert find_sets(tmp_path) == {"lfw": a, "mine": a}
    (b / "lfw.bin").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"two sets lfw, .* cannot be told \(.*lfw\.bin.*\): give one"):
        find_sets(tmp_path)
    write_pairs(tmp_path, first=2)
    assert find_sets(tmp_path) == {"lfw": tmp_path, "mine": a}


def test_a_set_of_another_program_is_noted(tmp_path):
    write_pairs(tmp_path)
    write_memfile(tmp_path, "lfw", [person(number, number) for number in range(4)], [True, False])
    (pairs,) = open_pair_lists(tmp_path, limit=1)
    assert f"the set {tmp_path / 'lfw'} was written by another program" in pairs.notes[0]
    assert pairs.notes[1:] == ("quick test: 1 of 2 pairs",)


def test_the_published_table():
    assert len(PUBLISHED) == 10
    model = find_published("", file="adaface_ir101_webface12m.ckpt")
    assert (model.arch, model.data) == ("ir_101", "WebFace12M")
    assert model.numbers["lfw"] == 99.82
    assert model.numbers["ijbc"] == 97.66
    assert model.numbers[RANK_1] == 72.29
    rows = compare(
        model,
        {
            "lfw": Measurement(99.80, 99.7, 99.9),
            "ijbc": Measurement(97.0, 96.5, 97.5),
            "calfw": Measurement(96, *[float("nan")] * 2),
        },
    )
    assert [(row.what, row.inside) for row in rows if row.measured] == [("lfw", True), ("calfw", None), ("ijbc", False)]
    table = comparison_table(model, rows)
    assert "97.66     97.00       -0.66  96.50 to 97.50  OUTSIDE" in table
    assert table.count("not checked") == len(rows) - 3


def test_more_unreadable_images_than_allowed(run, root, tmp_path):
    folder = tmp_path / "people"
    for identity in range(3):
        (folder / str(identity)).mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(folder / str(identity) / f"{number}.png"), faces(1, seed=10 * identity + number)[0])
    (folder / "1" / "2.png").write_bytes(b"broken")
    assert "1 of 9 images of people cannot be read (11.1 %, 0.1 % are allowed" in run(
        "folder", "--root", str(folder), expected=2
    )
    allowed = ("folder", "--root", str(folder), "--most_unreadable", "0.2")
    assert "1 of 9 images could not be read" in run(*allowed, expected=1)
