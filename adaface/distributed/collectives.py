"""Collectives over the batches of all processes, in the default process group; they also work with one process.

None of them synchronizes a GPU with its host, except ``gather_rows``: checks of values are done on the CPU only.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes W; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process in [0, W)."""
    return dist.get_rank() if world_size() > 1 else 0


def check_batch_sizes(number: int, device: torch.device) -> None:
    """Raise ValueError in every process if the batches of the processes have different sizes.

    Checked on the CPU only: on a GPU it would synchronize each step, and the training sampler yields batches of equal
    size.

    Args:
        number: samples in the batch of this process, B.
        device: of the batch.
    """
    if world_size() == 1 or device.type != "cpu":
        return
    numbers = _numbers(number, device)
    if len(set(numbers)) > 1:
        raise ValueError(
            f"the processes have batches of {numbers} samples, but loss and statistics over all of them need equal "
            "sizes: give each process the same number of samples"
        )


def gather_batch(rows: Tensor) -> Tensor:
    """Gather the rows of all processes in the order of their ranks; all must have as many (``check_batch_sizes``).

    Args:
        rows: (B, ...) without gradient.

    Returns:
        (W * B, ...); the rows themselves with one process.
    """
    if world_size() == 1:
        return rows
    gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])  # (W * B, ...)
    dist.all_gather_single(gathered, rows.contiguous())
    return gathered


def gather_labels_and_norms(labels: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Gather labels and norms of all processes, as ``gather_batch`` does, in one exchange.

    Args:
        labels: (B,) int64.
        norms: (B, 1) float32 or float64, without gradient.

    Returns:
        Labels (W * B,) and norms (W * B, 1).
    """
    if world_size() == 1:
        return labels, norms
    bits = norms.double().view(torch.int64)  # (B, 1), exact
    gathered = gather_batch(torch.cat([labels.unsqueeze(1), bits], 1))  # (W * B, 2)
    return gathered[:, 0].contiguous(), gathered[:, 1:].contiguous().view(torch.float64).to(norms.dtype)


def gather_rows(rows: Tensor) -> Tensor:
    """Gather the rows of all processes in the order of their ranks; their numbers may differ.

    Args:
        rows: (N, ...) without gradient.

    Returns:
        (sum of the N, ...).
    """
    if world_size() == 1:
        return rows
    counts = _numbers(len(rows), rows.device)
    # all_gather needs tensors of one shape: pad to the longest, then cut
    padded = torch.cat([rows, rows.new_zeros((max(counts) - len(rows), *rows.shape[1:]))])
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def _numbers(number: int, device: torch.device) -> list[int]:
    """Gather a number of every process."""
    numbers = torch.empty(world_size(), dtype=torch.long, device=device)
    dist.all_gather_single(numbers, torch.tensor([number], device=device))
    return numbers.tolist()
