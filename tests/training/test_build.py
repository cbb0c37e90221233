"""What is decided for a run reaches the parts that it is about."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from adaface.config.device_plan import DevicePlan
from adaface.config.parsing import parse
from adaface.demo.dataset import write_demo_data
from adaface.distributed.launch import TORCHRUN, Launch
from adaface.heads.sharded_optimizer import AgreedGradScaler
from adaface.training import build, plan, step_timing
from tests.support import small_networks

TWO = Launch(TORCHRUN, world_size=2)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_demo_data(folder, identities=5, images_per_identity=2, pairs=10, seed=3)
    return folder


def config_of(faces, *more):
    words = ["--data_root", faces.parent, "--train_data_path", "faces", "--val_data_path", "", "--batch_size", 4]
    return parse([*map(str, words), "--num_workers", "0", *more])[0]


@pytest.mark.parametrize(("more", "steps"), [([], 3), (["--compile"], 2)])
def test_a_compiled_backbone_gets_no_shorter_batch(faces, more, steps):
    config = config_of(faces, *more)
    assert build.open_data(config, DevicePlan("cpu", 1, "32-true", config.devices)).steps_per_epoch == steps


def test_a_folder_of_verification_sets_that_is_given_must_exist(faces, tmp_path):
    devices = DevicePlan("cpu", 1, "32-true")
    with pytest.raises(FileNotFoundError, match=r"--val_data_path facez: .*; did you mean faces\?"):
        build.open_data(config_of(faces, "--val_data_path", "facez"), devices)
    (tmp_path / "recipe.yaml").write_text("val_data_path: facez\n")
    words = ["--data_root", str(faces.parent), "--train_data_path", "faces", "--batch_size", "4", "--num_workers", "0"]
    with pytest.raises(FileNotFoundError, match=r"--val_data_path facez: .*; did you mean faces\?"):
        build.open_data(parse([*words, "--config", str(tmp_path / "recipe.yaml")])[0], devices)
    assert "no such folder" in build.open_data(parse(words)[0], devices).summary(), "the default may be absent"
    (tmp_path / "recipe.yaml").write_text("val_data_path: faces_emore\n")  # as in many recipes
    given = parse([*words, "--config", str(tmp_path / "recipe.yaml")])[0]
    assert "no such folder" in build.open_data(given, devices).summary()
    assert "no such folder" in build.open_data(parse([*words, "--val_data_path", "none"])[0], devices).summary()


@pytest.mark.parametrize("rank", [0, 1])
def test_warnings_on_the_data_are_notes_of_one_process_of_each_machine(
    faces, tmp_path, rank, monkeypatch, recwarn, caplog
):
    shutil.copy(faces / "train.rec", tmp_path)
    monkeypatch.setattr(build, "find_launch", lambda: Launch(TORCHRUN, world_size=2, local_rank=rank))
    config = config_of(faces, "--data_root", str(tmp_path), "--train_data_path", ".")
    with caplog.at_level("INFO", "adaface"):
        build.open_data(config, DevicePlan("cpu", 1, "32-true"))
    notes = [line for line in caplog.messages if "train.idx is missing" in line]
    assert [line.startswith("note: ") for line in notes] == [True] * (rank == 0)
    assert not [one for one in recwarn if "train.idx" in str(one.message)]


@pytest.mark.parametrize(("arch", "processes", "looked"), [("timm:x", 2, True), ("timm:x", 1, False), ("", 2, False)])
def test_unused_parameters_are_looked_for_where_their_gradients_would_be_waited_for(
    faces, arch, processes, looked, monkeypatch
):
    done = []
    monkeypatch.setattr(build, "leave_out_unused", lambda module: done.append("unused parameters"))
    monkeypatch.setattr(build, "set_matmul_precision", done.append)
    monkeypatch.setattr(build, "divide_threads", lambda processes: None)
    monkeypatch.setattr(build, "check_architecture", lambda arch: None)
    monkeypatch.setattr(build, "configure_backbone", lambda *args, **more: [])
    monkeypatch.setattr(build, "build_module", lambda *args: SimpleNamespace(class_num=5))
    config = config_of(faces, "--matmul_precision", "high", *(["--arch", arch] if arch else []))
    build.build(config, DevicePlan("cpu", processes, "32-true", config.devices))
    assert done == ["high", *(["unused parameters"] if looked else [])]


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
def test_a_plan_measures_steps_with_the_agreed_loss_scale(faces, monkeypatch):
    """A scaler of each process alone would skip other steps than the run does."""
    made = {}
    monkeypatch.setattr(step_timing.pl, "Trainer", lambda **arguments: made.update(arguments))
    monkeypatch.setattr(plan, "measure", lambda *args: None)
    monkeypatch.setattr(plan, "available_memory", lambda *args: 1e12)
    monkeypatch.setattr(plan, "decided_by_rank_0", lambda name, decide, launch: decide())
    monkeypatch.setattr(build, "device_memory", lambda *args: 1e12)
    with small_networks.registered():
        config = config_of(faces, "--arch", small_networks.TRAINED, "--head_sharding", "on")
        devices = DevicePlan("gpu", 2, "16-mixed", config.devices)
        data = build.open_data(config, devices)
        list(build.plan_lines(config, devices, TWO, data, build.build_module(config, data, sharded=True)))
    (precision,) = [plugin for plugin in made["plugins"] if hasattr(plugin, "scaler")]
    assert isinstance(precision.scaler, AgreedGradScaler)
    assert made["precision"] is None


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_batches_are_copied_ahead_to_a_gpu(faces, kind):
    config = config_of(faces)
    data = build.open_data(config, DevicePlan("cpu", 1, "32-true", config.devices))
    device = torch.device(kind)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device), global_rank=0, world_size=1)
    assert data.train_dataloader().copies_to == (device if kind == "cuda" else None)
