"""The whole job through the command lines that users type, on synthetic faces."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist

import main
from adaface.checkpoints import folders
from adaface.checkpoints.files import load_checkpoint
from adaface.commands import convert, evaluate, inference, train
from adaface.config import parsing
from adaface.config.options import OptimizerOptions
from adaface.demo.dataset import write_demo_data
from adaface.distributed.watch import InterruptedTrainingError
from adaface.heads.base import Head
from adaface.models.registry import build_model
from adaface.system.screen import log_to_screen
from adaface.training.optimization import Schedule
from tests.support import small_networks
from tests.support.drawings import undrawn
from tests.support.sharded_records import write_chunks
from train_val import FaceRecognitionModule

ROOT = Path(__file__).resolve().parents[2]
ARCH = small_networks.TRAINED  # of what is called in this process
OF_PROCESSES = ["--arch", "ir_mini"]  # the smallest that a process knows by itself
SMALL = ["--gpus", "0", "--arch", ARCH, "--batch_size", "8", "--num_workers", "0", "--m", "0.4", "--h", "0.333"]
ONE_SET = ["--val_sets", "lfw"]  # where nobody looks at the results
TWO_SETS = ["--val_sets", "lfw,cfp_fp"]


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with small_networks.registered():
        yield


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Folder with train.rec, imgs/ and five converted sets, as a user has after `convert.py`."""
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_demo_data(folder, identities=6, images_per_identity=5, pairs=20, seed=3)
    assert convert.main(["--rec_path", str(folder)]) == 0
    return folder


def words(faces: Path, output: Path, *more: str) -> list[str]:
    paths = ["--data_root", str(faces.parent), "--train_data_path", "faces/imgs", "--val_data_path", "faces"]
    return [*paths, "--output_dir", str(output), *SMALL, *more]


def run(faces: Path, output: Path, *more: str) -> Path:
    """Run main.py in this process; return the run folder."""
    before = set(output.glob("*"))
    assert main.main(words(faces, output, *more)) == 0
    (folder,) = set(output.glob("*")) - before
    return folder


def start(faces: Path, output: Path, *more: str) -> subprocess.Popen:
    """Start main.py as a user does."""
    return subprocess.Popen(
        [sys.executable, "main.py", *words(faces, output, *OF_PROCESSES, *more)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def assert_equal_weights(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert list(a) == list(b)
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def losses(folder: Path) -> list[float]:
    parts = [pd.read_csv(file) for file in sorted((folder / "metrics").glob("version_*/metrics.csv"))]
    return pd.concat(parts)["train_loss"].dropna().tolist()


def wait_for(condition, process: subprocess.Popen, seconds: float = 250.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole_run(faces, tmp_path_factory) -> Path:
    """Run folder of six uninterrupted epochs with every augmentation."""
    return run(faces, tmp_path_factory.mktemp("whole"), *AUGMENTED)


@pytest.fixture(scope="module")
def whole_run_of_processes(faces, tmp_path_factory) -> Path:
    """The same with the network of the runs that are processes of their own."""
    return run(faces, tmp_path_factory.mktemp("whole"), *OF_PROCESSES, *AUGMENTED, *ONE_SET)


@pytest.fixture(scope="module")
def killed_run(faces, tmp_path_factory) -> Path:
    """A run folder whose run was killed after its second epoch; only copies of it are used."""
    folder = tmp_path_factory.mktemp("killed") / "deep" / "run"
    process = start(faces, folder.parent / "unused", *AUGMENTED, *ONE_SET, "--run_folder", str(folder))
    wait_for(lambda: list(folder.glob("epoch=001-*.ckpt")), process)
    process.kill()
    process.wait()
    assert not (folder.parent / "unused").exists()
    return folder


@pytest.fixture(scope="module")
def accumulated_run(faces, tmp_path_factory) -> Path:
    """Run folder of two epochs of 8 batches in steps of three."""
    return run(faces, tmp_path_factory.mktemp("accumulated"), *ACCUMULATED, *ONE_SET, "--lr", "0.01")


ACCUMULATED = ["--epochs", "2", "--batch_size", "4", "--accumulate_grad_batches", "3", "--save_all_models",
               "--val_every_epochs", "0.1"]  # fmt: skip
AUGMENTED = [
    "--epochs", "6", "--lr", "0.01", "--lr_milestones", "3,5", "--crop_augmentation_prob", "0.5",
    "--low_res_augmentation_prob", "0.5", "--photometric_augmentation_prob", "0.5", "--save_all_models",
]  # fmt: skip


def test_a_run_leaves_everything_a_user_looks_for(whole_run, faces, capsys):
    for name in (
        "best.ckpt", "last.ckpt", "config.yaml", "manifest.json", "results.csv", "results.json",
        "report.html", "train_samples.png", "loss.png", "health.png", "roc.png", "similarity.png",
    ):  # fmt: skip
        assert (whole_run / name).stat().st_size > 0, name
    assert not list(whole_run.glob(".*")), "temporary files are left"
    assert len(list(whole_run.glob("epoch=*.ckpt"))) == 6
    assert list((whole_run / "tensorboard").iterdir())
    manifest = json.loads((whole_run / "manifest.json").read_text())
    assert manifest["config"]["lr_milestones"] == [3, 5]
    results = pd.read_csv(whole_run / "results.csv")
    assert {"lfw", "cfp_fp", "agedb_30", "cplfw", "calfw"} <= set(results.iloc[:, 0])


def test_checkpoints_hold_plain_values_and_the_official_keys(whole_run, faces):
    checkpoint = torch.load(whole_run / "last.ckpt", weights_only=True)
    expected = [f"model.{key}" for key in build_model(ARCH).state_dict()]
    assert list(checkpoint["state_dict"]) == [*expected, "head.kernel", "head.t", "head.batch_mean", "head.batch_std"]
    ours = checkpoint["adaface"]
    assert ours["config"]["arch"] == ARCH
    assert ours["class_names"] == [str(label) for label in range(6)]
    assert ours["position"] == {"epoch": 6, "batch": 0, "samples": 0}
    assert ours["input"]["color"] == "BGR"


@pytest.mark.usefixtures("undrawn")
def test_the_best_checkpoint_has_the_threshold_that_evaluate_finds(tmp_path, capsys):
    """Also after a resume; compare decides by it."""
    faces = tmp_path / "data" / "faces"
    write_demo_data(faces, identities=3, images_per_identity=3, pairs=40, seed=3)  # five sets, 100 impostor pairs
    assert convert.main(["--rec_path", str(faces)]) == 0
    folder = run(faces, tmp_path / "whole", "--epochs", "2", "--save_all_models")
    printed = capsys.readouterr().out
    stored = load_checkpoint(folder / "best.ckpt")["adaface_threshold"]
    names = "agedb_30, cfp_fp, lfw, cplfw, calfw"
    assert (stored["wanted_far"], stored["sets"], stored["impostors"]) == (0.01, names, 100)
    assert f"\nthreshold for FAR 0.01: cosine {stored['cosine']:.4f}, from {names}\n  measured FAR" in printed
    evaluated = str(shutil.copy(folder / "best.ckpt", tmp_path / "evaluated.ckpt"))
    stored_by_evaluate = ["--checkpoint", evaluated, "--target_far", "0.01", "--store_threshold"]
    assert evaluate.main(["pairs", "--root", str(faces), "--output_dir", str(tmp_path), *stored_by_evaluate]) == 0
    of_evaluate = load_checkpoint(evaluated)["adaface_threshold"]
    assert of_evaluate.keys() == stored.keys()
    assert of_evaluate["cosine"] == pytest.approx(stored["cosine"], abs=1e-4)
    capsys.readouterr()
    images = [str(path) for path in sorted((faces / "imgs").rglob("*.jpg"))[:2]]
    assert inference.main(["compare", *images, "--checkpoint", str(folder / "best.ckpt")]) == 0
    assert f"(stored in the model: FAR 0.01 on {names})\ndecision: " in capsys.readouterr().out

    (first,) = folder.glob("epoch=000-*.ckpt")
    resumed = tmp_path / "resumed" / first.name
    resumed.parent.mkdir()
    for name in (first.name, "best.ckpt"):
        shutil.copy(first, resumed.parent / name)
    assert main.main(["--resume_from_checkpoint", str(resumed)]) == 0
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (load_checkpoint(path / name).get("adaface_threshold") for path in (folder, resumed.parent))
        assert ours == theirs


@pytest.mark.usefixtures("undrawn")
def test_two_data_sets_are_trained_together_and_all_classes_are_in_the_checkpoint(faces, tmp_path):
    other = write_chunks(tmp_path / "other", [[0] * 4 + [1], [1] * 3])
    folder = run(faces, tmp_path, *ONE_SET, "--train_data_path", f"faces/imgs,{other}", "--epochs", "1", "--lr", "0.01")
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["adaface"]["class_names"] == [*(f"faces/{label}" for label in range(6)), "other/0", "other/1"]
    assert checkpoint["state_dict"]["head.kernel"].shape == (512, 8)
    assert json.loads((folder / "manifest.json").read_text())["data"]["classes"] == 8


@pytest.mark.usefixtures("undrawn")
def test_straight_from_the_records_the_losses_are_the_same(whole_run, faces, tmp_path):
    folder = run(faces, tmp_path, *AUGMENTED, *ONE_SET, "--use_mxrecord")
    assert losses(folder) == losses(whole_run)
    assert_equal_weights(folder / "last.ckpt", whole_run / "last.ckpt")


@pytest.mark.usefixtures("undrawn")
def test_the_number_of_workers_changes_nothing(whole_run, faces, tmp_path):
    folder = run(faces, tmp_path, *AUGMENTED, *ONE_SET, "--num_workers", "2")
    assert_equal_weights(folder / "last.ckpt", whole_run / "last.ckpt")


@pytest.mark.usefixtures("undrawn")
def test_resumed_from_an_epochs_end_is_bit_identical(whole_run, faces, tmp_path):
    (third,) = whole_run.glob("epoch=002-*.ckpt")
    shutil.copy(third, tmp_path / "last.ckpt")
    assert main.main(["--resume_from_checkpoint", str(tmp_path / "last.ckpt"), *ONE_SET]) == 0
    assert_equal_weights(tmp_path / "last.ckpt", whole_run / "last.ckpt")
    assert (tmp_path / "best.ckpt").is_file(), "the best since then, where the best before is not in the folder"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("undrawn")
def test_stopped_inside_an_epoch_and_resumed_is_bit_identical(whole_run_of_processes, faces, tmp_path, number):
    process = start(faces, tmp_path, *AUGMENTED, "--num_workers", "1")
    wait_for(lambda: list(tmp_path.glob("*/epoch=000-*.ckpt")), process)
    os.killpg(process.pid, number)  # as a terminal and a batch system do: the data workers get it too
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    (folder,) = tmp_path.glob("*")
    assert f"resume with: python main.py --resume_from_checkpoint {folder / 'last.ckpt'}" in output
    assert "Traceback" not in output
    assert torch.load(folder / "last.ckpt", weights_only=True)["adaface"]["position"]["epoch"] < 6
    assert main.main(["--resume_from_checkpoint", str(folder / "last.ckpt"), *ONE_SET]) == 0
    assert_equal_weights(folder / "last.ckpt", whole_run_of_processes / "last.ckpt")


@pytest.mark.usefixtures("undrawn")
def test_killed_after_an_epoch_and_resumed_is_bit_identical(whole_run_of_processes, killed_run, tmp_path):
    folder = shutil.copytree(killed_run, tmp_path / "run", symlinks=True)
    assert main.main(["--resume_from_checkpoint", str(folder / "last.ckpt"), *ONE_SET]) == 0
    assert_equal_weights(folder / "last.ckpt", whole_run_of_processes / "last.ckpt")


@pytest.mark.usefixtures("undrawn")
def test_started_again_in_its_folder_a_killed_run_goes_on_by_itself(
    whole_run_of_processes, killed_run, faces, tmp_path, capsys
):
    folder = shutil.copytree(killed_run, tmp_path / "deep" / "run", symlinks=True)
    again = words(faces, tmp_path / "unused", *OF_PROCESSES, *AUGMENTED, *ONE_SET, "--run_folder", str(folder))
    assert main.main(again) == 0
    output = capsys.readouterr().out
    assert f"run folder: {folder}\n" in output
    assert "note: " not in output
    assert_equal_weights(folder / "last.ckpt", whole_run_of_processes / "last.ckpt")
    assert not (tmp_path / "unused").exists()
    # once more: there is nothing left to train
    before = (folder / "last.ckpt").read_bytes()
    (folder / "results.csv").unlink()
    assert main.main(again) == 0
    assert f"note: the run of {folder / 'last.ckpt'} has completed its 6 epochs: test only" in capsys.readouterr().out
    assert (folder / "last.ckpt").read_bytes() == before
    assert (folder / "results.csv").is_file()
    # what the command line says wins, with a note
    assert main.main([*again, "--epochs", "7", "--lr", "0.02"]) == 0
    assert "note: --lr was 0.01 in the resumed run and is now 0.02" in capsys.readouterr().out
    assert torch.load(folder / "last.ckpt", weights_only=True)["adaface"]["position"]["epoch"] == 7


@pytest.mark.usefixtures("undrawn")
def test_accumulated_gradients_are_never_cut_by_a_checkpoint(accumulated_run, tmp_path):
    first, *_ = sorted(accumulated_run.glob("epoch=000-step=0000002-*.ckpt"))  # inside the first epoch of 8 batches
    assert torch.load(first, weights_only=True)["adaface"]["position"] == {"epoch": 0, "batch": 6, "samples": 24}
    (tmp_path / "resumed").mkdir()
    shutil.copy(first, tmp_path / "resumed" / "last.ckpt")
    assert main.main(["--resume_from_checkpoint", str(tmp_path / "resumed" / "last.ckpt")]) == 0
    assert_equal_weights(tmp_path / "resumed" / "last.ckpt", accumulated_run / "last.ckpt")


@pytest.mark.parametrize(
    "words_",
    [
        ["--lr_schedule", "cosine", "--lr", "0.05", "--warmup_epochs", "0.5"],
        ["--lr_schedule", "poly", "--optimizer", "adamw", "--lr", "1e-3", "--weight_decay", "0.1"],
        ["--lr_milestones", "1", "--lr", "0.01", "--warmup_epochs", "1.5", "--lr_base_batch_size", "6"],
    ],
    ids=["cosine", "poly adamw", "multistep warm-up scaled"],
)
def test_every_schedule_resumes_inside_an_epoch_to_the_same_bits(faces, tmp_path, words_, capsys):
    whole = run(faces, tmp_path / "whole", *ACCUMULATED, *ONE_SET, *words_)
    # 8 batches: two whole windows and one of two batches are the three steps of each epoch
    schedule = Schedule(_optimizer_options(words_))
    logged = pd.read_csv(whole / "metrics" / "version_0" / "metrics.csv").dropna(subset=["lr"])
    assert logged["step"].nunique() >= 3
    for step, lr in zip(logged["step"], logged["lr"], strict=True):
        assert lr == pytest.approx(schedule.learning_rate(int(step), 3, 2), rel=1e-6)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["learning_rate"] == pytest.approx(schedule.options.lr)
    if "--lr_base_batch_size" in words_:
        assert (
            "learning rate 0.02: --lr 0.01 x 12 images per update / --lr_base_batch_size 6" in capsys.readouterr().out
        )
    assert (whole / "health.png").is_file()
    (middle,) = whole.glob("epoch=000-step=0000002-*.ckpt")
    (tmp_path / "resumed").mkdir()
    shutil.copy(middle, tmp_path / "resumed" / "last.ckpt")
    with undrawn():
        assert main.main(["--resume_from_checkpoint", str(tmp_path / "resumed" / "last.ckpt")]) == 0
    assert_equal_weights(tmp_path / "resumed" / "last.ckpt", whole / "last.ckpt")
    assert_equal_optimizers(tmp_path / "resumed" / "last.ckpt", whole / "last.ckpt")


def _optimizer_options(words_: list[str]) -> OptimizerOptions:
    """The optimizer's options of a command line."""
    given = dict(zip((word.removeprefix("--") for word in words_[::2]), words_[1::2], strict=True))
    base = int(given.pop("lr_base_batch_size", 12))
    options = {name: parsing.convert_value(name, value) for name, value in given.items()}
    return OptimizerOptions(**{**options, "lr": options["lr"] * 12 / base})


def assert_equal_optimizers(left: Path, right: Path) -> None:
    a, b = (torch.load(file, weights_only=True)["optimizer_states"][0]["state"] for file in (left, right))
    assert list(a) == list(b)
    for number in a:
        assert a[number].keys() == b[number].keys()
        assert all(torch.equal(a[number][key], b[number][key]) for key in a[number])


@pytest.mark.usefixtures("undrawn")
def test_a_learning_rate_given_at_a_resume_counts(whole_run, tmp_path, capsys):
    (third,) = whole_run.glob("epoch=002-*.ckpt")
    shutil.copy(third, tmp_path / "last.ckpt")
    assert (
        main.main(["--resume_from_checkpoint", str(tmp_path / "last.ckpt"), *ONE_SET, "--lr", "0", "--epochs", "4"])
        == 0
    )
    assert "note: --lr was 0.01 in the resumed run and is now 0.0" in capsys.readouterr().out
    assert torch.equal(weights(tmp_path / "last.ckpt")["head.kernel"], weights(third)["head.kernel"])


@pytest.mark.usefixtures("undrawn")
def test_a_resume_with_other_training_data_says_so(whole_run, tmp_path, capsys):
    (third,) = whole_run.glob("epoch=002-*.ckpt")
    checkpoint = torch.load(third, weights_only=True)
    checkpoint["adaface"]["data_fingerprint"] = "of other images"
    checkpoint["adaface"]["validation_sets"] = {"lfw": "of other pairs"}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    (tmp_path / "same").mkdir()
    shutil.copy(third, tmp_path / "same" / "last.ckpt")
    said = []
    for path in (tmp_path / "last.ckpt", tmp_path / "same" / "last.ckpt"):
        assert main.main(["--resume_from_checkpoint", str(path), *ONE_SET, "--epochs", "3"]) == 0
        printed = capsys.readouterr().out
        said.append("the training data has changed since the start of the run" in printed)
        said.append("(lfw), so its best accuracy is not comparable" in printed)
    assert said == [True, True, False, False]


@pytest.mark.usefixtures("undrawn")
def test_a_resume_keeps_the_class_of_each_identity(faces, tmp_path, capsys):
    other = write_chunks(tmp_path / "other", [[0] * 4 + [1], [1] * 3])
    data = ["--train_data_path", f"faces/imgs,{other}"]
    folder = run(faces, tmp_path / "runs", *ONE_SET, *data, "--epochs", "1", "--lr", "0.01")
    names = torch.load(folder / "last.ckpt", weights_only=True)["adaface"]["class_names"]
    capsys.readouterr()
    resume = ["--resume_from_checkpoint", str(folder / "last.ckpt"), *ONE_SET, "--epochs", "2"]
    assert main.main([*resume, "--train_data_path", f"{other},faces/imgs"]) == 0
    assert "the identities come in another order than in the resumed run: they keep" in capsys.readouterr().out
    assert torch.load(folder / "last.ckpt", weights_only=True)["adaface"]["class_names"] == names


def test_a_resume_with_a_renamed_identity_is_refused(whole_run, faces, tmp_path, capsys):
    shutil.copytree(faces / "imgs", tmp_path / "imgs")
    (tmp_path / "imgs" / "0").rename(tmp_path / "imgs" / "zzz")
    words = ["--resume_from_checkpoint", str(whole_run / "last.ckpt"), "--train_data_path", str(tmp_path / "imgs")]
    assert main.main([*words, "--epochs", "9"]) == 2
    assert "1 gone (0), 1 new (zzz). Restore the data, or start a new run" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "imgs" / "zzz")
    assert main.main([*words, "--epochs", "9"]) == 2
    told = capsys.readouterr().err
    assert re.search(r"has a head of \d+ classes, the training data has \d+, 1 gone \(0\), 0 new: resume on", told)


def test_a_resume_with_exchanged_identities_is_refused(whole_run, faces, tmp_path, capsys):
    shutil.copytree(faces / "imgs", tmp_path / "imgs")
    for old, new in (("0", "x"), ("3", "0"), ("x", "3")):
        (tmp_path / "imgs" / old).rename(tmp_path / "imgs" / new)
    words = ["--resume_from_checkpoint", str(whole_run / "last.ckpt"), "--train_data_path", str(tmp_path / "imgs")]
    assert main.main([*words, "--epochs", "9"]) == 2
    told = capsys.readouterr().err
    assert "0 has those of 3, 3 has those of 0. Restore the data, or start a new run" in told


def test_a_resume_with_identities_that_moved_up_is_refused(whole_run, faces, tmp_path, capsys):
    """2 was removed, and those after it were numbered anew; runs of earlier versions cannot tell."""
    shutil.copytree(faces / "imgs", tmp_path / "imgs")
    shutil.move(tmp_path / "imgs" / "2", tmp_path / "new")
    for old in ("3", "4", "5"):
        (tmp_path / "imgs" / old).rename(tmp_path / "imgs" / str(int(old) - 1))
    (tmp_path / "imgs" / "5").mkdir()
    for path in (tmp_path / "new").iterdir():  # another person, whose images are other bytes
        (tmp_path / "imgs" / "5" / path.name).write_bytes(path.read_bytes() + b"x")
    checkpoint = torch.load(whole_run / "last.ckpt", weights_only=True)
    words = ["--resume_from_checkpoint", str(tmp_path / "last.ckpt"), "--train_data_path", str(tmp_path / "imgs")]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert main.main([*words, "--epochs", "9", "--plan"]) == 2
    told = capsys.readouterr().err
    assert "identities have the images of others since the run of" in told
    assert ": 2 has those of 3, 3 has those of 4, 4 has those of 5. Restore the data, or start a new run" in told
    del checkpoint["adaface"]["class_images"]
    checkpoint["adaface"]["first_images"] = {0: "0123456789abcdef"}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert main.main([*words, "--epochs", "9", "--plan"]) == 0
    assert "the training data has changed since the start of the run" in capsys.readouterr().out


def test_without_words_and_data_it_says_what_a_training_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main([]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert told[0].startswith("main.py: error: a training needs data: aligned faces in")
    assert "recipes/demo_cpu.yaml --data_root demo" in told[1]
    assert "recipes/ms1mv2_ir101.yaml --data_root <DATASET_ROOT>" in told[2]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_learns_nothing_says_so_once(faces, tmp_path, capsys):
    run(faces, tmp_path, *ONE_SET, "--epochs", "5", "--batch_size", "4", "--lr", "1e-9", "--stalled_after_steps", "20")
    assert capsys.readouterr().out.count("warning: after 20 batches the loss shows no learning") == 1


def test_weights_that_are_not_finite_never_replace_good_ones(faces, tmp_path, capsys, monkeypatch):
    def poison(self, batch, batch_idx):
        if self.trainer.fit_loop.total_batch_idx == 7:  # the last batch of the second epoch
            self.head.kernel.data[0, 0] = float("inf")

    monkeypatch.setattr(FaceRecognitionModule, "on_train_batch_end", lambda s, o, b, i: poison(s, b, i))
    assert main.main(words(faces, tmp_path, *ONE_SET, "--epochs", "6", "--lr", "0.01")) == 2
    (folder,) = tmp_path.glob("*")
    message = capsys.readouterr().err
    assert "the weights are not finite after step 7 (head.kernel is the first)" in message
    assert f"resume with: python main.py --resume_from_checkpoint {folder / 'last.ckpt'}" in message
    assert torch.load(folder / "last.ckpt", weights_only=True)["adaface"]["position"] == {
        "epoch": 1, "batch": 0, "samples": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--head", "arcface"], "was trained with adaface"),
        (["--arch", "ir_18"], f"was trained with {ARCH}"),
        (["--custom_num_class", "9"], "has a head of 6 classes, the training data has 9"),
    ],
)
def test_a_resume_that_does_not_fit_changes_nothing(whole_run, capsys, more, message):
    before = {file.name: file.read_bytes() for file in whole_run.iterdir() if file.is_file()}
    assert main.main(["--resume_from_checkpoint", str(whole_run / "last.ckpt"), *more]) == 2
    assert message in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in whole_run.iterdir() if file.is_file()} == before


@pytest.mark.usefixtures("undrawn")
def test_two_processes_train_and_evaluate_as_one(faces, tmp_path):
    process = start(
        faces, tmp_path, "--devices", "2", "--epochs", "1", "--accelerator", "cpu", "--use_16bit", *TWO_SETS
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (folder,) = tmp_path.glob("*")
    two = json.loads((folder / "results.json").read_text())
    best = ["--evaluate", "--start_from_model_statedict", str(folder / "best.ckpt")]
    alone = run(faces, tmp_path / "one", *OF_PROCESSES, *best, "--use_16bit", *TWO_SETS)
    one = json.loads((alone / "results.json").read_text())
    assert two == one


SHARDED = ["--sample_rate", "0.5", "--accumulate_grad_batches", "2", "--gradient_clip_val", "5", "--lr", "0.01"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_asks_cuda_nothing_before_its_gpu_is_chosen(faces, tmp_path, monkeypatch, rank):
    """Each question creates a context, half a GB, on the current GPU, which is the first one until another is set."""
    calls = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # asks the driver, without a context
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    for name, answer in (
        ("mem_get_info", (70e9, 80e9)),
        ("get_device_name", "a GPU"),
        ("get_device_properties", None),
        ("current_device", rank),
        ("max_memory_allocated", 0),
        ("synchronize", None),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name, answer=answer: calls.append((name,)) or answer)
    monkeypatch.setattr(train, "end_with_parent", lambda launch: None)
    monkeypatch.setenv("LOCAL_RANK", str(rank))  # as Lightning starts the others
    monkeypatch.setenv("NODE_RANK", "0")

    class StoppedError(Exception):
        pass

    def stop(*args, **kwargs):
        raise StoppedError

    monkeypatch.setattr(train, "build_run_trainer", stop)
    if rank:
        monkeypatch.setenv("ADAFACE_DECISION_RUN_FOLDER", str(tmp_path / "run"))
    with pytest.raises(StoppedError):
        main.main(words(faces, tmp_path, "--gpus", "2", "--use_16bit"))
    assert calls[0] == ("set_device", rank)
    assert ("mem_get_info",) in calls


def start_sharded(faces: Path, output: Path, devices: int, *more: str) -> Path:
    """Train a sharded head in several processes; return the run folder."""
    words_ = ["--devices", str(devices), "--accelerator", "cpu", "--epochs", "1", "--batch_size", "4", *SHARDED, *more]
    process = start(faces, output, *words_)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "--sample_rate 0.5 needs a sharded head: --head_sharding on" in printed
    (folder,) = output.glob("*")
    return folder


def test_two_processes_train_a_sharded_head_that_one_process_goes_on_with(faces, tmp_path):
    folder = start_sharded(faces, tmp_path, 2, *ONE_SET)
    assert (folder / "results.csv").is_file()
    assert (folder / "last.ckpt").is_symlink()
    assert len(list((folder / "last.ckpt").glob("*.safetensors"))) == 2
    linked = {path.resolve() for path in folder.glob("*.ckpt")}
    assert set((folder / "checkpoints").iterdir()) == linked
    single = folder / "single.ckpt"
    assert convert.main(["--checkpoint", str(folder / "last.ckpt"), "--output", str(single)]) == 0
    checkpoint = torch.load(single, weights_only=True)
    kernel = checkpoint["state_dict"]["head.kernel"]
    assert list(checkpoint["state_dict"])[-4:] == ["head.kernel", "head.t", "head.batch_mean", "head.batch_std"]
    assert kernel.shape == (512, 6)
    states = checkpoint["optimizer_states"][0]["state"].values()
    assert [state["momentum_buffer"].shape for state in states].count(kernel.shape) == 1
    words_ = ["--resume_from_checkpoint", str(folder / "last.ckpt"), "--devices", "1", "--epochs", "2"]
    assert main.main([*words_, "--sample_rate", "1", "--head_sharding", "off"]) == 0
    assert not (folder / "last.ckpt").is_symlink()
    later = weights(folder / "last.ckpt")["head.kernel"]
    assert 0 < (later - kernel).abs().max() < 0.1
    best = ["--evaluate", "--start_from_model_statedict", str(folder / "best.ckpt")]
    assert main.main(words(faces, tmp_path / "evaluated", *OF_PROCESSES, *best)) == 0


@pytest.mark.slow
def test_a_checkpoint_of_four_processes_goes_on_with_one_two_and_three(faces, tmp_path):
    """From inside the first epoch: after 2 of 4 batches of 8, the other 14 images are seen once, then all 30."""
    more = ["--head_sharding", "on", "--lr", "0.01", "--checkpoint_every_steps", "2", "--epochs", "2"]
    process = start(faces, tmp_path / "four", "--devices", "4", "--accelerator", "cpu", *more)
    (tmp_path / "four").mkdir(exist_ok=True)
    wait_for(lambda: list((tmp_path / "four").glob("*/last.ckpt")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (folder,) = (tmp_path / "four").iterdir()
    position = load_checkpoint(folder / "last.ckpt")["adaface"]["position"]
    assert position["samples"] == 8 * position["batch"]
    for processes, batch_size in ((1, 8), (2, 8), (3, 9)):
        copy = tmp_path / f"on_{processes}"
        shutil.copytree(folder, copy, symlinks=True)
        words_ = ["--resume_from_checkpoint", str(copy / "last.ckpt"), "--devices", str(processes)]
        done = subprocess.run(
            [sys.executable, "main.py", *words_, "--batch_size", str(batch_size)], cwd=ROOT, capture_output=True,
            text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert load_checkpoint(copy / "last.ckpt")["adaface"]["position"]["epoch"] == 2
        assert len(list((copy / "last.ckpt").glob("*.safetensors"))) == processes


@pytest.mark.usefixtures("undrawn")
def test_a_sharded_head_resumes_as_a_dense_one_does(whole_run, faces, tmp_path):
    (third,) = whole_run.glob("epoch=002-*.ckpt")
    shutil.copy(third, tmp_path / "last.ckpt")
    assert main.main(["--resume_from_checkpoint", str(tmp_path / "last.ckpt"), *ONE_SET, "--head_sharding", "on"]) == 0
    single = tmp_path / "single.ckpt"
    assert convert.main(["--checkpoint", str(tmp_path / "last.ckpt"), "--output", str(single)]) == 0
    sharded, dense = weights(single), weights(whole_run / "last.ckpt")
    assert list(sharded) == list(dense)
    torch.testing.assert_close(sharded["head.kernel"], dense["head.kernel"], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("undrawn")
def test_a_checkpoint_every_few_steps_resumes_to_the_same_bits(faces, tmp_path, monkeypatch):
    """Of a sharded head, in one process; the checkpoint of the third step is kept aside."""
    common = ["--epochs", "5", "--batch_size", "4", "--lr", "0.01", "--checkpoint_every_steps", "3", *SHARDED[:2]]
    common += ONE_SET
    publish, kept = folders.publish, tmp_path / "kept"

    def keep_the_first(*words_):
        final = publish(*words_)
        if not kept.exists():
            shutil.copytree(final, kept)
        return final

    monkeypatch.setattr(folders, "publish", keep_the_first)
    whole = run(faces, tmp_path / "whole", *common)
    checkpoint = load_checkpoint(kept)
    assert checkpoint["adaface"]["position"] == {"epoch": 0, "batch": 3, "samples": 12}
    resumed = tmp_path / "resumed"
    shutil.copytree(kept, resumed / "checkpoints" / "step")
    folders.link(resumed / "checkpoints" / "step", resumed / "last.ckpt")
    assert main.main(["--resume_from_checkpoint", str(resumed / "last.ckpt")]) == 0
    for folder in (whole, resumed):
        words_ = ["--checkpoint", str(folder / "last.ckpt"), "--output", str(folder / "single.ckpt")]
        assert convert.main(words_) == 0
    assert_equal_weights(resumed / "single.ckpt", whole / "single.ckpt")
    assert_equal_optimizers(resumed / "single.ckpt", whole / "single.ckpt")


@pytest.mark.usefixtures("undrawn")
def test_an_average_of_the_weights_is_kept_and_resumed_and_changes_no_training(whole_run, faces, tmp_path, capsys):
    averaging = ["--ema_decay", "0.8", "--checkpoint_every_steps", "1"]
    whole = run(faces, tmp_path / "whole", *AUGMENTED, *averaging, *ONE_SET)
    assert losses(whole) == losses(whole_run)
    checkpoint, without = load_checkpoint(whole / "last.ckpt"), load_checkpoint(whole_run / "last.ckpt")
    trained, average = checkpoint["adaface"]["trained_weights"], checkpoint["state_dict"]
    assert checkpoint["adaface"]["averaged_steps"] == checkpoint["global_step"]
    for key, value in without["state_dict"].items():
        assert torch.equal(value, trained[key] if key.startswith("model.") else average[key]), key
        if key.endswith("weight"):
            assert not torch.equal(value, average[key]) or key.startswith("head.")
    # from the middle to the same bits of both
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    (kept,) = whole.glob("epoch=003*")
    shutil.copy(kept, resumed / "last.ckpt")
    assert main.main(["--resume_from_checkpoint", str(resumed / "last.ckpt")]) == 0
    assert_equal_weights(resumed / "last.ckpt", whole / "last.ckpt")
    again = load_checkpoint(resumed / "last.ckpt")["adaface"]["trained_weights"]
    assert all(torch.equal(again[key], value) for key, value in trained.items())
    # without the average the weights themselves go on
    capsys.readouterr()
    assert main.main(["--resume_from_checkpoint", str(resumed / "last.ckpt"), "--ema_decay", "0", "--epochs", "7"]) == 0
    assert "--ema_decay was 0.8 in the resumed run and is now 0.0" in capsys.readouterr().out
    assert "trained_weights" not in load_checkpoint(resumed / "last.ckpt")["adaface"]


@pytest.mark.usefixtures("undrawn")
def test_what_is_validated_is_the_average(faces, tmp_path):
    """With frozen statistics and a learning rate of 1e-9 the average is the weights, and reaches the same."""
    state = {f"model.{key}": value for key, value in build_model(ARCH).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "pretrained.ckpt")
    still = ["--start_from_model_statedict", str(tmp_path / "pretrained.ckpt"), "--freeze_batch_norm", *TWO_SETS]
    still += ["--epochs", "5", "--lr", "1e-9", "--weight_decay", "0"]
    plain, averaged = (run(faces, tmp_path / name, *still, *more) for name, more in (("a", []), ("b", EMA)))
    assert validated(plain) == validated(averaged)
    # of weights that jump, the table of the final test is that of `model.*` of best.ckpt, evaluated by itself
    jumping = run(faces, tmp_path / "c", "--epochs", "5", "--lr", "0.1", *EMA, *TWO_SETS)
    table = (jumping / "results.csv").read_text()
    best = ["--evaluate", "--start_from_model_statedict", str(jumping / "best.ckpt")]
    alone = run(faces, tmp_path / "d", *best, *TWO_SETS)
    assert (alone / "results.csv").read_text() == table
    # and so was the accuracy that chose it
    sets = pd.read_csv(alone / "results.csv", index_col=0).drop("mean", errors="ignore")
    assert validated(jumping) == pytest.approx(sets["accuracy"].mean())


def validated(folder: Path) -> float:
    """The best accuracy of a run's validations."""
    return load_checkpoint(folder / "best.ckpt")["callbacks"]["CheckpointKeeper"]["best_val_acc"]


EMA = ["--ema_decay", "0.9"]


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_gets_no_better_ends_early_and_stays_ended(faces, tmp_path, capsys):
    # batch norm's statistics move without a learning rate, so that an epoch may get better by chance, but not each one
    never_better = ["--epochs", "9", "--lr", "0", "--early_stopping_patience", "1"]
    never_better += ["--run_folder", str(tmp_path / "run")]
    assert main.main(words(faces, tmp_path, *never_better)) == 0
    said = capsys.readouterr().out
    assert said.count("stopped early: the mean accuracy has not been above") == 1
    done = load_checkpoint(tmp_path / "run" / "last.ckpt")["adaface"]["position"]["epoch"]
    assert 2 <= done < 9
    assert (tmp_path / "run" / "results.csv").is_file()
    assert main.main(words(faces, tmp_path, *never_better)) == 0
    assert "stopped early" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["adaface"]["position"]["epoch"] == done


def test_early_stopping_without_validation_sets_is_refused(faces, tmp_path, capsys):
    shutil.copytree(faces / "imgs", tmp_path / "imgs")
    assert main.main([*SMALL, "--data_root", str(tmp_path), "--train_data_path", "imgs", "--val_data_path", ".",
                      "--early_stopping_patience", "3"]) == 2  # fmt: skip
    assert "--early_stopping_patience 3 needs the accuracy on validation sets" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_an_epoch_is_finished_with_other_batches(accumulated_run, tmp_path, capsys):
    """30 images: 24 in batches of 4, the other 6 in a batch of up to 9, and the next epoch in batches of 9."""
    (middle,) = accumulated_run.glob("epoch=000-step=0000002-*.ckpt")
    (tmp_path / "resumed").mkdir()
    shutil.copy(middle, tmp_path / "resumed" / "last.ckpt")
    words_ = ["--resume_from_checkpoint", str(tmp_path / "resumed" / "last.ckpt"), "--batch_size", "9"]
    assert main.main([*words_, "--accumulate_grad_batches", "1"]) == 0
    printed = capsys.readouterr().out
    assert "epoch 1/2 batch 7/7" in printed  # 6 before, 1 after
    assert "epoch 2/2 batch 4/4" in printed  # 30 in batches of 9
    position = torch.load(tmp_path / "resumed" / "last.ckpt", weights_only=True)["adaface"]["position"]
    assert position == {"epoch": 2, "batch": 0, "samples": 0}


def test_a_non_finite_loss_stops_and_keeps_the_good_checkpoint(faces, tmp_path, capsys, monkeypatch):
    calls = []

    def poisoned(self, embeddings, norms, labels, gather=None, honest=Head.loss):
        calls.append(len(labels))
        return honest(self, embeddings, norms, labels, gather) * (float("nan") if len(calls) == 7 else 1.0)

    monkeypatch.setattr(Head, "loss", poisoned)
    assert main.main(words(faces, tmp_path, *ONE_SET, "--epochs", "6", "--lr", "0.01")) == 2
    (folder,) = tmp_path.glob("*")
    message = capsys.readouterr().err
    assert "the loss was not finite at step 6" in message
    assert str(folder) in message
    assert "NonFiniteLossError" in (folder / "error.log").read_text()
    kept = torch.load(folder / "last.ckpt", weights_only=True)
    assert kept["adaface"]["position"] == {
        "epoch": 1, "batch": 0, "samples": 0,
    }  # fmt: skip
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


@pytest.mark.usefixtures("undrawn")
def test_official_checkpoints_start_a_run_and_are_evaluated(faces, tmp_path):
    state = {f"model.{key}": value for key, value in build_model(ARCH).state_dict().items()}
    file = tmp_path / "official.ckpt"
    torch.save({"state_dict": {**state, "head.kernel": torch.zeros(512, 85742)}, "epoch": 25}, file)
    run(faces, tmp_path / "a", *ONE_SET, "--start_from_model_statedict", str(file), "--epochs", "1")
    folder = run(faces, tmp_path / "b", "--start_from_model_statedict", str(file), "--evaluate")
    assert (folder / "results.csv").is_file()
    assert not (folder / "last.ckpt").exists()


def test_a_checkpoint_of_another_architecture_is_named(faces, tmp_path, capsys):
    file = tmp_path / "other.ckpt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in build_model("ir_18").state_dict().items()}}, file)
    assert main.main(words(faces, tmp_path, "--start_from_model_statedict", str(file))) == 2
    assert f"holds weights of ir_18, the run uses --arch {ARCH}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data_root", "/nowhere"], "/nowhere"),
        (["--arch", "ir_minii"], "did you mean ir_mini"),
        (["--arhc", "x"], "did you mean --arch"),
        (["--devices", "3"], "--batch_size 8"),
        (["--custom_num_class", "2"], "6"),
        (["--prefix", "../x"], "--prefix"),
        (["--sync_batchnorm"], "--sync_batchnorm needs GPUs, this run is on cpu"),
        (["--gradient_compression", "bf16"], "--gradient_compression bf16 needs GPUs and NCCL, this run is on cpu"),
    ],
)
def test_wrong_calls_end_in_one_clear_line(faces, tmp_path, capsys, more, message):
    assert main.main(words(faces, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ")
    assert message in error
    assert "Traceback" not in error


def test_gpus_that_are_not_there(faces, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main.main(["--data_root", str(faces.parent), "--gpus", "2"]) == 2
    assert "2 GPU(s) requested, but PyTorch finds 0" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_trial_runs(faces, tmp_path, capsys):
    folder = run(faces, tmp_path / "fast", "--fast_dev_run")
    assert not (folder / "last.ckpt").exists()
    run(faces, tmp_path / "test", "--test_run", "--epochs", "1", "--accumulate_grad_batches", "2", "--h", "0")
    assert "--h 0 is CosFace" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_validation_sets(faces, tmp_path, capsys):
    alone = tmp_path / "alone"
    shutil.copytree(faces / "imgs", alone / "imgs")
    status = main.main([*SMALL, "--data_root", str(alone), "--train_data_path", "imgs", "--val_data_path", ".",
                        "--epochs", "1", "--output_dir", str(tmp_path / "runs")])  # fmt: skip
    assert status == 0
    (folder,) = (tmp_path / "runs").glob("*")
    assert (folder / "last.ckpt").is_file()


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_a_thread_trains_as_any_other(faces, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        folder = pool.submit(run, faces, tmp_path, *ONE_SET, "--epochs", "1").result()
    assert (folder / "last.ckpt").is_file()


def test_an_error_is_told_in_one_line_with_its_details_below(capsys):
    error = OSError(errno.ENOSPC, "No space left", "x/last.ckpt")
    error.add_note("details: x/error.log")
    with log_to_screen():
        assert train._report(error) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("main.py: error: no space left on the disk for x/last.ckpt; free some")
    assert lines[1:] == ["details: x/error.log"]
    with log_to_screen():
        assert train._report(RuntimeError("first\n  second\x1b")) == 2
    assert capsys.readouterr().err == "main.py: error: first second\\x1b\n"


def test_print_config_prints_yaml_only(capsys):
    assert main.main(["--print_config", "--lr", "5e-4"]) == 0
    assert "lr: 0.0005" in capsys.readouterr().out


def test_class_statistics_are_finite_after_training(whole_run):
    state = weights(whole_run / "last.ckpt")
    assert np.isfinite(state["head.batch_mean"].item())
    assert state["head.batch_std"].item() != 100.0


def test_a_full_memory_is_named_with_what_helps(capsys):
    told = (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    with log_to_screen():
        assert train._report(RuntimeError(f"{told}\nframe #0: ...")) == 2
    assert capsys.readouterr().err == (
        f"main.py: error: out of memory: --plan shows the memory of a step and how to reduce it ({told})\n"
    )
    with log_to_screen():
        assert train._report(MemoryError()) == 2
    assert capsys.readouterr().err == (
        "main.py: error: out of memory: --plan shows the memory of a step and how to reduce it\n"
    )


def test_a_process_group_of_the_caller_is_left_alone(tmp_path, capsys):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        assert main.main(["--print_config"]) == 0
        assert main.main(["--epoch", "3"]) == 2
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    assert "epochs: 24" in capsys.readouterr().out


def test_a_second_ctrl_c_while_the_first_is_told(monkeypatch, tmp_path, capsys):
    said = []

    def interrupted_once(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            raise KeyboardInterrupt

    def stopped(*_: object, **__: object) -> int:
        raise InterruptedTrainingError(tmp_path / "last.ckpt")

    monkeypatch.setattr(train, "_run", stopped)
    monkeypatch.setattr(train, "rank_zero_info", interrupted_once)
    assert main.main(["--gpus", "0"]) == 130
    assert said[1:] == ["stopped immediately; files that were already saved are complete"]


def test_a_ctrl_c_whose_handling_fails_is_told(monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> int:
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise RuntimeError("while it was handled")  # noqa: B904
        except RuntimeError:
            sys.exit(1)

    monkeypatch.setattr(train, "_run", interrupted)
    assert main.main(["--gpus", "0"]) == 130
    assert "stopped immediately" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_run_folder_that_is_deleted_ends_the_run_in_one_line(faces, tmp_path):
    process = start(faces, tmp_path, "--epochs", "50", "--num_workers", "1", *ONE_SET)
    wait_for(lambda: list(tmp_path.glob("*/last.ckpt")), process)
    (folder,) = tmp_path.iterdir()
    shutil.rmtree(folder.rename(tmp_path / "elsewhere"))  # all of it at once
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert f"main.py: error: the run folder {folder} was deleted while the run wrote to it" in output.splitlines()[-1]


def test_a_ctrl_c_that_lightning_turns_into_an_exit_is_told(monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr(train, "_run", interrupted)
    assert main.main(["--gpus", "0"]) == 130
    assert "stopped immediately; files that were already saved are complete" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main.main(["--help", "all"])
    assert ended.value.code == 0
