"""One process that writes or reads the checkpoint of a sharded head, for test_sharded.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from adaface.checkpoints import sharded
from adaface.checkpoints.files import REST, load_checkpoint
from adaface.checkpoints.sharded import fill_in_head, name_save, strip_head, write_head
from adaface.heads.partial_fc import build_sharded_head

D, B = 8, 12


def checkpoint_of(head: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What Lightning would save of a model that is a head alone."""
    state = {f"head.{key}": value for key, value in head.state_dict().items()}
    return {"state_dict": state, "optimizer_states": [optimizer.state_dict()], "adaface": {}}


def trained(
    classes: int, name: str = "sgd", head_type: str = "adaface"
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A head after two steps, the same whatever the number of processes."""
    torch.manual_seed(3)
    head = build_sharded_head(head_type, D, classes, 0.4, 0.01, 0.333, 64.0)
    parameters = [torch.nn.Parameter(torch.zeros(2)), head.kernel]  # the backbone's come first
    adam = torch.optim.AdamW(parameters, lr=0.1)
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9) if name == "sgd" else adam
    W, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    share = slice(rank * (B // W), (rank + 1) * (B // W))
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        embeddings = F.normalize(torch.randn(B, D, generator=generator))[share]
        norms, labels = torch.rand(B, 1, generator=generator)[share] * 20, (torch.arange(B) % classes)[share]
        optimizer.zero_grad()
        head.loss(embeddings, norms, labels).backward()
        optimizer.step()
    return head, optimizer


def as_with_cuda(function: Callable) -> Callable:
    """A function that finds a CUDA GPU: PyTorch then makes groups of its own for a mesh of gloo."""

    def call(*words: Any) -> Any:
        with mock.patch("torch.cuda.is_available", return_value=True):
            return function(*words)

    return call


def main(action: str, rank: int, world: int, classes: int, folder: Path, store: Path, head_type: str) -> int:
    """Join the others, train, and "write" the checkpoint, "read" one, "refuse" it, or count the process "groups"."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    head, optimizer = trained(classes, head_type=head_type)
    if action == "write":
        checkpoint = checkpoint_of(head, optimizer)
        strip_head(checkpoint, head, optimizer)
        name_save(checkpoint, folder)
        if rank == 0:
            torch.save(checkpoint, folder / REST)
        write_head(folder, head, optimizer)
    elif action == "groups":
        sharded._global = as_with_cuda(sharded._global)
        for number in range(3):
            write_head(folder / str(number), head, optimizer)
            groups = dist.distributed_c10d._world.pg_map
            assert len(groups) == 1, f"{len(groups)} process groups after {number + 1} checkpoints"
    elif action == "refuse":
        with pytest.raises(ValueError, match=r"shard-00002-\S*safetensors is damaged: its checksum"):
            fill_in_head(load_checkpoint(folder), head)
    else:
        expected = checkpoint_of(head, optimizer)
        read = load_checkpoint(folder)
        fill_in_head(read, head)
        # two trainings with other numbers of processes: equal to rounding
        tolerance = {"rtol": 1e-3, "atol": 1e-4}
        for key, value in expected["state_dict"].items():
            torch.testing.assert_close(read["state_dict"][key], value, **tolerance, msg=key)
        mine, theirs = (c["optimizer_states"][0]["state"][1]["momentum_buffer"] for c in (expected, read))
        torch.testing.assert_close(theirs, mine, **tolerance)
        assert theirs.shape == head.kernel.shape
        assert theirs.is_contiguous()
    return 0
