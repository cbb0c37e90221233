"""The softmax over all classes without its logits: what a margin loss needs of the (B, C) matrix, in one pass over it.

A margin changes the target's logit alone. So the cross-entropy of a row splits into its target cosine, on which the
margin does its arithmetic, and the log of the summed exponentials of all other classes, which no margin touches:

    loss = log(exp(target) + sum over j != y of exp(s cos_j)) - target = softplus(negatives - target)

``target_and_negatives`` computes both for blocks of classes that fit a processor's cache, so that everything between
two matrix products happens there. What is kept for the backward pass is one (B, C) buffer of exponentials, or nothing
where memory is short: they are then computed again, to the same bits.

Source: the online softmax of Milakov and Gimelshein (arXiv 1805.02867), and the gradient of the column normalisation
written out; values and gradients are those of the plain formulas.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# numbers in a block: on a CPU what its cache holds, elsewhere enough work for each launch
_BLOCK_NUMBERS_CPU = 1 << 21
_BLOCK_NUMBERS_OTHER = 1 << 26
_SMALLEST_LENGTH = 1e-12  # of F.normalize


def target_and_negatives(
    embeddings: Tensor,
    kernel: Tensor,
    labels: Tensor,
    *,
    scale: float,
    eps: float,
    product_dtype: torch.dtype,
    keep_exponentials: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute the target cosines and the logsumexp of all other classes' scaled, clamped cosines.

    Args:
        embeddings: (B, D) unit vectors.
        kernel: (D, C) one column a class, of any length.
        labels: (B,) classes in [0, C).
        scale: s, above 0.
        eps: cosines are clamped to [-1 + eps, 1 - eps] before they are scaled; the target's is not clamped.
        product_dtype: of the operands of the matrix products; 16 bits under autocast.
        keep_exponentials: keep (B, C) numbers for the backward pass; False: compute them again there.

    Returns:
        Target cosines (B,), not clamped, NaN for a label out of range; and logsumexp (B,) over j != label of
        ``scale * clamp(cosine_j)``, -inf where there is one class. Both can be differentiated once.
    """
    return _TargetAndNegatives.apply(embeddings, kernel, labels, scale, eps, product_dtype, keep_exponentials)


class _TargetAndNegatives(torch.autograd.Function):
    """See ``target_and_negatives``."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        kernel: Tensor,
        labels: Tensor,
        scale: float,
        eps: float,
        product_dtype: torch.dtype,
        keep_exponentials: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.scale, ctx.limit, ctx.product_dtype = scale, scale * (1 - eps), product_dtype
        scaled = (embeddings * scale).to(product_dtype)  # (B, D)
        lengths = kernel.new_empty(kernel.shape[1])  # (C,)
        target = embeddings.new_zeros(len(embeddings))  # (B,)
        maxima, sums, ctx.kept = [], [], []
        for columns in _blocks(embeddings, kernel):
            lengths[columns] = torch.linalg.vector_norm(kernel[:, columns], dim=0).clamp_min_(_SMALLEST_LENGTH)
            unit = kernel[:, columns] / lengths[columns]  # (D, c)
            block = _Block(scaled, unit.to(product_dtype), labels - columns.start, ctx.limit)
            target += block.target
            maxima.append(block.maximum)
            sums.append(block.sum())
            ctx.kept.append(block if keep_exponentials else None)
        target = torch.where((labels >= 0) & (labels < kernel.shape[1]), target / scale, torch.nan)
        none = [embeddings.new_zeros(len(embeddings), 0)]  # of no classes at all there is no block
        all_maxima = torch.stack(maxima, 1) if maxima else none[0]  # (B, blocks)
        negatives = torch.logsumexp(all_maxima + (torch.stack(sums, 1).log() if sums else none[0]), 1)  # (B,)
        ctx.save_for_backward(embeddings, kernel, labels, lengths, all_maxima, negatives)
        return target, negatives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_target: Tensor, grad_negatives: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, kernel, labels, lengths, maxima, negatives = ctx.saved_tensors
        scaled = (embeddings * ctx.scale).to(ctx.product_dtype)  # (B, D)
        # of a single class there are no negatives: -inf, and nothing to weigh
        weights = grad_negatives.unsqueeze(1) * torch.exp(maxima - negatives.clamp_min(-ctx.limit).unsqueeze(1))
        grad_embeddings = torch.zeros_like(embeddings)
        grad_kernel = torch.empty_like(kernel) if ctx.needs_input_grad[1] else None
        for number, columns in enumerate(_blocks(embeddings, kernel)):
            unit = kernel[:, columns] / lengths[columns]  # (D, c)
            product_unit = unit.to(ctx.product_dtype)
            block = ctx.kept[number] or _Block(scaled, product_unit, labels - columns.start, ctx.limit)
            ctx.kept[number] = None  # its buffer is used up; a second backward computes it again
            grad_logits = block.gradient(weights[:, number], grad_target / ctx.scale).to(ctx.product_dtype)  # (B, c)
            grad_embeddings += grad_logits @ product_unit.T
            if grad_kernel is not None:
                # (D, c), in the kernel's layout: of rows of classes, as a sharded head has them, the other product
                by_rows = kernel.stride(0) == 1
                grad_unit = (grad_logits.T @ scaled).T if by_rows else scaled.T @ grad_logits
                grad_unit = grad_unit.to(unit.dtype)
                along = (unit * grad_unit).sum(0)  # (c,)
                torch.div(grad_unit.addcmul_(unit, along, value=-1), lengths[columns], out=grad_kernel[:, columns])
        return grad_embeddings.mul_(ctx.scale), grad_kernel, None, None, None, None, None


def _blocks(embeddings: Tensor, kernel: Tensor) -> Iterator[slice]:
    """Cut the classes into blocks of columns."""
    numbers = _BLOCK_NUMBERS_CPU if embeddings.device.type == "cpu" else _BLOCK_NUMBERS_OTHER
    width = max(1, numbers // max(embeddings.shape))
    for start in range(0, kernel.shape[1], width):
        yield slice(start, min(start + width, kernel.shape[1]))


def _looking_is_cheap(tensor: Tensor) -> bool:
    """Whether a number can be read without making a device wait for its host."""
    return tensor.device.type == "cpu"


class _Block:
    """Exponentials of the scaled cosines between all embeddings and a block of c classes.

    Args:
        scaled: (B, D) embeddings times s.
        unit: (D, c) unit columns.
        local: (B,) labels counted from the block's first class; most lie outside of it.
        limit: of the scaled cosines, on either side.

    Attributes:
        target: (B,) scaled cosine of the target, 0 where it is not in this block.
        maximum: (B,) what was subtracted before the exponentials were taken.
    """

    def __init__(self, scaled: Tensor, unit: Tensor, local: Tensor, limit: float) -> None:
        z = scaled @ unit  # (B, c)
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        self._inside = ((local >= 0) & (local < z.shape[1])).unsqueeze(1)  # (B, 1)
        self._column = local.clamp(0, z.shape[1] - 1).unsqueeze(1)  # (B, 1)
        self.target = torch.where(self._inside, z.gather(1, self._column), 0.0).squeeze(1)
        self._set_target(z, 0.0)
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

    def sum(self) -> Tensor:
        """Return the sums (B,) of the exponentials, without the target's."""
        return (self._exponentials.abs() if self._signed else self._exponentials).sum(1)

    def gradient(self, weights: Tensor, grad_target: Tensor) -> Tensor:
        """Turn the exponentials into the gradient (B, c) of the scaled cosines, in their own memory.

        Args:
            weights: (B,) factor of each row.
            grad_target: (B,) gradient of the target's scaled cosine.
        """
        gradient = self._exponentials.clamp_min_(0) if self._signed else self._exponentials
        gradient.mul_(weights.unsqueeze(1))
        self._set_target(gradient, grad_target.unsqueeze(1))
        return gradient

    def _set_target(self, matrix: Tensor, value: Tensor | float) -> None:
        """Write to the target's place in each row that has one in this block."""
        matrix.scatter_(1, self._column, torch.where(self._inside, value, matrix.gather(1, self._column)))
