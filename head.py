"""Margin heads: AdaFace, ArcFace, CosFace, from unit embeddings to scaled logits and the loss.

Sources: AdaFace (Kim et al., CVPR 2022, equations 14 to 16); ArcFace (Deng et al., CVPR 2019); CosFace (Wang et al.,
CVPR 2018); the official AdaFace code for clamps, statistics and initialisation.

A margin changes the target's cosine alone, ``margin(target_cosine (M,), norms (M, 1)) -> target_logit (M,)``. A new
margin is a subclass of ``Head`` with that one method (and ``update_statistics`` where it keeps any), and a line in
``HEADS``. The head itself registers the statistics, so that its state dict is the official one: ``kernel``, then the
buffers. Training takes ``Head.loss``, which never makes the logits; ``Head.forward`` makes them, for those who write
their own loss.

Differs from the official code: a batch of one sample leaves ``batch_std`` as it is (there it turns NaN for good);
labels out of range are refused.
"""

import difflib
import math
import struct
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fused_softmax import target_and_negatives

_NORM_RANGE = (0.001, 100.0)
SOFTPLUS_IS_LINEAR = 50.0  # log(1 + exp(x)) - x is below float64's precision from here on


class Head(nn.Module, ABC):
    """Class weights and a margin.

    Args:
        embedding_size: D.
        class_num: C.
        m: margin.
        t_alpha: weight of the newest batch in running statistics (margins that have them).
        h: concentration (AdaFace).
        s: scale of the logits.

    Attributes:
        keep_exponentials: ``loss`` keeps (B, C) numbers from the forward to the backward pass. False computes them
            again there, for a quarter more time and the same bits: for class counts that would not fit.
        last_target_cosine: of the newest ``loss``, (B,) cosines of the images' own classes before the margin, without
            gradient.
    """

    eps: ClassVar[float] = 1e-4
    keep_exponentials = True
    last_target_cosine: Tensor | None = None

    def __init__(self, embedding_size: int, class_num: int, m: float, t_alpha: float, h: float, s: float) -> None:
        super().__init__()
        self.class_num = class_num
        self.m, self.t_alpha, self.h, self.s = m, t_alpha, h, s
        # each column one class; uniform, then brought inside the unit ball as the official code does
        kernel = torch.empty(embedding_size, class_num).uniform_(-1, 1)
        self.kernel = nn.Parameter(kernel.renorm_(2, 1, 1e-5).mul_(1e5))  # (D, C)

    @abstractmethod
    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Return the target logits before scaling; changes nothing.

        Args:
            target_cosine: (M,) cosine between each embedding and its own class, clamped inside (-1, 1).
            norms: (M, 1) feature norms; no gradient flows through them.

        Returns:
            (M,) target logits divided by s.
        """

    def update_statistics(self, norms: Tensor) -> None:
        """Take a training batch into the running statistics; called before ``margin``, in training mode only.

        Args:
            norms: (B, 1) feature norms of the whole batch, without gradient.
        """

    def forward(self, embeddings: Tensor, norms: Tensor, labels: Tensor) -> Tensor:
        """Compute the scaled logits.

        Args:
            embeddings: (B, D) unit vectors.
            norms: (B, 1) their norms before normalisation.
            labels: (B,) classes in [0, C).

        Returns:
            (B, C) logits; float32 under autocast.

        Raises:
            ValueError: labels out of range (looked at on the CPU only: on a GPU it would make the step wait).
        """
        self._check_labels(labels)
        cosine = at_least_float32(embeddings @ F.normalize(self.kernel, dim=0))  # (B, C)
        with torch.autocast(cosine.device.type, enabled=False):
            norms = norms.detach().to(cosine.dtype)
            if self.training:
                self.update_statistics(norms)
            low, high = -1 + self.eps, 1 - self.eps
            columns = labels.unsqueeze(1)  # (B, 1)
            target = self.margin(cosine.gather(1, columns).squeeze(1).clamp(low, high), norms)  # (B,)
            # in place on the clamped copy: beside the cosines, which clamp keeps for backward, one (B, C) buffer
            logits = cosine.clamp(low, high).mul_(self.s)  # (B, C)
            return logits.scatter_(1, columns, target.unsqueeze(1) * self.s)

    def loss(self, embeddings: Tensor, norms: Tensor, labels: Tensor, batch_norms: Tensor | None = None) -> Tensor:
        """Compute the mean cross-entropy over the logits, without making them.

        Args:
            embeddings: (B, D) unit vectors.
            norms: (B, 1) their norms before normalisation.
            labels: (B,) classes in [0, C).
            batch_norms: (N, 1) norms for the running statistics, such as those of all processes; ``norms`` when None.

        Returns:
            Scalar loss; float32 under autocast and of 16-bit embeddings. Equal to
            ``cross_entropy(head(embeddings, norms, labels), labels)``, in a third of the time and half of the memory
            (``bench/head.py``).

        Raises:
            ValueError: labels out of range (on a GPU, where looking would make the step wait, the loss is NaN).
        """
        self._check_labels(labels)
        device = embeddings.device.type
        product_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeddings.dtype
        with torch.autocast(device, enabled=False):
            embeddings = at_least_float32(embeddings)
            norms = norms.detach().to(embeddings.dtype)
            if self.training:
                self.update_statistics(norms if batch_norms is None else batch_norms.detach().to(norms))
            target_cosine, negatives = target_and_negatives(
                embeddings,
                self.kernel,
                labels,
                scale=self.s,
                eps=self.eps,
                product_dtype=product_dtype,
                keep_exponentials=self.keep_exponentials,
            )
            self.last_target_cosine = target_cosine.detach()
            target = self.margin(target_cosine.clamp(-1 + self.eps, 1 - self.eps), norms) * self.s  # (B,)
            return F.softplus(negatives - target, threshold=SOFTPLUS_IS_LINEAR).mean()

    def _check_labels(self, labels: Tensor) -> None:
        if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < self.class_num:
            raise ValueError(
                f"labels must be in [0, {self.class_num}), got {int(labels.min())} to {int(labels.max())}: "
                "the head has fewer classes than the data"
            )

    def _angle(self, target_cosine: Tensor, g_angle: Tensor | float) -> Tensor:
        """Return cos(clip(theta + g_angle, eps, pi - eps)) for theta = acos(target_cosine)."""
        return torch.cos(torch.clamp(torch.acos(target_cosine) + g_angle, self.eps, math.pi - self.eps))


def at_least_float32(numbers: Tensor) -> Tensor:
    """Return numbers of 16 bits as float32, others as they are: 1 - eps and acos need more than 8 or 11 bits.

    Args:
        numbers: of any shape.
    """
    return numbers.float() if numbers.dtype in (torch.float16, torch.bfloat16) else numbers


def _as_float32(margin: float) -> float:
    """Round as the official CosFace and ArcFace do, which hold m in a float32 tensor; it shows in float64 only."""
    return struct.unpack("f", struct.pack("f", margin))[0]


class CosFace(Head):
    """Additive cosine margin: s (cos theta - m). Paper: m 0.35 or 0.4, s 64."""

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Subtract m from the cosine."""
        return target_cosine - _as_float32(self.m)


class ArcFace(Head):
    """Additive angular margin: s cos(theta + m). Paper: m 0.5, s 64."""

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Add m to the angle."""
        return self._angle(target_cosine, _as_float32(self.m))


class AdaFace(Head):
    """Quality adaptive margin: easy where the feature norm is low, hard where it is high. Paper: m 0.4, h 0.333, s 64.

    The norms of a batch are compared with their running mean and standard deviation (buffers ``batch_mean`` and
    ``batch_std``), which move by ``t_alpha`` towards the batch's before use, in training mode: once for each batch that
    ``loss`` is given, so with accumulated gradients once for each of the batches of a step. Across processes the
    statistics are those of what the caller hands over: the training module gives the norms of all processes
    (``batch_norms``), so that all have the same; with each process's own, DistributedDataParallel's broadcast of
    buffers makes rank 0's the running ones, as in the official code.
    """

    eps: ClassVar[float] = 1e-3
    t: Tensor
    batch_mean: Tensor
    batch_std: Tensor

    def __init__(self, embedding_size: int, class_num: int, m: float, t_alpha: float, h: float, s: float) -> None:
        super().__init__(embedding_size, class_num, m, t_alpha, h, s)
        self.register_buffer("t", torch.zeros(1))  # unused; official checkpoints hold it
        self.register_buffer("batch_mean", torch.full((1,), 20.0))
        self.register_buffer("batch_std", torch.full((1,), 100.0))

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Apply g_angle = -m z and g_add = m + m z, with z the clipped normalised norm."""
        norms = norms.clamp(*_NORM_RANGE).squeeze(1)  # (M,)
        z = (self.h * (norms - self.batch_mean) / (self.batch_std + self.eps)).clamp(-1, 1)  # (M,)
        return self._angle(target_cosine, -self.m * z) - (self.m + self.m * z)

    @torch.no_grad()
    def update_statistics(self, norms: Tensor) -> None:
        """Move the running mean and (unbiased) standard deviation towards those of the batch."""
        norms = norms.clamp(*_NORM_RANGE)
        self.batch_mean.lerp_(norms.mean().to(self.batch_mean), self.t_alpha)
        if len(norms) > 1:  # one sample has no standard deviation
            self.batch_std.lerp_(norms.std().to(self.batch_std), self.t_alpha)


HEADS: dict[str, type[Head]] = {"adaface": AdaFace, "arcface": ArcFace, "cosface": CosFace}


def build_head(
    head_type: str, embedding_size: int, class_num: int, m: float, t_alpha: float, h: float, s: float
) -> Head:
    """Build a head.

    Args:
        head_type: a key of ``HEADS``.
        embedding_size: D.
        class_num: C, at least 1.
        m: margin.
        t_alpha: weight of the newest batch in AdaFace's statistics, in [0, 1].
        h: concentration of AdaFace.
        s: scale of the logits, above 0.

    Raises:
        ValueError: an unknown type (the message lists the names) or no classes.
    """
    return head_class(head_type, class_num)(embedding_size, class_num, m, t_alpha, h, s)


def head_class(head_type: str, class_num: int) -> type[Head]:
    """Return the class of a margin, where there is one and there are classes.

    Args:
        head_type: a key of ``HEADS``.
        class_num: C.

    Raises:
        ValueError: an unknown type (the message lists the names) or no classes.
    """
    if head_type not in HEADS:
        close = difflib.get_close_matches(head_type, HEADS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"unknown head {head_type!r}; {hint}known are: {', '.join(HEADS)}")
    if class_num < 1:
        raise ValueError(f"a head needs at least one class, got class_num {class_num}")
    return HEADS[head_type]
