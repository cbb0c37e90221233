import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from adaface.config.options import OptimizerOptions
from adaface.training.optimization import (
    Schedule,
    build_optimizer,
    group_options,
    scaled_learning_rate,
    settle_loaded_state,
    split_for_weight_decay,
)

ROOT = Path(__file__).resolve().parents[2]


def _schedule(**options) -> Schedule:
    return Schedule(OptimizerOptions(**options))


def _options(optimizer: str, lr: float, momentum: float, weight_decay: float) -> OptimizerOptions:
    return OptimizerOptions(optimizer=optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay)


@pytest.mark.parametrize(
    ("lr", "gamma", "milestones"),
    [(0.1, 0.1, (8, 12, 14)), (0.3, 0.7, (1, 2, 3, 5)), (0.1, 0.1, ()), (0.05, 0.2, (4,))],
)
def test_multistep_has_the_bits_of_pytorchs_scheduler(lr, gamma, milestones):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma)
    schedule = Schedule(OptimizerOptions(lr=lr, lr_milestones=milestones, lr_gamma=gamma))
    for epoch in range(16):
        expected = optimizer.param_groups[0]["lr"]
        assert [schedule.learning_rate(3 * epoch + step, 3, 16) for step in range(3)] == [expected] * 3
        optimizer.step()
        scheduler.step()


# two epochs of five steps; a warm-up of 0.4 epochs is two steps, and eight are left to fall in
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (_schedule(lr=0.1, lr_schedule="cosine"), {0: 0.1, 5: 0.05, 10: 0.0}),
        (_schedule(lr=0.1, lr_schedule="poly", lr_power=2), {0: 0.1, 1: 0.081, 5: 0.025, 9: 0.001, 10: 0.0}),
        (_schedule(lr=0.1, lr_schedule="poly", lr_power=1), {0: 0.1, 1: 0.09, 9: 0.01}),
        (
            _schedule(lr=0.1, lr_schedule="cosine", warmup_epochs=0.4),
            {0: 0.05, 1: 0.1, 2: 0.1, 4: 0.1 * (1 + math.sqrt(0.5)) / 2, 6: 0.05, 10: 0.0},
        ),
        (
            _schedule(lr=0.1, lr_schedule="poly", warmup_epochs=0.4),
            {0: 0.05, 1: 0.1, 2: 0.1, 6: 0.025, 9: 0.1 / 64, 11: 0.0},
        ),
        (_schedule(lr=0.8, lr_milestones=(1,), warmup_epochs=1.6), {0: 0.1, 3: 0.4, 4: 0.5, 5: 0.06, 7: 0.08, 9: 0.08}),
        (_schedule(lr=0.1, lr_schedule="cosine", warmup_epochs=0.01), {0: 0.1, 1: 0.1, 10: 0.0}),
    ],
)
def test_schedules_worked_by_hand(schedule, expected):
    got = {step: schedule.learning_rate(step, 5, 2) for step in expected}
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-17)


def test_a_schedule_of_one_step_has_the_whole_rate():
    for kind in ("multistep", "cosine", "poly"):
        assert _schedule(lr=0.1, lr_schedule=kind, warmup_epochs=1).learning_rate(0, 1, 1) == 0.1


def test_linear_scaling():
    assert scaled_learning_rate(OptimizerOptions(lr=0.1, lr_base_batch_size=256), 1024) == pytest.approx(0.4)
    assert scaled_learning_rate(OptimizerOptions(lr=0.1), 1024) == 0.1


class Tiny(nn.Module):
    """Something with and without weight decay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def step(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        """One step whose gradients depend on ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).contiguous()
        optimizer.step()


def test_adamw_is_the_papers_loop():
    module, lr, decay = Tiny(), 0.01, 0.1
    weights = {name: p.detach().double().numpy().copy() for name, p in module.named_parameters()}
    first, second = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    optimizer = build_optimizer(module, _options("adamw", lr, 0.9, decay))
    for step in range(1, 6):
        module.step(optimizer, step)
        for name, parameter in module.named_parameters():
            gradient = parameter.grad.double().numpy()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            if not name.startswith("norm"):
                weights[name] -= lr * decay * weights[name]
            unbiased, spread = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            weights[name] -= lr * unbiased / (np.sqrt(spread) + 1e-8)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), weights[name], rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_pass_over_the_weights(name):
    groups = build_optimizer(Tiny(), _options(name, 0.1, 0.9, 5e-4)).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert all(group["fused"] for group in groups)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="--optimizer takes one of sgd, adamw, got 'adam'; did you mean adamw"):
        OptimizerOptions(optimizer="adam")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_loaded_state_takes_this_runs_options_and_layout(name):
    plain = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3))
    other = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    saved = build_optimizer(plain, _options(name, 0.1, 0.9, 0.5))
    for parameter in plain.parameters():
        parameter.grad = torch.ones_like(parameter) * torch.arange(3).reshape(-1, *[1] * (parameter.dim() - 1))
    saved.step()
    other.load_state_dict(plain.state_dict())
    optimizer = build_optimizer(other, _options(name, 0.2, 0.8, 0.25))
    options = group_options(optimizer)
    optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert optimizer.param_groups[0]["weight_decay"] == 0.5, "what the loading brings"
    settle_loaded_state(optimizer, options)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.25), (0.2, 0.0)]
    for left, right in zip(plain.parameters(), other.parameters(), strict=True):
        states = saved.state[left], optimizer.state[right]
        assert states[0].keys() == states[1].keys()
        for key in states[0]:
            torch.testing.assert_close(states[1][key], states[0][key], rtol=0, atol=0)
            if states[1][key].dim():
                assert states[1][key].stride() == right.stride()


def test_norms_of_every_kind_are_spared_weight_decay():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4))
    decayed, spared = split_for_weight_decay(module)
    assert decayed == list(module[0].parameters())
    assert spared == [parameter for norm in module[1:] for parameter in norm.parameters()]
