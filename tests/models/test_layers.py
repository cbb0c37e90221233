import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from adaface.models import layers
from adaface.models.iresnet import Architecture, ImprovedResNet
from adaface.models.layers import PReLU, fold_batch_norms
from adaface.models.registry import build_model
from tests.support.small_networks import TINY


def pair(slopes: int, dtype: torch.dtype = torch.float64) -> tuple[PReLU, nn.PReLU]:
    """Ours and PyTorch's with the same slopes, some of them negative."""
    ours, theirs = PReLU(slopes), nn.PReLU(slopes)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def results(layer: nn.PReLU, x: Tensor, gradient: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, (x, layer.weight), gradient)]


@pytest.mark.parametrize("slopes", ["one", "each channel"])
@pytest.mark.parametrize("shape", [(5, 6), (3, 6, 7), (4, 6, 5, 3)], ids=str)
def test_values_and_gradients_are_those_of_pytorch(shape: tuple[int, ...], slopes: str) -> None:
    torch.manual_seed(0)
    ours, theirs = pair(1 if slopes == "one" else 6)
    x, gradient = torch.randn(2, *shape, dtype=torch.float64)
    x.view(-1)[:3] = torch.tensor([0.0, -0.0, 1e-300])
    for got, expected in zip(results(ours, x, gradient), results(theirs, x, gradient), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("numbers", [1, 200, 10_000])
def test_blocks_of_images_add_up(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_BLOCK_NUMBERS", numbers)
    torch.manual_seed(0)
    ours, theirs = pair(6)
    x, gradient = torch.randn(2, 7, 6, 4, 4, dtype=torch.float64)
    for got, expected in zip(results(ours, x, gradient), results(theirs, x, gradient), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_the_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    ours, _ = pair(6)
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: ours(x), (x, ours.weight))


def test_channels_last_stays_channels_last() -> None:
    torch.manual_seed(0)
    ours, theirs = pair(6, torch.float32)
    x, gradient = (t.to(memory_format=torch.channels_last) for t in torch.randn(2, 4, 6, 5, 5))
    got, expected = results(ours, x, gradient), results(theirs, x, gradient)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert got[1].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_under_autocast_are_those_of_pytorch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = pair(6, torch.float32)
    x = torch.randn(3, 6, 4, 4)
    gradient = torch.randn(3, 6, 4, 4)
    with torch.autocast("cpu", dtype=dtype):
        got, expected = (results(layer, x, gradient.to(layer(x).dtype)) for layer in (ours, theirs))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)


def test_the_state_dict_is_that_of_pytorch() -> None:
    ours, theirs = pair(6)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
    assert isinstance(ours, nn.PReLU)


# batch norms folded into convolutions


def trained(architecture: Architecture) -> ImprovedResNet:
    """A network whose batch norms do something."""
    torch.manual_seed(0)
    model = ImprovedResNet(architecture)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.3, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.3)
    return model


@pytest.mark.parametrize("name", TINY)
def test_the_folded_network_embeds_the_same(name: str) -> None:
    model = trained(TINY[name]).double()
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model.train())
    images = torch.rand(3, 3, 112, 112, dtype=torch.float64) * 2 - 1
    for got, expected in zip(folded(images), copy.deepcopy(model).eval()(images), strict=True):
        torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-9)
    assert model.training  # it is as it was
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class DoubledConvolution(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class RectifiedNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


class Backwards(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[0](self[1](x))


@pytest.mark.parametrize(
    "layers",
    [
        nn.Sequential(DoubledConvolution(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), RectifiedNorm(3)),
        Backwards(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
    ],
    ids=["convolution", "norm", "sequence"],
)
def test_layers_that_compute_something_else_are_left_alone(layers: nn.Sequential) -> None:
    """Of the kinds that networks of timm have."""
    layers[1].running_mean.fill_(0.5)
    layers[1].running_var.fill_(2.0)
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(fold_batch_norms(layers)(images), layers.eval()(images))


@pytest.mark.parametrize("name", ["mobilefacenet", "timm:test_resnet@64", "timm:test_efficientnet@64"])
def test_other_backbones_embed_the_same_when_folded(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    images = torch.rand(2, 3, 112, 112, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        for got, expected in zip(fold_batch_norms(model)(images), model.eval()(images), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TINY)
def test_no_batch_norm_is_left_behind_a_convolution(name: str) -> None:
    model = trained(TINY[name])
    folded = fold_batch_norms(model)

    def count(network: nn.Module) -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())

    blocks = len(model.body)
    assert count(folded) == blocks + 1  # one at the start of each block, one before the linear layer
    assert count(model) > 2 * blocks
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    for sequence in (module for module in folded.modules() if isinstance(module, nn.Sequential)):
        kinds = [type(layer) for layer in sequence]
        assert (nn.Conv2d, nn.BatchNorm2d) not in itertools.pairwise(kinds)
