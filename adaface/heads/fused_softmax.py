"""The softmax over all classes without its logits: what a margin loss needs of the (B, C) matrix, in one pass over it.

A margin changes the target's logit alone. So the cross-entropy of a row splits into its target cosine, on which the
margin does its arithmetic, and the log of the summed exponentials of all other classes, which most margins leave alone:

    loss = log(exp(target) + sum over j != y of exp(s cos_j)) - target = softplus(negatives - target)

``target_and_negatives`` computes both for blocks of classes that fit a processor's cache, so that everything between
two matrix products happens there. What is kept for the backward pass is one (B, C) buffer of exponentials, or nothing
where memory is short: they are then computed again, to the same bits. A margin that changes the other classes' logits
gives a function of their cosines, ``reweight``; one with several centers a class is given the largest of their cosines.

Source: the online softmax of Milakov and Gimelshein (arXiv 1805.02867), and the gradient of the column normalisation
written out; values and gradients are those of the plain formulas.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# numbers in a block: on a CPU what its cache holds, elsewhere enough work for each launch
_BLOCK_NUMBERS_CPU = 1 << 21
_BLOCK_NUMBERS_OTHER = 1 << 26
_SMALLEST_LENGTH = 1e-12  # of F.normalize
MOST_CENTERS = 255  # of a class: which of them is nearest is kept in 8 bits

Reweight = Callable[[Tensor], Tensor]


def kept_bytes(centers: int) -> int:
    """Return how many bytes are kept for each sample and class from the forward to the backward pass.

    Args:
        centers: columns of each class.
    """
    return 4 if centers == 1 else 5


@torch.no_grad()
def target_cosines(embeddings: Tensor, kernel: Tensor, labels: Tensor, centers: int = 1) -> Tensor:
    """Compute the cosines to the own classes alone.

    Args:
        embeddings: (B, D) unit vectors.
        kernel: (D, C * centers) of ``target_and_negatives``.
        labels: (B,) classes; one outside of [0, C) gets the cosine to some other class.
        centers: columns of each class.

    Returns:
        (B,) without gradient; 0 where there are no classes.
    """
    if not kernel.shape[1]:
        return embeddings.new_zeros(len(embeddings))
    classes = kernel.unflatten(1, (-1, centers))  # (D, C, centers)
    own = classes[:, labels.clamp(0, classes.shape[1] - 1)]  # (D, B, centers)
    lengths = torch.linalg.vector_norm(own, dim=0).clamp_min_(_SMALLEST_LENGTH)  # (B, centers)
    return (torch.einsum("bd,dbk->bk", embeddings, own) / lengths).amax(1)


def target_and_negatives(
    embeddings: Tensor,
    kernel: Tensor,
    labels: Tensor,
    *,
    scale: float,
    eps: float,
    product_dtype: torch.dtype,
    keep_exponentials: bool = True,
    centers: int = 1,
    reweight: Reweight | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the target cosines and the logsumexp of all other classes' scaled, clamped cosines.

    Args:
        embeddings: (B, D) unit vectors.
        kernel: (D, C) one column a class, of any length; (D, C * centers) where a class has several, side by side.
        labels: (B,) classes in [0, C).
        scale: s, above 0.
        eps: cosines are clamped to [-1 + eps, 1 - eps] before they are scaled; the target's is not clamped.
        product_dtype: of the operands of the matrix products; 16 bits under autocast.
        keep_exponentials: keep (B, C) numbers for the backward pass; False: compute them again there.
        centers: columns of each class, at most ``MOST_CENTERS``; the cosine of a class is the largest of theirs.
        reweight: of clamped cosines (B, c) to c of the classes, what takes their place, each number depending on its
            own alone; without a gradient to anything else.

    Returns:
        Target cosines (B,), not clamped, NaN for a label out of range; and logsumexp (B,) over j != label of
        ``scale * reweight(clamp(cosine_j))``, -inf where there is one class. Both can be differentiated once.
    """
    options = _Options(scale, eps, product_dtype, keep_exponentials, centers, reweight)
    return _TargetAndNegatives.apply(embeddings, kernel, labels, options)


@dataclass(frozen=True)
class _Options:
    """Those of ``target_and_negatives``."""

    scale: float
    eps: float
    product_dtype: torch.dtype
    keep_exponentials: bool
    centers: int
    reweight: Reweight | None

    @property
    def limit(self) -> float:
        """Of the scaled cosines, on either side."""
        return self.scale * (1 - self.eps)


class _TargetAndNegatives(torch.autograd.Function):
    """See ``target_and_negatives``."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, kernel: Tensor, labels: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor]:
        ctx.options = options
        scaled = (embeddings * options.scale).to(options.product_dtype)  # (B, D)
        lengths = kernel.new_empty(kernel.shape[1])  # (C,)
        target = embeddings.new_zeros(len(embeddings))  # (B,)
        maxima, sums, ctx.kept = [], [], []
        for columns, first_class in _blocks(embeddings, kernel, options.centers):
            lengths[columns] = torch.linalg.vector_norm(kernel[:, columns], dim=0).clamp_min_(_SMALLEST_LENGTH)
            unit = kernel[:, columns] / lengths[columns]  # (D, c)
            block = _Block(scaled, unit.to(options.product_dtype), labels - first_class, options)
            target += block.target
            maxima.append(block.maximum)
            sums.append(block.sum())
            ctx.kept.append(block if options.keep_exponentials else None)
        classes = kernel.shape[1] // options.centers
        target = torch.where((labels >= 0) & (labels < classes), target / options.scale, torch.nan)
        none = [embeddings.new_zeros(len(embeddings), 0)]  # of no classes at all there is no block
        all_maxima = torch.stack(maxima, 1) if maxima else none[0]  # (B, blocks)
        negatives = torch.logsumexp(all_maxima + (torch.stack(sums, 1).log() if sums else none[0]), 1)  # (B,)
        ctx.save_for_backward(embeddings, kernel, labels, lengths, all_maxima, negatives)
        return target, negatives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_target: Tensor, grad_negatives: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, kernel, labels, lengths, maxima, negatives = ctx.saved_tensors
        options: _Options = ctx.options
        scaled = (embeddings * options.scale).to(options.product_dtype)  # (B, D)
        # of a single class there are no negatives: -inf, and nothing to weigh
        finite = torch.where(negatives.isneginf(), 0.0, negatives).unsqueeze(1)
        weights = grad_negatives.unsqueeze(1) * torch.exp(maxima - finite)
        grad_embeddings = torch.zeros_like(embeddings)
        grad_kernel = torch.empty_like(kernel) if ctx.needs_input_grad[1] else None
        for number, (columns, first_class) in enumerate(_blocks(embeddings, kernel, options.centers)):
            unit = kernel[:, columns] / lengths[columns]  # (D, c)
            product_unit = unit.to(options.product_dtype)
            block = ctx.kept[number] or _Block(scaled, product_unit, labels - first_class, options)
            ctx.kept[number] = None  # its buffer is used up; a second backward computes it again
            grad_logits = block.gradient(weights[:, number], grad_target / options.scale)  # (B, c)
            grad_logits = grad_logits.to(options.product_dtype)
            grad_embeddings += grad_logits @ product_unit.T
            if grad_kernel is not None:
                # (D, c), in the kernel's layout: of rows of classes, as a sharded head has them, the other product
                by_rows = kernel.stride(0) == 1
                grad_unit = (grad_logits.T @ scaled).T if by_rows else scaled.T @ grad_logits
                grad_unit = grad_unit.to(unit.dtype)
                along = (unit * grad_unit).sum(0)  # (c,)
                torch.div(grad_unit.addcmul_(unit, along, value=-1), lengths[columns], out=grad_kernel[:, columns])
        return grad_embeddings.mul_(options.scale), grad_kernel, None, None


def _blocks(embeddings: Tensor, kernel: Tensor, centers: int) -> Iterator[tuple[slice, int]]:
    """Cut the classes into blocks: their columns, and the first class."""
    numbers = _BLOCK_NUMBERS_CPU if embeddings.device.type == "cpu" else _BLOCK_NUMBERS_OTHER
    width = max(1, numbers // max(embeddings.shape) // centers) * centers
    for start in range(0, kernel.shape[1], width):
        yield slice(start, min(start + width, kernel.shape[1])), start // centers


def _looking_is_cheap(tensor: Tensor) -> bool:
    """Whether a number can be read without making a device wait for its host."""
    return tensor.device.type == "cpu"


class _Block:
    """Exponentials of the scaled cosines between all embeddings and a block of c classes.

    Args:
        scaled: (B, D) embeddings times s.
        unit: (D, c * centers) unit columns.
        local: (B,) labels counted from the block's first class; most lie outside of it.
        options: of ``target_and_negatives``.

    Attributes:
        target: (B,) scaled cosine of the target, 0 where it is not in this block.
        maximum: (B,) what was subtracted before the exponentials were taken.
    """

    def __init__(self, scaled: Tensor, unit: Tensor, local: Tensor, options: _Options) -> None:
        z = scaled @ unit  # (B, c)
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        self._nearest: Tensor | None = None
        self._sum: Tensor | None = None
        if options.centers > 1:
            z, nearest = z.unflatten(1, (-1, options.centers)).max(2)
            self._nearest, self._centers = nearest.to(torch.uint8), options.centers  # (B, c)
        self._inside = ((local >= 0) & (local < z.shape[1])).unsqueeze(1)  # (B, 1)
        self._column = local.clamp(0, z.shape[1] - 1).unsqueeze(1)  # (B, 1)
        self.target = torch.where(self._inside, z.gather(1, self._column), 0.0).squeeze(1)
        self._set_target(z, 0.0)
        if options.reweight is None:
            self._take_exponentials(z, options.limit)
        else:
            self._take_reweighted(z, options, options.reweight)

    def _take_exponentials(self, z: Tensor, limit: float) -> None:
        lowest, highest = torch.aminmax(z, dim=1)
        self._signed = not _looking_is_cheap(z) or bool((lowest.min() < -limit) | (highest.max() > limit))
        clamped = z.abs() > limit if self._signed else None
        if clamped is not None:
            z.clamp_(-limit, limit)
        self.maximum = highest.clamp(-limit, limit)
        self._exponentials = z.sub_(self.maximum.unsqueeze(1)).exp_()
        if clamped is not None:  # the sign remembers that a clamped cosine has no gradient
            self._exponentials = torch.where(clamped, -self._exponentials, self._exponentials)
        self._set_target(self._exponentials, 0.0)

    def _take_reweighted(self, z: Tensor, options: _Options, reweight: Reweight) -> None:
        with torch.enable_grad():
            z.requires_grad_()
            logits = reweight(z.clamp(-options.limit, options.limit) / options.scale) * options.scale
            (slope,) = torch.autograd.grad(logits.sum(), z)  # of each logit by its own cosine
        logits = logits.detach()
        self.maximum = logits.amax(1)
        exponentials = (logits - self.maximum.unsqueeze(1)).exp_()
        self._set_target(exponentials, 0.0)
        self._sum = exponentials.sum(1)
        self._exponentials, self._signed = exponentials.mul_(slope), False  # as the backward pass wants them

    def sum(self) -> Tensor:
        """Return the sums (B,) of the exponentials, without the target's."""
        if self._sum is not None:
            return self._sum
        return (self._exponentials.abs() if self._signed else self._exponentials).sum(1)

    def gradient(self, weights: Tensor, grad_target: Tensor) -> Tensor:
        """Turn the exponentials into the gradient (B, c * centers) of the scaled cosines, in their own memory.

        Args:
            weights: (B,) factor of each row.
            grad_target: (B,) gradient of the target's scaled cosine.
        """
        gradient = self._exponentials.clamp_min_(0) if self._signed else self._exponentials
        gradient.mul_(weights.unsqueeze(1))
        self._set_target(gradient, grad_target.unsqueeze(1))
        if self._nearest is None:
            return gradient
        spread = gradient.new_zeros(*gradient.shape, self._centers)
        return spread.scatter_(2, self._nearest.long().unsqueeze(2), gradient.unsqueeze(2)).flatten(1)

    def _set_target(self, matrix: Tensor, value: Tensor | float) -> None:
        """Write to the target's place in each row that has one in this block."""
        matrix.scatter_(1, self._column, torch.where(self._inside, value, matrix.gather(1, self._column)))
