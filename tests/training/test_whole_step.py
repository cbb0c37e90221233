"""A whole training step on the meta device, which has no values: whatever reads one, as a GPU would have to, raises."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from adaface.config.options import HeadOptions, OptimizerOptions
from adaface.heads.margins import HEADS
from adaface.heads.sharded_optimizer import AgreedGradScaler, start_momentum_at_zero, step_on_touched_rows
from adaface.training.health import HealthMonitor
from adaface.training.module import FaceRecognitionModule
from adaface.training.stopping import NonFiniteLossGuard
from adaface.training.weight_average import WeightAverage
from tests.support import meta_device, small_networks

META = torch.device("meta")
W, B, C = 4, 4, 1001  # classes of the shards: 251, 251, 251, 248
COLLECTIVES = [
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_gather_single", "all_reduce", "all_to_all",
    "all_to_all_single", "barrier", "batch_isend_irecv", "broadcast", "broadcast_object_list", "gather", "irecv",
    "isend", "recv", "reduce", "reduce_scatter", "reduce_scatter_single", "reduce_scatter_tensor", "scatter", "send",
]  # fmt: skip
KINDS = {"dense": (False, 1.0), "sharded": (True, 1.0), "sampled": (True, 0.1)}


class NoCopyToTheDevice(TorchDispatchMode):
    """Raises where numbers are copied from the CPU to the device, for which a GPU's stream would be waited for."""

    def __enter__(self):
        self._tensor = torch.tensor
        torch.tensor = self._new_tensor  # does not pass through the dispatcher
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor = self._tensor
        return super().__exit__(*error)

    def _new_tensor(self, data, *args, device=None, **kwargs):
        if device is not None and torch.device(device) == META:
            raise AssertionError("torch.tensor copies from the CPU to the device")
        return self._tensor(data, *args, device=device, **kwargs)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        copies = function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if copies and {tensor.device.type for tensor in tensors} == {"cpu", "meta"}:
            raise AssertionError(f"{function} copies from the CPU to the device")
        return result


class Processes:
    """One of W pretended processes; their collectives are listed, and do nothing."""

    def __init__(self, rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple] = []
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda *_: world_size)
        monkeypatch.setattr(dist, "get_rank", lambda *_: rank)
        for name in COLLECTIVES:
            monkeypatch.setattr(dist, name, self._listed(name))

    def _listed(self, name):
        def collective(*args, **kwargs):
            given = [*args, *kwargs.values()]
            tensors = [value for value in given if isinstance(value, torch.Tensor)]
            assert all(tensor.device == META for tensor in tensors), f"{name} of a tensor on the CPU"
            others = [str(value) for value in given if not isinstance(value, torch.Tensor)]
            self.calls.append((name, [(tuple(t.shape), t.dtype) for t in tensors], others))

        return collective


@pytest.fixture(autouse=True)
def meta_as_a_gpu(monkeypatch):
    meta_device.as_a_gpu(monkeypatch)


@pytest.fixture(autouse=True)
def small_network():
    with small_networks.registered():
        yield


def steps(kind: str, head: str, optimizer: str, *, classes: int = C, averaged: bool = False) -> None:
    """Take two steps, with all that Lightning calls in them that is ours."""
    sharded, rate = KINDS[kind]
    options = OptimizerOptions(optimizer=optimizer, lr=1e-3, gradient_clip_val=1.0)
    module = FaceRecognitionModule(
        small_networks.TRAINED, classes, HeadOptions(head=head, sample_rate=rate), options, sharded=sharded
    )
    module.configure_model()
    module = module.to(META).train()
    chosen = module.configure_optimizers()["optimizer"]
    start_momentum_at_zero(chosen)
    step_on_touched_rows(chosen, module.shards)
    scaler = AgreedGradScaler("meta", init_scale=8.0)
    trainer = SimpleNamespace(scaler=scaler, fit_loop=SimpleNamespace(total_batch_idx=0), accumulate_grad_batches=1)
    health, guard = HealthMonitor(), NonFiniteLossGuard(folder=None)
    module._trainer = trainer
    module.average = WeightAverage(module.model, 0.9) if averaged else None
    module.log = lambda name, value, batch_size: None
    module.optimizers = lambda: chosen
    images = torch.zeros(B, 112, 112, 3, dtype=torch.uint8, device=META)
    batch = images, torch.zeros(B, dtype=torch.long, device=META)
    with NoCopyToTheDevice():
        for number in range(2):
            loss = module.training_step(batch, number)
            scaler.scale(loss).backward()
            if kind == "sampled":
                module.head.kernel.grad._coalesced_(False)  # as elsewhere; meta takes it for granted that it is
            scaler.unscale_(chosen)
            health.on_before_optimizer_step(trainer, module, chosen)
            module.configure_gradient_clipping(chosen)
            chosen.step()
            scaler.update()
            if module.average:
                module.average.update(module.model)
            chosen.zero_grad()
            health.on_train_batch_end(trainer, module, {"loss": loss}, batch, number)
            guard.on_train_batch_end(trainer, module, {"loss": loss}, batch, number)


def calls(rank: int, monkeypatch: pytest.MonkeyPatch, *words, world_size: int = W, **more) -> list[tuple]:
    processes = Processes(rank, world_size, monkeypatch)
    steps(*words, **more)
    return processes.calls


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_no_process_waits_for_its_gpu_and_all_call_the_same_collectives(head, kind, optimizer, monkeypatch):
    first, *others = (calls(rank, monkeypatch, kind, head, optimizer) for rank in range(W))
    assert all(other == first for other in others)
    names = {name for name, *_ in first}
    if kind == "dense":  # the others are DistributedDataParallel's
        assert names <= {"all_gather_single", "all_reduce"}
    else:
        assert names == {"all_gather_single", "all_reduce", "reduce_scatter_single"}
    if kind != "dense" and head == "adaface":
        # of each step: labels with norms, embeddings; maxima, sums, gradient norm, overflow; the embeddings' gradient
        expected = {"all_gather_single": 2, "all_reduce": 4, "reduce_scatter_single": 1}
        assert Counter(name for name, *_ in first) == {name: 2 * number for name, number in expected.items()}


def test_a_process_without_classes_calls_what_the_others_call(monkeypatch):
    first, *others = (calls(rank, monkeypatch, "sharded", "adaface", "sgd", classes=5) for rank in range(W))
    assert all(other == first for other in others)


def test_the_average_of_the_weights_does_not_wait_either(monkeypatch):
    assert calls(0, monkeypatch, "dense", "arcface", "sgd", world_size=1, averaged=True) == []


def test_one_process_calls_no_collective(monkeypatch):
    assert calls(0, monkeypatch, "sampled", "curricularface", "sgd", world_size=1) == []


def test_values_that_are_read_and_copies_from_the_cpu_are_found():
    numbers = torch.ones(3, device=META)
    with pytest.raises(RuntimeError, match="meta"):
        bool((numbers > 0).all())
    with pytest.raises(RuntimeError, match="meta"):
        numbers.sum().item()
    with NoCopyToTheDevice(), pytest.raises(AssertionError, match="copies from the CPU"):
        torch.ones(3).to(META)
    with NoCopyToTheDevice(), pytest.raises(AssertionError, match="copies from the CPU"):
        torch.tensor(1.0, device=META)
