"""Norm and clipping in one process; those over several processes are in test_partial_fc.py."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sharded_gradients import clip_gradient, gradient_norm, start_momentum_at_zero


def parameters() -> list[torch.nn.Parameter]:
    """A dense gradient, a sparse one with a row that two batches share, and none."""
    whole, sampled, unused = (torch.nn.Parameter(torch.ones(4, 2)) for _ in range(3))
    (whole * torch.arange(8.0).view(4, 2)).sum().backward()
    for rows in ([0, 2], [2, 3]):
        (3 * F.embedding(torch.tensor(rows), sampled, sparse=True)).sum().backward()
    return [whole, sampled, unused]


def test_the_norm_is_that_of_the_sums_of_all_gradients():
    given = parameters()
    expected = (sum(n * n for n in range(8)) + 2 * (3**2 + 6**2 + 3**2)) ** 0.5
    assert gradient_norm(given, given[1:2]).item() == pytest.approx(expected)
    assert gradient_norm(given).item() == pytest.approx(expected)
    assert gradient_norm(given[2:]).item() == 0


@pytest.mark.parametrize("largest", [1.0, 1000.0])
def test_clipping_is_pytorchs(largest):
    given, dense = parameters(), parameters()
    dense[1].grad = dense[1].grad.to_dense()
    norm = clip_gradient(given, given[1:2], largest)
    expected = torch.nn.utils.clip_grad_norm_(dense, largest)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(given[0].grad, dense[0].grad)
    torch.testing.assert_close(given[1].grad.to_dense(), dense[1].grad)
    assert given[2].grad is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_first_step_that_the_loss_scaler_skips_leaves_no_trace(momentum):
    weights = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.SGD([weights], lr=0.1, momentum=momentum, fused=True)
    start_momentum_at_zero(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in (float("inf"), 2.0):
        optimizer.zero_grad()
        scaler.scale((weights * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(weights.detach(), torch.full((1000,), 0.8))


def test_a_momentum_that_is_there_stays():
    weights = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9, fused=True)
    weights.sum().backward()
    optimizer.step()
    start_momentum_at_zero(optimizer)
    assert optimizer.state[weights]["momentum_buffer"].tolist() == [1, 1]
    adam = torch.optim.AdamW([weights])
    start_momentum_at_zero(adam)
    assert not adam.state


def test_a_long_gradient_is_not_added_up_one_by_one():
    long = torch.nn.Parameter(torch.zeros(3_000_001))
    long.grad = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0))
    exact = np.linalg.norm(long.grad.double().numpy())
    assert gradient_norm([long]).item() == pytest.approx(exact, rel=1e-6)
