"""What all margin heads share: the class weights, and the loss of unit embeddings that a margin changes.

A margin is a subclass of ``Head`` with one method, ``margin``, which changes the target's cosine, and what it needs of
the hooks beside it; ``heads/margins.py`` has them all. Dense head and sharded head (``heads/partial_fc.py``) share
every margin. Training takes ``Head.loss``, which never makes the logits; ``Head.forward`` makes them, for those who
write their own loss. The state dict is the official one: ``kernel``, then the running statistics.

Source: the official AdaFace code for clamps, order of the statistics and initialisation.
Differs from the official code: labels out of range are refused.
"""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaface.heads.fused_softmax import MOST_CENTERS, target_and_negatives, target_cosines

_SOFTPLUS_IS_LINEAR = 50.0  # log(1 + exp(x)) - x is below float64's precision from here on


class Head(nn.Module, ABC):
    """Class weights and a margin.

    Args:
        embedding_size: D.
        class_num: C.
        s: scale of the logits.
        options: those of ``options``, by name; each becomes an attribute.

    Attributes:
        options: what the margin reads beside s, with the values of its paper.
        statistics: names of its running statistics, buffers of shape (1,), with the values that they start at.
        norms_learn: gradient flows through the feature norms; otherwise they are given without.
        changes_negatives: ``negatives`` is asked for the other classes' logits. The target cosines are then computed
            before all others, for it and for ``update_from_targets``.
        sub_centers: columns of each class; its cosine is the largest of theirs.
        keep_exponentials: ``loss`` keeps (B, C) numbers from the forward to the backward pass. False computes them
            again there, for a quarter more time and the same bits: for class counts that would not fit.
        last_target_cosine: of the newest ``loss``, (B,) cosines of the images' own classes before the margin, without
            gradient.
    """

    eps: ClassVar[float] = 1e-4
    options: ClassVar[Mapping[str, float]] = {}
    statistics: ClassVar[Mapping[str, float]] = {}
    norms_learn: ClassVar[bool] = False
    changes_negatives: ClassVar[bool] = False
    sub_centers: int = 1
    keep_exponentials = True
    last_target_cosine: Tensor | None = None

    def __init__(self, embedding_size: int, class_num: int, s: float, **options: float) -> None:
        super().__init__()
        self.class_num, self.s = class_num, s
        for name, value in options.items():
            setattr(self, name, value)
        if not 1 <= self.sub_centers <= MOST_CENTERS:
            raise ValueError(f"a class has 1 to {MOST_CENTERS} sub-centers, got {self.sub_centers}")
        # each column one class; uniform, then brought inside the unit ball as the official code does
        kernel = torch.empty(embedding_size, class_num * self.sub_centers).uniform_(-1, 1)
        self.kernel = nn.Parameter(kernel.renorm_(2, 1, 1e-5).mul_(1e5))  # (D, C), or (D, C * sub_centers) by class
        for name, start in self.statistics.items():
            self.register_buffer(name, torch.full((1,), float(start)))

    @abstractmethod
    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Return the target logits before scaling; changes nothing.

        Args:
            target_cosine: (M,) cosine between each embedding and its own class, clamped inside (-1, 1).
            norms: (M, 1) feature norms; gradient flows through them where ``norms_learn``.

        Returns:
            (M,) target logits divided by s.
        """

    def negatives(self, cosine: Tensor, target_cosine: Tensor) -> Tensor:
        """Return the other classes' logits before scaling, each from its own cosine; where ``changes_negatives``.

        Args:
            cosine: (M, c) to some of the classes, clamped inside (-1, 1); what is returned for the own one is not used.
            target_cosine: (M, 1) of ``margin``, without gradient.

        Returns:
            (M, c) logits divided by s.
        """
        return cosine

    def penalty(self, norms: Tensor) -> Tensor | None:
        """Return what each sample adds to the loss for its norm, (M,); None for nothing.

        Args:
            norms: (M, 1) of ``margin``.
        """
        return None

    def update_statistics(self, norms: Tensor) -> None:
        """Take a training batch into the running statistics; called before ``margin``, in training mode only.

        Args:
            norms: (N, 1) feature norms of the whole batch, without gradient.
        """

    def update_from_targets(self, target_cosine: Tensor) -> None:
        """Do the same with the cosines to the own classes; before ``negatives`` and where ``changes_negatives``.

        Args:
            target_cosine: (N,) of the whole batch, clamped inside (-1, 1), without gradient.
        """

    def forward(self, embeddings: Tensor, norms: Tensor, labels: Tensor) -> Tensor:
        """Compute the scaled logits; what a margin adds to the loss beside them is ``penalty(norms).mean()``.

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
            if self.sub_centers > 1:
                cosine = cosine.unflatten(1, (-1, self.sub_centers)).max(2).values
            norms = self._as_learnt(norms).to(cosine.dtype)
            columns = labels.unsqueeze(1)  # (B, 1)
            target_cosine = self._clamp(cosine.gather(1, columns))  # (B, 1)
            known = target_cosine.detach()
            if self.training:
                self.update_statistics(norms.detach())
            if self.training and self.changes_negatives:
                self.update_from_targets(known.squeeze(1))
            target = self.margin(target_cosine.squeeze(1), norms)  # (B,)
            logits = self._clamp(cosine)  # (B, C)
            if self.changes_negatives:
                logits = self.negatives(logits, known) * self.s
            else:  # in place on the clamped copy: beside the cosines, which clamp keeps for backward, one (B, C) buffer
                logits.mul_(self.s)
            return logits.scatter_(1, columns, target.unsqueeze(1) * self.s)

    def loss(
        self, embeddings: Tensor, norms: Tensor, labels: Tensor, gather: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Compute the mean cross-entropy over the logits, and the mean penalty, without making the logits.

        Args:
            embeddings: (B, D) unit vectors.
            norms: (B, 1) their norms before normalisation.
            labels: (B,) classes in [0, C).
            gather: makes of (B, ...) rows the (N, ...) that the running statistics are taken from, such as those of all
                processes; the rows as they are when None.

        Returns:
            Scalar loss; float32 under autocast and of 16-bit embeddings. Equal to
            ``cross_entropy(head(embeddings, norms, labels), labels)``, in a third of the time and half of the memory
            (``bench/head.py``).

        Raises:
            ValueError: labels out of range (on a GPU, where looking would make the step wait, the loss is NaN).
        """
        self._check_labels(labels)
        product_dtype = dtype_of_products(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            norms = self._as_learnt(norms).to(embeddings.dtype)
            gather = gather or (lambda rows: rows)
            if self.training:
                self.update_statistics(gather(norms.detach()))
            known = None
            if self.changes_negatives:
                known = self._clamp(target_cosines(embeddings, self.kernel, labels, self.sub_centers))  # (B,)
                if self.training:
                    self.update_from_targets(gather(known))
            target_cosine, negatives = self._pass_over_classes(embeddings, self.kernel, labels, known, product_dtype)
            self.last_target_cosine = target_cosine.detach()
            target = self.margin(self._clamp(target_cosine), norms) * self.s  # (B,)
            return self._mean_loss(target, negatives, self.penalty(norms))

    def _pass_over_classes(
        self, embeddings: Tensor, kernel: Tensor, labels: Tensor, known: Tensor | None, product_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return target cosines (M,) and the logsumexp of the negatives (M,); ``known`` (M,) is for ``negatives``."""
        reweight = None
        if known is not None:
            # the statistics as they are now: the backward pass may ask again when another batch has moved them
            frozen = copy.copy(self)
            frozen._buffers = {name: value.clone() for name, value in self._buffers.items() if value is not None}
            reweight = functools.partial(frozen.negatives, target_cosine=known.unsqueeze(1))
        return target_and_negatives(
            embeddings,
            kernel,
            labels,
            scale=self.s,
            eps=self.eps,
            product_dtype=product_dtype,
            keep_exponentials=self.keep_exponentials,
            centers=self.sub_centers,
            reweight=reweight,
        )

    @staticmethod
    def _mean_loss(target: Tensor, negatives: Tensor, penalty: Tensor | None) -> Tensor:
        losses = F.softplus(negatives - target, threshold=_SOFTPLUS_IS_LINEAR)  # (M,)
        return losses.mean() if penalty is None else (losses + penalty).mean()

    def _as_learnt(self, norms: Tensor) -> Tensor:
        return norms if self.norms_learn else norms.detach()

    def _clamp(self, cosine: Tensor) -> Tensor:
        return cosine.clamp(-1 + self.eps, 1 - self.eps)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < self.class_num:
            raise ValueError(
                f"labels must be in [0, {self.class_num}), got {int(labels.min())} to {int(labels.max())}: "
                "the head has fewer classes than the data"
            )

    def cosine_of(self, angle: Tensor) -> Tensor:
        """Return cos(clip(angle, eps, pi - eps)).

        Args:
            angle: in radians, of any shape.
        """
        return torch.cos(torch.clamp(angle, self.eps, math.pi - self.eps))


def at_least_float32(numbers: Tensor) -> Tensor:
    """Return numbers of 16 bits as float32, others as they are: 1 - eps and acos need more than 8 or 11 bits.

    Args:
        numbers: of any shape.
    """
    return numbers.float() if numbers.dtype in (torch.float16, torch.bfloat16) else numbers


def dtype_of_products(embeddings: Tensor) -> torch.dtype:
    """Return the type that matrix products of these embeddings have: autocast's, where it is on.

    Args:
        embeddings: of any shape.
    """
    device = embeddings.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeddings.dtype
