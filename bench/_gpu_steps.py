"""The two sides of `bench.gpu`: whole training steps here, and a plain loop that does what `train_v2.py` does.

`PlainLoop` is written from a description of arcface_torch's `train_v2.py`: PyTorch's own layers, autocast around the
backbone and the classifier, `GradScaler`, the logits of all classes (of the sampled ones) as matrices, softmax and
its gradient in place on them, the gradient clipped at 5, `loss.item()` in each step. Its images are on the device and
normalized before the clock starts; `OurStep` gets uint8. The weights of both sides are drawn alike.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from adaface.config.options import DeviceOptions, HeadOptions, OptimizerOptions
from adaface.heads.sharded_optimizer import clip_gradient, start_momentum_at_zero, step_on_touched_rows
from adaface.models.backbone import EMBEDDING_SIZE, IMAGE_SIZE
from adaface.models.input_format import normalize_images
from adaface.models.registry import build_model
from adaface.training.execution import configure_backbone
from adaface.training.module import FaceRecognitionModule
from bench._textbook_net import textbook

D = EMBEDDING_SIZE
_LR = 1e-8  # the weights stay what they are, so that every step is the same work
_MARGIN, _SCALE = 0.5, 64.0  # ArcFace
_WEIGHT_STD = 0.01
_LARGEST_NORM = 5.0
_FIRST_LOSS_SCALE = 256.0  # no step overflows: a skipped one would not be the same work
_SMALLEST_PROBABILITY = 1e-30
_UNUSED_BACKBONE = "ir_mini"  # of the module that holds a head alone; its weights get no gradient
HALF = {"16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Work:
    """What one row measures.

    Attributes:
        arch: name of the network; None for the head alone.
        batch_size: B.
        classes: C.
        precision: ``16`` (float16 with a loss scaler) or ``bf16``.
        compile: compile the backbone of our side.
        sample_rate: of a sharded head; None for a dense one.
    """

    arch: str | None
    batch_size: int
    classes: int
    precision: str
    compile: bool = False
    sample_rate: float | None = None

    @property
    def row(self) -> str:
        """The work in words."""
        kind = "head alone, " if self.arch is None else f"training step, {self.arch}, "
        kind += "" if self.sample_rate is None else f"sharded, --sample_rate {self.sample_rate:g}, "
        return f"{kind}B={self.batch_size}, C={self.classes:,}, {self.precision}{', --compile' * self.compile}"

    @property
    def operations(self) -> float:
        """Floating-point operations of the products of one step, forward and backward; none is counted twice."""
        head = 6.0 * self.batch_size * D * self.classes * (self.sample_rate or 1.0)
        return head + (self.batch_size * backbone_operations(self.arch) if self.arch else 0.0)


@cache
def backbone_operations(arch: str) -> float:
    """Return the floating-point operations of a network for one image, forward and backward.

    Args:
        arch: its name.
    """
    images = 2  # batch norm cannot train on one
    with torch.device("meta"):
        model = build_model(arch).train()
        with FlopCounterMode(display=False) as counter:
            embeddings, norms = model(torch.empty(images, 3, IMAGE_SIZE, IMAGE_SIZE))
            (embeddings.sum() + norms.sum()).backward()
    return counter.get_total_flops() / images


class _Batch:
    """One batch on the device; for the head alone, embeddings in place of images."""

    def __init__(self, work: Work, device: torch.device) -> None:
        B = work.batch_size
        generator = torch.Generator(device).manual_seed(1)
        self.labels = torch.randint(0, work.classes, (B,), device=device, generator=generator)
        self.images = torch.randint(
            0, 256, (B, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, device=device, generator=generator
        )
        self.embeddings = F.normalize(torch.randn(B, D, device=device, generator=generator)).requires_grad_()
        self.norms = torch.full((B, 1), 20.0, device=device)


def _drawn_weights(classes: int, device: torch.device) -> Tensor:
    """Return the weights (C, D) of the head, the same for both sides."""
    generator = torch.Generator(device).manual_seed(2)
    return torch.empty(classes, D, device=device).normal_(std=_WEIGHT_STD, generator=generator)


def _scaler(work: Work, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler of a work; it changes nothing with bf16."""
    return torch.amp.GradScaler(device.type, init_scale=_FIRST_LOSS_SCALE, enabled=work.precision == "16")


def _without_dropout(module: nn.Module) -> nn.Module:
    """Turn dropout off, so that the losses of the two sides can be compared."""
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


class OurStep:
    """A training step of this project.

    Args:
        work: what to compute.
        device: where.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.work, self.device, self.batch = work, device, _Batch(work, device)
        head = HeadOptions(head="arcface", m=_MARGIN, s=_SCALE, sample_rate=work.sample_rate or 1.0)
        options = OptimizerOptions(lr=_LR, gradient_clip_val=_LARGEST_NORM)
        sharded = work.sample_rate is not None
        torch.manual_seed(0)
        with device:
            module = FaceRecognitionModule(work.arch or _UNUSED_BACKBONE, work.classes, head, options, sharded=sharded)
            module.configure_model()
        module.to(device)
        with torch.no_grad():
            weights = _drawn_weights(work.classes, device)  # (C, D)
            module.head.kernel.copy_(weights if sharded else weights.t())
        accelerator = "gpu" if device.type == "cuda" else "cpu"
        configure_backbone(
            module, DeviceOptions(compile=work.compile), accelerator=accelerator, processes=1,
            batch_size=work.batch_size,
        )  # fmt: skip
        self.module = _without_dropout(module).train()
        self.optimizer = module.configure_optimizers()["optimizer"]
        start_momentum_at_zero(self.optimizer)
        step_on_touched_rows(self.optimizer, module.shards)
        self.scaler = _scaler(work, device)

    def __call__(self) -> Tensor:
        """Take a step, with other sampled classes than the last; return the loss without waiting for it."""
        module, batch = self.module, self.batch
        if module.sharded_head:
            module.sharded_head.sampling_seed += 1
        with torch.autocast(self.device.type, HALF[self.work.precision], cache_enabled=False):
            features = module(batch.images) if self.work.arch else (batch.embeddings, batch.norms)
            loss = module.head.loss(*features, batch.labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradient(module.parameters(), module.shards, _LARGEST_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        batch.embeddings.grad = None
        return loss.detach()


class PlainLoop:
    """A step as in arcface_torch's `train_v2.py`; see the module.

    Args:
        work: what to compute; it is never compiled.
        device: where.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.work, self.device, self.batch = work, device, _Batch(work, device)
        self.images = normalize_images(self.batch.images, channels_last=False)  # (B, 3, 112, 112), as its loader gives
        self.model: nn.Module | None = None
        if work.arch:
            torch.manual_seed(0)
            with device:
                self.model = _without_dropout(textbook(build_model(work.arch))).to(device).train()
        self.backbone = list(self.model.parameters()) if self.model else []
        self.weight = nn.Parameter(_drawn_weights(work.classes, device))  # (C, D)
        self.optimizer = torch.optim.SGD([*self.backbone, self.weight], lr=_LR, momentum=0.9, weight_decay=5e-4)
        self.scaler = _scaler(work, device)

    def __call__(self) -> Tensor:
        """Take a step and read its loss."""
        with torch.autocast(self.device.type, HALF[self.work.precision]):
            embeddings = self.model(self.images)[0] if self.model else self.batch.embeddings  # (B, D)
        loss = self._loss(embeddings.float())
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.backbone, _LARGEST_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.batch.embeddings.grad = None
        return torch.tensor(loss.item())

    def _loss(self, embeddings: Tensor) -> Tensor:
        weight, labels = self._classes_of_step()  # (M, D), (B,)
        with torch.autocast(self.device.type, HALF[self.work.precision]):
            logits = F.linear(F.normalize(embeddings), F.normalize(weight))  # (B, M)
        logits = logits.float().clamp(-1, 1)
        with torch.no_grad():  # the margin, as a change of the numbers without one of the gradient
            angles = logits.detach().arccos_()  # (B, M), the memory of the logits
            angles[torch.arange(len(labels), device=labels.device), labels] += _MARGIN
            angles.cos_()
        return _LossInPlace.apply(logits * _SCALE, labels)

    def _classes_of_step(self) -> tuple[Tensor, Tensor]:
        """Return the weights (M, D) of the classes of this step, and the labels (B,) among them."""
        labels, rate = self.batch.labels, self.work.sample_rate or 1.0
        if rate == 1.0:
            return self.weight, labels
        with torch.no_grad():
            places = torch.rand(self.work.classes, device=self.device)  # (C,)
            places[labels.unique()] = 2.0
            chosen = places.topk(int(rate * self.work.classes)).indices.sort().values  # (M,)
        return self.weight[chosen], torch.searchsorted(chosen, labels)


class _LossInPlace(torch.autograd.Function):
    """The mean cross-entropy of logits (B, M); softmax and gradient are written over them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        logits.sub_(logits.amax(1, keepdim=True)).exp_()
        logits.div_(logits.sum(1, keepdim=True))
        ctx.save_for_backward(logits, labels)
        own = logits.gather(1, labels.unsqueeze(1))  # (B, 1)
        return own.clamp_min_(_SMALLEST_PROBABILITY).log_().mean().neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        probabilities, labels = ctx.saved_tensors  # (B, M), (B,)
        columns = labels.unsqueeze(1)  # (B, 1)
        probabilities.scatter_add_(1, columns, -torch.ones_like(columns, dtype=probabilities.dtype))
        return probabilities.div_(len(labels)) * grad, None
