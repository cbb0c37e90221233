"""The base class of all margin heads: class weights, logits, and the softmax loss with a margin.

A margin is a subclass of ``Head`` that implements ``margin``, which changes the target's cosine, and overrides the
other hooks as needed; all are in ``heads/margins.py``. The dense and the sharded head (``heads/partial_fc.py``) share
every margin. Training uses ``Head.loss``, which does not materialize the logits; ``Head.forward`` returns them for
custom losses. The state dict has the official keys: ``kernel``, then the running statistics.

Source: the official AdaFace code for clamps, order of the statistics and initialization.
Differs from the official code: labels out of range raise an error.
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

from adaface.heads.fused_softmax import SoftmaxOptions, target_and_negatives, target_cosines
from adaface.heads.names import MOST_CENTERS

_SOFTPLUS_IS_LINEAR = 50.0  # above it, log(1 + exp(x)) - x is below float64's precision


class Head(nn.Module, ABC):
    """Class weights and a margin.

    Args:
        embedding_size: D.
        class_num: C.
        s: scale of the logits.
        options: values for the names in ``options``; each becomes an attribute.

    Attributes:
        options: options of the margin besides s, with the defaults of its paper.
        statistics: names and initial values of its running statistics, buffers of shape (1,).
        norms_learn: whether gradient flows through the feature norms; if not, they are detached.
        changes_negatives: whether ``negatives`` computes the other classes' logits. The target cosines are then
            computed first, for it and for ``update_from_targets``.
        sub_centers: columns of each class; the cosine of a class is the largest of its columns'.
        keep_exponentials: whether ``loss`` keeps (B, C) numbers for the backward pass. False recomputes them there:
            the same bits (on a GPU with ``--deterministic``), a quarter slower, for class counts that do not fit in
            memory otherwise.
        last_target_cosine: target cosines (B,) of the latest ``loss`` before the margin, without gradient.
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
        # one column per class (or sub-center, those of a class side by side)
        kernel = torch.empty(embedding_size, class_num * self.sub_centers).uniform_(-1, 1)  # (D, C * sub_centers)
        # columns of length 1: renorm_ only shortens, so first to 1e-5, then back up; written as in the official code
        self.kernel = nn.Parameter(kernel.renorm_(2, 1, 1e-5).mul_(1e5))
        for name, start in self.statistics.items():
            self.register_buffer(name, torch.full((1,), float(start)))

    @abstractmethod
    def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
        """Compute the target logits before scaling.

        Args:
            target_cosine: (M,) cosine between each embedding and its own class, clamped inside (-1, 1).
            norms: (M, 1) feature norms, detached unless ``norms_learn``.

        Returns:
            (M,) target logits divided by s.
        """

    def negatives(self, cosine: Tensor, target_cosine: Tensor) -> Tensor:
        """Compute the other classes' logits before scaling, elementwise; called if ``changes_negatives``.

        Args:
            cosine: (M, c) to some of the classes, clamped inside (-1, 1); the result for the target class is ignored.
            target_cosine: (M, 1) as in ``margin``, without gradient.

        Returns:
            (M, c) logits divided by s.
        """
        return cosine

    def penalty(self, norms: Tensor) -> Tensor | None:
        """Compute the penalty (M,) on each sample's norm, which is added to the loss; None if there is none.

        Args:
            norms: (M, 1) as in ``margin``.
        """
        return None

    def update_statistics(self, norms: Tensor) -> None:
        """Update the running statistics with a batch; called before ``margin``, in training mode only.

        Args:
            norms: (N, 1) feature norms of the whole batch, without gradient.
        """

    def update_from_targets(self, target_cosine: Tensor) -> None:
        """Update the running statistics with the target cosines; called before ``negatives`` if ``changes_negatives``.

        Args:
            target_cosine: (N,) of the whole batch, clamped inside (-1, 1), without gradient.
        """

    def forward(self, embeddings: Tensor, norms: Tensor, labels: Tensor) -> Tensor:
        """Compute the scaled logits; a loss on them must add ``penalty(norms).mean()`` if the margin has a penalty.

        Args:
            embeddings: (B, D) unit vectors.
            norms: (B, 1) their norms before normalization.
            labels: (B,) classes in [0, C).

        Returns:
            (B, C) logits; float32 under autocast.

        Raises:
            ValueError: labels out of range (checked on the CPU only: on a GPU the check would synchronize).
        """
        self._check_labels(labels)
        unit = F.normalize(self.kernel, dim=0)  # (D, C * sub_centers)
        cosine = at_least_float32(embeddings @ unit)  # (B, C * sub_centers)
        # the margin's arithmetic needs float32: acos has a steep slope near 1
        with torch.autocast(cosine.device.type, enabled=False):
            if self.sub_centers > 1:
                cosine = cosine.unflatten(1, (-1, self.sub_centers)).max(2).values  # (B, C)
            norms = self._detach_fixed(norms).to(cosine.dtype)  # (B, 1)
            columns = labels.unsqueeze(1)  # (B, 1)
            target_cosine = self._clamp(cosine.gather(1, columns))  # (B, 1)
            detached_target = target_cosine.detach()  # (B, 1)
            # before the margin, which uses the statistics of this batch too, as in the official code
            if self.training:
                self.update_statistics(norms.detach())
            if self.training and self.changes_negatives:
                self.update_from_targets(detached_target.squeeze(1))
            target = self.margin(target_cosine.squeeze(1), norms)  # (B,)
            logits = self._clamp(cosine)  # (B, C)
            if self.changes_negatives:
                logits = self.negatives(logits, detached_target) * self.s
            else:  # in place on the clamped copy: saves one (B, C) buffer
                logits.mul_(self.s)
            return logits.scatter_(1, columns, target.unsqueeze(1) * self.s)  # (B, C)

    def loss(
        self, embeddings: Tensor, norms: Tensor, labels: Tensor, gather: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Compute the mean cross-entropy plus the mean penalty without materializing the logits.

        Args:
            embeddings: (B, D) unit vectors.
            norms: (B, 1) their norms before normalization.
            labels: (B,) classes in [0, C).
            gather: maps (B, ...) rows of this process to the (N, ...) rows, such as those of all processes, that the
                running statistics are computed from; the identity when None.

        Returns:
            Scalar loss; float32 under autocast and of 16-bit embeddings. Equal to
            ``cross_entropy(head(embeddings, norms, labels), labels)`` plus the mean penalty, in a third of the time and
            half of the memory (``bench/head.py``).

        Raises:
            ValueError: labels out of range (on a GPU, where the check would synchronize, the loss is NaN instead).
        """
        self._check_labels(labels)
        product_dtype = dtype_of_products(embeddings)  # read here: it depends on the caller's autocast
        # 16 bits in the matrix products only; everything else in float32
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)  # (B, D)
            norms = self._detach_fixed(norms).to(embeddings.dtype)  # (B, 1)
            gather = gather or (lambda rows: rows)
            if self.training:
                self.update_statistics(gather(norms.detach()))  # from (N, 1)
            detached_target = None
            if self.changes_negatives:
                cosines = target_cosines(embeddings, self.kernel, labels, self.sub_centers)  # (B,)
                detached_target = self._clamp(cosines)
                if self.training:
                    self.update_from_targets(gather(detached_target))  # from (N,)
            target_cosine, negatives = self._pass_over_classes(
                embeddings, self.kernel, labels, detached_target, product_dtype
            )  # (B,) each
            self.last_target_cosine = target_cosine.detach()
            target = self.margin(self._clamp(target_cosine), norms) * self.s  # (B,)
            return self._mean_loss(target, negatives, self.penalty(norms))

    def _pass_over_classes(
        self,
        embeddings: Tensor,
        kernel: Tensor,
        labels: Tensor,
        detached_target: Tensor | None,
        product_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Return target cosines and logsumexp of the negatives, (B,) each; the hook gets ``detached_target`` (B,)."""
        reweight = None
        if detached_target is not None:
            # a copy of the statistics: backward may recompute after another batch has updated them
            frozen = copy.copy(self)
            frozen._buffers = {name: value.clone() for name, value in self._buffers.items() if value is not None}
            reweight = functools.partial(frozen.negatives, target_cosine=detached_target.unsqueeze(1))
        options = SoftmaxOptions(
            scale=self.s,
            eps=self.eps,
            product_dtype=product_dtype,
            keep_exponentials=self.keep_exponentials,
            centers=self.sub_centers,
            reweight=reweight,
        )
        return target_and_negatives(embeddings, kernel, labels, options)

    @staticmethod
    def _mean_loss(target: Tensor, negatives: Tensor, penalty: Tensor | None) -> Tensor:
        # log(exp(target) + exp(negatives)) - target, from (M,) each
        losses = F.softplus(negatives - target, threshold=_SOFTPLUS_IS_LINEAR)  # (M,)
        return losses.mean() if penalty is None else (losses + penalty).mean()

    def _detach_fixed(self, norms: Tensor) -> Tensor:
        return norms if self.norms_learn else norms.detach()

    def _clamp(self, cosine: Tensor) -> Tensor:
        return cosine.clamp(-1 + self.eps, 1 - self.eps)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < self.class_num:
            raise ValueError(
                f"labels must be in [0, {self.class_num}), got {int(labels.min())} to {int(labels.max())}: "
                "build the head with the number of classes of the data"
            )

    def cosine_of(self, angle: Tensor) -> Tensor:
        """Return cos(clamp(angle, eps, pi - eps)).

        Args:
            angle: in radians, of any shape.
        """
        return torch.cos(torch.clamp(angle, self.eps, math.pi - self.eps))


def at_least_float32(numbers: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32: 1 - eps and acos need more than their 8 or 11 significant bits.

    Args:
        numbers: of any shape.
    """
    return numbers.float() if numbers.dtype in (torch.float16, torch.bfloat16) else numbers


def dtype_of_products(embeddings: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with these embeddings: autocast's if it is enabled.

    Args:
        embeddings: of any shape.
    """
    device = embeddings.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeddings.dtype
