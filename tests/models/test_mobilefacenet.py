import torch
from torch import nn

from adaface.models.mobilefacenet import InvertedResidual, MobileFaceNet
from adaface.models.registry import count_macs


def test_parameters_are_those_of_the_papers_table() -> None:
    """Table 1 of the paper, counted by hand: convolutions, batch norms (2 a channel), PReLU slopes."""

    def layer(weights: int, channels: int, slopes: bool = True) -> int:
        return weights + 2 * channels + (channels if slopes else 0)

    total = layer(3 * 9 * 64, 64) + layer(9 * 64, 64)
    channels = 64
    for t, c, n in ((2, 64, 5), (4, 128, 1), (2, 128, 6), (4, 128, 1), (2, 128, 2)):
        for _ in range(n):
            inside = t * channels
            total += layer(channels * inside, inside) + layer(9 * inside, inside) + layer(inside * c, c, slopes=False)
            channels = c
    total += layer(128 * 512, 512) + layer(49 * 512, 512, slopes=False)
    total += 512 * 512  # the paper: 128, for its shorter embedding
    model = MobileFaceNet()
    assert sum(p.numel() for p in model.parameters()) == total == 1_199_488


def test_multiply_accumulates_are_about_the_papers() -> None:
    macs = count_macs(MobileFaceNet())
    assert round((macs - 512 * 512 + 512 * 128) / 1e6) == 221  # million, as in the paper's table 2


def test_the_map_has_the_papers_sizes() -> None:
    model = MobileFaceNet().eval()
    shapes = []
    for module in (model.input_layer, *model.body):
        module.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
    with torch.inference_mode():
        embedding, norm = model(torch.zeros(1, 3, 112, 112))
    assert shapes == [(64, 56, 56), (64, 28, 28), (128, 14, 14), (128, 7, 7)]
    assert (embedding.shape, norm.shape) == ((1, 512), (1, 1))


def test_a_block_by_hand() -> None:
    torch.manual_seed(0)
    block = InvertedResidual(4, 4, 1, 2).double().eval()
    expand, depthwise, project = (layer for layer in block.branch if isinstance(layer, nn.Conv2d))
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    scale = (1 + 1e-5) ** -0.5  # of a fresh batch norm

    def rectified(y: torch.Tensor) -> torch.Tensor:
        return torch.where(y > 0, y, 0.25 * y)

    inside = rectified(torch.einsum("oc,bchw->bohw", expand.weight[:, :, 0, 0], x) * scale)  # (1, 8, 5, 5)
    padded = torch.zeros(1, 8, 7, 7, dtype=torch.float64)
    padded[:, :, 1:6, 1:6] = inside
    filtered = torch.zeros_like(inside)
    for dy in range(3):
        for dx in range(3):
            filtered += depthwise.weight[:, 0, dy, dx, None, None] * padded[:, :, dy : dy + 5, dx : dx + 5]
    expected = torch.einsum("oc,bchw->bohw", project.weight[:, :, 0, 0], rectified(filtered * scale)) * scale
    torch.testing.assert_close(block(x), x + expected, rtol=0, atol=1e-12)
    assert not InvertedResidual(4, 6, 1, 2).has_shortcut
    assert not InvertedResidual(4, 4, 2, 2).has_shortcut


def test_signals_keep_their_size_at_the_start() -> None:
    """Fresh weights neither blow a signal up nor let it die, block after block."""
    torch.manual_seed(0)
    model = MobileFaceNet().train()
    spreads = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, output: spreads.append(output.std().item()))
    norms = model(torch.rand(8, 3, 112, 112) * 2 - 1)[1]
    assert all(0.3 < spread < 5 for spread in spreads), spreads
    assert all(10 < norm < 40 for norm in norms)  # of 512 numbers with spread 1: about 22.6
