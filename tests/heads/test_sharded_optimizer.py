import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adaface.heads import sharded_optimizer
from adaface.heads.sharded_optimizer import (
    clip_gradient,
    coalesce_gradient,
    gradient_norm,
    start_momentum_at_zero,
    step_on_touched_rows,
)

K, D = 9, 4
OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "fused sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "plain sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "nesterov": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.01),
    "fused adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.01, fused=True),
}
STEPS = [[[0, 3], [3, 8]], [[3]], [[1, 8]], [list(range(K))], [[0], [0], [5]]]  # rows of each micro-batch of each step


def matrix() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(K, D, generator=torch.Generator().manual_seed(0)))


def backward(weights: torch.nn.Parameter, rows: list[int], factor: float = 1.0) -> None:
    chosen = F.embedding(torch.tensor(rows), weights, sparse=True)
    (factor * chosen.pow(3).sum() + chosen.sum()).backward()


def row_by_row(name: str) -> torch.Tensor:
    """The slow computation: every row is a matrix of its own, with an optimiser of its own."""
    rows = [torch.nn.Parameter(row.clone()) for row in matrix().detach()]
    optimizers = [OPTIMIZERS[name]([row]) for row in rows]
    for micro_batches in STEPS:
        for optimizer in optimizers:
            optimizer.zero_grad()
        for touched in micro_batches:
            for row in touched:
                (rows[row].pow(3).sum() + rows[row].sum()).backward()
        for row, optimizer in zip(rows, optimizers, strict=True):
            if row.grad is not None:
                optimizer.step()
    return torch.stack([row.detach() for row in rows])


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "adamw" not in name])
def test_every_row_moves_as_if_it_had_an_optimiser_of_its_own(name):
    weights = matrix()
    optimizer = OPTIMIZERS[name]([weights])
    step_on_touched_rows(optimizer, [weights])
    for micro_batches in STEPS:
        optimizer.zero_grad()
        for rows in micro_batches:
            backward(weights, rows)
        optimizer.step()
    torch.testing.assert_close(weights.detach(), row_by_row(name))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_are_not_touched_keep_weights_and_states(name):
    weights = matrix()
    optimizer = OPTIMIZERS[name]([weights])
    step_on_touched_rows(optimizer, [weights])
    backward(weights, list(range(K)))
    optimizer.step()
    states = {k: v.clone() for k, v in optimizer.state[weights].items() if torch.is_tensor(v) and v.shape == (K, D)}
    before = weights.detach().clone()
    assert len(states) == {"plain sgd": 0}.get(name, 2 if "adamw" in name else 1)
    optimizer.zero_grad()
    backward(weights, [2, 7])
    optimizer.step()
    untouched = [row for row in range(K) if row not in (2, 7)]
    assert torch.equal(weights[untouched], before[untouched])
    assert (weights[[2, 7]] != before[[2, 7]]).all()
    for key, value in states.items():
        now = optimizer.state[weights][key]
        assert torch.equal(now[untouched], value[untouched])
        assert (now[[2, 7]] != value[[2, 7]]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_touching_all_rows_is_the_usual_step(name):
    results = []
    for sparse in (True, False):
        weights = matrix()
        optimizer = OPTIMIZERS[name]([weights])
        step_on_touched_rows(optimizer, [weights])
        for factor in (1.0, 2.0):
            optimizer.zero_grad()
            chosen = F.embedding(torch.arange(K), weights, sparse=sparse)
            (factor * chosen.pow(3).sum()).backward()
            optimizer.step()
        results.append(weights.detach())
    assert torch.equal(*results)


def test_states_made_in_a_sampled_step_are_those_of_zero_elsewhere():
    weights = matrix()
    optimizer = OPTIMIZERS["adamw"]([weights])
    step_on_touched_rows(optimizer, [weights])
    backward(weights, [4])
    optimizer.step()
    for key in ("exp_avg", "exp_avg_sq"):
        state = optimizer.state[weights][key]
        assert state.shape == (K, D)
        assert state[4].abs().min() > 0
        assert not state[[0, 1, 2, 3, 5, 6, 7, 8]].any()


def test_a_closure_makes_the_gradient_before_the_rows_are_exchanged():
    weights = matrix()
    before = weights.detach().clone()
    optimizer = OPTIMIZERS["fused sgd"]([weights])
    step_on_touched_rows(optimizer, [weights])

    def closure():
        optimizer.zero_grad()
        backward(weights, [6])
        return torch.tensor(1.5)

    assert optimizer.step(closure).item() == optimizer.step(closure=closure).item() == 1.5
    assert [row for row in range(K) if not torch.equal(weights[row], before[row])] == [6]


def test_after_a_step_weights_and_gradient_are_whole():
    weights, other = matrix(), torch.nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS["fused sgd"]([weights, other])
    step_on_touched_rows(optimizer, [weights])
    storage = weights.data_ptr()
    backward(weights, [1, 2])
    other.sum().backward()
    gradient = weights.grad.to_dense()
    optimizer.step()
    assert weights.shape == (K, D)
    assert weights.data_ptr() == storage
    assert torch.equal(weights.grad.to_dense(), gradient)
    assert other.tolist() == pytest.approx([0.899] * 3)


@pytest.mark.parametrize("micro_batches", [[[2, 5]], [[2, 5], [0, 2]], [[5, 2]]])
def test_coalesced_gradients_are_sums_in_order(micro_batches):
    weights = matrix()
    for rows in micro_batches:
        backward(weights, rows)
    expected = weights.grad.to_dense()
    coalesce_gradient(weights)
    assert weights.grad.is_coalesced()
    rows = weights.grad.indices()[0].tolist()
    assert rows == sorted(set(rows))
    torch.testing.assert_close(weights.grad.to_dense(), expected)


# norm and clipping in one process; those over several processes are in test_partial_fc.py


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


def test_a_norm_that_is_known_is_not_computed_again(monkeypatch):
    once, again = parameters(), parameters()
    norm = clip_gradient(once, [], 0.5)
    monkeypatch.setattr(sharded_optimizer, "gradient_norm", None)
    for parameter in again:
        coalesce_gradient(parameter)
    assert clip_gradient(again, [], 0.5, norm) is norm
    for one, other in zip(once[:2], again[:2], strict=True):
        assert torch.equal(one.grad.to_dense(), other.grad.to_dense())
