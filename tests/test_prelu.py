import pytest
import torch
from torch import Tensor, nn

import prelu
from prelu import PReLU


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
    monkeypatch.setattr(prelu, "_BLOCK_NUMBERS", numbers)
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
