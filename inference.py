"""A trained model as a function: aligned faces in, unit embeddings and their norms out.

    python inference.py compare a.jpg b.jpg --model adaface_ir101_webface12m     # all commands: inference_commands.py

    embedder = Embedder.load("experiments/default_11-24_0/best.ckpt")   # or an official .ckpt, or an exported .onnx
    embeddings, norms = embedder.embed(images)                          # (N, 112, 112, 3) uint8 BGR

Colour order, size and normalisation belong to the model: callers hand over ordinary uint8 BGR images, as OpenCV reads
them. An embedding is that of an image and its mirror, fused; its norm is AdaFace's measure of image quality.

Source: the names ``load_pretrained_model`` and ``to_input`` and the flip test are the official code's.
Differs from it: the architecture is read from the file, nothing in the file is executed.
"""

import hashlib
import importlib
import json
import math
import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from backbone import EMBEDDING_SIZE, IMAGE_SIZE, Backbone
from batch_norm_folding import fold_batch_norms
from checkpoints import (
    THRESHOLD,
    backbone_state,
    find_architecture,
    load_backbone,
    load_checkpoint,
)
from evaluate_utils import fuse_flip
from net import build_model, normalize_images

FUSED, IMAGE, MIRROR = VIEWS = ("fused", "image", "mirror")
ONNX_METADATA = "adaface"  # key of the ONNX file's metadata that holds ours, as JSON
_ERRORS_ONLY = 3  # ONNX Runtime's level of messages


@dataclass(frozen=True)
class InputFormat:
    """What a network wants as its input.

    Attributes:
        color: ``BGR`` or ``RGB``.
        mean: subtracted from the grey levels 0 to 255.
        std: what the difference is divided by.
    """

    color: str = "BGR"
    mean: float = 127.5
    std: float = 127.5

    @classmethod
    def of(cls, metadata: Any, path: str | Path) -> "InputFormat":
        """Return the format that a model file tells of.

        Args:
            metadata: with ``color``, ``size``, ``mean``, ``std``; what is absent is as in the official code.
            path: the file, for the message.

        Raises:
            ValueError: a format that no network of ours has.
        """
        if not isinstance(metadata, Mapping):
            raise ValueError(f"{path} tells of its images {metadata!r}, expected color, size, mean and std by name")
        found = cls(metadata.get("color", cls.color), metadata.get("mean", cls.mean), metadata.get("std", cls.std))
        size = metadata.get("size", [IMAGE_SIZE, IMAGE_SIZE])
        numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (found.mean, found.std))
        if (
            found.color not in ("BGR", "RGB")
            or not numbers
            or found.std == 0
            or size not in ([IMAGE_SIZE, IMAGE_SIZE], (IMAGE_SIZE, IMAGE_SIZE))
        ):
            raise ValueError(
                f"{path} wants images that are not known here: {dict(metadata)}; expected color BGR or RGB, size "
                f"[{IMAGE_SIZE}, {IMAGE_SIZE}], and numbers for mean and std"
            )
        return found

    def normalized(self, images: Tensor, *, channels_last: bool = True) -> Tensor:
        """Turn (B, 112, 112, 3) uint8 in the network's colour order into its input, (B, 3, 112, 112) float32.

        Args:
            images: on whatever device they are.
            channels_last: as of ``net.normalize_images``.
        """
        return normalize_images(images, channels_last=channels_last, mean=self.mean, std=self.std)


def load_pretrained_model(architecture: str | None, path: str | Path) -> Backbone:
    """Build a backbone and load the weights of a checkpoint into it.

    Args:
        architecture: such as ``ir_50``; None takes the one that the file tells, or its weights have.
        path: a checkpoint, ours or official.

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
            path: a checkpoint, ours or official, file or folder; or an ONNX file of ``export_onnx.py``.
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
            ValueError: another shape or type.
        """
        images = np.asarray(images)
        _check_images(images, "the images")
        if self._format.color == "RGB":
            images = images[..., ::-1]
        parts = [self._embed(images[start : start + batch_size], view) for start in range(0, len(images), batch_size)]
        if not parts:
            return np.empty((0, self.embedding_size), np.float32), np.empty((0, 1), np.float32)
        embeddings, norms = (np.concatenate(part) for part in zip(*parts, strict=True))
        return embeddings, norms

    def _embed(self, images: np.ndarray, view: str) -> tuple[np.ndarray, np.ndarray]:
        """Embed one batch, (B, 112, 112, 3) in the network's colour order."""
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
        """Embed (B, 112, 112, 3) uint8 in the network's colour order: (B, D) and (B, 1), float32."""


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


class OnnxNetwork:
    """An exported network in ONNX Runtime.

    Args:
        session: an ``onnxruntime.InferenceSession`` of one input and the outputs embedding and norm.
        input_format: what the network wants.
    """

    def __init__(self, session: Any, input_format: InputFormat) -> None:
        self._session, self._format = session, input_format
        self._input = session.get_inputs()[0].name
        self.embedding_size = int(session.get_outputs()[0].shape[1])

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed (B, 112, 112, 3) uint8 in the network's colour order: (B, D) and (B, 1) float32."""
        embeddings, norms = self._session.run(None, {self._input: self.normalized(images)})
        return embeddings, norms

    def normalized(self, images: np.ndarray) -> np.ndarray:
        """Turn (B, 112, 112, 3) uint8 into the network's input, (B, 3, 112, 112) float32."""
        return self._format.normalized(torch.from_numpy(np.ascontiguousarray(images)), channels_last=False).numpy()


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
        path: a checkpoint, ours or official, file or folder.
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


def load_network(path: Path) -> tuple[OnnxNetwork, InputFormat, Mapping[str, Any]]:
    """Open an ONNX file of ``export_onnx.py``.

    Args:
        path: the file, of any name.

    Returns:
        The network, what it wants, and all that ``export_onnx.py`` has written into the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no ONNX file, or one of another program.
        RuntimeError: the package onnxruntime is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no ONNX file {path}")
    session = _open_session(path)
    metadata = _onnx_metadata(session, path)
    input_format = InputFormat.of(metadata, path)
    return OnnxNetwork(session, input_format), input_format, metadata


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


def _open_session(path: Path) -> Any:
    """Open an ONNX file on the CPU, with as many threads as PyTorch has."""
    try:
        runtime = importlib.import_module("onnx_runtime").onnxruntime
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{path} needs the package onnxruntime: pip install onnxruntime") from error
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = _ERRORS_ONLY
    try:
        return runtime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, all of the runtime's own
        raise ValueError(f"{path} is no ONNX file that ONNX Runtime can read ({str(error).splitlines()[0]})") from error


def _onnx_metadata(session: Any, path: Path) -> dict[str, Any]:
    """Return what ``export_onnx.py`` has written into a file, or raise ValueError where it has not."""
    try:
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[ONNX_METADATA])
    except (KeyError, ValueError):
        metadata = None
    outputs = [len(output.shape) for output in session.get_outputs()]
    if not isinstance(metadata, dict) or len(session.get_inputs()) != 1 or outputs != [2, 2]:
        raise ValueError(f"{path} is not an export of export_onnx.py: nothing in it tells which images it wants")
    return metadata


def _check_images(images: np.ndarray, what: str) -> None:
    """Raise ValueError where images are not (N, 112, 112, 3) uint8."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"{what}: {images.dtype} of shape {images.shape[1:]}, expected uint8 of ({IMAGE_SIZE}, {IMAGE_SIZE}, 3): "
            "align the faces first"
        )


if __name__ == "__main__":
    runpy.run_module("inference_commands", run_name="__main__")  # not imported: that module stands above this one
