"""Gradients of which each process holds a part: their norm, their clipping, and what to do where they overflow.

The backbone's gradients are the same in all processes, averaged by DistributedDataParallel; a sharded head's are each
process's own. What is decided from all of them has to be decided alike everywhere.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collectives import world_size
from touched_rows import coalesce_gradient

_SMALLEST_NORM = 1e-6  # of torch.nn.utils.clip_grad_norm_
_PIECE = 1 << 18


def gradient_norm(parameters: Iterable[nn.Parameter], shards: Iterable[nn.Parameter] = ()) -> Tensor:
    """Return the L2 norm of the gradient of the whole model, the same in all processes.

    Args:
        parameters: all of this process; those without a gradient count as 0. Sparse gradients are coalesced.
        shards: those of them of which the other processes hold other parts.

    Returns:
        Scalar, on the device of the gradients.
    """
    of_shards = {id(parameter) for parameter in shards}
    own: list[Tensor] = []
    shared: list[Tensor] = []
    for parameter in parameters:
        coalesce_gradient(parameter)
        if parameter.grad is not None:
            (own if id(parameter) in of_shards else shared).append(_numbers(parameter.grad))
    square = _square(own).to((own + shared)[0].device) if own or shared else _square(own)
    if of_shards and world_size() > 1:
        dist.all_reduce(square)
    return (square + _square(shared).to(square)).sqrt()


def _square(gradients: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all numbers."""
    if not gradients:
        return torch.zeros(())
    if gradients[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(gradients).square()
    # PyTorch's norm adds a long vector up one by one on a CPU, and loses 3e-3 of 43 million numbers
    pieces = [piece for gradient in gradients for piece in gradient.reshape(-1).split(_PIECE)]
    return torch.stack([torch.dot(piece, piece) for piece in pieces]).double().sum().to(gradients[0].dtype)


def clip_gradient(parameters: Iterable[nn.Parameter], shards: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradient of the whole model down to a norm, in place, as ``torch.nn.utils.clip_grad_norm_`` does.

    Args:
        parameters: all of this process.
        shards: those of them of which the other processes hold other parts.
        largest: norm, above 0.

    Returns:
        The norm before.
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters, shards)
    factor = (largest / (norm + _SMALLEST_NORM)).clamp(max=1.0)
    gradients = [_numbers(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, factor)
    return norm


def _numbers(gradient: Tensor) -> Tensor:
    """Return the numbers of a gradient, sparse (and coalesced) or dense, sharing its memory."""
    return gradient._values() if gradient.is_sparse else gradient


def start_momentum_at_zero(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD its momentum before its first step, where it has none.

    It makes it from memory as it finds it, and a first step that the loss scaler skips leaves that there for the next
    one (PyTorch 2.13). A first step from zero has the same bits.

    Args:
        optimizer: its states are added to; one other than fused SGD with momentum stays as it is.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["fused"] and group["momentum"] else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class AgreedGradScaler(torch.amp.GradScaler):
    """A loss scaler that skips a step, and lowers its scale, in all processes where the gradient of one is not finite.

    PyTorch's ``ShardedGradScaler`` agrees in ``unscale_`` alone, which fused optimisers do not go through: there each
    process would skip, or not skip, by its own shard.
    """

    def _unscale_grads_(self, *args: Any, **kwargs: Any) -> dict[torch.device, Tensor]:
        found = super()._unscale_grads_(*args, **kwargs)
        if world_size() > 1:
            for number in found.values():
                dist.all_reduce(number, dist.ReduceOp.MAX)
        return found
