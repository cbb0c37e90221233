"""A trained model as a function: aligned faces in, unit embeddings and their norms out.

    python inference.py compare a.jpg b.jpg --model adaface_ir101_webface12m     # all commands: commands/inference.py

    embedder = Embedder.load("experiments/default_11-24_0/best.ckpt")   # or an official .ckpt, or an exported .onnx
    embeddings, norms = embedder.embed(images)                          # (N, 112, 112, 3) uint8 BGR

Color order, size and normalization belong to the model: callers hand over ordinary uint8 BGR images, as OpenCV reads
them. An embedding is that of an image and its mirror, fused; its norm is AdaFace's measure of image quality.

Source: the names ``load_pretrained_model`` and ``to_input`` and the flip test are the official code's.
Differs from it: the architecture is read from the file, nothing in the file is executed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from adaface.checkpoints.download import find_model
from adaface.checkpoints.files import THRESHOLD, load_checkpoint
from adaface.checkpoints.weights import backbone_state, find_architecture, load_backbone
from adaface.export.network import load_network
from adaface.metrics.verification import fuse_flip
from adaface.models.backbone import EMBEDDING_SIZE, IMAGE_SIZE, Backbone
from adaface.models.input_format import InputFormat, normalize_images
from adaface.models.layers import fold_batch_norms
from adaface.models.registry import build_model

FUSED, IMAGE, MIRROR = VIEWS = ("fused", "image", "mirror")


def load_pretrained_model(architecture: str | None, path: str | Path) -> Backbone:
    """Build a backbone and load the weights of a checkpoint into it.

    Args:
        architecture: such as ``ir_50``; None takes the one that the file tells, or its weights have.
        path: a checkpoint, from this project or from the official code.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no checkpoint, of another architecture, or of none that is known.
    """
    architecture = architecture or find_architecture(load_checkpoint(path), path)
    model = build_model(architecture)
    load_backbone(model, path, architecture)
    return model.eval()


def load_model(model: str | Path, arch: str | None = None) -> Backbone:
    """Load a trained backbone, from a file or by the name of a published model.

    Args:
        model: a checkpoint, ours or official, or the name of a published model, which is downloaded if it is not on
            this machine.
        arch: architecture, such as ``ir_50``; None takes the one of the file.

    Returns:
        The network in evaluation mode, on the CPU. It takes (B, 3, 112, 112) float32 BGR images, normalized to [-1, 1].

    Raises:
        ValueError: neither a checkpoint nor the name of a published model, or of another architecture.
        RuntimeError: a published model that cannot be downloaded.
    """
    return load_pretrained_model(arch, model if Path(model).exists() else find_model(str(model)))


def to_input(image: Any) -> Tensor:
    """Turn one aligned face into the input of a network that wants BGR, as all published ones do.

    Args:
        image: a PIL image, or an array (112, 112, 3) uint8, of **RGB**.

    Returns:
        (1, 3, 112, 112) float32 BGR in [-1, 1].

    Raises:
        ValueError: another shape or type.
    """
    pixels = np.asarray(image)
    _check_images(pixels[None], "the image")
    return normalize_images(torch.from_numpy(np.ascontiguousarray(pixels[None, ..., ::-1])), channels_last=False)


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """Return a copy of a network that gives the same embeddings in less time."""
    return fold_batch_norms(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Embedder:
    """A trained model as a function from images to embeddings.

    Args:
        network: computes them.
        name: of the model, for people.
        arch: architecture.
        input_format: what the network wants.
        fingerprint: changes where the weights do.
        threshold: what ``evaluation.calibration`` has found for this model, as plain values; None where it has not.
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
    ) -> None:
        self.name, self.arch, self.fingerprint, self.threshold = name, arch, fingerprint, threshold
        self._network, self._format = network, input_format

    @classmethod
    def load(cls, path: str | Path, arch: str | None = None, device: str = "cpu") -> "Embedder":
        """Load a model.

        Args:
            path: a checkpoint, from this project or from the official code, file or folder; or an ONNX file of
                ``adaface export``.
            arch: architecture, where the file does not tell it.
            device: such as ``cpu`` or ``cuda:0``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: neither a checkpoint nor an ONNX file of ours, or of another architecture.
            RuntimeError: an ONNX file, and the package onnxruntime is missing.
        """
        path = Path(path)
        return _load_onnx(path, arch) if path.suffix == ".onnx" else _load_checkpoint(path, arch, device)

    def embed(self, images: np.ndarray, batch_size: int = 64, *, view: str = FUSED) -> tuple[np.ndarray, np.ndarray]:
        """Embed aligned faces.

        Args:
            images: (N, 112, 112, 3) uint8 BGR.
            batch_size: images at a time.
            view: one of ``VIEWS``: what is embedded, image and mirror ``fused``, the ``image`` or its ``mirror`` alone.

        Returns:
            Unit embeddings (N, D) and norms (N, 1), float32.

        Raises:
            ValueError: another shape or type, or embeddings that are not finite.
        """
        images = np.asarray(images)
        _check_images(images, "the images")
        if self._format.color == "RGB":
            images = images[..., ::-1]
        parts = [self._embed(images[start : start + batch_size], view) for start in range(0, len(images), batch_size)]
        if not parts:
            return np.empty((0, self.embedding_size), np.float32), np.empty((0, 1), np.float32)
        embeddings, norms = (np.concatenate(part) for part in zip(*parts, strict=True))
        if not (np.isfinite(embeddings).all() and np.isfinite(norms).all()):
            raise ValueError(
                f"{self.name} gives embeddings that are not finite (NaN or infinite): the network is broken, for "
                "example by a training that diverged"
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
    """What computes the embeddings of a batch."""

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
    """What a checkpoint tells of its model.

    Attributes:
        arch: architecture.
        input_format: what the network wants.
        fingerprint: changes where the weights do.
        threshold: what ``evaluation.calibration`` has found for it, as plain values; None where it has not.
    """

    arch: str
    input_format: InputFormat
    fingerprint: str
    threshold: Mapping[str, Any] | None


def read_model(path: str | Path, arch: str | None = None) -> tuple[Backbone, Description]:
    """Read a model from a checkpoint.

    Args:
        path: a checkpoint, from this project or from the official code, file or folder.
        arch: architecture; None takes the one that the file tells, or its weights have.

    Returns:
        The network in evaluation mode, on the CPU, and what the checkpoint tells of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no checkpoint, of another architecture, or of none that is known.
    """
    checkpoint = load_checkpoint(path)
    arch = arch or find_architecture(checkpoint, path)
    ours = _ours(checkpoint)
    return load_pretrained_model(arch, path), Description(
        arch=arch,
        input_format=InputFormat.of(ours.get("input", {}), path),
        fingerprint=f"{arch}-{_digest(backbone_state(checkpoint, path))}",
        threshold=checkpoint.get(THRESHOLD),
    )


def _load_checkpoint(path: Path, arch: str | None, device: str) -> Embedder:
    model, told = read_model(path, arch)
    return Embedder(
        _TorchNetwork(model, device, told.input_format),
        name=str(path),
        arch=told.arch,
        input_format=told.input_format,
        fingerprint=told.fingerprint,
        threshold=told.threshold,
    )


def _ours(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what training has stored beside the weights; empty in an official checkpoint."""
    ours = checkpoint.get("adaface", {})
    return ours if isinstance(ours, Mapping) else {}


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Return 16 letters that change where a weight does."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _load_onnx(path: Path, arch: str | None) -> Embedder:
    network, input_format, metadata = load_network(path)
    found = str(metadata.get("arch", "unknown"))
    if arch not in (None, found):
        raise ValueError(f"{path} is an export of {found}, --arch {arch} was asked for")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Embedder(
        network,
        name=str(path),
        arch=found,
        input_format=input_format,
        fingerprint=f"onnx-{digest}",
        threshold=metadata.get("threshold"),
    )


def _check_images(images: np.ndarray, what: str) -> None:
    """Raise ValueError where images are not (N, 112, 112, 3) uint8."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"{what}: {images.dtype} of shape {images.shape[1:]}, expected uint8 of ({IMAGE_SIZE}, {IMAGE_SIZE}, 3): "
            "align the faces first"
        )
