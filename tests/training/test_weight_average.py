"""The moving average of the weights: its arithmetic, and its place in checkpoints."""

import copy

import pytest
import torch
from torch import nn

from adaface.training.weight_average import WeightAverage, put_into, take_from


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def moved(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for value in model.state_dict().values():
            value += torch.tensor(by).to(value.dtype)


def test_the_average_is_the_formula_worked_by_hand():
    model = network()
    average = WeightAverage(model, 0.15)
    expected = {key: value.double().clone() for key, value in model.state_dict().items()}
    for step in range(4):
        moved(model, 1.0 + step)
        average.update(model)
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1, then 0.15
        for key, value in model.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    assert average.updates == 4
    for key, value in average.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-6, atol=1e-6)
    assert average.model[1].num_batches_tracked == model[1].num_batches_tracked == 10
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_a_model_that_stands_still_is_its_own_average():
    model = network()
    average = WeightAverage(model, 0.9)
    for _ in range(5):
        average.update(model)
    for one, other in zip(model.state_dict().values(), average.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


def checkpoint_of(model: nn.Module) -> dict:
    state = {f"model.{key}": value for key, value in model.state_dict().items()} | {"head.kernel": torch.ones(2, 2)}
    return {"state_dict": state, "adaface": {"config": {}}}


def test_a_checkpoint_holds_the_average_as_its_model_and_gives_the_weights_back():
    model = network()
    average = WeightAverage(model, 0.5)
    moved(model, 2.0)
    average.update(model)
    moved(model, 3.0)
    average.update(model)
    before = checkpoint_of(model)
    checkpoint = copy.copy(before) | {"adaface": dict(before["adaface"])}
    put_into(checkpoint, average)
    assert list(checkpoint["state_dict"]) == list(before["state_dict"])
    averaged = average.model.state_dict()
    assert all(torch.equal(checkpoint["state_dict"][f"model.{key}"], value) for key, value in averaged.items())
    assert torch.equal(checkpoint["state_dict"]["head.kernel"], before["state_dict"]["head.kernel"])
    weights, updates = take_from(checkpoint)
    assert updates == 2 and all(torch.equal(weights[key], value) for key, value in averaged.items())
    assert checkpoint["adaface"] == {"config": {}}
    assert list(checkpoint["state_dict"]) == list(before["state_dict"])
    assert all(torch.equal(checkpoint["state_dict"][key], value) for key, value in before["state_dict"].items())


def test_a_checkpoint_without_an_average_is_left_alone():
    checkpoint = checkpoint_of(network())
    assert take_from(checkpoint) is None
    assert list(checkpoint["adaface"]) == ["config"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda made_up: made_up.update(trained_weights=3),
        lambda made_up: made_up.update(averaged_steps="many"),
        lambda made_up: made_up.update(averaged_steps=-1),
        lambda made_up: made_up["trained_weights"].popitem(),
        lambda made_up: made_up["trained_weights"].update({"model.0.bias": torch.zeros(9)}),
        lambda made_up: made_up["trained_weights"].update({"model.0.bias": "text"}),
    ],
)
def test_weights_that_do_not_fit_their_average_are_refused(damage):
    model = network()
    checkpoint = checkpoint_of(model)
    put_into(checkpoint, WeightAverage(model, 0.5))
    damage(checkpoint["adaface"])
    with pytest.raises(ValueError, match=r"do not fit its `trained_weights`: it is damaged; use another one"):
        take_from(checkpoint)
