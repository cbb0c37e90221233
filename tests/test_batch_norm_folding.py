import copy
import itertools

import pytest
import torch
from torch import nn

from batch_norm_folding import fold_batch_norms
from net import Architecture, ImprovedResNet, build_model

TINY = {
    "basic": Architecture((1, 2, 1, 1), (8, 12, 16, 24), 8, stem_stride=2),
    "bottleneck with squeeze-excitation": Architecture(
        (2, 1, 1, 1), (16, 32, 32, 48), 8, stem_stride=2, bottleneck=True, squeeze_excite=True
    ),
}


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
