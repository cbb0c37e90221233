"""Triton kernels of the softmax over a block of classes: each reads a (B, c) matrix of scaled cosines once.

PyTorch's own operations read and write that matrix some ten times on a GPU (``heads/fused_softmax.py``, which is the
reference). Importing this module needs the package triton, which comes with PyTorch's wheels for CUDA.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 4096  # of one program, in its registers
_WARPS = 8


# without annotations, which Triton would compile


@triton.jit
def _maxima_and_sums_kernel(z, labels, maxima, sums, columns, limit, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    counted = (column < columns) & (column != tl.load(labels + row))
    value = tl.load(z + row * columns + column, mask=counted, other=0.0)
    # comparisons, since minimum and maximum would replace a NaN
    value = tl.where(value > limit, limit, tl.where(value < -limit, -limit, value))
    maximum = tl.maximum(tl.max(tl.where(counted, value, -limit), axis=0), -limit)
    total = tl.sum(tl.where(counted, tl.exp(value - maximum), 0.0), axis=0)
    place = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(maxima + place, maximum)
    tl.store(sums + place, total)


@triton.jit
def _gradient_kernel(z, labels, numbers, gradient, columns, limit, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < columns
    maximum, weight, of_target = (
        tl.load(numbers + 3 * row),
        tl.load(numbers + 3 * row + 1),
        tl.load(numbers + 3 * row + 2),
    )
    value = tl.load(z + row * columns + column, mask=inside, other=0.0)
    # a clamped cosine has no gradient
    slope = tl.where((value > limit) | (value < -limit), 0.0, tl.exp(value - maximum) * weight)
    slope = tl.where(column == tl.load(labels + row), of_target, slope)
    tl.store(gradient + row * columns + column, slope.to(gradient.dtype.element_ty), mask=inside)


def maxima_and_sums(z: Tensor, labels: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Return the largest clamped cosine of each row, and the sum of the exponentials relative to it.

    Args:
        z: (B, c) float32 scaled cosines, contiguous.
        labels: (B,) int64 columns that do not count; outside [0, c) there is none.
        limit: cosines are clamped to [-limit, limit].

    Returns:
        Maxima (B,), ``-limit`` if no column counts, and sums (B,).
    """
    B, c = z.shape
    parts = triton.cdiv(c, _COLUMNS)
    maxima, sums = z.new_empty(B, parts), z.new_empty(B, parts)
    _maxima_and_sums_kernel[(B, parts)](
        z, labels.contiguous(), maxima, sums, c, limit, WIDTH=_COLUMNS, num_warps=_WARPS
    )
    maximum = maxima.amax(1)  # (B,)
    return maximum, sums.mul_(maxima.sub_(maximum.unsqueeze(1)).exp_()).sum(1)


def gradient(
    z: Tensor, labels: Tensor, maxima: Tensor, weights: Tensor, of_targets: Tensor, limit: float, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of the scaled cosines; in their own memory if it has their dtype.

    Args:
        z: as in ``maxima_and_sums``.
        labels: as there.
        maxima: (B,) of there.
        weights: (B,) factor of each row's exponentials.
        of_targets: (B,) gradient in the column of the label.
        limit: as there; beyond it the gradient is 0.
        dtype: of the result.

    Returns:
        (B, c).
    """
    B, c = z.shape
    result = z if dtype == z.dtype else torch.empty(B, c, dtype=dtype, device=z.device)
    numbers = torch.stack((maxima, weights, of_targets), 1)  # (B, 3)
    _gradient_kernel[(B, triton.cdiv(c, _COLUMNS))](
        z, labels.contiguous(), numbers, result, c, limit, WIDTH=_COLUMNS, num_warps=_WARPS
    )
    return result


def try_out(device: torch.device) -> None:
    """Compile and run the kernels on a small problem; this waits for the device.

    Args:
        device: where.

    Raises:
        RuntimeError: the results are wrong; Triton raises others where it cannot compile.
    """
    z = torch.tensor([[0.5, -9.0, 2.0], [1.0, 2.0, 9.0]], device=device)  # (2, 3)
    labels, ones = torch.tensor([2, -1], device=device), torch.ones(2, device=device)
    maxima, sums = maxima_and_sums(z, labels, 3.0)
    expected = torch.tensor([[0.5, -3.0, -torch.inf], [1.0, 2.0, 3.0]], device=device)
    probabilities = torch.where(z.abs() > 3.0, 0.0, expected.softmax(1))
    probabilities[0, 2] = 1.0
    close = torch.isclose(maxima + sums.log(), expected.logsumexp(1), rtol=1e-5).all()
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float16, 1e-3), (torch.float32, 1e-5)):
        result = gradient(z, labels, maxima, 1 / sums, ones, 3.0, dtype)
        close &= torch.isclose(result.float(), probabilities, rtol=tolerance).all()
    if not close:
        raise RuntimeError("the results of the kernels are wrong")
