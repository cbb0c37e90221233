"""main.py --finetune: from a folder of faces and a trained model to the table of before and after."""

import contextlib
import csv
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from adaface.checkpoints.files import load_checkpoint
from adaface.commands import convert, train
from adaface.config.options import Config
from adaface.config.parsing import FINETUNE_DEFAULTS, parse
from adaface.data.held_out import hold_out
from adaface.data.images import decode_image
from adaface.data.sources.folder import FolderSource
from adaface.demo.dataset import write_demo_data
from adaface.inference.embedder import IMAGE, Embedder
from adaface.models.registry import build_model
from adaface.training import finetuning
from tests.support import small_networks

ROOT = Path(__file__).resolve().parents[2]
ARCH = small_networks.TRAINED
SHARE = ["--held_out_share", "0.4"]
SMALL = ["--gpus", "0", "--batch_size", "8", "--num_workers", "0", "--epochs", "1", *SHARE]
PARTLY = ["--freeze_stages", "1", "--freeze_batch_norm", "--layer_lr_decay", "0.5", "--batch_size", "3"]


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with small_networks.registered():
        yield


@pytest.fixture(scope="module")
def private(tmp_path_factory) -> Path:
    """A folder with ten people of three images, `people/`, and the .rec that it is from, `faces/`."""
    folder = tmp_path_factory.mktemp("private")
    write_demo_data(folder / "faces", identities=10, images_per_identity=3, pairs=10, seed=3)
    assert convert.main(["--rec_path", str(folder / "faces")]) == 0
    (folder / "faces" / "imgs").rename(folder / "people")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "pretrained.ckpt", ARCH)


def write_model(file: Path, arch: str) -> Path:
    """Write a checkpoint as the official code does, of another number of classes."""
    torch.manual_seed(5)
    state = {f"model.{key}": value for key, value in build_model(arch).state_dict().items()}
    torch.save({"state_dict": {**state, "head.kernel": torch.zeros(512, 99)}}, file)
    return file


def words(private: Path, model: Path | str, output: Path, *more: str) -> list[str]:
    paths = ["--data_root", str(private), "--train_data_path", "people", "--output_dir", str(output)]
    return ["--finetune", str(model), *paths, *SMALL, *more]


def run(private: Path, model: Path | str, output: Path, *more: str) -> Path:
    """Fine-tune in this process; return the run folder."""
    before = set(output.glob("*"))
    assert main.main(words(private, model, output, *more)) == 0
    (folder,) = set(output.glob("*")) - before
    return folder


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint)["state_dict"]


def assert_equal_weights(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert list(a) == list(b)
    assert not [key for key in a if not torch.equal(a[key], b[key])]


@pytest.fixture(scope="module")
def whole(private, model, tmp_path_factory) -> tuple[Path, str]:
    """Run folder of an uninterrupted fine-tuning of a part of the network, and what it printed."""
    output = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        more = ["--save_all_models", "--epochs", "2", "--val_every_epochs", "0.1"]
        assert main.main(words(private, model, output, *PARTLY, *more)) == 0
    (folder,) = output.glob("*")
    return folder, printed.getvalue()


def test_it_begins_and_ends_with_what_the_models_reach(whole):
    folder, printed = whole
    told = [
        "training data: 18 images of 6 identities",
        "no such folder; looked for .bin files and converted sets): identities of the training data are held out",
        "the pretrained model, before fine-tuning:",
        "the head's 6 classes are initialized with the means of their images' embeddings",
        "epoch 1, batch 2 of 6: loss",
        "before and after fine-tuning, percent",
        "held_out: ",
        "held_out blurred: ",
        "results are in",
    ]
    places = [printed.index(text) for text in told]
    assert places == sorted(places)
    assert "--finetune changes these defaults: --lr 0.01 --lr_schedule cosine --m 0.4 --h 0.333" in printed
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert {(row["model"], row["condition"]) for row in rows} == {
        (model, condition)
        for model in ("pretrained", "fine-tuned")
        for condition in ("held_out", "held_out blurred")
    }  # fmt: skip
    verdict = json.loads((folder / "comparison.json").read_text())["verdict"]
    assert all(line in printed for line in verdict)
    assert (folder / "comparison.png").stat().st_size > 0
    page = html.unescape((folder / "report.html").read_text())
    assert all(line in page for line in verdict)
    table = page.partition("<h3>Verification before and after fine-tuning</h3>")[2].partition("</table>")[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["", "held_out", "held_out blurred"]
    for row in rows:
        assert f"<td>{float(row['accuracy']):.2f} <small>" in table
    assert '<th scope="row">fine-tuned - pretrained</th>' in table


def test_the_numbers_of_the_pretrained_model_are_its_own(whole, private, model):
    folder, _ = whole
    rest, pairs = hold_out(FolderSource(private / "people"), 0.4, 42)
    assert len(rest.class_names) == 6
    embeddings, _ = Embedder.load(model).embed(np.stack(list(pairs.images)))
    similarity = (embeddings[::2] * embeddings[1::2]).sum(axis=1)
    genuine, impostor = similarity[pairs.issame], similarity[~pairs.issame]
    area = (genuine[:, None] > impostor).mean() + (genuine[:, None] == impostor).mean() / 2
    rows = json.loads((folder / "comparison.json").read_text())["models"]
    (before,) = [row for row in rows if (row["model"], row["condition"]) == ("pretrained", "held_out")]
    assert before["numbers"]["AUC"] == pytest.approx(100 * area, abs=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_what_is_frozen_is_that_of_the_pretrained_model_to_the_bit(whole, model):
    folder, _ = whole
    after, before = weights(folder / "last.ckpt"), weights(model)
    same = {key for key in before if key.startswith("model.") and torch.equal(after[key], before[key])}
    norms = {key.rpartition(".")[0] for key in before if key.endswith("running_mean")}
    frozen = {
        key
        for key in before
        if key.startswith(("model.input_layer.", "model.body.0.")) or key.rpartition(".")[0] in norms
    }
    assert same == frozen
    assert after["head.kernel"].shape == (512, 6)


@pytest.mark.parametrize("number", [1, 2], ids=["inside an epoch", "between two epochs"])
def test_a_resumed_fine_tuning_is_the_uninterrupted_one(whole, tmp_path, capsys, number, monkeypatch):
    whole_folder, _ = whole
    checkpoints = sorted(whole_folder.glob("epoch=*.ckpt"))
    shutil.copy(checkpoints[number], tmp_path / "last.ckpt")
    best = max(checkpoints[: number + 1], key=lambda file: float(file.stem.rpartition("=")[2]))
    shutil.copy(best, tmp_path / "best.ckpt")
    position = load_checkpoint(tmp_path / "last.ckpt")["adaface"]["position"]
    assert (position["batch"] > 0) == (number == 1)
    monkeypatch.chdir(tmp_path)
    assert main.main(["--resume_from_checkpoint", "last.ckpt"]) == 0
    printed = capsys.readouterr().out
    assert "are initialized with the means" not in printed
    assert "before fine-tuning" not in printed
    epoch = f"epoch {position['epoch'] + 1}"
    rest = f", only its batches from {position['batch'] + 1} on" if number == 1 else ""
    assert f"{epoch}{rest}: gradient norm" in printed
    assert ("Resumed inside, numbers of the rest only" in Path("report.html").read_text()) == (number == 1)
    assert_equal_weights(tmp_path / "last.ckpt", whole_folder / "last.ckpt")
    assert_equal_weights(tmp_path / "best.ckpt", whole_folder / "best.ckpt")
    for name in ("comparison.csv", "comparison.json"):
        assert (tmp_path / name).read_text() == (whole_folder / name).read_text()


@pytest.mark.usefixtures("undrawn")
def test_given_again_with_a_run_folder_it_goes_on(whole, private, model, tmp_path, capsys):
    whole_folder, _ = whole
    shutil.copytree(whole_folder, tmp_path / "run")
    shutil.copy(sorted(whole_folder.glob("epoch=*.ckpt"))[1], tmp_path / "run" / "last.ckpt")
    again = words(private, model, tmp_path, *PARTLY, "--epochs", "2", "--run_folder", str(tmp_path / "run"))
    assert main.main(again) == 0
    assert_equal_weights(tmp_path / "run" / "last.ckpt", whole_folder / "last.ckpt")
    # the model was moved, or is another one
    other = tmp_path / "moved.ckpt"
    shutil.copy(model, other)
    assert main.main([*again, "--finetune", str(other), "--plan"]) == 0
    torch.manual_seed(6)
    torch.save({"state_dict": {f"model.{k}": v for k, v in build_model(ARCH).state_dict().items()}}, other)
    capsys.readouterr()
    for more, message in (
        (["--finetune", str(other)], f"--finetune {other} is not the model that the run of"),
        (["--seed", "1"], "the people held out are not those of the run of"),
        (["--freeze_stages", "2"], "--freeze_stages 2, but"),
        (["--held_out_share", "0.5"], "has a head of 6 classes, the training data has 5"),
    ):
        assert main.main([*again, *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_resume_without_the_pretrained_model_says_so(whole, tmp_path, capsys):
    whole_folder, _ = whole
    checkpoint = load_checkpoint(sorted(whole_folder.glob("epoch=*.ckpt"))[1])
    gone = str(tmp_path / "gone.ckpt")
    checkpoint["adaface"]["config"]["finetune"] = gone
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert main.main(["--resume_from_checkpoint", str(tmp_path / "last.ckpt")]) == 2
    assert f"{gone}, which the run of {tmp_path / 'last.ckpt'} fine-tunes" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_straight_from_the_records_it_is_the_same(whole, private, model, tmp_path):
    folder = run(private, model, tmp_path, *PARTLY, "--epochs", "2", "--train_data_path", "faces/train.rec")
    assert_equal_weights(folder / "last.ckpt", whole[0] / "last.ckpt")
    assert (folder / "comparison.json").read_text() == (whole[0] / "comparison.json").read_text()


def expected_head(private: Path, model: Path) -> np.ndarray:
    """Class means by the embedder, one class after the other, (512, 6)."""
    rest, _ = hold_out(FolderSource(private / "people"), 0.4, 42)
    embedder, columns = Embedder.load(model), []
    for label in range(len(rest.class_names)):
        images = [decode_image(rest.read(i), "") for i in np.flatnonzero(rest.labels == label).tolist()]
        mean = embedder.embed(np.stack(images), view=IMAGE)[0].mean(axis=0)
        columns.append(mean / np.linalg.norm(mean))
    return np.stack(columns, axis=1)


@pytest.mark.usefixtures("undrawn")
def test_the_head_begins_at_the_class_means(private, model, tmp_path, capsys):
    """At learning rate 0 it is still there at the end; a class more than the data has begins at random."""
    folder = run(private, model, tmp_path, "--lr", "0", "--custom_num_class", "7", "--head_sharding", "on")
    assert "note: 1 of them have no usable image and keep random weights" in capsys.readouterr().out
    single = tmp_path / "single.ckpt"
    assert convert.main(["--checkpoint", str(folder / "last.ckpt"), "--output", str(single)]) == 0
    kernel = weights(single)["head.kernel"].numpy()
    np.testing.assert_allclose(kernel[:, :6], expected_head(private, model), atol=1e-5)
    assert np.linalg.norm(kernel[:, 6]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("sharding", ["on", pytest.param("off", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("undrawn")
def test_two_processes_begin_at_the_same_class_means(private, tmp_path, sharding):
    model = write_model(tmp_path / "pretrained.ckpt", "ir_mini")  # known to processes
    more = ["--lr", "0", "--devices", "2", "--accelerator", "cpu", "--head_sharding", sharding]
    command = [sys.executable, "main.py", *words(private, model, tmp_path / "runs", *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the head's 6 classes are initialized with the means") == 1
    assert done.stdout.count("before and after fine-tuning, percent") == 1
    (folder,) = (tmp_path / "runs").glob("*")
    single = folder / "last.ckpt"
    if sharding == "on":
        single = tmp_path / "single.ckpt"
        assert convert.main(["--checkpoint", str(folder / "last.ckpt"), "--output", str(single)]) == 0
    kernel = weights(single)["head.kernel"].numpy()
    np.testing.assert_allclose(kernel, expected_head(private, model), atol=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_sets_that_are_there_are_used_and_nobody_is_held_out(private, model, tmp_path, capsys):
    folder = run(private, model, tmp_path, "--val_data_path", "faces", "--val_sets", "lfw,cplfw")
    printed = capsys.readouterr().out
    assert "training data: 30 images of 10 identities" in printed
    rows = csv.DictReader((folder / "comparison.csv").read_text().splitlines())
    assert {row["condition"] for row in rows} == {"lfw", "lfw blurred", "cplfw", "cplfw blurred"}


@pytest.mark.usefixtures("undrawn")
def test_pairs_that_no_model_can_be_judged_by_are_refused_before_the_training(private, model, tmp_path, capsys):
    first, second = sorted((private / "people" / "0").iterdir())[:2]
    (tmp_path / "pairs.csv").write_text(f"path1,path2,same\n{first},{second},1\n{second},{first},1\n")
    sets = ["--pairs", str(tmp_path / "pairs.csv"), "--images_root", "/", "--output", str(tmp_path / "mine.bin")]
    assert convert.main(sets) == 0
    arguments = words(private, model, tmp_path / "runs", "--val_data_path", str(tmp_path))
    assert main.main(arguments) == 2
    assert "none of the verification sets (mine) has both genuine and impostor pairs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("undrawn")
def test_people_can_be_held_out_of_any_training(private, tmp_path, capsys):
    more = ["--arch", ARCH, "--val_data_path", "faces", "--val_sets", "held_out,lfw"]
    arguments = words(private, "", tmp_path, *more)[2:]
    assert main.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "validation sets: lfw (10 pairs), held_out (24 pairs)" in printed
    assert "before and after" not in printed


@pytest.mark.usefixtures("undrawn")
def test_a_trial_run_ends_without_a_comparison(private, model, tmp_path):
    assert not (run(private, model, tmp_path, "--fast_dev_run") / "comparison.csv").exists()


@pytest.mark.parametrize("option", ["--finetune", "--start_from_model_statedict"])
@pytest.mark.usefixtures("undrawn")
def test_published_names_are_taken_like_files(private, model, tmp_path, monkeypatch, option):
    asked = []
    monkeypatch.setattr(finetuning, "find_model", lambda name: asked.append(name) or model)
    monkeypatch.setattr(train, "find_pretrained", lambda name: asked.append(name) or model)
    arguments = words(private, "adaface_ir50_ms1mv2", tmp_path, "--fast_dev_run")
    arguments[0] = option
    assert main.main(arguments) == 0
    assert set(asked) == {"adaface_ir50_ms1mv2"}
    (folder,) = tmp_path.glob("*")
    assert f"arch: {ARCH}" in (folder / "config.yaml").read_text(), "the architecture is that of the file"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--evaluate"], "--evaluate contradicts --finetune"),
        (["--start_from_model_statedict", "x"], "--finetune contradicts --start_from_model_statedict"),
        (["--arch", "ir_18"], f"holds weights of {ARCH}, the run uses --arch ir_18: give --arch {ARCH}"),
        (["--finetune", "adaface_ir50_ms1mv22"], "did you mean adaface_ir50_ms1mv2?"),
        (["--finetune", "no/such.ckpt"], "--finetune: there is no file no/such.ckpt"),
        (["--finetune", "{onnx}"], "--finetune {onnx} is an ONNX export: give the checkpoint (.ckpt)"),
        (["--finetune", "{folder}"], "{folder} is a folder without rest.ckpt"),
        (["--freeze_stages", "5"], "the network has 4 stages"),
        (["--freeze_stages", "-1"], "--freeze_stages must be at least 0"),
        (["--layer_lr_decay", "0"], "--layer_lr_decay must be above 0 and at most 1, got 0.0"),
        (["--held_out_share", "1"], "--held_out_share must be above 0 and below 1, got 1.0"),
        (["--train_data_path", "few"], "7 identities, of which 7 have two images or more: holding some out"),
        (["--train_data_path", "single"], "10 identities, of which 0 have two images or more: holding some out"),
        (["--train_data_path", "nobody"], "no training data in"),
        (["--val_sets", "lwf", "--val_data_path", "faces"], "there is no set lwf in"),
        (["--resume_from_checkpoint", "{other}"], "is not a fine-tuning run: omit --finetune"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(private, model, tmp_path, capsys, more, message):
    people = sorted((private / "people").glob("[0-9]*"))
    for person in people[:7]:
        shutil.copytree(person, private / "few" / person.name, dirs_exist_ok=True)
    for person in people:
        (private / "single" / person.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(sorted(person.iterdir())[0], private / "single" / person.name)
    config = Config().as_dict()
    del config["finetune"]
    loops = {"current": {"ready": 0, "completed": 0, "processed": 0}}
    ours = {"config": config, "given": [], "position": {"epoch": 0, "batch": 0}}
    other = {
        "state_dict": {}, "adaface": ours, "epoch": 0, "global_step": 0,
        "loops": {"fit_loop": {"epoch_progress": loops, "epoch_loop.batch_progress": loops}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
    }  # fmt: skip
    torch.save(other, tmp_path / "other.ckpt")
    places = {"{folder}": str(tmp_path), "{other}": str(tmp_path / "other.ckpt"), "{onnx}": str(tmp_path / "m.onnx")}
    (tmp_path / "m.onnx").touch()
    for name, path in places.items():
        more, message = [word.replace(name, path) for word in more], message.replace(name, path)
    assert main.main(words(private, model, tmp_path / "runs", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_frozen_parts_are_for_a_pretrained_backbone(private, tmp_path, capsys):
    for option in (["--freeze_stages", "1"], ["--freeze_batch_norm"], ["--layer_lr_decay", "0.9"]):
        assert main.main(words(private, "", tmp_path, *option)[2:]) == 2
        assert (
            f"{option[0]} requires a pretrained backbone, but this one is initialized randomly"
            in capsys.readouterr().err
        )


def test_defaults_of_a_fine_tuning_give_way_to_what_is_given(model, tmp_path):
    config, _ = parse(["--finetune", str(model)])
    assert {name: config[name] for name in FINETUNE_DEFAULTS} == FINETUNE_DEFAULTS
    assert (config.head.m, config.head.h) == (0.4, 0.333)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 30\nlr_milestones: [20]\nhead: arcface\n")
    config, _ = parse(["--config", str(recipe), "--finetune", str(model), "--lr", "0.2"])
    assert (config["epochs"], config["lr"], config["lr_schedule"]) == (30, 0.2, "multistep")
    assert (config["m"], config["batch_size"]) == (Config().head.m, FINETUNE_DEFAULTS["batch_size"])
    assert parse([])[0] == Config()
