"""The margins, each a head from unit embeddings to scaled logits and the loss: AdaFace, ArcFace, CosFace, ...

A new margin is a subclass of ``Head`` (``heads/base.py``) with one method, ``margin(target_cosine (M,), norms (M, 1))
-> target_logit (M,)``, its ``options``, and an entry in ``HEADS``.

Sources: AdaFace (Kim et al., CVPR 2022, equations 14 to 16); ArcFace (Deng et al., CVPR 2019); CosFace (Wang et al.,
CVPR 2018); MagFace (Meng et al., CVPR 2021); CurricularFace (Huang et al., CVPR 2020); Sub-center ArcFace (Deng et al.,
ECCV 2020); the official code of AdaFace, MagFace and CurricularFace for details that the papers leave open.

Differs from the official AdaFace code: a batch of one sample does not change ``batch_std`` (there it becomes NaN for
the rest of the run); labels out of range raise an error.
"""

import math
import struct
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from adaface.heads.base import Head
from adaface.heads.names import MARGINS
from adaface.system.command_line import nearest

_NORM_RANGE = (0.001, 100.0)
_NEARLY_ONE = 1e-6  # official MagFace and CurricularFace clamp at 1, where acos has no finite gradient


class CosFace(Head):
    """Additive cosine margin: s (cos theta - m). Paper: m 0.35 or 0.4, s 64."""

    options: ClassVar[Mapping[str, float]] = MARGINS["cosface"].options
    m: float

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Subtract m from the cosine."""
        return target_cosine - _as_float32(self.m)


class ArcFace(Head):
    """Additive angular margin: s cos(theta + m). Paper: m 0.5, s 64."""

    options: ClassVar[Mapping[str, float]] = MARGINS["arcface"].options
    m: float

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Add m to the angle."""
        return self.cosine_of(torch.acos(target_cosine) + _as_float32(self.m))


class AdaFace(Head):
    """Quality-adaptive margin: emphasizes easy samples at low feature norms, hard samples at high ones.

    Paper: m 0.4, h 0.333, s 64.

    Norms are standardized with their running mean and standard deviation (buffers ``batch_mean`` and ``batch_std``). In
    training mode each call of ``loss`` first moves these towards the batch's by ``t_alpha``; with gradient accumulation
    this happens for every batch of a step. With several processes the statistics are those of what the caller's
    ``gather`` returns. The training module gathers the norms of all processes, so all have the same statistics; without
    that, DistributedDataParallel's broadcast of buffers distributes rank 0's, as in the official code.
    """

    eps: ClassVar[float] = 1e-3
    options: ClassVar[Mapping[str, float]] = MARGINS["adaface"].options
    # t is unused; official checkpoints contain it
    statistics: ClassVar[Mapping[str, float]] = {"t": 0.0, "batch_mean": 20.0, "batch_std": 100.0}
    m: float
    h: float
    t_alpha: float
    batch_mean: Tensor
    batch_std: Tensor

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Apply g_angle = -m z and g_add = m + m z, with z the clamped, standardized norm."""
        norms = norms.clamp(*_NORM_RANGE).squeeze(1)  # (M,)
        z = (self.h * (norms - self.batch_mean) / (self.batch_std + self.eps)).clamp(-1, 1)  # (M,)
        return self.cosine_of(torch.acos(target_cosine) + -self.m * z) - (self.m + self.m * z)

    @torch.no_grad()
    def update_statistics(self, norms: Tensor) -> None:
        """Move the running mean and (unbiased) standard deviation towards those of the batch."""
        norms = norms.clamp(*_NORM_RANGE)
        self.batch_mean.lerp_(norms.mean().to(self.batch_mean), self.t_alpha)
        if len(norms) > 1:  # one sample has no standard deviation
            self.batch_std.lerp_(norms.std().to(self.batch_std), self.t_alpha)


class CombinedMargin(Head):
    """Multiplicative and both additive margins: s (cos(m1 theta + m2) - m3). Paper: 1, 0.3, 0.2, s 64 (ArcFace, eq. 4).

    m1 theta + m2 is clamped to pi, as in ``ArcFace``.
    """

    options: ClassVar[Mapping[str, float]] = MARGINS["combined"].options
    m1: float
    m2: float
    m3: float

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Multiply the angle, add to it, subtract from its cosine."""
        return self.cosine_of(self.m1 * torch.acos(target_cosine) + self.m2) - self.m3


class MagFace(Head):
    """Angular margin that grows with the feature norm, and a regularizer that increases the norm.

    m(a) is linear from l_margin at norm l_a to u_margin at u_a, with the norm a clamped to that range; lambda_g times
    the mean of g(a) = a / u_a^2 + 1 / a is added to the loss (equations 4 to 6). Gradient flows to the norm through
    both. The margin is applied only where the target cosine is above 0 ("easy margin" of the official code). Paper:
    0.45 to 0.8 for norms 10 to 110, lambda_g 35, s 64.
    """

    eps: ClassVar[float] = _NEARLY_ONE
    norms_learn: ClassVar[bool] = True
    options: ClassVar[Mapping[str, float]] = MARGINS["magface"].options
    l_margin: float
    u_margin: float
    l_a: float
    u_a: float
    lambda_g: float

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Add m(a) to angles below pi / 2."""
        a = norms.clamp(self.l_a, self.u_a).squeeze(1)  # (M,)
        m = self.l_margin + (self.u_margin - self.l_margin) * (a - self.l_a) / (self.u_a - self.l_a)  # (M,)
        return torch.where(target_cosine > 0, torch.cos(torch.acos(target_cosine) + m), target_cosine)

    def penalty(self, norms: Tensor) -> Tensor:
        """Compute lambda_g g(a), which is smallest at u_a."""
        a = norms.clamp(self.l_a, self.u_a).squeeze(1)  # (M,)
        return self.lambda_g * (a / self.u_a**2 + 1 / a)


class CurricularFace(Head):
    """ArcFace's margin, with hard negatives weighted more as training progresses. Paper: m 0.5, t_alpha 0.01, s 64.

    A negative is hard if its cosine is above the target's cos(theta + m); its logit is then s cos (t + cos). The buffer
    ``t`` is the running mean of the target cosines; in training mode it is moved towards the batch's by ``t_alpha``
    before use, over processes as in AdaFace. Where theta + m exceeds pi, the target's logit is s (cos theta - m sin m),
    as in the official code.
    """

    eps: ClassVar[float] = _NEARLY_ONE
    changes_negatives: ClassVar[bool] = True
    options: ClassVar[Mapping[str, float]] = MARGINS["curricularface"].options
    statistics: ClassVar[Mapping[str, float]] = {"t": 0.0}
    m: float
    t_alpha: float
    t: Tensor

    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Add m to the angle, up to pi."""
        with_margin = torch.cos(torch.acos(target_cosine) + self.m)
        linear = target_cosine - self.m * math.sin(math.pi - self.m)  # decreasing there too, unlike cos(theta + m)
        return torch.where(target_cosine > math.cos(math.pi - self.m), with_margin, linear)

    def negatives(self, cosine: Tensor, target_cosine: Tensor) -> Tensor:
        """Multiply hard negatives by t + cos."""
        hard = cosine > torch.cos(torch.acos(target_cosine) + self.m)  # (M, c)
        return torch.where(hard, cosine * (self.t + cosine), cosine)

    def update_from_targets(self, target_cosine: Tensor) -> None:
        """Move t towards the batch's mean."""
        self.t.lerp_(target_cosine.mean().to(self.t), self.t_alpha)


class SubCenterArcFace(ArcFace):
    """ArcFace with several centers per class, for noisy labels. Paper: m 0.5, 3 centers, s 64."""

    options: ClassVar[Mapping[str, float]] = MARGINS["subcenter_arcface"].options


HEADS: dict[str, type[Head]] = {
    "adaface": AdaFace,
    "arcface": ArcFace,
    "cosface": CosFace,
    "magface": MagFace,
    "curricularface": CurricularFace,
    "subcenter_arcface": SubCenterArcFace,
    "combined": CombinedMargin,
}


def build_head(
    head_type: str,
    embedding_size: int,
    class_num: int,
    m: float | None = None,
    t_alpha: float | None = None,
    h: float | None = None,
    s: float = 64.0,
    **more: float,
) -> Head:
    """Build a head.

    Args:
        head_type: a key of ``HEADS``.
        embedding_size: D.
        class_num: C, at least 1.
        m: margin; m, t_alpha and h are ignored by margins without them, and default to the paper's value.
        t_alpha: weight of the current batch in running statistics, in [0, 1].
        h: concentration of AdaFace.
        s: scale of the logits, above 0.
        more: other options of the margin, by name.

    Raises:
        ValueError: unknown type (the message lists the names), no classes, or an option that the margin does not have.
    """
    margin = head_class(head_type, class_num)
    return margin(embedding_size, class_num, s, **chosen_options(margin, m=m, t_alpha=t_alpha, h=h, more=more))


def chosen_options(
    margin: type[Head], *, m: float | None, t_alpha: float | None, h: float | None, more: Mapping[str, float]
) -> dict[str, float]:
    """Return the options of a margin: the given values, and its paper's for the others.

    Args:
        margin: of ``HEADS``.
        m: ignored if the margin does not have it, or if None; t_alpha and h likewise.
        t_alpha: see m.
        h: see m.
        more: other options, all of which the margin must have.

    Raises:
        ValueError: the margin does not have one of ``more``.
    """
    for name in more:
        if name not in margin.options:
            raise ValueError(
                f"{margin.__name__} has no option {name!r}; its options are s, {', '.join(margin.options)}"
            )
    official = {name: value for name, value in {"m": m, "t_alpha": t_alpha, "h": h}.items() if value is not None}
    given = {**official, **more}
    return {name: given.get(name, default) for name, default in margin.options.items()}


def head_class(head_type: str, class_num: int) -> type[Head]:
    """Return the class of a margin after checking the arguments.

    Args:
        head_type: a key of ``HEADS``.
        class_num: C.

    Raises:
        ValueError: unknown type (the message lists the names) or no classes.
    """
    if head_type not in HEADS:
        hint = nearest(head_type, HEADS, always=f"choose from: {', '.join(HEADS)}")
        raise ValueError(f"unknown head {head_type!r}; {hint}")
    if class_num < 1:
        raise ValueError(f"a head needs at least one class, got class_num {class_num}")
    return HEADS[head_type]


def _as_float32(margin: float) -> float:
    """Round to float32 as official CosFace and ArcFace, which keep m in a float32 tensor; only visible in float64."""
    return struct.unpack("f", struct.pack("f", margin))[0]
