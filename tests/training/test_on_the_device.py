"""Heads and whole training steps on a GPU, if there is one; else the same lines on the CPU."""

import contextlib
import copy

import pytest
import torch
from torch.nn import functional as F

from adaface.config.options import DeviceOptions, HeadOptions, OptimizerOptions
from adaface.heads.margins import HEADS, build_head
from adaface.heads.partial_fc import build_sharded_head
from adaface.heads.sharded_optimizer import clip_gradient, start_momentum_at_zero, step_on_touched_rows
from adaface.training.execution import configure_backbone
from adaface.training.module import FaceRecognitionModule
from tests.support import small_networks

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPES = {"32": None, "16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {"32": 1e-5, "16": 5e-3, "bf16": 4e-2}  # random embeddings: the target cosines are near 0
KINDS = {"dense": (False, 1.0), "sharded": (True, 1.0), "sampled": (True, 0.1)}
LEARNING_RATES = {"sgd": 0.1, "adamw": 1e-3}
B, D, C = 64, 512, 3001
CLASSES = 500


@pytest.fixture(autouse=True)
def small_network():
    with small_networks.registered():
        yield


def autocast(dtype):
    return torch.autocast(DEVICE.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("build", [build_head, build_sharded_head])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_are_those_of_double_precision(name, build, precision):
    torch.manual_seed(0)
    head = build(name, D, C)
    embeddings, norms, labels = F.normalize(torch.randn(B, D)), torch.rand(B, 1) * 60 + 5, torch.randint(0, C, (B,))
    outcomes = []
    for device, dtype, context in (
        ("cpu", torch.float64, contextlib.nullcontext()),
        (DEVICE, torch.float32, autocast(DTYPES[precision])),
    ):
        one, inputs = copy.deepcopy(head).to(device, dtype), embeddings.to(device, dtype).requires_grad_()
        with context:
            loss = one.loss(inputs, norms.to(device, dtype), labels.to(device))
        loss.backward()
        outcomes.append([value.detach().cpu().double() for value in (loss, inputs.grad, one.kernel.grad)])
    for exact, value in zip(*outcomes, strict=True):
        assert (value - exact).norm() <= TOLERANCE[precision] * exact.norm()


class Training:
    """Steps of a small network.

    Attributes:
        batch: images (8, 112, 112, 3) uint8 and labels (8,) on the device.
    """

    def __init__(self, kind, optimizer="sgd", precision="32", *, first_scale=1024.0):
        sharded, rate = KINDS[kind]
        torch.manual_seed(0)
        module = FaceRecognitionModule(
            small_networks.TRAINED, CLASSES, HeadOptions(sample_rate=rate),
            OptimizerOptions(optimizer=optimizer, lr=LEARNING_RATES[optimizer]), sharded=sharded,
        )  # fmt: skip
        for layer in module.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0  # the losses of a few steps are compared
        module.configure_model()
        accelerator = "gpu" if GPU else "cpu"
        configure_backbone(module, DeviceOptions(), accelerator=accelerator, processes=1, batch_size=8)
        self.module, self.dtype = module.to(DEVICE).train(), DTYPES[precision]
        self.optimizer = module.configure_optimizers()["optimizer"]
        start_momentum_at_zero(self.optimizer)
        step_on_touched_rows(self.optimizer, module.shards)
        self.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=first_scale, enabled=precision == "16")
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (8, 112, 112, 3), dtype=torch.uint8, generator=generator)
        self.batch = images.to(DEVICE), torch.randint(0, CLASSES, (8,), generator=generator).to(DEVICE)

    def step(self):
        images, labels = self.batch
        with autocast(self.dtype):
            loss = self.module.head.loss(*self.module(images), labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradient(self.module.parameters(), self.module.shards, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach()


@contextlib.contextmanager
def no_waiting():
    """On a GPU, whatever waits for it raises."""
    if GPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if GPU:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", DTYPES)
def test_steps_do_not_wait_for_the_device_and_lower_the_loss(precision, optimizer, kind):
    training = Training(kind, optimizer, precision)
    losses = [training.step() for _ in range(2)]  # the first steps may reserve memory and choose algorithms
    with no_waiting():
        losses += [training.step() for _ in range(4)]
    assert all(torch.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_overflows_changes_nothing_but_the_loss_scale(optimizer, kind):
    training = Training(kind, optimizer, "16", first_scale=2.0**127)
    before = [parameter.detach().clone() for parameter in training.module.parameters()]
    training.step()
    assert all(map(torch.equal, training.module.parameters(), before))
    for state in training.optimizer.state.values():
        for value in state.values():
            assert not (torch.is_tensor(value) and value.ndim and value.any())
    assert training.scaler.get_scale() == 2.0**126


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_steps_have_the_same_bits(kind):
    outcomes = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            training = Training(kind, precision="bf16")
            losses = []
            for number in range(3):
                torch.manual_seed(number)
                losses.append(training.step())
            outcomes.append([*losses, *training.module.state_dict().values()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, *outcomes))
