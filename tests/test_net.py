import json

import numpy as np
import pytest
import torch
from golden_fill import fill_state_dict
from torch import nn

from net import ARCHITECTURES, Backbone, build_model, count_macs, normalize_images

OFFICIAL = [
    "ir_18", "ir_34", "ir_50", "ir_101", "ir_152", "ir_200", "ir_se_50", "ir_se_101", "ir_se_152", "ir_se_200",
]  # fmt: skip
OURS = [name for name in ARCHITECTURES if name not in OFFICIAL]


@pytest.fixture(scope="module")
def reference():
    from conftest import GOLDEN

    return np.load(GOLDEN / "net.npz")


def filled(name: str) -> Backbone:
    with torch.device("meta"):  # the Kaiming pass over 100 M weights would be overwritten
        model = build_model(name)
    model.to_empty(device="cpu")
    model.load_state_dict(fill_state_dict(model.state_dict()))
    return model.eval()


def images_of(reference, dtype=torch.float32) -> torch.Tensor:
    return normalize_images(torch.from_numpy(reference["images_u8"]).permute(0, 2, 3, 1), dtype)


@pytest.mark.parametrize("name", OFFICIAL)
def test_keys_shapes_and_their_order(name, golden):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    expected = json.loads((golden / "net_keys.json").read_text())[name]
    assert [[key, list(value.shape)] for key, value in state.items()] == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_embeddings_are_the_official_ones(name, reference):
    model = filled(name)
    with torch.inference_mode():
        embedding, norm = model(images_of(reference))
        embedding64, norm64 = model.double()(images_of(reference, torch.float64))
    np.testing.assert_allclose(embedding, reference[f"{name}.embedding"], rtol=0, atol=5e-4)
    np.testing.assert_allclose(embedding64, reference[f"{name}.embedding64"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(norm64, reference[f"{name}.norm64"], rtol=1e-8)
    assert norm.shape == (4, 1)


@pytest.mark.parametrize("name", ["ir_18", "ir_152", "ir_se_50"])
def test_training_mode_is_the_official_one(name, reference):
    model = filled(name).double().train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    with torch.no_grad():
        embedding, _ = model(images_of(reference, torch.float64))
    state = model.state_dict()
    means = [float(value.sum()) for key, value in state.items() if key.endswith("running_mean")]
    variances = [float(value.sum()) for key, value in state.items() if key.endswith("running_var")]
    np.testing.assert_allclose(embedding, reference[f"{name}.train_embedding64"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(means, reference[f"{name}.train_running_mean_sums64"], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(variances, reference[f"{name}.train_running_var_sums64"], rtol=1e-8)


@pytest.mark.parametrize("name", OURS)
def test_our_backbones_embed_and_every_parameter_gets_a_gradient(name):
    model = build_model(name).train()
    embedding, norm = model(torch.randn(4, 3, 112, 112))
    assert embedding.shape == (4, 512)
    assert norm.shape == (4, 1)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))
    (embedding * torch.randn(4, 512)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_small_ir_network_trains():
    model = build_model("ir_18").train()
    embedding, _ = model(torch.randn(2, 3, 112, 112))
    (embedding * torch.randn(2, 512)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_initial_weights_are_kaiming_normal_fan_out():
    torch.manual_seed(0)
    model = build_model("ir_se_50")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            if layer.weight.numel() > 20_000:
                assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
            assert layer.bias is None
        elif isinstance(layer, nn.PReLU):
            assert (layer.weight == 0.25).all()
        elif isinstance(layer, nn.Linear):
            assert (layer.bias == 0).all()
            assert layer.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.03)


def test_the_embedding_is_float32_under_autocast():
    model = build_model(OURS[0]).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embedding, norm = model(torch.randn(2, 3, 112, 112))
    assert embedding.dtype == norm.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_images_are_scaled_and_stay_bgr():
    image = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    image[..., 0], image[..., 2] = 255, 51  # blue, red
    scaled = normalize_images(image)
    assert scaled.shape == (1, 3, 112, 112)
    assert scaled[0, :, 5, 7].tolist() == pytest.approx([1.0, -1.0, 51 / 127.5 - 1])
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert image[0, 0, 0].tolist() == [255, 0, 51], "the batch was changed"


def test_unknown_names_and_wrong_shapes():
    with pytest.raises(ValueError, match=r"did you mean ir_50\? known are: ir_18, .*ir_se_200"):
        build_model("ir_5O")
    with pytest.raises(ValueError, match=r"expected images \(B, 3, 112, 112\), got \(2, 3, 224, 224\)"):
        build_model(OURS[0])(torch.zeros(2, 3, 224, 224))


def test_multiply_accumulates_of_a_hand_worked_example():
    model = build_model("ir_18")
    macs = count_macs(model)
    # input layer 112^2*64*27; each stage halves the side and doubles the width; 1x1 shortcuts; the linear layer
    expected = 112**2 * 64 * 27
    for width, before, side in ((64, 64, 112), (128, 64, 56), (256, 128, 28), (512, 256, 14)):
        half = side // 2
        expected += side**2 * width * before * 9 + half**2 * width * width * 9 * 3
        expected += half**2 * width * before if width != before else 0
    assert macs == expected + 512 * 7 * 7 * 512
    assert model.training
