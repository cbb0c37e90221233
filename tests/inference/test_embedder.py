from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adaface.inference.embedder import FUSED, IMAGE, MIRROR, Embedder, load_pretrained_model, to_input
from adaface.models import registry
from tests.support.golden_fill import fill_state_dict


def faces(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), np.uint8)


def write_checkpoint(path: Path, arch: str = "ir_mini", **more: Any) -> Path:
    model = registry.build_model(arch)
    model.load_state_dict(fill_state_dict(model.state_dict()))
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}, **more}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "model.ckpt")


def test_embeddings_are_those_of_the_network(checkpoint):
    model = load_pretrained_model("ir_mini", checkpoint)
    images = faces(5)
    inputs = torch.cat([to_input(image[..., ::-1]) for image in images])  # to_input takes RGB
    with torch.inference_mode():
        expected, norms = model(inputs)
    embeddings, lengths = Embedder.load(checkpoint).embed(images, view=IMAGE)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(lengths, norms, rtol=1e-4)
    assert embeddings.dtype == lengths.dtype == np.float32
    assert lengths.shape == (5, 1)


def test_image_and_mirror_are_fused_by_their_norms(checkpoint):
    embedder, images = Embedder.load(checkpoint), faces(3)
    e1, n1 = embedder.embed(images, view=IMAGE)
    e2, n2 = embedder.embed(images, view=MIRROR)
    mirrored, _ = embedder.embed(images[:, :, ::-1], view=IMAGE)
    np.testing.assert_array_equal(e2, mirrored)
    fused = e1.astype(float) * n1 + e2.astype(float) * n2
    embeddings, norms = embedder.embed(images, view=FUSED)
    np.testing.assert_allclose(norms[:, 0], np.linalg.norm(fused, axis=1), rtol=1e-6)
    np.testing.assert_allclose(embeddings, fused / np.linalg.norm(fused, axis=1, keepdims=True), atol=1e-6)


def test_batches_do_not_matter(checkpoint):
    embedder, images = Embedder.load(checkpoint), faces(5)
    for whole, parts in zip(embedder.embed(images), embedder.embed(images, 2), strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-5)
    nothing, norms = embedder.embed(faces(0))
    assert nothing.shape == (0, 512)
    assert norms.shape == (0, 1)


@pytest.mark.parametrize(
    "images", [faces(2)[0], faces(2).astype(np.float32), faces(2)[:, :100], faces(2)[..., :1]],
    ids=["one", "float", "size", "grey"],
)  # fmt: skip
def test_other_images_are_refused(checkpoint, images):
    with pytest.raises(ValueError, match=r"expected uint8 of \(112, 112, 3\): align the faces first"):
        Embedder.load(checkpoint).embed(images)


def test_a_pillow_image_is_converted_from_the_mode_it_states(checkpoint):
    embedder, images = Embedder.load(checkpoint), faces(3)
    expected, norms = embedder.embed(images)
    pictures = [Image.fromarray(image[..., ::-1]) for image in images]
    for given in (pictures, tuple(pictures), list(images), [images[0], *pictures[1:]]):
        embeddings, lengths = embedder.embed(given)
        np.testing.assert_array_equal(embeddings, expected)
        np.testing.assert_array_equal(lengths, norms)
    np.testing.assert_array_equal(embedder.embed([p.convert("RGBA") for p in pictures])[0], expected)
    gray = embedder.embed([pictures[0].convert("L")])[0]
    np.testing.assert_array_equal(
        gray, embedder.embed(np.repeat(np.asarray(pictures[0].convert("L"))[None, ..., None], 3, axis=3))[0]
    )
    deep = Image.fromarray(np.asarray(pictures[0].convert("L")).astype(np.uint16) << 8)
    assert deep.mode == "I;16"
    np.testing.assert_array_equal(embedder.embed([deep])[0], gray)
    for wide in (*(pictures[0].convert("L").convert(mode) for mode in ("I", "I;16")), deep.convert("I")):
        assert wide.mode in ("I", "I;16")
        np.testing.assert_array_equal(embedder.embed([wide])[0], gray)
    assert torch.equal(to_input(pictures[0]), to_input(images[0][..., ::-1]))
    assert torch.equal(to_input(pictures[0].convert("RGBA")), to_input(pictures[0]))
    assert embedder.embed([])[0].shape == (0, 512)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 112, 112, 3, dtype=torch.uint8), "the images are a Tensor, expected an array or a list"),
        ([torch.zeros(112, 112, 3, dtype=torch.uint8)], "image 0 is a Tensor, expected a uint8 array in BGR order"),
        ([faces(1)[0].tolist()], "image 0 is a list, expected a uint8 array in BGR order, or a Pillow image"),
        ([faces(1)[0], faces(1)[0][:50]], "image 1: uint8 of shape"),
        ([Image.new("RGB", (50, 60))], "image 0: uint8 of shape"),
        ("a.jpg", "the images are a str, expected an array or a list of images"),
    ],
)
def test_what_states_no_color_order_is_refused(checkpoint, images, message):
    with pytest.raises(ValueError, match=message):
        Embedder.load(checkpoint).embed(images)


def test_the_model_says_which_colours_it_wants(tmp_path):
    images = faces(2)
    bgr = Embedder.load(write_checkpoint(tmp_path / "bgr.ckpt", adaface={"input": {"color": "BGR"}}))
    rgb = Embedder.load(write_checkpoint(tmp_path / "rgb.ckpt", adaface={"input": {"color": "RGB"}}))
    np.testing.assert_array_equal(rgb.embed(images)[0], bgr.embed(images[..., ::-1])[0])
    assert not np.allclose(rgb.embed(images)[0], bgr.embed(images)[0])
    scaled = Embedder.load(write_checkpoint(tmp_path / "scaled.ckpt", adaface={"input": {"std": 128}}))
    unsaid = Embedder.load(write_checkpoint(tmp_path / "unsaid.ckpt"))
    assert unsaid.fingerprint == bgr.fingerprint, "kept embeddings of earlier versions stay usable"
    assert len({one.fingerprint for one in (bgr, rgb, scaled)}) == 3, "the embeddings differ, the weights do not"


def test_the_architecture_is_read_from_the_file(checkpoint):
    embedder = Embedder.load(checkpoint)
    assert embedder.arch == "ir_mini"
    assert embedder.embedding_size == 512
    with pytest.raises(ValueError, match="holds weights of ir_mini"):
        Embedder.load(checkpoint, "ir_18")
    with pytest.raises(ValueError, match="unknown architecture 'ir_mni'; did you mean ir_mini"):
        Embedder.load(checkpoint, "ir_mni")


def test_weights_of_no_known_architecture_are_refused(tmp_path):
    torch.save({"state_dict": {"model.a.weight": torch.zeros(3)}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="weights of an unknown architecture"):
        Embedder.load(tmp_path / "x.ckpt")


def test_the_fingerprint_is_that_of_the_weights(tmp_path, checkpoint):
    same = write_checkpoint(tmp_path / "same.ckpt", epoch=3, adaface_threshold={"cosine": 0.3})
    assert Embedder.load(same).fingerprint == Embedder.load(checkpoint).fingerprint
    assert Embedder.load(same).threshold == {"cosine": 0.3}
    assert Embedder.load(checkpoint).threshold is None
    other = torch.load(checkpoint, weights_only=True)
    next(iter(other["state_dict"].values())).view(-1)[0] += 1e-3
    torch.save(other, tmp_path / "other.ckpt")
    assert Embedder.load(tmp_path / "other.ckpt").fingerprint != Embedder.load(checkpoint).fingerprint


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        Embedder.load(tmp_path / "x.ckpt")
    with pytest.raises(FileNotFoundError, match="there is no ONNX file"):
        Embedder.load(tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weight: weight.to_sparse(),
            "1 weights are not dense real tensors, the first is model.input_layer",
        ),
        (lambda weight: weight.to(torch.complex64), "weights are not dense real tensors"),
        (lambda weight: weight.to("meta"), "weights are not dense real tensors"),
        (lambda weight: weight.to(torch.int8), "1 weights are integers, expected floats; the first is input_layer"),
    ],
    ids=["sparse", "complex", "meta", "whole"],
)
def test_weights_of_another_kind_are_refused(tmp_path, checkpoint, change, message):
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    first = next(iter(weights))
    torch.save({"state_dict": {**weights, first: change(weights[first])}}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=message):
        Embedder.load(tmp_path / "odd.ckpt")


def test_weights_of_half_precision_are_as_good(tmp_path, checkpoint):
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    halved = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    torch.save({"state_dict": halved}, tmp_path / "half.ckpt")
    found, expected = (Embedder.load(path).embed(faces(2))[0] for path in (tmp_path / "half.ckpt", checkpoint))
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_embeddings_that_are_not_finite_are_refused(tmp_path, checkpoint):
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    first = next(iter(weights))
    torch.save({"state_dict": {**weights, first: weights[first] * float("nan")}}, tmp_path / "diverged.ckpt")
    with pytest.raises(ValueError, match=r"the embeddings of .*diverged\.ckpt are not finite"):
        Embedder.load(tmp_path / "diverged.ckpt").embed(faces(1))


@pytest.mark.parametrize("told", [5, {"mean": float("nan")}, {"size": 112}, {"std": 0}])
def test_an_input_that_no_network_has_is_refused(tmp_path, told):
    with pytest.raises(ValueError, match=r"odd\.ckpt has (an unsupported|the) input format"):
        Embedder.load(write_checkpoint(tmp_path / "odd.ckpt", adaface={"input": told}))
