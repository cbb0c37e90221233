"""An exported network in ONNX Runtime: open it, check that it was exported by this project, compute embeddings."""

import hashlib
import importlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaface.models.backbone import IMAGE_SIZE
from adaface.models.input_format import InputFormat
from adaface.system.json_file import parse_object

ONNX_METADATA = "adaface"  # key of this project's metadata in the ONNX file, as JSON
CHECKSUM = "checksum"  # key in these metadata: size, its CRC-32, SHA-256 of the file with ``BLANK`` for the value
BLANK = f"{0:020}-{0:08}-{0:064}"
_CHECKSUM = re.compile(r"([0-9]{20})-([0-9a-f]{8})-[0-9a-f]{64}")
_ERRORS_ONLY = 3  # ONNX Runtime's level of messages


class OnnxNetwork:
    """An exported network in ONNX Runtime.

    Args:
        session: an ``onnxruntime.InferenceSession`` of one input and the outputs embedding and norm.
        input_format: the input that the network expects.
        path: its file, for messages.
    """

    def __init__(self, session: Any, input_format: InputFormat, path: Path) -> None:
        self._session, self._format, self._path = session, input_format, path
        self._input = session.get_inputs()[0].name
        self.embedding_size = int(session.get_outputs()[0].shape[1])

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed (B, 112, 112, 3) uint8 in the network's color order: (B, D) and (B, 1) float32.

        Raises:
            ValueError: the graph cannot be computed, or gives other shapes than it announces: the file is damaged.
        """
        try:
            embeddings, norms = self._session.run(None, {self._input: self.normalized(images)})
        except Exception as error:  # the runtime has many exception types of its own
            raise ValueError(f"{self._path} cannot be computed ({str(error).splitlines()[0]})") from error
        if embeddings.shape != (len(images), self.embedding_size) or norms.shape != (len(images), 1):
            raise ValueError(f"{self._path} is damaged: it gives {embeddings.shape} for {len(images)} images")
        return embeddings, norms

    def normalized(self, images: np.ndarray) -> np.ndarray:
        """Turn (B, 112, 112, 3) uint8 into the network's input, (B, 3, 112, 112) float32."""
        return self._format.normalized(torch.from_numpy(np.ascontiguousarray(images)), channels_last=False).numpy()


def load_network(path: Path) -> tuple[OnnxNetwork, InputFormat, Mapping[str, Any]]:
    """Open an ONNX file written by ``adaface export``.

    Args:
        path: of the file.

    Returns:
        The network, its input format, and the metadata that ``adaface export`` has stored in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an ONNX file, not one of ``adaface export``, or damaged. Files of older versions have no
            checksum, and those that an optimizer wrote anew none that fits; they are not compared.
        RuntimeError: the package onnxruntime is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no ONNX file {path}")
    session = _open_session(path)
    metadata = _onnx_metadata(session, path)
    if CHECKSUM in metadata:
        _check(path, str(metadata[CHECKSUM]))
    input_format = InputFormat.of(metadata, path)
    return OnnxNetwork(session, input_format, path), input_format, metadata


def checksum_of_export(content: bytes, stored: str) -> str:
    """Return the checksum of an ONNX file, computed with ``BLANK`` in place of the stored one.

    Args:
        content: of the file.
        stored: as long as ``BLANK``, in the metadata, which follow the graph.
    """
    place, view = content.rfind(stored.encode()), memoryview(content)
    digest = hashlib.sha256(view[:place])
    digest.update(BLANK.encode())
    digest.update(view[place + len(BLANK) :])
    size = f"{len(content):020}"
    return f"{size}-{zlib.crc32(size.encode()):08x}-{digest.hexdigest()}"


def _check(path: Path, stored: str) -> None:
    """Raise ValueError if a file is not as it was written; one that another program wrote anew has another size."""
    parts = _CHECKSUM.fullmatch(stored)
    size = int(parts[1]) if parts and int(parts[2], 16) == zlib.crc32(parts[1].encode()) else None
    if size not in (None, path.stat().st_size):
        return
    if size is None or stored != checksum_of_export(path.read_bytes(), stored):
        raise ValueError(
            f"{path} is damaged: its checksum is not the one it was written with; copy it again, or export it again"
        )


def _open_session(path: Path) -> Any:
    """Open an ONNX file on the CPU, with PyTorch's number of threads."""
    try:
        runtime = importlib.import_module("adaface.system.onnx_runtime").onnxruntime
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{path} needs the package onnxruntime: pip install onnxruntime") from error
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = _ERRORS_ONLY
    try:
        return runtime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has many exception types of its own
        raise ValueError(f"{path} cannot be read by ONNX Runtime ({str(error).splitlines()[0]})") from error


def _onnx_metadata(session: Any, path: Path) -> dict[str, Any]:
    """Return the metadata that ``adaface export`` has stored in a file; raise ValueError if there is none."""
    try:
        metadata = parse_object(session.get_modelmeta().custom_metadata_map[ONNX_METADATA])
    except (KeyError, ValueError):
        raise ValueError(
            f"{path} is not an export of `adaface export`: it has no metadata about its input format"
        ) from None
    try:
        inputs = [(tensor.type, tensor.shape) for tensor in session.get_inputs() if tensor.name]
        outputs = [output.shape for output in session.get_outputs()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: the name of an input or output is no text ({error})") from error
    if not _takes_faces(inputs) or not _gives_embeddings(outputs):
        raise ValueError(
            f"{path} is not an export of `adaface export`: it takes {inputs} and gives {outputs}, expected any "
            f"number of float (3, {IMAGE_SIZE}, {IMAGE_SIZE}), and embeddings and norms"
        )
    return metadata


def _takes_faces(inputs: list[tuple[str, list[Any]]]) -> bool:
    """Return whether a graph takes (B, 3, 112, 112) float32, for any B."""
    return [(kind, shape[1:]) for kind, shape in inputs] == [("tensor(float)", [3, IMAGE_SIZE, IMAGE_SIZE])] and (
        not isinstance(inputs[0][1][0], int)
    )


def _gives_embeddings(outputs: list[list[Any]]) -> bool:
    """Return whether a graph gives (B, D) and (B, 1)."""
    return [len(shape) for shape in outputs] == [2, 2] and isinstance(outputs[0][1], int) and outputs[1][1] == 1
