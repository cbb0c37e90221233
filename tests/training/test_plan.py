import copy
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import main
from adaface.commands import convert
from adaface.config.device_plan import plan_devices
from adaface.config.parsing import parse
from adaface.demo.dataset import write_demo_data
from adaface.distributed.launch import find_launch
from adaface.training import build, plan, step_timing
from adaface.training.plan import Workload
from adaface.training.step_timing import Measured
from tests.training.test_memory_plan import MEMORY

ROOT = Path(__file__).resolve().parents[2]
MODULE = SimpleNamespace(class_num=1000)
WORKLOAD = Workload(epochs=3, steps_per_epoch=100, evaluations=4, evaluation_batches=10, batch_size=16, world_size=2)
MEASURED = Measured(step_sec=0.5, load_sec=0.1, loads_in_turn=False, embed_sec=0.2, peak_bytes=2.5e9)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_demo_data(folder, identities=6, images_per_identity=5, pairs=20, seed=3)
    assert convert.main(["--rec_path", str(folder)]) == 0
    return [
        "--data_root", str(folder.parent), "--train_data_path", "faces/imgs", "--val_data_path", "faces", "--gpus", "0",
        "--output_dir", str(folder.parent / "runs"), "--arch", "ir_mini", "--batch_size", "8", "--num_workers", "0",
        "--m", "0.4", "--h", "0.333", "--plan",
    ]  # fmt: skip


def test_times_by_hand():
    text = plan.describe(MODULE, MEMORY, 1e9, WORKLOAD, MEASURED)
    # 100 steps of 0.5 s; 10 batches of 0.2 s; 300 steps and 4 evaluations
    assert "time: 0.5 s per step (32 images/s), 0:50 per epoch, 0:02 per evaluation, 2:38 in total" in text
    assert "steps: 100 per epoch, 300 in 3 epochs, 16 images each; 4 evaluations" in text
    assert "data loading: 160 images/s" in text
    assert "2.50 GB" in text
    assert "1.00 GB available" in text
    assert "warning" not in text


def test_without_workers_each_step_waits_for_its_batch():
    text = plan.describe(MODULE, MEMORY, 1e9, WORKLOAD, replace(MEASURED, loads_in_turn=True))
    assert "1:00 per epoch" in text
    assert "warning" not in text  # a sixth of the time


def test_an_input_that_is_slower_than_the_steps_is_told():
    text = plan.describe(MODULE, MEMORY, 1e9, WORKLOAD, replace(MEASURED, load_sec=1.0))
    assert "1:40 per epoch" in text
    assert "warning: data loading is the bottleneck: 50% of the time" in text
    assert "--num_workers" in text


@pytest.mark.parametrize(
    ("available", "warning"),
    [
        (math.inf, None),
        (1e9, None),
        (MEMORY.total_bytes * 1.1, "may not fit"),
        (MEMORY.total_bytes * 0.9, "does not fit"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(available, warning):
    lines = plan.does_not_fit(MEMORY, available, devices=1, tried="so no step was measured")
    if warning is None:
        assert lines == []
    else:
        assert warning in lines[0]
        assert any("--gradient_checkpointing" in line for line in lines[1:])


def test_a_head_that_no_option_makes_smaller_is_told_as_it_is():
    large = replace(MEMORY, class_num=10_000_000, processes=1, sharded=False)
    (line,) = plan.does_not_fit(large, 1e9, devices=1, tried="so no step was measured")
    assert line.startswith(
        "warning: a step needs 60.34 GB of memory, 1.00 GB are available: it does not fit, so no step was measured, "
        "and no option reduces it much"
    )
    assert "--head_sharding on" in line


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batches", [1, 2, 40])
def test_loading_is_timed_however_short_the_epoch(workers, batches):
    class Slow(Dataset):
        def __len__(self):
            return batches

        def __getitem__(self, index):
            time.sleep(0.02)
            return index

    loader = DataLoader(Slow(), batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    assert 0.015 < step_timing._loading_sec(loader) < 1


def test_a_plan_measures_and_writes_nothing(words, capsys):
    assert main.main(words) == 0
    out = capsys.readouterr().out
    assert "30 images of 6 identities" in out
    assert "steps: 4 per epoch, 96 in 24 epochs, 8 images each; 25 evaluations" in out
    assert " s per step (" in out
    assert "per evaluation" in out
    assert not Path(words[7]).parent.joinpath("runs").exists()


def test_a_batch_larger_than_the_data_is_planned_as_it_is(words, capsys, monkeypatch):
    monkeypatch.setattr(plan, "measure", lambda *_: MEASURED)
    assert main.main([*words, "--batch_size", "100000"]) == 0
    out = capsys.readouterr().out
    assert "steps: 1 per epoch, 24 in 24 epochs, 30 images each" in out
    assert "time: 0.5 s per step (60 images/s)" in out and "data loading: 300 images/s" in out


def test_a_short_run_is_planned_as_it_is_validated(words, capsys):
    assert main.main([*words, "--epochs", "2", "--head_memory", "small", "--gradient_checkpointing"]) == 0
    assert "8 in 2 epochs, 8 images each; 3 evaluations" in capsys.readouterr().out  # after each epoch, and the test
    assert main.main([*words, "--epochs", "5", "--batch_size", "2", "--val_every_epochs", "0.7"]) == 0
    assert "75 in 5 epochs, 2 images each; 6 evaluations" in capsys.readouterr().out  # after 10 of 15 batches
    assert main.main([*words, "--epochs", "5", "--val_every_epochs", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "20 in 5 epochs, 8 images each; 11 evaluations" in out  # after 2 of 4 batches, not after each
    assert "note: --val_every_epochs 0.3 is every 1.2 of the 4 batches of an epoch: validations are 2 batches" in out


def test_where_it_does_not_fit_nothing_is_measured(words, capsys, monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda accelerator, processes: 1e6)
    assert main.main(words) == 0
    out = capsys.readouterr().out
    assert "does not fit, so no step was measured" in out
    assert "--gradient_checkpointing" in out
    assert "s per step" not in out


def test_a_training_that_cannot_fit_is_not_started(words, capsys, monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda accelerator, processes: 5e7)
    monkeypatch.setattr(plan, "free_swap", lambda processes: 0.0)
    training = [word for word in words if word != "--plan"]
    assert main.main([*training, "--batch_size", "100000"]) == 2
    error = capsys.readouterr().err
    assert "a training step of 30 images per process, which are all there are, needs more than 0.16 GB" in error
    assert "0.05 GB are available. Options that need less: --gradient_checkpointing: " in error
    assert not Path(words[7]).parent.joinpath("runs").exists()
    assert main.main([*training, "--batch_size", "100000", "--no-check_memory", "--fast_dev_run"]) == 0
    out = capsys.readouterr().out
    assert "it does not fit, the system may kill it" in out
    assert "--batch_size is larger than the data: 100,000 images, but there are 30, so an epoch has one batch" in out


def test_a_head_that_cannot_fit_is_not_built(words, capsys, monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda accelerator, processes: 5e9)
    monkeypatch.setattr(plan, "free_swap", lambda processes: 0.0)
    for more in (["--fast_dev_run"], ["--plan"]):
        training = [word for word in words if word != "--plan"]
        assert main.main([*training, "--custom_num_class", "10000000", *more]) == 2
        error = capsys.readouterr().err
        assert "the weights of the head, 10,000,000 x 512, need 20.48 GB of memory per process, 5.00 GB are" in error
        assert "--custom_num_class" in error


def test_a_plan_says_that_it_measures_before_it_does(words):
    config = parse(words)[0]
    devices = plan_devices(config.devices)
    data, module = build.build(config, devices)
    assert next(iter(build.plan_lines(config, devices, find_launch(), data, module))) == "measuring a few steps ..."
    assert module.threshold is None
    assert next(module.parameters()).grad is None, "no step was made yet"


def test_where_the_memory_is_uncertain_a_training_starts_with_a_warning(words, capsys, monkeypatch):
    training = [word for word in words if word != "--plan"] + ["--batch_size", "30", "--fast_dev_run"]
    for swap, accelerated, more in ((1e9, "cpu", []), (0.0, "gpu", []), (0.0, "cpu", ["--compile"])):
        lines: list[str] = []
        monkeypatch.setattr(plan, "rank_zero_info", lines.append)
        monkeypatch.setattr(plan, "available_memory", lambda *_: 5e7)
        monkeypatch.setattr(plan, "device_memory", lambda *_: 1e9)
        monkeypatch.setattr(plan, "free_swap", lambda _, swap=swap: swap)
        config = parse([*training, *more])[0]
        devices = replace(plan_devices(config.devices), accelerator=accelerated)
        data, module = build.build(config, plan_devices(replace(config.devices, compile=False)))
        state, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
        plan.check_memory(module, data, devices, 1)
        assert "does not fit" in lines[0]
        assert torch.equal(torch.get_rng_state(), random), "the training draws the same numbers"
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    monkeypatch.setattr(plan, "available_memory", lambda *_: math.inf)
    lines.clear()
    plan.check_memory(module, data, devices, 1)
    assert lines == []
    module.model.forward = lambda images: images.sum().item()
    plan.check_memory(module, data, devices, 1)
    assert lines[0].startswith("note: the memory of a step is unknown (RuntimeError: ")


def test_several_processes_plan_together(words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    more = ["--accelerator", "cpu", "--devices", "2"]
    plain = [word for pair in zip(words[::2], words[1::2], strict=False) for word in pair if "--gpus" not in pair]
    done = subprocess.run(
        [sys.executable, "main.py", *plain, "--plan", *more],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("s per step") == 1
    assert "per process (4 images)" in done.stdout


def test_a_plan_of_an_evaluation_is_refused(words, capsys):
    assert main.main([*words, "--evaluate", "--start_from_model_statedict", __file__]) == 2
    assert "--plan describes a training" in capsys.readouterr().err


def test_several_machines_share_the_steps_of_an_epoch(words, capsys):
    assert main.main([*words, "--num_nodes", "3", "--epochs", "2"]) == 0
    # 30 images, 8 on each of three machines
    assert "steps: 2 per epoch, 4 in 2 epochs, 24 images each" in capsys.readouterr().out
