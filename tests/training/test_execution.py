import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adaface.config.options import DeviceOptions, HeadOptions
from adaface.heads import fused_softmax
from adaface.system import devices
from adaface.training import execution
from adaface.training.execution import configure_backbone, leave_out_unused
from train_val import FaceRecognitionModule

B, C = 4, 7


def _module(accelerator="cpu", **options):
    torch.manual_seed(0)
    module = FaceRecognitionModule("ir_mini", C, HeadOptions(m=0.4, h=0.333))
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    notes = configure_backbone(
        module, DeviceOptions(**{"channels_last": "off", **options}), accelerator=accelerator, processes=1, batch_size=B
    )
    return module, notes


def _batch():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (B, 112, 112, 3), np.uint8)), torch.tensor([0, 1, 6, 1])


def _step(module, optimizer):
    images, labels = _batch()
    loss = module.head.loss(*module(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _trained(steps=2, **options):
    module, _ = _module(**options)
    optimizer = module.configure_optimizers()["optimizer"]
    losses = [_step(module, optimizer).item() for _ in range(steps)]
    return losses, module


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"head_memory": "small"}])
def test_what_is_kept_for_the_backward_pass_changes_no_bit(option):
    losses, plain = _trained()
    others, module = _trained(**option)
    assert others == losses
    for key, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key


def test_channels_last_changes_the_rounding_alone():
    losses, plain = _trained()
    others, module = _trained(channels_last="on")
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    assert module.model.body[0].res_layer[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.model.body[0].res_layer[1].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("option", "accelerator", "expected"),
    [("auto", "cpu", True), ("auto", "gpu", True), ("on", "mps", True), ("off", "cpu", False), ("auto", "mps", False)],
)
def test_channels_last_is_automatic_but_on_apple_gpus(option, accelerator, expected, monkeypatch):
    monkeypatch.setattr(execution, "available_memory", lambda accelerator, processes: 1e12)
    module, _ = _module(channels_last=option, accelerator=accelerator)
    assert module.channels_last is expected


def test_channels_last_is_automatic_for_the_compiler():
    assert _module(compile=True, channels_last="auto")[0].channels_last
    assert not _module(compile=True, channels_last="off")[0].channels_last


def test_the_heads_numbers_are_kept_where_memory_allows(monkeypatch):
    module, notes = _module()
    assert (module.head.keep_exponentials, notes) == (True, [])
    monkeypatch.setattr(execution, "available_memory", lambda accelerator, processes: 4 * B * C * 4 - 1)
    module, notes = _module()
    assert not module.head.keep_exponentials
    assert "4 x 7" in notes[0]
    assert "--head_memory fast" in notes[0]
    module, notes = _module(head_memory="fast")
    assert (module.head.keep_exponentials, notes) == (True, [])


def test_processes_share_the_memory(monkeypatch, tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       16000 kB\nMemAvailable:    8000 kB\n")
    monkeypatch.setattr(devices, "_MEMORY_INFO", info)
    monkeypatch.setattr(devices, "_CONTROL_GROUP", tmp_path)
    assert devices.available_memory("cpu", 2) == 4000 * 1024
    assert devices.device_memory("cpu", 2) == 8000 * 1024
    monkeypatch.setattr(devices, "_MEMORY_INFO", tmp_path / "absent")
    assert devices.available_memory("cpu", 2) == devices.device_memory("cpu", 2) == float("inf")


def test_without_a_compiler_compile_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler.*apt install g\+\+"):
        _module(compile=True)
    monkeypatch.setenv("CXX", "nowhere-g++")
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler"):
        _module(compile=True)


def test_compile_is_refused_where_it_does_not_exist(monkeypatch):
    with pytest.raises(RuntimeError, match="Apple GPU"):
        _module(compile=True, accelerator="mps")
    monkeypatch.setattr(execution.shutil, "which", lambda name: name)
    monkeypatch.setattr(execution.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="triton"):
        _module(compile=True, accelerator="gpu")


def test_a_resumed_momentum_takes_the_layout_of_its_weights():
    _, plain = _trained()
    saved = plain.configure_optimizers()["optimizer"]
    _step(plain, saved)
    module, _ = _module(channels_last="on")
    module.load_state_dict(plain.state_dict())
    optimizer = module.configure_optimizers()["optimizer"]
    optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))  # loading shares what it need not convert
    module.optimizers = lambda: optimizer
    module.on_train_start()
    for parameter in module.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].stride() == parameter.stride()
    for parameters, sgd in ((module.parameters(), optimizer), (plain.parameters(), saved)):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)  # the momentum alone moves the weights
        sgd.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=1e-5, atol=1e-7)


class _NoLooking(TorchDispatchMode):
    """Refuses what makes a device's host wait: reading a number."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("option", [{}, {"head_memory": "small"}, {"gradient_checkpointing": True}])
def test_no_number_is_read_inside_a_step(option, monkeypatch):
    module, _ = _module(**option)
    optimizer = module.configure_optimizers()["optimizer"]
    assert optimizer.param_groups[0]["fused"]
    module.log = lambda name, value, batch_size: logged.append((name, value))
    module.optimizers = lambda: optimizer
    logged = []
    # as on a GPU, where these looks are left out
    monkeypatch.setattr(fused_softmax, "_looking_is_cheap", lambda tensor: False)
    monkeypatch.setattr(module.head, "_check_labels", lambda labels: None)
    with _NoLooking():
        for lr in (0.1, 0.01):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            module.training_step(_batch(), 0).backward()
            optimizer.step()
    assert all(isinstance(value, torch.Tensor) for _, value in logged)
    assert [value.item() for name, value in logged if name == "lr"] == pytest.approx([0.1, 0.01])
    with _NoLooking(), pytest.raises(AssertionError, match="waits"):
        logged[0][1].item()


@pytest.mark.slow
def test_a_compiled_backbone_trains_as_an_eager_one():
    losses, plain = _trained()
    others, module = _trained(compile=True)
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    assert list(module.state_dict()) == list(plain.state_dict())


def test_parameters_that_are_never_used_are_left_out_and_named(caplog):
    module = FaceRecognitionModule("ir_mini", 5)
    module.model._compiled_call_impl = lambda *_: pytest.fail("--compile would compile for the CPU first")
    module.model.spare = torch.nn.Linear(2, 3)
    module.model.train()
    frozen = next(module.model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    state = torch.get_rng_state()
    with caplog.at_level("INFO"):
        leave_out_unused(module)
    assert module._ddp_params_and_buffers_to_ignore == ["model.spare.weight", "model.spare.bias"]
    assert "2 parameter(s) of ir_mini are never used, and stay as they are: spare.weight, spare.bias" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in module.model.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert frozen.requires_grad is False
    assert module.model.training
    assert torch.equal(torch.get_rng_state(), state)
