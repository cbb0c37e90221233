import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaface.models import iresnet
from adaface.models.backbone import Backbone
from adaface.models.iresnet import ImprovedResidualBlock
from adaface.models.registry import ARCHITECTURES, build_model, count_macs
from tests.support.golden_fill import fill_state_dict

OFFICIAL = "ir_18 ir_34 ir_50 ir_101 ir_152 ir_200 ir_se_50 ir_se_101 ir_se_152 ir_se_200".split()
SMALL = "ir_mini"
# an image's embedding in evaluation does not depend on its batch, so one image serves where four would take long
IMAGES = {name: slice(None) if name == "ir_18" else slice(i % 4, i % 4 + 1) for i, name in enumerate(OFFICIAL)}
TRAINED = ("ir_18", "ir_152", "ir_se_50")


def on_meta(name: str) -> Backbone:
    """A network without storage: as fast for 120 million parameters as for four."""
    with torch.device("meta"):
        return build_model(name)


def filled(name: str) -> Backbone:
    """A network with the golden weights, without the time of a random initialization."""
    model = on_meta(name).to_empty(device="cpu")
    model.load_state_dict(fill_state_dict(model.state_dict()))
    return model


def faces(size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(size, 3, 112, 112, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


@functools.cache
def small() -> Backbone:
    torch.manual_seed(0)
    return build_model(SMALL)


# golden values of the official code


@pytest.mark.parametrize("name", OFFICIAL)
def test_state_dict_has_the_official_keys_and_shapes_in_order(name: str, golden: Path) -> None:
    expected = json.loads((golden / "net_keys.json").read_text())[name]
    assert [[key, list(value.shape)] for key, value in on_meta(name).state_dict().items()] == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_embeddings_and_norms_are_the_official_ones(name: str, golden: Path) -> None:
    values = np.load(golden / "net.npz")
    chosen = IMAGES[name]
    images = torch.from_numpy(values["images_u8"]).float() / 127.5 - 1
    model = filled(name).eval()
    with torch.inference_mode():
        embedding, norm = model(images[chosen])
        np.testing.assert_allclose(embedding, values[f"{name}.embedding"][chosen], rtol=0, atol=5e-4)
        np.testing.assert_allclose(norm, values[f"{name}.norm"][chosen], rtol=1e-4)
        model.double()
        embedding, norm = model(images[chosen].double())
        np.testing.assert_allclose(embedding, values[f"{name}.embedding64"][chosen], rtol=0, atol=1e-8)
        np.testing.assert_allclose(norm, values[f"{name}.norm64"][chosen], rtol=1e-8)
        if name in TRAINED:
            _compare_one_training_forward(name, model, images.double(), values)


def _compare_one_training_forward(name: str, model: Backbone, images: Tensor, values: np.lib.npyio.NpzFile) -> None:
    model.train()
    model.output_layer[1].p = 0.0  # dropout
    embedding, _ = model(images)
    np.testing.assert_allclose(embedding, values[f"{name}.train_embedding64"], rtol=0, atol=1e-8)
    for which in ("mean", "var"):
        sums = [float(v.sum()) for key, v in model.state_dict().items() if key.endswith(f"running_{which}")]
        np.testing.assert_allclose(sums, values[f"{name}.train_running_{which}_sums64"], rtol=1e-8)


# structure


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in OFFICIAL])  # those: golden values
def test_every_other_architecture_maps_faces_to_512_numbers_and_a_norm(name: str) -> None:
    embedding, norm = on_meta(name)(torch.empty(2, 3, 112, 112, device="meta"))
    assert (embedding.shape, norm.shape) == ((2, 512), (2, 1))


@pytest.mark.parametrize(("width", "stride"), [(8, 1), (8, 2), (12, 2)])
def test_basic_block_by_hand(width: int, stride: int) -> None:
    torch.manual_seed(1)
    block = ImprovedResidualBlock(8, width, stride).double().eval()
    block.load_state_dict(fill_state_dict(block.state_dict()))
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)

    def norm(batch_norm: nn.Module, y: Tensor) -> Tensor:
        per_channel = [v[:, None, None] for v in (batch_norm.running_mean, batch_norm.running_var)]
        scaled = (y - per_channel[0]) / torch.sqrt(per_channel[1] + 1e-5)
        return scaled * batch_norm.weight[:, None, None] + batch_norm.bias[:, None, None]

    layers = block.res_layer
    y = F.conv2d(norm(layers[0], x), layers[1].weight, padding=1)
    y = norm(layers[2], y)
    y = torch.where(y > 0, y, y * layers[3].weight[:, None, None])
    y = norm(layers[5], F.conv2d(y, layers[4].weight, padding=1, stride=stride))
    if width == 8:
        shortcut = x[:, :, ::stride, ::stride]
    else:
        shortcut = norm(block.shortcut_layer[1], F.conv2d(x, block.shortcut_layer[0].weight, stride=stride))
    torch.testing.assert_close(block(x), y + shortcut, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ir_18", "ir_se_50"])
def test_weights_start_as_specified(name: str) -> None:
    torch.manual_seed(0)
    convolutions = 0
    for key, module in build_model(name).named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            fan_out = weight.shape[0] * weight[0, 0].numel()
            assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=6 / math.sqrt(weight.numel())), key
            assert module.bias is None or not module.bias.any(), key
            convolutions += isinstance(module, nn.Conv2d)
        elif isinstance(module, nn.PReLU):
            assert (module.weight == 0.25).all(), key
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1), key
            assert not module.affine or ((module.weight == 1).all() and not module.bias.any()), key
        elif isinstance(module, nn.Dropout):
            assert module.p == 0.4
    assert convolutions == {"ir_18": 20, "ir_se_50": 100}[name]


def test_gradient_reaches_every_parameter() -> None:
    model = build_model(SMALL).train()
    embedding, norm = model(faces(4))
    (embedding * torch.randn(embedding.shape) * norm).sum().backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # the bias before a batch norm cannot change anything
    assert [key for key in silent if key != "output_layer.3.bias"] == []


# numbers in and out


def test_embedding_is_the_features_direction_and_norm_their_length() -> None:
    model = small().eval()
    features: list[Tensor] = []
    hook = model.output_layer.register_forward_hook(lambda _m, _i, output: features.append(output))
    with torch.inference_mode():
        embedding, norm = model(faces(3))
    hook.remove()
    torch.testing.assert_close(embedding * norm, features[0])
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embedding_is_normalized_in_float32_under_autocast(dtype: torch.dtype) -> None:
    model = small().eval()
    with torch.inference_mode():
        exact, _ = model(faces(2))
        with torch.autocast("cpu", dtype=dtype):
            embedding, norm = model(faces(2))
    assert embedding.dtype == norm.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)
    assert ((embedding * exact).sum(1) > 0.99).all()


def test_float64_stays_float64() -> None:
    embedding, norm = build_model(SMALL).double().eval()(faces(1, torch.float64))
    assert embedding.dtype == norm.dtype == torch.float64


def test_memory_layout_does_not_matter_and_images_stay_as_they_are() -> None:
    model = small().eval()
    images = faces(2)
    before = images.clone()
    with torch.inference_mode():
        plain, _ = model(images)
        channels_last, _ = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, channels_last, rtol=0, atol=1e-5)
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", [(2, 3, 112, 96), (2, 112, 112, 3), (3, 112, 112), (2, 1, 112, 112)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"expected .*\(B, 3, 112, 112\).*got .*{re.escape(str(shape))}"):
        small()(torch.zeros(shape))


# sizes, as the documentation states them


def test_stated_sizes_of_the_small_backbone() -> None:
    model = on_meta(SMALL)
    million_parameters = sum(p.numel() for p in model.parameters()) / 1e6
    stated = re.search(r"([\d.]+) million parameters, ([\d.]+) million multiply", iresnet.__doc__)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(million_parameters, abs=0.05)
    assert float(stated[2]) == pytest.approx(count_macs(model) / 1e6, abs=0.5)


# what changes the speed and not the numbers


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [6, 7])
def test_subsampling_is_max_pooling_over_single_pixels(stride: int, side: int) -> None:
    x = torch.randn(2, 3, side, side)
    assert torch.equal(iresnet.Subsample(stride)(x), F.max_pool2d(x, 1, stride))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_subsampling_keeps_the_layout_and_the_gradient_of_slicing(layout):
    x = torch.randn(2, 3, 7, 6).to(memory_format=layout).requires_grad_()
    weight = torch.randn(2, 3, 4, 3)
    out = iresnet.Subsample(2)(x)
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)
    sliced = x[:, :, ::2, ::2]
    (expected,) = torch.autograd.grad((sliced * weight).sum(), x)
    assert torch.equal(out, sliced)
    assert torch.equal(gradient, expected)
    assert gradient.is_contiguous(memory_format=layout)
