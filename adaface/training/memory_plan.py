"""Estimate the memory of a training step on one device before training, and suggest options that reduce it.

The estimate counts the weights with their gradients and optimizer states, what the backbone keeps for its backward pass
(every tensor that PyTorch saves in forward passes of a few images, scaled to the batch size), what the head keeps of
its images x classes matrix, and the images. It does not count the program itself (0.5 GB) and the working memory of
libraries: on a CPU, measured peaks of ir_18, ir_50, ir_101, ir_152 and ir_mini are 15 to 30 % above the estimate.

Before each training the activations are counted without computing anything, in a copy of the backbone on PyTorch's
meta device (``expected_activations``); ``--plan`` counts them in real passes, which takes seconds.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adaface.heads.fused_softmax import kept_bytes
from adaface.models.backbone import EMBEDDING_SIZE, IMAGE_SIZE, Backbone
from adaface.models.input_format import normalize_images
from adaface.training.module import FaceRecognitionModule

_COUNTED_IMAGES = (2, 4)  # batch norm cannot train on one
FLOAT32_BYTES = 4
# a backward pass also holds the gradients of the input and output of the largest layer
_LARGEST_AT_ONCE = 2
_WORTH_IT = 0.99  # options that reduce the memory by less are not suggested


@dataclass(frozen=True)
class Activations:
    """Bytes that the backbone keeps from the forward to the backward pass.

    Attributes:
        kept: per image.
        kept_checkpointing: per image, with gradient checkpointing: the inputs of all blocks and the inside of one.
        largest: of the largest tensor, per image.
        fixed: independent of the batch size, such as 16-bit copies of the weights.
    """

    kept: float
    kept_checkpointing: float
    largest: float
    fixed: float


@dataclass(frozen=True)
class StepMemory:
    """Properties of a training step of one process, and its memory in bytes.

    Attributes:
        backbone_parameters: number of weights in the backbone.
        embedding_size: D.
        class_num: classes C of the whole head; 0 without a head.
        sub_centers: columns of each class.
        sharded: each process has ceil(C / W) classes and the samples of all processes; otherwise all classes and its
            own samples.
        sample_rate: fraction of its classes used in a step; below 1 only with a sharded head.
        accumulated: batches whose gradients are accumulated per optimizer step; each samples its own classes.
        optimizer_numbers: numbers that the optimizer keeps per weight.
        bytes_per_number: bytes per weight.
        processes: W.
        activations: of the backbone.
        gradient_checkpointing: whether activations are recomputed.
        keep_exponentials: whether the head keeps its samples x classes numbers.
        batch_size: images B of one process.
        averaged: whether an average of the backbone's weights is kept.
    """

    backbone_parameters: int
    embedding_size: int
    class_num: int
    sub_centers: int
    sharded: bool
    sample_rate: float
    accumulated: int
    optimizer_numbers: int
    bytes_per_number: int
    processes: int
    activations: Activations
    gradient_checkpointing: bool
    keep_exponentials: bool
    batch_size: int
    averaged: bool = False

    @property
    def head_parameters(self) -> int:
        """Number of weights in this process's shard of the head."""
        classes = -(-self.class_num // self.processes) if self.sharded else self.class_num
        return self.embedding_size * classes * self.sub_centers

    @property
    def weights_bytes(self) -> float:
        """Weights, gradients (in the buffers that several processes exchange) and the optimizer's numbers."""
        kept = 1 + self.optimizer_numbers
        head: float = self.head_parameters * (kept + 1)
        if (
            self.sample_rate < 1
        ):  # the gradient of the sampled classes, and temporary copies of their weights and states
            touched = 1 - (1 - self.sample_rate) ** self.accumulated
            head = self.head_parameters * (kept + touched * (kept + 1))
        numbers: float = self.backbone_parameters * (kept + 1 + self.averaged) + head
        return numbers * self.bytes_per_number

    @property
    def activations_bytes(self) -> float:
        """Peak memory of the backbone."""
        a = self.activations
        kept = a.kept_checkpointing if self.gradient_checkpointing else a.kept
        return a.fixed + self.batch_size * (kept + _LARGEST_AT_ONCE * a.largest)

    @property
    def head_bytes(self) -> float:
        """Memory of the samples x classes numbers that the head keeps."""
        samples = self.batch_size * (self.processes if self.sharded else 1)
        classes = self.head_parameters // self.embedding_size // self.sub_centers * self.sample_rate
        return samples * classes * kept_bytes(self.sub_centers) if self.keep_exponentials else 0.0

    @property
    def total_bytes(self) -> float:
        """Total memory, including the images."""
        images = self.batch_size * 3 * IMAGE_SIZE**2
        return self.weights_bytes + self.activations_bytes + self.head_bytes + images

    @property
    def least_bytes(self) -> float:
        """Memory that every step needs: the total without what need not exist at the same time.

        The backward pass frees activations while it makes the gradients of the backbone.
        """
        largest = self.batch_size * _LARGEST_AT_ONCE * self.activations.largest
        return self.total_bytes - self.backbone_parameters * self.bytes_per_number - largest


def step_memory(
    module: FaceRecognitionModule,
    activations: Activations,
    *,
    processes: int,
    batch_size: int,
    accumulated: int,
    precision: str,
) -> StepMemory:
    """Compute the memory of a step.

    Args:
        module: configured by ``training.execution.configure_backbone``.
        activations: of its backbone.
        processes: total number of training processes, W.
        batch_size: images of one process.
        accumulated: batches whose gradients are accumulated per optimizer step.
        precision: Lightning's name of the precision.
    """
    return StepMemory(
        backbone_parameters=sum(p.numel() for p in module.model.parameters()),
        embedding_size=EMBEDDING_SIZE,
        class_num=module.class_num,
        sub_centers=module.sub_centers,
        sharded=module.sharded,
        sample_rate=module.head_options.sample_rate,
        accumulated=accumulated,
        optimizer_numbers=_numbers_per_weight(module.configure_optimizers()["optimizer"]),
        bytes_per_number=8 if precision.startswith("64") else FLOAT32_BYTES,
        processes=processes,
        activations=activations,
        gradient_checkpointing=module.model.gradient_checkpointing,
        keep_exponentials=module.class_num > 0 and module.keep_exponentials,
        batch_size=batch_size,
        averaged=module.optimizer_options.ema_decay > 0,
    )


def _numbers_per_weight(optimizer: torch.optim.Optimizer) -> int:
    """Return the number of values that an optimizer keeps per weight."""
    if isinstance(optimizer, torch.optim.SGD):
        return int(optimizer.defaults["momentum"] != 0)
    return 2  # Adam and its variants: two moments


def expected_activations(model: Backbone, precision: str) -> Activations:
    """Count the activations of a step without computing them; the model and the random numbers do not change.

    With 16 bits, half of the bytes of 32 bits are expected, which is the least.

    Args:
        model: on any device.
        precision: Lightning's name of the precision.

    Raises:
        RuntimeError: the network has operations that need data.
    """
    memo: dict[int, Tensor] = {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    counted = count_activations(copy.deepcopy(model, memo), precision.replace("mixed", "true"))
    if "mixed" not in precision:
        return counted
    return Activations(counted.kept / 2, counted.kept_checkpointing / 2, counted.largest / 2, counted.fixed / 2)


def count_activations(model: Backbone, precision: str) -> Activations:
    """Count the bytes that PyTorch keeps of a forward pass in training.

    Args:
        model: on the CPU or the meta device; its batch-norm statistics change.
        precision: Lightning's name of the precision.
    """
    few, more = (_saved_bytes(model, images, precision) for images in _COUNTED_IMAGES)
    per_image = [(b.size - a.size) / (_COUNTED_IMAGES[1] - _COUNTED_IMAGES[0]) for a, b in zip(few, more, strict=True)]
    fixed = sum(a.size - _COUNTED_IMAGES[0] * slope for a, slope in zip(few, per_image, strict=True))
    inside: dict[int, float] = {}  # by block
    outside = inputs = 0.0
    for kept, slope in zip(few, per_image, strict=True):
        if kept.is_input:
            inputs += slope
        elif kept.block is None:
            outside += slope
        else:
            inside[kept.block] = inside.get(kept.block, 0.0) + slope
    width = 2 if precision.startswith("64") else 1
    largest_inside = max(inside.values(), default=0.0)
    return Activations(
        kept=(outside + inputs + sum(inside.values())) * width,
        kept_checkpointing=(outside + inputs + largest_inside) * width,
        largest=max(per_image) * width,
        fixed=fixed * width,
    )


@dataclass(frozen=True)
class _Kept:
    """A tensor that a forward pass keeps: bytes, the block that keeps it (None outside), whether it is its input."""

    size: int
    block: int | None
    is_input: bool


def _saved_bytes(model: Backbone, images: int, precision: str) -> list[_Kept]:
    """List the tensors that a forward pass saves, in order."""
    saved: dict[torch.UntypedStorage, int | None] = {}  # block; a storage in use has a single object
    inside: int | None = None
    entered: set[torch.UntypedStorage] = set()  # inputs of blocks
    stay = {p.untyped_storage() for p in (*model.parameters(), *model.buffers())}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in stay and storage.nbytes():
            saved.setdefault(storage, inside)
        return tensor

    def enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal inside
        inside = numbers[block]
        entered.update(x.untyped_storage() for x in inputs if isinstance(x, Tensor))

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = None

    weight = next(model.parameters())
    pixels = torch.randint(0, 256, (images, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, device=weight.device)
    normalized = normalize_images(pixels, weight.dtype)
    numbers = {block: number for number, block in enumerate(model.blocks)}
    hooks = [
        hook
        for block in numbers
        for hook in (block.register_forward_pre_hook(enter), block.register_forward_hook(leave))
    ]
    with (
        _plain(model),
        torch.autocast("cpu", torch.bfloat16, enabled="mixed" in precision),
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        model(normalized)
    for hook in hooks:
        hook.remove()
    return [_Kept(storage.nbytes(), block, storage in entered) for storage, block in saved.items()]


@contextmanager
def _plain(model: Backbone) -> Iterator[None]:
    """Disable compilation and gradient checkpointing inside the block."""
    training, checkpointing, compiled = model.training, model.gradient_checkpointing, model._compiled_call_impl
    model.train()
    model.gradient_checkpointing, model._compiled_call_impl = False, None
    try:
        yield
    finally:
        model.train(training)
        model.gradient_checkpointing, model._compiled_call_impl = checkpointing, compiled


def what_takes_less(memory: StepMemory, available_bytes: float, *, batch_size: int, devices: int) -> list[str]:
    """Return options that reduce the memory of the step, with the resulting amount.

    Args:
        memory: of the step with the current options.
        available_bytes: available memory.
        batch_size: images over all devices of a node.
        devices: devices per node.
    """
    tried: list[tuple[str, dict[str, Any]]] = []
    if not memory.gradient_checkpointing:
        tried.append(("--gradient_checkpointing", {"gradient_checkpointing": True}))
    if memory.keep_exponentials:
        tried.append(("--head_memory small", {"keep_exponentials": False}))
    if memory.processes > 1 and not memory.sharded:
        tried.append(("--head_sharding on", {"sharded": True}))
    for parts in range(2, batch_size // devices // 2 + 1):
        if batch_size % (parts * devices):
            continue
        smaller: dict[str, Any] = {"batch_size": memory.batch_size // parts, "accumulated": memory.accumulated * parts}
        if replace(memory, **smaller).total_bytes <= available_bytes:
            words = f"--batch_size {batch_size // parts} --accumulate_grad_batches {parts} (times the current value)"
            tried.append((words, smaller))
            break
    if len(tried) > 1:
        everything = {name: value for _, values in tried for name, value in values.items()}
        tried.append(("all of these", everything))
    options = []
    for words, values in tried:
        total = replace(memory, **values).total_bytes
        if total > _WORTH_IT * memory.total_bytes:
            continue
        options.append(f"{words}: {total / 1e9:.2f} GB{'' if total <= available_bytes else ', still too much'}")
    return options
