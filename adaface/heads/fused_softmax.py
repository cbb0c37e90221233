"""Softmax over all classes without materializing the logits: all that a margin loss needs, in one pass.

A margin changes the target's logit only. The cross-entropy of a row therefore splits into its target cosine, to which
the margin is applied, and the log of the summed exponentials of all other classes, which most margins do not change:

    loss = log(exp(target) + sum over j != y of exp(s cos_j)) - target = softplus(negatives - target)

``target_and_negatives`` computes both for blocks of classes that fit into a processor's cache, so everything between
the two matrix products happens in the cache. It keeps one (B, C) buffer of exponentials for the backward pass, or, if
memory is short, recomputes them there with the same bits. A margin that changes the logits of other classes passes a
function of their cosines, ``reweight``; with several centers per class it receives the largest of their cosines.

On a CUDA GPU, Triton kernels (``heads/softmax_kernel.py``) read the buffer once in each pass. They are optional.

Source: the online softmax of Milakov and Gimelshein (arXiv 1805.02867), with the gradient of the column normalization
written out; values and gradients equal those of the plain formulas.
"""

import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

# numbers per block: on a CPU what fits its cache, on other devices enough work for each kernel launch
_BLOCK_NUMBERS_CPU = 1 << 21
_BLOCK_NUMBERS_OTHER = 1 << 26
_16_BITS = (torch.float16, torch.bfloat16)
_SMALLEST_LENGTH = 1e-12  # eps of F.normalize

Reweight = Callable[[Tensor], Tensor]


def kept_bytes(centers: int) -> int:
    """Return the number of bytes kept per sample and class from the forward to the backward pass.

    Args:
        centers: columns of each class.
    """
    return 4 if centers == 1 else 5  # a float32 number, and the index of the nearest center in 8 bits


@torch.no_grad()
def target_cosines(embeddings: Tensor, kernel: Tensor, labels: Tensor, centers: int = 1) -> Tensor:
    """Compute only the cosines between the embeddings and their own classes.

    Args:
        embeddings: (B, D) unit vectors.
        kernel: (D, C * centers) as in ``target_and_negatives``.
        labels: (B,) classes; a label outside [0, C) gets the cosine to some other class.
        centers: columns of each class.

    Returns:
        (B,) without gradient; 0 if there are no classes.
    """
    if not kernel.shape[1]:
        return embeddings.new_zeros(len(embeddings))
    classes = kernel.unflatten(1, (-1, centers))  # (D, C, centers)
    own = classes[:, labels.clamp(0, classes.shape[1] - 1)]  # (D, B, centers)
    lengths = torch.linalg.vector_norm(own, dim=0).clamp_min_(_SMALLEST_LENGTH)  # (B, centers)
    cosines = torch.einsum("bd,dbk->bk", embeddings, own) / lengths  # (B, centers)
    return cosines.amax(1)  # (B,)


@dataclass(frozen=True, kw_only=True)
class SoftmaxOptions:
    """Options of ``target_and_negatives``.

    Attributes:
        scale: s, above 0.
        eps: cosines are clamped to [-1 + eps, 1 - eps] before scaling; the target's is not clamped.
        product_dtype: dtype of the operands of the matrix products; 16 bits under autocast. The products are float32
            then, and the targets' cosines exact.
        keep_exponentials: keep (B, C) numbers for the backward pass; False recomputes them there.
        centers: columns of each class, at most ``MOST_CENTERS``; the cosine of a class is the largest of its centers'.
        reweight: maps clamped cosines (B, c) to c of the classes to their replacements, elementwise; gradient flows to
            the cosines only.
    """

    scale: float
    eps: float
    product_dtype: torch.dtype
    keep_exponentials: bool = True
    centers: int = 1
    reweight: Reweight | None = None

    @property
    def limit(self) -> float:
        """Largest absolute value of a scaled cosine after clamping."""
        return self.scale * (1 - self.eps)


def target_and_negatives(
    embeddings: Tensor, kernel: Tensor, labels: Tensor, options: SoftmaxOptions
) -> tuple[Tensor, Tensor]:
    """Compute the target cosines and the logsumexp of all other classes' scaled, clamped cosines.

    Args:
        embeddings: (B, D) unit vectors.
        kernel: (D, C), one column per class, of any length; (D, C * centers) with the centers of a class side by side.
        labels: (B,) classes in [0, C).
        options: scale, clamping, dtype and memory.

    Returns:
        Target cosines (B,), not clamped, NaN for a label out of range; and logsumexp (B,) over j != label of
        ``scale * reweight(clamp(cosine_j))``, -inf if there is only one class. Both can be differentiated once.
    """
    return _TargetAndNegatives.apply(embeddings, kernel, labels, options)


class _TargetAndNegatives(torch.autograd.Function):
    """See ``target_and_negatives``."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, kernel: Tensor, labels: Tensor, options: SoftmaxOptions
    ) -> tuple[Tensor, Tensor]:
        ctx.options = options
        # one multiplication of (B, D) instead of one of (B, C): the products below are then scaled cosines
        scaled = (embeddings * options.scale).to(options.product_dtype)  # (B, D)
        lengths = kernel.new_empty(kernel.shape[1])  # (C * centers,)
        target = embeddings.new_zeros(len(embeddings))  # (B,)
        maxima, sums, ctx.kept = [], [], []
        for columns, first_class in _blocks(embeddings, kernel, options.centers):
            lengths[columns] = torch.linalg.vector_norm(kernel[:, columns], dim=0).clamp_min_(_SMALLEST_LENGTH)
            unit = kernel[:, columns] / lengths[columns]  # (D, c * centers)
            block = _Block(scaled, unit.to(options.product_dtype), labels - first_class, options)
            target += block.target  # (B,), 0 in every block but the one that has the label's class
            maxima.append(block.maximum)  # (B,)
            sums.append(block.sum())  # (B,)
            ctx.kept.append(block if options.keep_exponentials else None)
        if options.product_dtype in _16_BITS:  # a trained network's gradient is mostly 1 - its targets' probabilities
            target = target_cosines(embeddings, kernel, labels, options.centers) * options.scale  # (B,)
        classes = kernel.shape[1] // options.centers
        # not an error: on a GPU, looking at the labels would make the step wait
        target = torch.where((labels >= 0) & (labels < classes), target / options.scale, torch.nan)  # (B,)
        empty = embeddings.new_zeros(len(embeddings), 0)  # without classes there is no block to stack
        all_maxima = torch.stack(maxima, 1) if maxima else empty  # (B, blocks)
        log_sums = torch.stack(sums, 1).log() if sums else empty  # (B, blocks)
        # each block's sum is relative to its own maximum, so that no exponential overflows
        negatives = torch.logsumexp(all_maxima + log_sums, 1)  # (B,)
        ctx.save_for_backward(embeddings, kernel, labels, lengths, all_maxima, negatives)
        return target, negatives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_target: Tensor, grad_negatives: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, kernel, labels, lengths, maxima, negatives = ctx.saved_tensors
        options: SoftmaxOptions = ctx.options
        scaled = (embeddings * options.scale).to(options.product_dtype)  # (B, D)
        # a single class has no negatives: their logsumexp is -inf, and -inf - -inf below would be NaN
        finite = torch.where(negatives.isneginf(), 0.0, negatives).unsqueeze(1)  # (B, 1)
        # turns a block's exponentials, relative to its maximum, into softmax probabilities times the gradient
        weights = grad_negatives.unsqueeze(1) * torch.exp(maxima - finite)  # (B, blocks)
        grad_embeddings = torch.zeros_like(embeddings)  # (B, D)
        grad_kernel = torch.empty_like(kernel) if ctx.needs_input_grad[1] else None  # (D, C * centers)
        for number, (columns, first_class) in enumerate(_blocks(embeddings, kernel, options.centers)):
            unit = kernel[:, columns] / lengths[columns]  # (D, c * centers)
            product_unit = unit.to(options.product_dtype)
            block = ctx.kept[number] or _Block(scaled, product_unit, labels - first_class, options)
            ctx.kept[number] = None  # its buffer is overwritten now; a second backward pass recomputes it
            grad_logits = block.gradient(weights[:, number], grad_target / options.scale, options.product_dtype)
            grad_embeddings += _product(grad_logits, product_unit.T)  # (B, D)
            if grad_kernel is not None:
                # in the kernel's memory layout: a sharded head keeps one row per class and passes the transpose
                by_rows = kernel.stride(0) == 1
                grad_unit = _product(grad_logits.T, scaled).T if by_rows else _product(scaled.T, grad_logits)
                grad_unit = grad_unit.to(unit.dtype)  # (D, c * centers)
                # of kernel / length: the part of the gradient across the column, divided by the length
                along = (unit * grad_unit).sum(0)  # (c * centers,)
                torch.div(grad_unit.addcmul_(unit, along, value=-1), lengths[columns], out=grad_kernel[:, columns])
        return grad_embeddings.mul_(options.scale), grad_kernel, None, None


def _blocks(embeddings: Tensor, kernel: Tensor, centers: int) -> Iterator[tuple[slice, int]]:
    """Cut the classes into blocks; yield the columns and the first class of each."""
    numbers = _BLOCK_NUMBERS_CPU if embeddings.device.type == "cpu" else _BLOCK_NUMBERS_OTHER
    # the larger of (B, c) and (D, c) fits; whole classes only
    width = max(1, numbers // max(embeddings.shape) // centers) * centers
    for start in range(0, kernel.shape[1], width):
        yield slice(start, min(start + width, kernel.shape[1])), start // centers


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, of 16-bit numbers in float32: 64 times a cosine in bfloat16 would be off by up to 0.125.

    Args:
        a: (M, K).
        b: (K, N), of the same dtype.

    Returns:
        (M, N), float32 or float64.
    """
    if a.dtype not in _16_BITS:
        return a @ b
    if a.device.type in ("cuda", "meta") and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)  # tensor cores add up in float32 in any case
    return a.float() @ b.float()


def _kernels_for(z: Tensor) -> ModuleType | None:
    """Return the kernels for scaled cosines; None where PyTorch's operations are used."""
    return _kernels(z.device) if z.device.type == "cuda" and z.dtype == torch.float32 else None


@functools.cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Return the module of the Triton kernels; None if there is no Triton, or it does not work on this GPU."""
    try:
        kernels = importlib.import_module("adaface.heads.softmax_kernel")
        kernels.try_out(device)
    except Exception as error:  # such as no C compiler, or a GPU that Triton does not support
        reason = str(error).strip().splitlines()
        logger.info(f"the softmax is computed without Triton: {type(error).__name__} {reason[0] if reason else ''}")
        return None
    return kernels


def _looking_is_cheap(tensor: Tensor) -> bool:
    """Return whether a value can be read without synchronizing with a device."""
    return tensor.device.type == "cpu"


class _Block:
    """Exponentials of the scaled cosines between all embeddings and a block of c classes; with kernels, the cosines.

    Args:
        scaled: (B, D) embeddings times s.
        unit: (D, c * centers) unit columns.
        local: (B,) labels relative to the block's first class; most are outside the block.
        options: of ``target_and_negatives``.

    Attributes:
        target: (B,) scaled cosine of the target, 0 if its class is not in this block.
        maximum: (B,) subtracted before the exponentials were taken.
    """

    def __init__(self, scaled: Tensor, unit: Tensor, local: Tensor, options: SoftmaxOptions) -> None:
        z = _product(scaled, unit)  # (B, c * centers)
        self._nearest: Tensor | None = None
        self._sum: Tensor | None = None
        if options.centers > 1:
            z, nearest = z.unflatten(1, (-1, options.centers)).max(2)  # both (B, c)
            self._nearest, self._centers = nearest.to(torch.uint8), options.centers
        self._inside = ((local >= 0) & (local < z.shape[1])).unsqueeze(1)  # (B, 1)
        self._column = local.clamp(0, z.shape[1] - 1).unsqueeze(1)  # (B, 1)
        self.target = torch.where(self._inside, z.gather(1, self._column), 0.0).squeeze(1)  # (B,)
        self._kernels = _kernels_for(z) if options.reweight is None else None
        if self._kernels is not None:
            self._z, self._local, self._limit = z, local, options.limit
            self.maximum, self._sum = self._kernels.maxima_and_sums(z, local, options.limit)
            return
        # keeps the target out of the maximum; its exponential is set to 0 below
        self._set_target(z, 0.0)
        if options.reweight is None:
            self._take_exponentials(z, options.limit)
        else:
            self._take_reweighted(z, options, options.reweight)

    def _take_exponentials(self, z: Tensor, limit: float) -> None:
        """Compute the exponentials of z (B, c), in its own memory where no cosine is clamped."""
        lowest, highest = torch.aminmax(z, dim=1)  # (B,) each
        # without reading the values, assume that some cosine is beyond the limit: same result, slightly slower
        self._signed = not _looking_is_cheap(z) or bool((lowest.min() < -limit) | (highest.max() > limit))
        clamped = z.abs() > limit if self._signed else None  # (B, c)
        if clamped is not None:
            z.clamp_(-limit, limit)
        self.maximum = highest.clamp(-limit, limit)  # (B,)
        self._exponentials = z.sub_(self.maximum.unsqueeze(1)).exp_()  # (B, c)
        if clamped is not None:  # a negative sign marks a clamped cosine, which has no gradient
            self._exponentials = torch.where(clamped, -self._exponentials, self._exponentials)
        self._set_target(self._exponentials, 0.0)

    def _take_reweighted(self, z: Tensor, options: SoftmaxOptions, reweight: Reweight) -> None:
        """Compute the exponentials of the reweighted z (B, c), times the slope that the chain rule adds."""
        with torch.enable_grad():
            z.requires_grad_()
            logits = reweight(z.clamp(-options.limit, options.limit) / options.scale) * options.scale  # (B, c)
            # elementwise, so the gradient of the sum is each logit's derivative by its own cosine
            (slope,) = torch.autograd.grad(logits.sum(), z)  # (B, c)
        logits = logits.detach()
        self.maximum = logits.amax(1)  # (B,)
        exponentials = (logits - self.maximum.unsqueeze(1)).exp_()  # (B, c)
        self._set_target(exponentials, 0.0)
        self._sum = exponentials.sum(1)  # (B,), before the slope is multiplied in
        self._exponentials, self._signed = exponentials.mul_(slope), False  # the factor of the backward pass

    def sum(self) -> Tensor:
        """Return the sums (B,) of the exponentials, without the target's."""
        if self._sum is not None:
            return self._sum
        return (self._exponentials.abs() if self._signed else self._exponentials).sum(1)

    def gradient(self, weights: Tensor, grad_target: Tensor, dtype: torch.dtype) -> Tensor:
        """Turn the exponentials into the gradient (B, c * centers) of the scaled cosines; they are overwritten.

        Args:
            weights: (B,) factor of each row.
            grad_target: (B,) gradient of the target's scaled cosine.
            dtype: of the result.
        """
        if self._kernels is not None:
            gradient = self._kernels.gradient(
                self._z, self._local, self.maximum, weights, grad_target, self._limit, dtype
            )  # (B, c)
        else:
            gradient = self._exponentials.clamp_min_(0) if self._signed else self._exponentials  # (B, c)
            gradient.mul_(weights.unsqueeze(1))
            self._set_target(gradient, grad_target.unsqueeze(1))
            gradient = gradient.to(dtype)
        if self._nearest is None:
            return gradient
        # max passes the gradient to the nearest center only
        spread = gradient.new_zeros(*gradient.shape, self._centers)  # (B, c, centers)
        spread.scatter_(2, self._nearest.long().unsqueeze(2), gradient.unsqueeze(2))
        return spread.flatten(1)  # (B, c * centers)

    def _set_target(self, matrix: Tensor, value: Tensor | float) -> None:
        """Write value to the target's column in each row (B, c) whose target is in this block."""
        # rows without one get back what is there: a write of the same number, without selecting rows
        matrix.scatter_(1, self._column, torch.where(self._inside, value, matrix.gather(1, self._column)))
