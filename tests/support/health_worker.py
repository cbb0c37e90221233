"""One of several processes that put the numbers of their shards together, for test_health.py."""

from pathlib import Path

import torch
import torch.distributed as dist

from adaface.heads.sharded_optimizer import gradient_norm
from adaface.training.health import Distribution, _over_all_processes


def main(rank: int, world: int, folder: Path) -> int:
    """Write the gradient norm over all shards, and the distribution over all processes, to a file of this process."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    whole, part = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    whole.grad, part.grad = torch.tensor([1.0, 2.0]), torch.tensor([3.0 + rank, 0.5])
    norm = gradient_norm([whole, part], [part]).item()
    own = Distribution.merged([(2.0, 10.0 * rank, 2.0, 10.0 * rank - 1, 10.0 * rank + 1, float(rank))])
    (shared,) = _over_all_processes([own], torch.device("cpu"))
    torch.save([norm, *shared], folder / f"outcome_{rank}.pt")
    return 0
