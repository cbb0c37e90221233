"""One process of those whose memory `bench.partial_fc` measures.

    python -m bench._head_memory HEAD CLASSES RANK PROCESSES FOLDER

Takes two steps with a dense or sharded head and prints the bytes by which its memory rose at most, a batch of a few
samples included.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch.nn import functional as F

from adaface.distributed.startup import run_and_leave
from adaface.heads.margins import build_head
from adaface.heads.partial_fc import build_sharded_head
from bench import timing

D = 512
_BATCH = 4  # so that what depends on it is small


def main(kind: str, classes: int, rank: int, processes: int, folder: str) -> int:
    """Measure and print; return 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{kind}{processes}", rank=rank, world_size=processes)
    take_steps(kind, 8 * processes)  # what PyTorch allocates at the first step of any size
    dist.barrier()
    before = timing._reset_peak()
    take_steps(kind, classes)
    print(json.dumps({"peak_bytes": timing._memory("VmHWM") - before}))
    dist.barrier()
    return 0


def take_steps(kind: str, classes: int) -> None:
    """Build a head of C classes and take two steps."""
    embeddings = F.normalize(torch.randn(_BATCH, D)).requires_grad_()
    norms, labels = torch.full((_BATCH, 1), 20.0), torch.arange(_BATCH)
    build = build_head if kind == "dense" else build_sharded_head
    head = build("adaface", D, classes, 0.4, 0.01, 0.333, 64.0)
    head.keep_exponentials = False
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        head.loss(embeddings, norms, labels).backward()
        optimizer.step()


if __name__ == "__main__":
    kind, *numbers, folder = sys.argv[1:]
    sys.exit(run_and_leave(lambda: main(kind, *map(int, numbers), folder)))
