"""Killed and started again in the same run folder, a run ends with the bits of one that nobody disturbed."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support import launched

pytestmark = pytest.mark.slow
KILLS = 20
EPOCHS = 60  # more than all starts together get done
EARLY, EARLY_SEC = 0.3, 8.0  # share of the kills that come before or about the first step, and in what time
LATE_EPOCHS = 2.0  # the others come in the time of these, after a first checkpoint


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return launched.make_faces(tmp_path_factory.mktemp("data"), images=8)


def words(data_root: Path, run_folder: Path, epochs: int, *more: object) -> list[str]:
    augmented = ["--crop_augmentation_prob", 0.5, "--low_res_augmentation_prob", 0.5]
    return launched.words(
        data_root, "--run_folder", run_folder, "--devices", 2, "--epochs", epochs, "--lr_milestones",
        f"{epochs // 2},{epochs - 2}", *augmented, *more,
    )  # fmt: skip


def whole_run(data_root: Path, folder: Path, epochs: int, *more: object) -> tuple[Path, float]:
    """Train undisturbed; return the last checkpoint and the seconds of an epoch."""
    file, newest = folder / "whole.txt", folder / "whole" / "last.ckpt"
    process = launched.start(launched.main_py(words(data_root, folder / "whole", epochs, *more)), file)
    launched.wait_for(newest.exists, process, file)
    began = time.monotonic()
    assert launched.ended(process, file, 500) == 0, file.read_text()
    return newest, (time.monotonic() - began) / epochs


def test_torchrun_restarts_a_run_that_goes_on(data_root, tmp_path):
    whole, _ = whole_run(data_root, tmp_path, 20)
    file, folder = tmp_path / "output.txt", tmp_path / "run"
    options = ["--standalone", "--nproc-per-node", 2, "--max-restarts", 1]
    process = launched.start(launched.torchrun(words(data_root, folder, 20), *options), file)
    launched.wait_for((folder / "last.ckpt").exists, process, file)
    time.sleep(1.0)
    os.kill(launched.trainers(process.pid)[1], signal.SIGKILL)
    assert launched.ended(process, file, 300) == 0, file.read_text()
    text = file.read_text()
    assert text.count(f"run folder: {folder}") == 2
    assert "main.py: error: process 1 on" in text
    assert "a restart begins a new run" not in text
    launched.assert_same_weights(folder / "last.ckpt", whole)


@pytest.mark.parametrize(("launcher", "sharding"), [("main.py", "off"), ("main.py", "on"), ("torchrun", "on")], ids=str)
def test_twenty_kills_at_random_moments_leave_no_trace(data_root, tmp_path, launcher, sharding):
    chance = random.Random(f"{launcher} {sharding}")
    more = ["--head_sharding", sharding]
    whole, epoch_sec = whole_run(data_root, tmp_path, EPOCHS, *more)
    file, folder = tmp_path / "output.txt", tmp_path / "run"
    arguments = words(data_root, folder, EPOCHS, *more)
    command = launched.main_py(arguments)
    if launcher == "torchrun":
        command = launched.torchrun(arguments, "--standalone", "--nproc-per-node", 2)
    slowest = 0.0
    for _ in range(KILLS):
        process = launched.start(command, file)
        if chance.random() < EARLY:
            _wait(process, chance.uniform(0.0, EARLY_SEC), file)
        else:
            before = _written(folder / "last.ckpt")
            launched.wait_for(lambda before=before: _written(folder / "last.ckpt") != before, process, file)
            _wait(process, chance.uniform(0.0, LATE_EPOCHS * epoch_sec), file)
        family = [process.pid, *launched.children(process.pid)]
        one = launched.trainers(process.pid)
        for victim in [chance.choice(one)] if one and chance.random() < 0.5 else family:
            launched.kill(victim)
        killed = time.monotonic()
        launched.ended(process, file, 60)
        launched.gone(family, 60)
        slowest = max(slowest, time.monotonic() - killed)
    process = launched.start(command, file)
    assert launched.ended(process, file, 500) == 0, file.read_text()
    print(f"{launcher}, --head_sharding {sharding}: {KILLS} kills, all down after {slowest:.1f} s at the latest")
    assert file.read_text().count("the run of") == 0, "a start found nothing left to do"
    launched.assert_same_weights(folder / "last.ckpt", whole)


def _written(checkpoint: Path) -> int:
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0


def _wait(process, seconds: float, file: Path) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"ended before it was killed: {file.read_text()}"
        time.sleep(0.01)
