"""The sharded head in training, under Lightning and DistributedDataParallel with two processes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adaface.checkpoints.files import SHARDED_HEAD, load_checkpoint
from adaface.checkpoints.sharded import fill_in_head
from adaface.config.device_plan import DevicePlan
from adaface.config.options import HeadOptions
from adaface.config.parsing import parse
from adaface.distributed.launch import Launch
from adaface.distributed.startup import collective_timeout
from adaface.heads.sharded_optimizer import AgreedGradScaler
from adaface.system.lightning_internals import DataParallelStrategy
from adaface.training import build
from adaface.training.stopping import NonFiniteLossError, NonFiniteLossGuard
from adaface.training.trainer import device_arguments
from tests.support import launched
from tests.support import lightning_worker as worker
from tests.support.forked import run_processes
from train_val import FaceRecognitionModule


def two_processes(folder: Path, **options) -> list[dict]:
    port = launched.free_port()
    run_processes(worker.train_as_one_of_two, [(rank, port, folder, options) for rank in range(2)], folder)
    return [torch.load(folder / f"outcome_{rank}.pt", weights_only=True) for rank in range(2)]


def momenta(checkpoint: dict) -> dict[int, torch.Tensor]:
    return {number: state["momentum_buffer"] for number, state in checkpoint["optimizer_states"][0]["state"].items()}


@pytest.mark.parametrize(
    "options",
    [
        {"head": "adaface", "sharded": True, "accumulate": 1, "gradient_clip_val": 0.5},
        {"head": "arcface", "sharded": True, "accumulate": 3},
        {"head": "adaface", "sharded": False, "accumulate": 3, "gradient_clip_val": 0.5},
        {"head": "magface", "sharded": True, "accumulate": 1, "visible": 1},
        {"head": "magface", "sharded": False, "accumulate": 1},
        {"head": "curricularface", "sharded": True, "accumulate": 1},
        {"head": "curricularface", "sharded": False, "accumulate": 1},
        {"head": "subcenter_arcface", "sharded": True, "accumulate": 1, "gradient_clip_val": 0.5},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path, options):
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    one.mkdir()
    outcomes = two_processes(two, **options)
    expected = worker.train(1, one, **{**options, "sharded": False})
    if options["sharded"]:
        for outcome in outcomes:
            assert outcome["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    else:  # each process has the loss of its own batch
        means = [sum(pair) / 2 for pair in zip(*(outcome["losses"] for outcome in outcomes), strict=True)]
        assert means == pytest.approx(expected["losses"], rel=1e-5)
    got, wanted = load_checkpoint(two / "last.ckpt"), load_checkpoint(one / "last.ckpt")
    assert (two / "last.ckpt").is_dir() == options["sharded"]
    if options["sharded"]:
        checksums = [file.read_text().split() for file in (two / "last.ckpt").glob("*.crc32")]
        assert [save for _, save in checksums] == [got["adaface"][SHARDED_HEAD]["save"]] * 2
    fill_in_head(got, None)
    assert list(got["state_dict"]) == list(wanted["state_dict"])
    for key, value in wanted["state_dict"].items():
        torch.testing.assert_close(got["state_dict"][key], value, rtol=1e-5, atol=1e-6, msg=key)
    assert momenta(got).keys() == momenta(wanted).keys()
    for number, value in momenta(wanted).items():
        torch.testing.assert_close(momenta(got)[number], value, rtol=1e-5, atol=1e-5)


def test_the_statistics_of_each_process_are_an_option(tmp_path):
    two_processes(tmp_path, head="adaface", accumulate=1, batch_statistics="process")
    state = load_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    (tmp_path / "one").mkdir()
    worker.train(1, tmp_path / "one", head="adaface", accumulate=1)
    of_all = load_checkpoint(tmp_path / "one" / "last.ckpt")["state_dict"]
    assert abs(state["head.batch_mean"] - of_all["head.batch_mean"]) > 1e-4


def test_the_statistics_that_are_saved_need_no_broadcast_in_each_step(tmp_path):
    states = []
    for broadcast in (False, True):
        folder = tmp_path / str(broadcast)
        folder.mkdir()
        two_processes(folder, head="adaface", accumulate=1, norms="learn", sync_buffers=broadcast)
        states.append(load_checkpoint(folder / "last.ckpt")["state_dict"])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_gradients_may_be_exchanged_in_16_bits(tmp_path):
    states = []
    for compression in ("off", "fp16"):
        folder = tmp_path / compression
        folder.mkdir()
        two_processes(folder, head="adaface", accumulate=1, gradient_compression=compression)
        states.append(load_checkpoint(folder / "last.ckpt")["state_dict"]["head.kernel"])
    assert 1e-7 < float((states[1] - states[0]).norm() / states[0].norm()) < 1e-2


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
def test_a_sharded_head_of_several_processes_agrees_on_the_loss_scale():
    module = SimpleNamespace(sharded=True, head_options=HeadOptions())
    plan = DevicePlan("gpu", 2, "16-mixed")
    arguments = device_arguments(plan, Launch("torchrun", world_size=2), module, deterministic=False)
    (precision,) = [plugin for plugin in arguments["plugins"] if hasattr(plugin, "scaler")]
    assert isinstance(precision.scaler, AgreedGradScaler)
    assert arguments["precision"] is None
    module.sharded = False
    arguments = device_arguments(plan, Launch("torchrun", world_size=2), module, deterministic=True)
    assert arguments["precision"] == "16-mixed"
    assert (arguments["deterministic"], arguments["benchmark"]) == (True, False)


@pytest.mark.parametrize(("statistics", "same_buffers"), [("global", False), ("process", True)])
def test_gpus_exchange_no_more_than_they_need_and_process_0_waits_to_report(statistics, same_buffers):
    module = SimpleNamespace(sharded=False, head_options=HeadOptions(batch_statistics=statistics))
    launch = Launch("torchrun", world_size=2)
    arguments = device_arguments(DevicePlan("gpu", 2, "32-true"), launch, module, deterministic=False)
    strategy = arguments["strategy"]
    assert isinstance(strategy, DataParallelStrategy)
    assert strategy._ddp_kwargs == {"forward_sync_buffers": same_buffers, "gradient_as_bucket_view": True}
    assert strategy._timeout == collective_timeout(launch, "gpu", 600.0) != collective_timeout(launch, "cpu", 600.0)
    assert arguments["benchmark"] is True
    assert arguments["devices"] == 2
    own = DevicePlan("gpu", 2, "32-true", visible=1)  # each process sees one GPU
    assert device_arguments(own, launch, module, deterministic=False)["devices"] == 1


def test_bad_weights_of_another_process_stop_this_one_too():
    asked = []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda bad, all: asked.append((bad, all)) or True)
    trainer = SimpleNamespace(strategy=strategy, fit_loop=SimpleNamespace(total_batch_idx=5))
    guard = NonFiniteLossGuard(Path("run"))
    with pytest.raises(NonFiniteLossError, match=r"not finite after step 5 \(in another process\)"):
        guard.on_save_checkpoint(trainer, None, {"state_dict": {"head.kernel": torch.ones(2)}})
    with pytest.raises(NonFiniteLossError, match=r"not finite after step 5 \(head\.kernel is the first\)"):
        guard.on_save_checkpoint(trainer, None, {"state_dict": {"head.kernel": torch.tensor([torch.inf])}})
    assert asked == [(False, False), (True, False)]


@pytest.mark.parametrize(
    ("words", "memory_bytes", "expected"),
    [
        ("", 1e6, True),
        ("", 1e12, False),
        ("--head_sharding on", 1e12, True),
        ("--head_sharding off", 1e6, False),
        ("--batch_statistics process", 1e6, False),
        ("--sample_rate 0.5", 1e12, True),
        ("--devices 1", 1e6, False),
        ("--devices 1 --num_nodes 2", 1e6, True),
    ],
)
def test_who_decides_on_sharding(words, memory_bytes, expected, monkeypatch):
    monkeypatch.setattr(build, "device_memory", lambda accelerator, processes: memory_bytes)
    config, _ = parse(["--accelerator", "cpu", "--devices", "2", *words.split()])
    plan = DevicePlan("cpu", config.devices.devices, "32-true", config.devices)
    sharded, notes = build.choose_head_sharding(config, plan, SimpleNamespace(num_classes=100))
    assert sharded is expected
    asked_for = any(word.startswith("--head_sharding") for word in words.split())
    assert bool(notes) == (expected and not asked_for), "what nobody asked for is said"


def test_machines_of_which_one_shards_the_head_by_its_memory_do_not_agree():
    data, plan = SimpleNamespace(fingerprint=lambda: "faces"), DevicePlan("cpu", 2, "32-true")
    facts = [
        build.facts_of(parse([])[0], plan, data, SimpleNamespace(sharded=sharded, metadata={"pretrained": ""}))
        for sharded in (False, True)
    ]
    (different,) = [name for name in facts[0] if facts[0][name] != facts[1][name]]
    assert "set --head_sharding to on or off" in different


@pytest.mark.parametrize("name", ["adaface", "curricularface", "subcenter_arcface"])
def test_a_sharded_head_is_the_dense_one_of_the_same_seed(name):
    heads = []
    for sharded in (False, True):
        torch.manual_seed(8)
        module = FaceRecognitionModule("ir_mini", 5, HeadOptions(head=name), sharded=sharded)
        torch.rand(3)  # what happens in between does not matter
        module.configure_model()
        heads.append(module.head.state_dict()["kernel"])
        shapes = module.checkpoint_shapes()
        assert shapes["head.kernel"] == (512, 5 * module.sub_centers)
        assert list(shapes) == list(module.state_dict())
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-6, atol=0)
