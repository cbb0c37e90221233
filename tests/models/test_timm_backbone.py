import socket
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import main
from adaface.checkpoints.files import load_checkpoint
from adaface.checkpoints.weights import find_architecture, stored_architecture
from adaface.inference.embedder import IMAGE, Embedder, load_pretrained_model
from adaface.models.registry import build_model, check_architecture
from adaface.models.timm_backbone import TimmBackbone
from tests.commands.test_train import faces, run, words  # noqa: F401 (a fixture)
from tests.support.small_networks import TRAINED

ARCH = "timm:test_resnet@64"


class Seen(nn.Module):
    """Takes the place of a network and keeps what comes in."""

    def forward(self, x: Tensor) -> Tensor:
        self.images = x
        return x.mean((2, 3))


def test_the_network_gets_colors_size_and_normalization_as_it_wants_them():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    seen = Seen()
    model = TimmBackbone(seen, 3, 160, mean, std).eval()
    bgr = torch.tensor([10.0, 100.0, 250.0]).view(1, 3, 1, 1).expand(1, 3, 112, 112)
    model(bgr / 127.5 - 1)
    assert seen.images.shape == (1, 3, 160, 160)
    for channel, level in enumerate((250, 100, 10)):  # RGB
        expected = (level / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(seen.images[0, channel], torch.full((160, 160), expected), rtol=1e-5, atol=1e-5)


def test_an_image_is_made_smaller_without_losing_pixels():
    seen = Seen()
    model = TimmBackbone(seen, 3, 32, (0.5,) * 3, (0.5,) * 3).eval()
    images = torch.zeros(1, 3, 112, 112)
    images[:, :, ::4, ::4] = 1  # single bright pixels
    model(images)
    torch.testing.assert_close(seen.images.mean(), images.mean(), rtol=0.05, atol=0)
    model.side = 112
    model(images)
    assert torch.equal(seen.images, images)


def test_nothing_but_weights_is_in_the_state_dict():
    model = build_model(ARCH)
    assert {key.partition(".")[0] for key in model.state_dict()} == {"net", "output_layer"}
    other = build_model(ARCH)
    other.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    assert torch.equal(model.eval()(images)[0], other.eval()(images)[0])


def test_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("asked the network"))
    build_model("timm:test_vit.r160_in1k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_resnt", r"has no network 'test_resnt'; did you mean timm:test_resnet"),
        ("timm:zzzzzzzz", r"has no network 'zzzzzzzz'; timm.list_models\(\) lists all"),
        ("timm:", "expected timm:<name> or timm:<name>@<side in pixels>"),
        ("timm:test_vit@big", "expected timm:<name> or timm:<name>@<side in pixels>"),
        ("timm:test_vit@8", "images of 8 pixels, expected 32 to 1024"),
        ("timm:hf-hub:someone/something", "expected timm:<name>"),
    ],
)
def test_what_is_no_network_of_timm_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        check_architecture(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_vit.no_such_tag", "timm cannot build timm:test_vit.no_such_tag: "),
        ("timm:test_coatnet@40", "timm:test_coatnet@40 does not support images of 40x40: .*; give another @<side>"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        build_model(name)


def test_without_timm_it_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RuntimeError, match="needs the package timm: pip install timm"):
        build_model(ARCH)
    assert build_model("ir_mini")


# the whole way: trained, saved, loaded, evaluated


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):  # noqa: F811
    return run(faces, tmp_path_factory.mktemp("timm"), "--arch", ARCH, "--epochs", "1", "--lr", "0.01")


def test_a_checkpoint_tells_its_architecture(trained):
    checkpoint = load_checkpoint(trained / "last.ckpt")
    assert stored_architecture(checkpoint) == find_architecture(checkpoint, "last.ckpt") == ARCH
    model = load_pretrained_model(None, trained / "last.ckpt")
    assert isinstance(model, TimmBackbone)
    assert model.side == 64
    assert not model.training
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    embedder = Embedder.load(trained / "last.ckpt")
    with torch.inference_mode():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)[0]
    np.testing.assert_allclose(embedder.embed(images, view=IMAGE)[0], expected, atol=1e-5)
    assert embedder.arch == ARCH


def test_it_is_evaluated_and_trained_further(trained, faces, tmp_path, capsys):  # noqa: F811
    start = ["--start_from_model_statedict", str(trained / "last.ckpt")]
    without_arch = [word for word in words(faces, tmp_path) if word not in ("--arch", TRAINED)]
    assert main.main([*without_arch, *start, "--evaluate"]) == 0
    assert f"model: {ARCH}" in capsys.readouterr().out
    assert main.main([*without_arch, "--arch", "ir_mini", *start]) == 2
    assert f"holds weights of {ARCH}, the run uses --arch ir_mini: give --arch {ARCH}" in capsys.readouterr().err


def test_weights_that_tell_nothing_need_the_option(trained, tmp_path):
    torch.save({"state_dict": load_checkpoint(trained / "last.ckpt")["state_dict"]}, tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"of an unknown architecture .* give --arch timm:<name>"):
        Embedder.load(tmp_path / "bare.ckpt")
    assert Embedder.load(tmp_path / "bare.ckpt", ARCH).arch == ARCH


@pytest.mark.parametrize("ours", [5, {"config": 5}, {"config": {"arch": 5}}, {"config": {"arch": ""}}, {}])
def test_what_is_told_in_another_form_is_not_taken(ours):
    assert stored_architecture({"adaface": ours}) is None
