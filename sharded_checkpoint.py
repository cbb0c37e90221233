"""A sharded head in the official single-file checkpoint: gathered for writing, cut for reading.

The file is that of a dense head, ``head.kernel`` and its momentum (D, C), so that it loads with any number of
processes, sharded or not, here and in the official code. Rank 0 holds the whole head in its CPU's memory while it
writes, each other process while it reads.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from collectives import rank, world_size
from partial_fc import PartialFC, shard_range

KERNEL = "head.kernel"


def gather_head(checkpoint: dict[str, Any], head: PartialFC, optimizer: torch.optim.Optimizer) -> None:
    """Put the whole head and its optimiser states into the checkpoint of rank 0; called in all processes.

    Args:
        checkpoint: of Lightning, changed in place; that of the other ranks is not written and stays as it is.
        head: this process's part.
        optimizer: the one whose states are the checkpoint's first.
    """
    weights = head.kernel.detach()
    whole = _gather(weights, head)
    if whole is not None:
        checkpoint["state_dict"][KERNEL] = whole
    saved = checkpoint["optimizer_states"][0]
    number = _place_of(head, optimizer)
    state = dict(saved["state"].get(number, {}))
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == weights.shape:
            whole = _gather(value, head)
            state[name] = value if whole is None else whole
    if state:  # a new dictionary: the saved one is the optimiser's own
        checkpoint["optimizer_states"][0] = {**saved, "state": {**saved["state"], number: state}}


def cut_head(checkpoint: dict[str, Any], head: PartialFC, optimizer: torch.optim.Optimizer) -> None:
    """Cut this process's part out of the optimiser states of a checkpoint; the weights, ``load_state_dict`` cuts.

    Args:
        checkpoint: as read from a file, changed in place.
        head: this process's part.
        optimizer: one with the parameters in the order of the run's; its states are not looked at.
    """
    columns = checkpoint["state_dict"][KERNEL].shape  # (D, C)
    state = checkpoint["optimizer_states"][0]["state"].get(_place_of(head, optimizer), {})
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == columns:
            state[name] = head.shard_of(value).contiguous()  # (K, D)


def _place_of(head: PartialFC, optimizer: torch.optim.Optimizer) -> int:
    """Return the number under which an optimiser's state dict keeps the head's weights."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return next(number for number, parameter in enumerate(parameters) if parameter is head.kernel)


def _gather(rows: Tensor, head: PartialFC) -> Tensor | None:
    """Return the columns (D, C) of all processes on rank 0's CPU, None in the others; one shard travels at a time."""
    if rank() > 0:
        if len(rows):
            dist.send(rows.contiguous(), 0)
        return None
    whole = torch.empty(rows.shape[1], head.class_num, dtype=rows.dtype)  # (D, C)
    for number in range(world_size()):
        first, end = shard_range(head.class_num, number, world_size())
        part = rows
        if number and end > first:
            part = rows.new_empty(end - first, rows.shape[1])
            dist.recv(part, number)
        if end > first:
            whole[:, first:end] = part.t()
    return whole
