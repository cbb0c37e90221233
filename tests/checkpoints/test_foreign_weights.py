"""Weights of other programs: the same network under another prefix, of a color order that has to be given."""

import argparse

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adaface.checkpoints.files import load_checkpoint
from adaface.checkpoints.weights import describe_foreign, find_architecture
from adaface.commands import inference
from adaface.inference.embedder import Embedder, load_pretrained_model
from adaface.models.registry import build_model

ARCH = "ir_mini"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return {key: value.clone() for key, value in build_model(ARCH).state_dict().items()}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)


def under(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def other(weights):
    return {key: value + 1 for key, value in weights.items()}


FOREIGN = {
    "bare": lambda w: w,
    "module": lambda w: under("module.", w),
    "net, as of CVLface": lambda w: under("net.", w),
    "model": lambda w: {"model": w},
    "backbone": lambda w: {"backbone": w, "epoch": 3},
    "model_state_dict": lambda w: {"model_state_dict": under("module.", w)},
    "model of model": lambda w: {"model": {"model": w, "step": 7}},
    "params": lambda w: {"params": w},
    "state_dict of model": lambda w: {"model": {"state_dict": under("module.", w)}},
    "state_dict of state_dict": lambda w: {"state_dict": {"backbone": w, "step": 3}},
    "features.module": lambda w: {"state_dict": under("features.module.", w)},
    "without batch counters": lambda w: {key: w[key] for key in w if not key.endswith("num_batches_tracked")},
    "state_dict without prefix": lambda w: {"state_dict": w},
    "state_dict of module": lambda w: {"state_dict": under("module.", w)},
    "state_dict of backbone": lambda w: {"state_dict": under("backbone.", w)},
    "state_dict of a wrapper around net": lambda w: {"state_dict": under("model.net.", w)},
    "state_dict of a wrapper around backbone": lambda w: {"state_dict": under("model.module.backbone.", w)},
    "compiled": lambda w: under("_orig_mod.", w),
    "state_dict_backbone, as of arcface_torch": lambda w: {
        "epoch": 2,
        "state_dict_backbone": under("module.", w),
        "state_dict_softmax_fc": {"weight": torch.zeros(5, 512)},
    },
    "ema alone": lambda w: {"ema": w},
    "options and generators": lambda w: {
        "model": w,
        "args": argparse.Namespace(lr=0.1, milestones=[8, 12]),
        "numpy": np.random.default_rng(0).integers(0, 9, 624, np.uint32),
        "classes": np.array(["a", None], dtype=object),
    },
    "the same object twice": lambda w: {"generator": w, "shadow": w},
    "model of checkpoint": lambda w: {"checkpoint": {"model": w}},
    "a list": lambda w: [w],
    "weights and an epoch": lambda w: {**w, "epoch": 3},
    "face_model": lambda w: under("face_model.", w),
    "model.student": lambda w: {"state_dict": under("model.student.", w)},
    "encoder_q of module": lambda w: under("module.encoder_q.", w),
    "sharded": lambda w: under("_fsdp_wrapped_module.", w),
    "module, with a head": lambda w: {**under("module.", w), "fc.kernel": torch.zeros(512, 5)},
}
OURS = {
    "official": lambda w: {"state_dict": under("model.", w)},
    "parallel": lambda w: {"state_dict": under("model.module.", w)},
    "compiled": lambda w: {"state_dict": under("model._orig_mod.", w)},
    "both": lambda w: {"state_dict": under("model._orig_mod.module.", w)},
}


def saved(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("name", FOREIGN)
def test_the_same_network_under_another_prefix(tmp_path, network, images, name):
    path = saved(tmp_path, FOREIGN[name](network))
    assert find_architecture(load_checkpoint(path), path) == ARCH
    with pytest.raises(ValueError, match=r"does not store the color order .*give --color rgb or --color bgr"):
        Embedder.load(path)
    expected, _ = Embedder.load(saved_official(tmp_path, network)).embed(images)
    np.testing.assert_allclose(Embedder.load(path, color="bgr").embed(images)[0], expected, atol=1e-6)
    assert "weights under" in describe_foreign(load_checkpoint(path), path)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lambda w: {"ema": w, "student": dict(w)}, "`ema`, `student`"),
        (lambda w: [w, dict(w)], "`0`, `1`"),
        (
            lambda w: {**under("student.", w), **under("teacher.", other(w))},
            r"under the prefixes \['student\.', 'teacher\.'\]",
        ),
        (
            lambda w: {**under("model.", w), **under("net.", other(w))},
            r"under the prefixes \['net\.', 'model\.'\]",
        ),
    ],
)
def test_one_of_several_networks_is_not_guessed(tmp_path, network, content, names):
    path = saved(tmp_path, content(network))
    with pytest.raises(ValueError, match=rf"weights\.pth holds several networks, {names}: save the weights of one"):
        Embedder.load(path, color="bgr")


def test_modules_that_share_a_network_hold_one(tmp_path, network):
    path = saved(tmp_path, {**under("model.", network), **under("backbone.", network)})
    assert "under `model.` are taken; " in Embedder.load(path, color="bgr").foreign


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"a": 1, "b\nc": 2}, r"its keys are \['a', 'b\\nc'\]"),
        ([1, 2], "it holds one list"),
        (torch.zeros(3), "it holds one Tensor"),
    ],
)
def test_files_without_weights_say_what_they_hold(tmp_path, content, found):
    with pytest.raises(ValueError, match=rf"is not a training checkpoint: it has no `state_dict`, {found}$"):
        load_checkpoint(saved(tmp_path, content))


def test_weights_without_batch_counters_are_counted_as_they_are(tmp_path, network):
    without = {key: value for key, value in network.items() if not key.endswith("num_batches_tracked")}
    path = saved(tmp_path, {**under("net.", without), "head.kernel": torch.zeros(512, 5)})
    described = describe_foreign(load_checkpoint(path), path)
    assert f": {len(without)} weights under `net.` are taken; 1 other entries are ignored" in described


@pytest.mark.parametrize(
    ("content", "described"),
    [
        (
            lambda w: {"ema": dict(w), "model": w},
            "no prefix of its part `model` are taken; the weights in `ema` are ignored",
        ),
        (lambda w: {"ema": under("module.", w), "step": 1}, "`module.` of its part `ema` are taken"),
        (
            lambda w: {"state_dict": under("module.", w), "state_dict_ema": w},
            "`module.` are taken; the weights in `state_dict_ema` are ignored",
        ),
        (lambda w: {**w, "epoch": 3}, "no prefix are taken"),
    ],
)
def test_the_part_that_was_taken_is_named(tmp_path, network, content, described):
    path = saved(tmp_path, content(network))
    assert describe_foreign(load_checkpoint(path), path) == f"{path}: {len(network)} weights under {described}"


def test_names_of_parts_that_the_file_itself_gives(tmp_path, network):
    path = saved(tmp_path, {"state_dict": network, "found_in": 5, "other_parts": {"a": 1}})
    assert describe_foreign(load_checkpoint(path), path) == f"{path}: {len(network)} weights under no prefix are taken"


def saved_official(tmp_path, network):
    torch.save({"state_dict": under("model.", network)}, tmp_path / "official.ckpt")
    return tmp_path / "official.ckpt"


@pytest.mark.parametrize("name", OURS)
def test_wrappers_of_the_official_network(tmp_path, network, images, name):
    path = saved(tmp_path, OURS[name](network))
    expected, _ = Embedder.load(saved_official(tmp_path, network)).embed(images)
    np.testing.assert_allclose(Embedder.load(path).embed(images)[0], expected, atol=1e-6)
    assert describe_foreign(load_checkpoint(path), path) == ""
    with pytest.raises(ValueError, match="takes BGR: omit --color"):
        Embedder.load(path, color="rgb")


def test_an_rgb_network_becomes_a_bgr_network(tmp_path, network, images):
    path = saved(tmp_path, under("net.", network))
    rgb = Embedder.load(path, color="rgb").embed(images)[0]
    bgr = Embedder.load(path, color="bgr").embed(images[..., ::-1])[0]
    np.testing.assert_allclose(rgb, bgr, atol=1e-5)
    assert not np.allclose(rgb, Embedder.load(path, color="bgr").embed(images)[0], atol=1e-3)
    with torch.inference_mode():
        x = torch.randn(2, 3, 112, 112)
        first = load_pretrained_model(None, path, "rgb")(x)[0]
        second = load_pretrained_model(None, path, "bgr")(x.flip(1))[0]
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_safetensors(tmp_path, network, images):
    save_file({key: value.contiguous() for key, value in under("net.", network).items()}, tmp_path / "w.safetensors")
    path = tmp_path / "w.safetensors"
    expected, _ = Embedder.load(saved_official(tmp_path, network)).embed(images)
    np.testing.assert_allclose(Embedder.load(path, color="bgr").embed(images)[0], expected, atol=1e-6)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged or not a safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "W.SAFETENSORS", "w"])
def test_safetensors_are_recognized_by_their_content(tmp_path, network, name):
    save_file(network, tmp_path / name)
    state = load_checkpoint(tmp_path / name)["state_dict"]
    assert all(torch.equal(state[key], value) for key, value in network.items())


def test_a_checkpoint_with_the_extension_of_safetensors(tmp_path, network):
    path = saved_official(tmp_path, network).rename(tmp_path / "official.safetensors")
    assert set(load_checkpoint(path)["state_dict"]) == set(under("model.", network))


@pytest.mark.parametrize(
    "content",
    [
        {f"body.{number}.conv.weight": torch.zeros(3) for number in range(20)},  # another architecture
        {"model": {f"body.{number}.weight": torch.zeros(3) for number in range(20)}},
    ],
)
def test_other_networks_are_refused(tmp_path, content):
    path = saved(tmp_path, content)
    with pytest.raises(ValueError, match=r"weights\.pth has no `model\.\*` weights; its keys begin with"):
        Embedder.load(path, color="bgr")


def test_the_commands_take_a_color_and_say_what_was_taken(tmp_path, network, capsys):
    path = saved(tmp_path, under("net.", network))
    faces = [str(tmp_path / f"{name}.png") for name in "ab"]
    for number, file in enumerate(faces):
        cv2.imwrite(file, np.full((112, 112, 3), 90 + 60 * number, np.uint8))
    assert inference.main(["compare", *faces, "--checkpoint", str(path)]) == 2
    assert "give --color rgb or --color bgr (networks of CVLface take RGB)" in capsys.readouterr().err
    assert inference.main(["compare", *faces, "--checkpoint", str(path), "--color", "rgb"]) == 0
    assert f"note: {path}: {len(network)} weights under `net.` are taken; rgb images" in capsys.readouterr().out


def test_weights_of_insightface_are_told_as_another_network(tmp_path):
    keys = ["conv1.weight", "bn1.weight", "prelu.weight", "layer1.0.bn1.weight", "layer1.0.prelu.weight", "fc.weight"]
    path = saved(tmp_path, under("module.", {f"{key}{more}": torch.zeros(1) for key in keys for more in ("", ".a")}))
    with pytest.raises(
        ValueError, match=r"as of InsightFace's iresnet, whose .*`adaface models` lists the networks whose"
    ):
        Embedder.load(path, color="rgb")
