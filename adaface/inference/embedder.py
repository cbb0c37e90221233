"""A trained model as a function: from aligned faces to unit embeddings and their norms.

    python inference.py compare a.jpg b.jpg --model adaface_ir101_webface12m     # all commands: commands/inference.py

    embedder = Embedder.load("experiments/default_11-24_0/best.ckpt")   # or an official .ckpt, or an exported .onnx
    embeddings, norms = embedder.embed(images)                          # (N, 112, 112, 3) uint8 BGR

Color order, size and normalization are properties of the model: callers pass uint8 BGR images as read by OpenCV. An
embedding is fused from an image and its mirror image; its norm is AdaFace's measure of image quality.

Source: the names ``load_pretrained_model`` and ``to_input`` and the flip test are the official code's.
Differs from it: the architecture is read from the file, and no code in the file is executed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from adaface.checkpoints.download import find_model
from adaface.checkpoints.files import THRESHOLD, load_checkpoint
from adaface.checkpoints.weights import backbone_state, describe_foreign, find_architecture, load_backbone
from adaface.data.images import as_bgr
from adaface.export.network import load_network
from adaface.metrics.verification import fuse_flip
from adaface.models.backbone import EMBEDDING_SIZE, IMAGE_SIZE, Backbone
from adaface.models.input_format import InputFormat, normalize_images
from adaface.models.layers import fold_batch_norms
from adaface.models.registry import build_model

FUSED, IMAGE, MIRROR = VIEWS = ("fused", "image", "mirror")


def load_pretrained_model(architecture: str | None, path: str | Path, color: str | None = None) -> Backbone:
    """Build a backbone and load the weights of a checkpoint into it.

    Args:
        architecture: such as ``ir_50``; None reads it from the file or infers it from the weights.
        path: a checkpoint, from this project or from the official code, or weights of another program.
        color: ``rgb`` or ``bgr``, the color order of another program's network.

    Returns:
        The network in evaluation mode, on the CPU; it takes BGR.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint, or of another or an unknown architecture.
    """
    checkpoint = load_checkpoint(path)
    return _build(architecture or find_architecture(checkpoint, path), checkpoint, path, color)


def _build(architecture: str, checkpoint: dict[str, Any], path: str | Path, color: str | None) -> Backbone:
    """Build a backbone in evaluation mode, with the weights of a checkpoint that was read from ``path``."""
    model = build_model(architecture)
    load_backbone(model, checkpoint, path, architecture, color)
    return model.eval()


def load_model(model: str | Path, arch: str | None = None, color: str | None = None) -> Backbone:
    """Load a trained backbone, from a file or by the name of a published model.

    Args:
        model: a checkpoint, from this project or from the official code, or the name of a published model, which is
            downloaded if necessary.
        arch: architecture, such as ``ir_50``; None reads it from the file.
        color: ``rgb`` or ``bgr``, the color order of another program's network.

    Returns:
        The network in evaluation mode, on the CPU. It takes (B, 3, 112, 112) float32 BGR images, normalized to [-1, 1].

    Raises:
        ValueError: neither a checkpoint nor the name of a published model, or of another architecture.
        RuntimeError: the model cannot be downloaded.
    """
    return load_pretrained_model(arch, model if Path(model).exists() else find_model(str(model)), color)


def to_input(image: Any) -> Tensor:
    """Convert one aligned face to the input of a network that expects BGR, as all published ones do.

    Args:
        image: a Pillow image of any mode, or an array (112, 112, 3) uint8 in **RGB** order.

    Returns:
        (1, 3, 112, 112) float32 BGR in [-1, 1].

    Raises:
        ValueError: the image has another shape or type.
    """
    bgr = as_bgr(image, "the image") if isinstance(image, Image.Image) else as_bgr(image, "the image")[..., ::-1]
    _check_images(bgr[None], "the image")
    return normalize_images(torch.from_numpy(np.ascontiguousarray(bgr[None])), channels_last=False)


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """Return a copy of a network optimized for inference, with the same embeddings."""
    return fold_batch_norms(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Embedder:
    """A trained model as a function from images to embeddings.

    Args:
        network: network that computes the embeddings.
        name: name of the model, for display.
        arch: architecture.
        input_format: input that the network expects.
        fingerprint: identifies the weights and the input format.
        threshold: threshold calibrated by ``metrics.calibration`` for this model, as plain values; None without one.
        foreign: which weights of another program's file were taken; empty for other models.
    """

    def __init__(
        self,
        network: "Network",
        *,
        name: str,
        arch: str,
        input_format: InputFormat,
        fingerprint: str,
        threshold: Mapping[str, Any] | None = None,
        foreign: str = "",
    ) -> None:
        self.name, self.arch, self.fingerprint, self.threshold = name, arch, fingerprint, threshold
        self.foreign = foreign
        self._network, self._format = network, input_format

    @classmethod
    def load(
        cls, path: str | Path, arch: str | None = None, device: str = "cpu", color: str | None = None
    ) -> "Embedder":
        """Load a model.

        Args:
            path: a checkpoint, from this project or from the official code, file or folder; or an ONNX file
                written by ``adaface export``.
            arch: architecture, if the file does not store it.
            device: such as ``cpu`` or ``cuda:0``.
            color: ``rgb`` or ``bgr``, the color order of the network in weights of another program. Images are passed
                as BGR in any case.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: neither a checkpoint nor an ONNX file of this project, or of another architecture.
            RuntimeError: an ONNX file, but the package onnxruntime is missing.
        """
        path = Path(path)
        return _load_onnx(path, arch) if path.suffix == ".onnx" else _load_checkpoint(path, arch, device, color)

    def embed(
        self, images: np.ndarray | Sequence[Any], batch_size: int = 64, *, view: str = FUSED
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embed aligned faces.

        Args:
            images: (N, 112, 112, 3) uint8 BGR; or a list of N such arrays or Pillow images, which are converted.
            batch_size: batch size.
            view: one of ``VIEWS``: image and mirror image ``fused``, the ``image`` alone, or its ``mirror`` alone.

        Returns:
            Unit embeddings (N, D) and norms (N, 1), float32.

        Raises:
            ValueError: the images have another shape or type, or the embeddings are not finite.
        """
        if not isinstance(images, np.ndarray):
            images = _stacked(images)
        _check_images(images, "the images")
        if self._format.color == "RGB":
            images = images[..., ::-1]
        parts = [self._embed(images[start : start + batch_size], view) for start in range(0, len(images), batch_size)]
        if not parts:
            return np.empty((0, self.embedding_size), np.float32), np.empty((0, 1), np.float32)
        embeddings, norms = (np.concatenate(part) for part in zip(*parts, strict=True))
        if not (np.isfinite(embeddings).all() and np.isfinite(norms).all()):
            raise ValueError(
                f"the embeddings of {self.name} are not finite (NaN or infinite): the network is broken, for example "
                "because its training diverged"
            )
        return embeddings, norms

    def _embed(self, images: np.ndarray, view: str) -> tuple[np.ndarray, np.ndarray]:
        """Embed one batch, (B, 112, 112, 3) in the network's color order."""
        if view == IMAGE:
            return self._network(np.ascontiguousarray(images))
        mirrored = self._network(np.ascontiguousarray(images[:, :, ::-1]))
        if view == MIRROR:
            return mirrored
        parts = (part.astype(np.float64) for part in (*self._network(np.ascontiguousarray(images)), *mirrored))
        fused, norms = fuse_flip(*parts)
        return fused.astype(np.float32), norms.astype(np.float32)

    @property
    def embedding_size(self) -> int:
        """Length D of an embedding."""
        return self._network.embedding_size


class Network(Protocol):
    """Computes the embeddings of a batch."""

    @property
    def embedding_size(self) -> int:
        """Length D of an embedding."""

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed (B, 112, 112, 3) uint8 in the network's color order: (B, D) and (B, 1), float32."""


class _TorchNetwork:
    """A backbone on a device."""

    def __init__(self, model: Backbone, device: str, input_format: InputFormat) -> None:
        self.embedding_size = EMBEDDING_SIZE
        self._device, self._format = device, input_format
        self._model = prepare_for_inference(model).to(device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        embeddings, norms = self._model(self._format.normalized(torch.from_numpy(images).to(self._device)))
        return embeddings.cpu().numpy(), norms.cpu().numpy()


@dataclass(frozen=True)
class Description:
    """Properties of a model that are stored in its checkpoint.

    Attributes:
        arch: architecture.
        input_format: input that the network expects.
        fingerprint: identifies the weights and the input format.
        threshold: threshold calibrated by ``metrics.calibration`` for this model, as plain values; None without one.
        foreign: which weights of another program's file were taken; empty for other models.
    """

    arch: str
    input_format: InputFormat
    fingerprint: str
    threshold: Mapping[str, Any] | None
    foreign: str = ""


def read_model(path: str | Path, arch: str | None = None, color: str | None = None) -> tuple[Backbone, Description]:
    """Read a model from a checkpoint.

    Args:
        path: a checkpoint, from this project or from the official code, file or folder.
        arch: architecture; None reads it from the file or infers it from the weights.
        color: ``rgb`` or ``bgr``, the color order of another program's network.

    Returns:
        The network in evaluation mode, on the CPU, and the properties stored in the checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint, or of another or an unknown architecture.
    """
    checkpoint = load_checkpoint(path)
    arch = arch or find_architecture(checkpoint, path)
    input_format = InputFormat.of(_metadata(checkpoint).get("input", {}), path)
    return _build(arch, checkpoint, path, color), Description(
        arch=arch,
        input_format=input_format,
        fingerprint=f"{arch}-{_digest(backbone_state(checkpoint, path, color))}{_of_format(input_format)}",
        threshold=checkpoint.get(THRESHOLD),
        foreign=describe_foreign(checkpoint, path),
    )


def _load_checkpoint(path: Path, arch: str | None, device: str, color: str | None) -> Embedder:
    model, description = read_model(path, arch, color)
    return Embedder(
        _TorchNetwork(model, device, description.input_format),
        name=str(path),
        arch=description.arch,
        input_format=description.input_format,
        fingerprint=description.fingerprint,
        threshold=description.threshold,
        foreign=description.foreign,
    )


def _metadata(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata that training stores with the weights; empty in an official checkpoint."""
    metadata = checkpoint.get("adaface", {})
    return metadata if isinstance(metadata, Mapping) else {}


def _of_format(input_format: InputFormat) -> str:
    """Return what the input format adds to a fingerprint: the same weights give other embeddings with another one."""
    if input_format == InputFormat():
        return ""
    return f"-{input_format.color}-{input_format.mean:g}-{input_format.std:g}"


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of the weights, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _load_onnx(path: Path, arch: str | None) -> Embedder:
    network, input_format, metadata = load_network(path)
    stored_arch = str(metadata.get("arch", "unknown"))
    if arch not in (None, stored_arch):
        raise ValueError(f"{path} is an export of {stored_arch}, got --arch {arch}: leave --arch out")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Embedder(
        network,
        name=str(path),
        arch=stored_arch,
        input_format=input_format,
        fingerprint=f"onnx-{digest}",
        threshold=metadata.get("threshold"),
    )


def _stacked(images: Sequence[Any]) -> np.ndarray:
    """Return a list of images as (N, 112, 112, 3) uint8 BGR."""
    if not isinstance(images, (list, tuple)):
        raise ValueError(f"the images are a {type(images).__name__}, expected an array or a list of images")
    arrays = [as_bgr(image, f"image {index}") for index, image in enumerate(images)]
    for index, array in enumerate(arrays):
        _check_images(array[None], f"image {index}")
    return np.stack(arrays) if arrays else np.empty((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def _check_images(images: np.ndarray, what: str) -> None:
    """Raise ValueError if images are not (N, 112, 112, 3) uint8."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"{what}: {images.dtype} of shape {images.shape[1:]}, expected uint8 of ({IMAGE_SIZE}, {IMAGE_SIZE}, 3): "
            "align the faces first"
        )
