"""Checkpoint files: written whole or not at all, read without running anything that is in them.

A checkpoint is a Lightning ``.ckpt``: a zip with a pickle inside. Files people download are untrusted, so every
read is ``torch.load(weights_only=True)``. The files published with the paper were written by an old Lightning that
pickled two of its own classes by name; those names are read as plain ``dict`` and nothing of Lightning runs.

Format: ``state_dict`` holds ``model.<key of the backbone>`` and ``head.<key of the head>``, exactly the official keys,
so that files go both ways. What is ours beside it is under ``adaface`` (plain dict, list, str, int, float, bool).
"""

import functools
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

import registry
from atomic_files import atomic_file

# classes that old Lightning checkpoints name in their pickle; both are dictionaries
_OLD_LIGHTNING_CLASSES = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
)
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_BACKBONE_PREFIX = "model."
SHARDED_HEAD = "sharded_head"  # in the part that is ours: what the files of the head hold
REST = "rest.ckpt"  # in the folder of a sharded head's checkpoint: all but the head's matrices
THRESHOLD = "adaface_threshold"  # beside the state dict: the cosine above which two faces are one person's
_SHOWN_KEYS = 5


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without executing anything it holds.

    Args:
        path: a ``.ckpt`` file, ours or the official code's; or the folder of a sharded head's checkpoint.

    Returns:
        The checkpoint's dictionary; of a folder without the head's matrices, and with its path as ``folder``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, not a checkpoint, or it holds objects other than tensors and plain values.
    """
    if Path(path).is_dir():
        if not Path(path, REST).is_file():
            raise FileNotFoundError(f"{path} is a folder without {REST}: no checkpoint; name last.ckpt of a run folder")
        return {**load_checkpoint(Path(path, REST)), "folder": str(path)}
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        old: list[Any] = [(dict, name) for name in _OLD_LIGHTNING_CLASSES]
        with torch.serialization.safe_globals(old), warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text recommends to load without protection: not passed on
        culprit = _REFUSED_GLOBAL.search(str(error))
        reason = f"it names {culprit.group(1)}" if culprit else "or it is damaged"
        raise ValueError(
            f"{path} is refused: it holds more than tensors and plain values ({reason}). Nothing in it was executed; "
            "export its state_dict with the program that wrote it"
        ) from None
    except Exception as error:  # a damaged pickle fails in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a whole checkpoint file ({reason})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path} is not a training checkpoint: it has no `state_dict`")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in checkpoint["state_dict"].items()):
        raise ValueError(f"{path} is not a training checkpoint: its `state_dict` holds more than weights by name")
    odd = [key for key, value in checkpoint["state_dict"].items() if not _is_plain(value)]
    if odd:
        raise ValueError(f"{path}: {len(odd)} of its weights are no plain real numbers, the first is {odd[0]}")
    checkpoint.pop("folder", None)  # where the head's files are is not for the file to say
    return checkpoint


def _is_plain(weight: Tensor) -> bool:
    """Whether a tensor is dense, holds numbers, and real ones."""
    quantised_or_complex = weight.is_quantized or weight.is_complex()
    return weight.layout is torch.strided and not weight.is_meta and not quantised_or_complex


def check_resumable(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise ValueError where a checkpoint lacks what a run goes on with, or has it in another form.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        path: its file, for the message.
    """
    for name, is_right in _NEEDED.items():
        try:
            right = is_right(checkpoint)
        except (KeyError, TypeError, AttributeError, IndexError):
            right = False
        if not right:
            raise ValueError(
                f"{path} is no checkpoint to go on with: its {name} is missing, or not as this program writes it; take "
                "another one, or start a new run with --start_from_model_statedict, which needs the weights alone"
            )


def _is_position(position: dict[str, Any]) -> bool:
    known = {"epoch", "batch"} <= set(position) <= {"epoch", "batch", "samples"}
    return known and all(_is_count(number) for number in position.values())


def _is_sharded_head(checkpoint: dict[str, Any]) -> bool:
    head = checkpoint["adaface"].get(SHARDED_HEAD)
    if head is None:
        return True
    counts = [*head["shape"], head["files"], head["parameter"]]
    names = [head["dtype"], *head["states"]]
    centers = head.get("sub_centers", 1)
    right = len(head["shape"]) == 2 and all(map(_is_count, counts)) and all(isinstance(name, str) for name in names)
    right = right and _is_count(centers) and centers > 0 and head["shape"][1] % centers == 0
    return right and head["dtype"] in ("float32", "float64") and "folder" in checkpoint


def _is_count(number: object) -> bool:
    return isinstance(number, int) and number >= 0


_NEEDED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "`adaface.config`": lambda c: isinstance(c["adaface"]["config"], dict),
    "`adaface.given`": lambda c: all(isinstance(name, str) for name in c["adaface"]["given"]),
    "`adaface.position`": lambda c: _is_position(c["adaface"]["position"]),
    f"`adaface.{SHARDED_HEAD}` (or the folder with its files)": _is_sharded_head,
    "`epoch` or `global_step`": lambda c: _is_count(c["epoch"]) and _is_count(c["global_step"]),
    "`loops`": lambda c: all(
        _is_count(c["loops"]["fit_loop"][part]["current"][state])
        for part in ("epoch_progress", "epoch_loop.batch_progress")
        for state in ("ready", "completed", "processed")
    ),
    "`optimizer_states`": lambda c: (
        all(isinstance(state, dict) for state in c["optimizer_states"][0]["state"].values())
        and all(isinstance(group["params"], list) for group in c["optimizer_states"][0]["param_groups"])
    ),
}


def backbone_state(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the backbone's weights of a checkpoint, keys without ``model.``.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        path: its file, for the message.

    Raises:
        ValueError: the checkpoint has no ``model.*`` entries.
    """
    state = checkpoint["state_dict"]
    weights = {k.removeprefix(_BACKBONE_PREFIX): v for k, v in state.items() if k.startswith(_BACKBONE_PREFIX)}
    if not weights:
        raise ValueError(f"{path} has no `model.*` weights; its keys begin with {list(state)[:_SHOWN_KEYS]}")
    return weights


def told_architecture(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the architecture that a checkpoint tells of itself, by the options it was trained with; None: it does not.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
    """
    ours = checkpoint.get("adaface")
    config = ours.get("config") if isinstance(ours, Mapping) else None
    arch = config.get("arch") if isinstance(config, Mapping) else None
    return arch if isinstance(arch, str) and arch else None


def find_architecture(checkpoint: dict[str, Any], path: str | Path) -> str:
    """Return the architecture of a checkpoint: the one it tells, else the one whose keys and shapes its weights have.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        path: its file, for the message.

    Raises:
        ValueError: no backbone weights, or weights of no architecture that is known.
    """
    weights = backbone_state(checkpoint, path)
    found = told_architecture(checkpoint) or identify_architecture(weights)
    if found is None:
        nearest, misfit = nearest_architecture(weights)
        raise ValueError(
            f"{path} holds weights of no architecture that is known here ({len(weights)} entries); the nearest is "
            f"{nearest}, but for {misfit}; python architecture_table.py lists what there is. Of a network of timm give "
            "--arch timm:<name>: it cannot be told from the weights"
        )
    return found


@functools.cache
def expected_shapes(arch: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of an architecture's weights by key.

    Args:
        arch: a name that ``registry.build_model`` takes.

    Raises:
        ValueError: unknown architecture.
        RuntimeError: a network of timm, which is not installed.
    """
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in registry.build_model(arch).state_dict().items()}
    return MappingProxyType(shapes)


def key_misfit(weights: dict[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Say which entries of a backbone state dict are missing or too many; empty where all are as expected.

    Args:
        weights: backbone state dict.
        expected: shapes by key.
    """
    missing = [key for key in expected if key not in weights]
    shaped = [key for key in expected if key in weights and tuple(weights[key].shape) != expected[key]]
    extra = [key for key in weights if key not in expected]
    kinds = {"missing": missing, "of another shape": shaped, "too many": extra}
    return ", ".join(f"{len(keys)} entries {what} {_first(keys)}" for what, keys in kinds.items() if keys)


def _first(keys: list[str]) -> str:
    return f"({', '.join(keys[:_SHOWN_KEYS])}{', ...' if len(keys) > _SHOWN_KEYS else ''})"


def identify_architecture(weights: dict[str, Tensor]) -> str | None:
    """Return the name of the architecture whose keys and shapes these weights have, or None.

    Args:
        weights: backbone state dict.
    """
    return next((name for name in registry.ARCHITECTURES if not key_misfit(weights, expected_shapes(name))), None)


def nearest_architecture(weights: dict[str, Tensor]) -> tuple[str, str]:
    """Return the architecture that shares the most entries with these weights, and what is wrong with the others.

    Args:
        weights: backbone state dict that no architecture has.
    """
    shapes = {(key, tuple(value.shape)) for key, value in weights.items()}
    differing = {name: len(shapes ^ set(expected_shapes(name).items())) for name in registry.ARCHITECTURES}
    nearest = min(differing, key=differing.__getitem__)
    return nearest, key_misfit(weights, expected_shapes(nearest))


def load_backbone(model: nn.Module, path: str | Path, arch: str) -> None:
    """Load the backbone weights of a checkpoint into ``model``.

    Args:
        model: a network of ``registry.build_model(arch)``; changed in place.
        path: checkpoint, ours or official.
        arch: its architecture's name, for the message.

    Raises:
        ValueError: the checkpoint is of another architecture (named), or its keys do not fit.
    """
    checkpoint = load_checkpoint(path)
    weights = backbone_state(checkpoint, path)
    misfit = key_misfit(weights, {key: tuple(value.shape) for key, value in model.state_dict().items()})
    if misfit:
        found = told_architecture(checkpoint) or identify_architecture(weights)
        if found not in (None, arch):
            raise ValueError(f"{path} holds weights of {found}, the run uses --arch {arch}: give --arch {found}")
        raise ValueError(f"{path} does not hold weights of {arch}: {misfit}")
    own = model.state_dict()
    rounded = [key for key in own if own[key].is_floating_point() and not weights[key].is_floating_point()]
    if rounded:
        raise ValueError(f"{path}: {len(rounded)} weights are whole numbers, expected fractions; {rounded[0]} is one")
    model.load_state_dict(weights)


def head_shape(checkpoint: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the shape (D, C) of the head in a checkpoint folder; None where the head is in the state dict.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
    """
    sharded = checkpoint.get("adaface", {}).get(SHARDED_HEAD)
    return None if sharded is None else tuple(sharded["shape"])


def check_fits(
    checkpoint: dict[str, Any], expected: dict[str, tuple[int, ...]], path: str | Path, sub_centers: int = 1
) -> None:
    """Raise ValueError where the weights of a run to resume do not fit the module built for it.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        expected: shapes of backbone and head, the head's with all classes.
        path: the checkpoint's file, for the message.
        sub_centers: columns of the head for each class.
    """
    found = {key: tuple(value.shape) for key, value in checkpoint["state_dict"].items()}
    shape = head_shape(checkpoint)
    if shape is not None:
        found["head.kernel"] = shape
    wrong = [key for key in expected | found if expected.get(key) != found.get(key)]
    if wrong == ["head.kernel"]:
        raise ValueError(
            f"{path} has a head of {found['head.kernel'][1] // sub_centers} classes, the training data has "
            f"{expected['head.kernel'][1] // sub_centers}: resume on the data the run began with, or start a new run "
            "with --start_from_model_statedict"
        )
    if wrong:
        raise ValueError(
            f"{path} does not fit this run: {len(wrong)} entries differ, the first are {wrong[:_SHOWN_KEYS]}; resume "
            "with the --arch and --head it was trained with"
        )


def store_threshold(path: str | Path, threshold: dict[str, float | str]) -> None:
    """Write a calibrated threshold into a checkpoint; nothing else in it changes.

    Args:
        path: checkpoint, ours or official, file or folder.
        threshold: plain values: ``cosine``, and how it was found.

    Raises:
        ValueError: no checkpoint.
        RuntimeError: the file cannot be written; the checkpoint is untouched.
    """
    file = (Path(path, REST) if Path(path).is_dir() else Path(path)).resolve()  # a link stays one
    save_checkpoint({**load_checkpoint(file), THRESHOLD: threshold}, file)


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint to a temporary name beside ``path``, then rename it.

    Args:
        checkpoint: tensors and plain values.
        path: the file; its folder is made where it does not exist.

    Raises:
        RuntimeError: the file cannot be written (no space left); what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(path) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer hides the reason of a failed write
        raise not_written(path, error.__context__ or error) from error


def not_written(path: Path, reason: object) -> RuntimeError:
    """Return the error to raise where a checkpoint cannot be written.

    Args:
        path: the checkpoint.
        reason: what the system says.
    """
    free_mb = shutil.disk_usage(path.parent).free / 1e6
    return RuntimeError(
        f"the checkpoint {path} could not be written: {reason}. {free_mb:.0f} MB are free there; no space left, or a "
        "quota, is the usual cause. What was there before is whole: make room, then go on with "
        "--resume_from_checkpoint where there is a checkpoint"
    )
