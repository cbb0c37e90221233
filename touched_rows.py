"""An optimiser's step on the rows of a matrix that have a gradient, and on nothing else of it.

With sampled classes most rows of the head have no gradient in a step. They keep their weights and their momentum, as
if the optimiser had not been called: neither weight decay nor an old momentum moves them. For the step, the matrix,
its gradient and everything of its shape that the optimiser keeps are exchanged for their touched rows; so any
elementwise optimiser works, its fused forms included, in time and memory of the touched rows.

Source: the sampled momentum of An et al., CVPR 2022, arXiv 2203.15565, made independent of the optimiser.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def step_on_touched_rows(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Let each step of an optimiser touch those rows of some matrices alone that have a sparse gradient.

    Args:
        optimizer: elementwise (each number's update depends on its own past, as in SGD and AdamW), with states that
            begin at zero. Hooks are added to it.
        parameters: (K, D) each; where the gradient of one is dense, its step is the usual one. After a step the
            gradient is coalesced.
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
    """Sum up the parts of a sparse gradient, in place of it; a dense one stays.

    Args:
        parameter: with a gradient.
    """
    grad = parameter.grad
    if grad is None or not grad.is_sparse or grad.is_coalesced():
        return
    rows = grad._indices()[0]
    # one batch's rows are in order, each once, which autograd does not remember: no need to sort and copy them
    in_order = bool((rows[1:] > rows[:-1]).all())
    parameter.grad = grad._coalesced_(True) if in_order else grad.coalesce()


@dataclass
class _Exchange:
    """What a parameter was before its rows took its place."""

    parameter: nn.Parameter
    weights: Tensor  # (K, D)
    gradient: Tensor
    rows: Tensor  # (M,)
    states: dict[str, Tensor]  # (K, D) each


def _take_rows(parameter: nn.Parameter, state: dict[str, Any]) -> _Exchange:
    """Exchange weights, gradient and states (K, D) for their touched rows (M, D)."""
    coalesce_gradient(parameter)
    weights, gradient = parameter.data, parameter.grad
    assert gradient is not None
    rows = gradient._indices()[0]
    states = {name: value for name, value in state.items() if _has_shape(value, weights.shape)}
    parameter.grad = None
    parameter.data = weights.index_select(0, rows)
    parameter.grad = gradient._values()
    state.update({name: value.index_select(0, rows) for name, value in states.items()})
    return _Exchange(parameter, weights, gradient, rows, states)


def _put_rows_back(exchange: _Exchange, all_states: dict[Any, dict[str, Any]]) -> None:
    """Write the rows (M, D) to where they came from; states made in this step become whole ones."""
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
    """Run the closure of ``optimizer.step(closure)`` now: it makes the gradients."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return args, kwargs
    with torch.enable_grad():
        loss = closure()
    return (args[0], lambda: loss), {name: value for name, value in kwargs.items() if name != "closure"}
