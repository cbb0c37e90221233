"""Published models by name: stored in a folder of this machine, downloaded on first use.

A name is that of a published file, such as ``adaface_ir101_webface12m``, or ``hf:<owner>/<repository>/<file>``, a
checkpoint on the Hugging Face hub. A download is moved into place only after its size, keys and shapes were checked,
and the check is repeated at each use. Nothing in the file is executed.

The packages that download, gdown (Google Drive) and huggingface_hub, are optional: files that are already there do not
need them, and they install sixteen further packages.
"""

import importlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from torch import Tensor

from adaface.checkpoints.files import KERNEL, load_checkpoint
from adaface.checkpoints.published import IDENTITIES, ModelSource, locate
from adaface.checkpoints.weights import (
    backbone_state,
    expected_shapes,
    identify_architecture,
    key_misfit,
    nearest_architecture,
    stored_architecture,
)

_BYTES_PER_WEIGHT = 4  # float32


def find_model(name: str) -> Path:
    """Return the file of a published model; download it if necessary.

    Args:
        name: a published model, or ``hf:<owner>/<repository>/<file>``.

    Raises:
        ValueError: unknown name, or the file is not this model.
        RuntimeError: the file is missing and cannot be downloaded; the message says how to get it by hand.
        OSError: the file cannot be written.
    """
    source = locate(name)
    if source.path.is_dir():
        raise ValueError(f"{source.path} is a folder, expected the file of {name}: remove it")
    if source.path.is_file():
        check_model(source.path, source)
    else:
        _download(source)
    return source.path


def check_model(path: Path, source: ModelSource) -> None:
    """Raise ValueError if a file is not the requested model.

    Args:
        path: the file.
        source: the requested model.
    """
    size = path.stat().st_size
    if source.arch is not None and size < (least := _least_bytes(source.arch)):
        raise ValueError(
            f"{path} is not {source.name}: {size:,} bytes, the weights of {source.arch} alone take {least:,}; "
            f"delete it and download it again from {source.address}"
        )
    checkpoint = load_checkpoint(path)
    weights = backbone_state(checkpoint, path, "bgr")  # only names and shapes are compared
    stored = stored_architecture(checkpoint)
    arch = source.arch or stored or identify_architecture(weights) or nearest_architecture(weights)[0]
    misfit = key_misfit(weights, expected_shapes(arch))
    if misfit:
        other = stored if stored not in (None, arch) else identify_architecture(weights)
        reason = f"it holds weights of {other}" if other else misfit
        raise ValueError(f"{path} is not {source.name}, a model of {arch}: {reason}")
    _check_training_set(checkpoint["state_dict"], path, source)


def _check_training_set(state: Mapping[str, Tensor], path: Path, source: ModelSource) -> None:
    """Raise ValueError if the head in a file has as many identities as another known training set."""
    shape = state[KERNEL].shape if KERNEL in state else ()  # (D, C)
    others = {count: data for data, count in IDENTITIES.items() if data != source.data}
    if source.data is not None and len(shape) == 2 and shape[1] in others:
        raise ValueError(
            f"{path} is not {source.name}: its head has {shape[1]:,} identities, as many as {others[shape[1]]}; "
            f"{source.data} has {IDENTITIES[source.data]:,}. Delete it and download it again from {source.address}"
        )


def _least_bytes(arch: str) -> int:
    return sum(_BYTES_PER_WEIGHT * math.prod(shape) for shape in expected_shapes(arch).values())


def _download(source: ModelSource) -> None:
    """Download a file to a temporary name, check it, and rename it."""
    by_hand = source.by_hand
    try:
        program = importlib.import_module(source.package)
    except ModuleNotFoundError as error:
        raise source.not_downloadable() from error
    source.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.path.parent, prefix=".download_") as folder:
        try:
            part = _fetch(program, source, Path(folder))
        except Exception as error:  # the downloaders raise many kinds of exceptions
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RuntimeError(f"{source.name} could not be downloaded ({reason}): {by_hand}") from error
        if not part.is_file():
            raise RuntimeError(f"{source.name} could not be downloaded (no file arrived): {by_hand}")
        try:
            check_model(part, source)
        except ValueError as error:
            raise RuntimeError(f"the download of {source.name} was discarded: {error}; {by_hand}") from error
        part.replace(source.path)


def _fetch(program: ModuleType, source: ModelSource, folder: Path) -> Path:
    """Download into a folder and return the file."""
    if source.drive_id:
        part = folder / source.path.name
        program.download(id=source.drive_id, output=str(part), quiet=False)
        return part
    repository, file = source.hub
    return Path(program.hf_hub_download(repository, file, local_dir=folder))
