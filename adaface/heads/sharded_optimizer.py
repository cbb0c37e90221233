"""Optimizer steps for a head with sampled or sharded classes: touched rows, gradient norm, clipping, loss scaling.

**Sampled classes.** Most rows of the head have no gradient in a step. Their weights and momentum stay unchanged:
neither weight decay nor old momentum is applied to them. For the step, the matrix, its gradient and all optimizer
states of its shape are replaced by their touched rows. This works with any elementwise optimizer, fused ones included,
and takes the time and memory of the touched rows only.

**Sharded classes.** The backbone's gradients are the same in all processes, averaged by DistributedDataParallel; those
of a sharded head differ. Decisions that depend on all gradients (clipping, skipped steps) must agree in all processes.

Source: the sampled momentum of An et al., CVPR 2022, arXiv 2203.15565, made independent of the optimizer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adaface.distributed.collectives import world_size

_SMALLEST_NORM = 1e-6  # as in torch.nn.utils.clip_grad_norm_
_PIECE = 1 << 18  # numbers whose squares are summed in float32


def step_on_touched_rows(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Make an optimizer update only the rows that have a gradient in parameters with sparse gradients.

    Args:
        optimizer: elementwise (each number's update depends on its own past, as in SGD and AdamW), with states that
            start at zero. Hooks are added to it.
        parameters: (K, D) each; one with a dense gradient is updated as usual. The gradient is coalesced by the step.
    """
    watched = list(parameters)
    exchanged: list[_Exchange] = []

    def exchange(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        args, kwargs = _after_closure(args, kwargs)
        for parameter in watched:
            if parameter.grad is not None and parameter.grad.is_sparse:
                exchanged.append(_take_rows(parameter, optimizer.state.get(parameter, {})))
        return args, kwargs

    def put_back(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        while exchanged:
            _put_rows_back(exchanged.pop(), optimizer.state)

    optimizer.register_step_pre_hook(exchange)
    optimizer.register_step_post_hook(put_back)


def coalesce_gradient(parameter: nn.Parameter) -> None:
    """Coalesce a sparse gradient in place; a dense one is not changed.

    Args:
        parameter: with a gradient. Its attribute ``sampled_rows``, if it has one, is the sorted and unique indices that
            the latest forward pass took.
    """
    grad = parameter.grad
    if grad is None or not grad.is_sparse or grad.is_coalesced():
        return
    # the rows of one batch are sorted and unique, which autograd does not record: no need to sort and copy them
    rows, sampled = grad._indices()[0], getattr(parameter, "sampled_rows", None)
    of_one_batch = sampled is not None and rows.data_ptr() == sampled.data_ptr()  # several have a tensor of their own
    # reading values makes the step wait for a GPU
    in_order = of_one_batch or bool((rows[1:] > rows[:-1]).all())
    parameter.grad = grad._coalesced_(True) if in_order else grad.coalesce()


@dataclass
class _Exchange:
    """A parameter's tensors before they were replaced by their touched rows."""

    parameter: nn.Parameter
    weights: Tensor  # (K, D)
    gradient: Tensor  # (K, D) sparse
    rows: Tensor  # (M,) indices
    states: dict[str, Tensor]  # (K, D) each


def _take_rows(parameter: nn.Parameter, state: dict[str, Any]) -> _Exchange:
    """Exchange weights, gradient and states (K, D) for their touched rows (M, D)."""
    coalesce_gradient(parameter)
    weights, gradient = parameter.data, parameter.grad
    assert gradient is not None
    rows = gradient._indices()[0]  # (M,)
    states = {name: value for name, value in state.items() if _has_shape(value, weights.shape)}
    parameter.grad = None  # first: a gradient must have the shape of its parameter
    parameter.data = weights.index_select(0, rows)  # (M, D)
    parameter.grad = gradient._values()  # (M, D)
    state.update({name: value.index_select(0, rows) for name, value in states.items()})
    return _Exchange(parameter, weights, gradient, rows, states)


def _put_rows_back(exchange: _Exchange, all_states: dict[Any, dict[str, Any]]) -> None:
    """Write the rows (M, D) back; states created in this step are expanded to (K, D), with zeros elsewhere."""
    parameter, rows = exchange.parameter, exchange.rows
    exchange.weights.index_copy_(0, rows, parameter.data)
    state = all_states.get(parameter, {})
    for name, value in state.items():
        if name in exchange.states or _has_shape(value, parameter.shape):
            whole = exchange.states[name] if name in exchange.states else torch.zeros_like(exchange.weights)
            state[name] = whole.index_copy_(0, rows, value)
    parameter.grad = None
    parameter.data = exchange.weights
    parameter.grad = exchange.gradient


def _has_shape(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape


def _after_closure(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Run the closure of ``optimizer.step(closure)`` now, because it computes the gradients."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return args, kwargs
    with torch.enable_grad():
        loss = closure()
    return (args[0], lambda: loss), {name: value for name, value in kwargs.items() if name != "closure"}


def gradient_norm(parameters: Iterable[nn.Parameter], shards: Iterable[nn.Parameter] = ()) -> Tensor:
    """Compute the L2 norm of the gradient of the whole model, the same in all processes.

    Args:
        parameters: all parameters of this process; those without a gradient count as 0. Sparse gradients are coalesced.
        shards: those of them that are sharded over the processes.

    Returns:
        Scalar, on the device of the gradients.
    """
    parameters = list(parameters)
    device = parameters[0].device if parameters else None
    of_shards = {id(parameter) for parameter in shards}
    own: list[Tensor] = []
    shared: list[Tensor] = []
    for parameter in parameters:
        coalesce_gradient(parameter)
        if parameter.grad is not None:
            (own if id(parameter) in of_shards else shared).append(_numbers(parameter.grad))
    square = _square(own, device)
    if of_shards and world_size() > 1:
        dist.all_reduce(square)
    return (square + _square(shared, device).to(square)).sqrt()


def _square(gradients: list[Tensor], device: torch.device | None) -> Tensor:
    """Return the sum of all squared numbers, on the device of the gradients."""
    if not gradients:  # made there: a GPU would be waited for when a number is copied to it
        return torch.zeros((), device=device)
    if gradients[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(gradients).square()
    # on a CPU, PyTorch's norm sums sequentially in float32: a relative error of 3e-3 for 43 million numbers
    pieces = [piece for gradient in gradients for piece in gradient.reshape(-1).split(_PIECE)]
    return torch.stack([torch.dot(piece, piece) for piece in pieces]).double().sum().to(gradients[0].dtype)


def clip_gradient(
    parameters: Iterable[nn.Parameter],
    shards: Iterable[nn.Parameter],
    largest: float,
    norm: Tensor | None = None,
) -> Tensor:
    """Clip the gradient norm of the whole model in place, as ``torch.nn.utils.clip_grad_norm_`` does.

    Args:
        parameters: all parameters of this process.
        shards: those of them that are sharded over the processes.
        largest: maximum norm, above 0.
        norm: ``gradient_norm`` of the same gradients, if it has been computed already.

    Returns:
        The norm before clipping.
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters, shards) if norm is None else norm
    factor = (largest / (norm + _SMALLEST_NORM)).clamp(max=1.0)
    gradients = [_numbers(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, factor)
    return norm


def _numbers(gradient: Tensor) -> Tensor:
    """Return the values of a gradient, sparse (and coalesced) or dense, sharing its memory."""
    return gradient._values() if gradient.is_sparse else gradient


def start_momentum_at_zero(optimizer: torch.optim.Optimizer) -> None:
    """Initialize missing momentum buffers of fused SGD with zeros before its first step.

    Fused SGD allocates them uninitialized, and if the loss scaler skips the first step, the second one uses them
    (PyTorch 2.13). A first step from zero has the same bits.

    Args:
        optimizer: its state is extended; optimizers other than fused SGD with momentum are not changed.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["fused"] and group["momentum"] else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class AgreedGradScaler(torch.amp.GradScaler):
    """A loss scaler that skips a step in all processes, and lowers its scale, if any gradient of any is not finite.

    PyTorch's ``ShardedGradScaler`` synchronizes in ``unscale_`` only, which fused optimizers do not call: each process
    would decide by its own shard.
    """

    def _unscale_grads_(self, *args: Any, **kwargs: Any) -> dict[torch.device, Tensor]:
        found_inf = super()._unscale_grads_(*args, **kwargs)  # one flag per device, 1.0 if not finite
        if world_size() > 1:
            for flag in found_inf.values():
                dist.all_reduce(flag, dist.ReduceOp.MAX)
        return found_inf
