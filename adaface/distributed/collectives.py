"""What the processes of a run tell each other about their batches, on the default process group; one process is fine.

Nothing here waits on a GPU for its host: what needs a look at numbers is looked at on the CPU only.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes W; 1 where no process group has been made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return dist.get_rank() if world_size() > 1 else 0


def check_batch_sizes(number: int, device: torch.device) -> None:
    """Raise ValueError, in every process, where the processes bring batches of different sizes.

    Looked at on the CPU only: on a GPU looking would make each step wait, and the sampler of the training data makes
    batches of one size.

    Args:
        number: samples in the batch of this process, B.
        device: of the batch.
    """
    if world_size() == 1 or device.type != "cpu":
        return
    numbers = _numbers(number, device)
    if len(set(numbers)) > 1:
        raise ValueError(
            f"the processes have batches of {numbers} samples; loss and statistics over all of them need batches of "
            "one size: give each process the same number"
        )


def gather_batch(rows: Tensor) -> Tensor:
    """Return the rows of all processes, process by process; each brings the same number (``check_batch_sizes``).

    Args:
        rows: (B, ...) without gradient.

    Returns:
        (W * B, ...); the rows themselves where there is one process.
    """
    if world_size() == 1:
        return rows
    gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_single(gathered, rows.contiguous())
    return gathered


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, process by process; they may bring different numbers.

    Args:
        rows: (N, ...) without gradient.

    Returns:
        (sum of the N, ...).
    """
    if world_size() == 1:
        return rows
    counts = _numbers(len(rows), rows.device)
    padded = torch.cat([rows, rows.new_zeros((max(counts) - len(rows), *rows.shape[1:]))])
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def _numbers(number: int, device: torch.device) -> list[int]:
    """Return this number of every process."""
    numbers = torch.empty(world_size(), dtype=torch.long, device=device)
    dist.all_gather_single(numbers, torch.tensor([number], device=device))
    return numbers.tolist()
