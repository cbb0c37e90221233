"""Checkpoint files: written atomically, and read without executing anything in them.

A checkpoint is a Lightning ``.ckpt`` file, a zip archive with a pickle inside. Downloaded files are untrusted, so every
read is ``torch.load(weights_only=True)``. The files published with the paper were written by an old version of
Lightning that pickled two of its own classes by name; these names are read as plain ``dict``, and no Lightning code
runs. NumPy's numbers (such as the best accuracy in files of other programs) become Python's.

Format: ``state_dict`` holds ``model.<key of the backbone>`` and ``head.<key of the head>``, the keys of the official
code, so files can be exchanged with it. Further data of this project is stored under ``adaface`` (plain dict, list,
str, int, float, bool).
"""

import errno
import pickle
import re
import shutil
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from adaface.checkpoints.archive import NOTHING_EXECUTED, check_archive, file_of_checkpoint, is_safetensors, refusal
from adaface.checkpoints.archive import REST as REST
from adaface.checkpoints.parts import FOUND_IN, with_state_dict
from adaface.system.files import atomic_file
from adaface.system.pickle_stand_ins import stand_ins_of_numpy

# classes that old Lightning checkpoints name in their pickle; both are dictionaries
_OLD_LIGHTNING_CLASSES = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
)
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
KERNEL = "head.kernel"  # key in the state dict: weights of the head, (D, C)
SHARDED_HEAD = "sharded_head"  # key under ``adaface``: contents of the head's files
_SHOWN_KEYS, _LONGEST_KEY = 8, 60
_LONGEST_HEADER = 5_000_000  # of safetensors: 150 bytes for each weight
_EXPANDED_BYTES = 10_000_000
THRESHOLD = "adaface_threshold"  # key next to the state dict: from this cosine on, two faces are the same person


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without executing anything in it.

    Args:
        path: a ``.ckpt`` file of this project or the official code, other files with weights by name (bare, in a
            part such as ``model``, or as safetensors); or the folder of a sharded head's checkpoint.

    Returns:
        The checkpoint's dictionary; of other files, ``state_dict`` and ``found_in``, the name of the part. For a
        folder, it lacks the head's matrices and has the path as ``folder``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, not a checkpoint, several networks, or contains objects other than tensors and plain
            values.
    """
    file = file_of_checkpoint(Path(path))
    if Path(path).is_dir():
        return {**load_checkpoint(file), "folder": str(path)}
    if is_safetensors(file):
        return {"state_dict": _read_safetensors(Path(path)), FOUND_IN: "safetensors"}
    try:
        check_archive(Path(path))
        known: list[Any] = [(dict, name) for name in _OLD_LIGHTNING_CLASSES]
        known += [Namespace, *stand_ins_of_numpy(Path(path).stat().st_size)]
        with (
            file.open("rb") as opened,  # of a path, torch looks at the extension
            torch.serialization.safe_globals(known),
            warnings.catch_warnings(action="ignore"),
        ):
            checkpoint = torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own message recommends weights_only=False, so it is not shown
        culprit = _REFUSED_GLOBAL.search(str(error))
        reason = f"it names {culprit.group(1)}" if culprit else "or it is damaged"
        raise ValueError(
            f"{path} is refused: it holds more than tensors and plain values ({reason}). {NOTHING_EXECUTED}"
        ) from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise refusal(path, error) from error
    checkpoint = with_state_dict(checkpoint, Path(path))
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        keys = (
            [str(key)[:_LONGEST_KEY] for key in list(checkpoint)[:_SHOWN_KEYS]] if isinstance(checkpoint, dict) else []
        )
        found = f"its keys are {keys}" if keys else f"it holds one {type(checkpoint).__name__}"
        raise ValueError(f"{path} is not a training checkpoint: it has no `state_dict`, {found}")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in checkpoint["state_dict"].items()):
        raise ValueError(f"{path} is not a training checkpoint: its `state_dict` has entries that are not tensors")
    odd = [key for key, value in checkpoint["state_dict"].items() if not _is_plain(value)]
    if odd:
        raise ValueError(f"{path}: {len(odd)} weights are not dense real tensors, the first is {odd[0]}")
    checkpoint.pop("folder", None)  # a file must not choose where the head's files are read from
    return checkpoint


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"its header of {length:,} bytes is too long")
        return load_file(path)
    except Exception as error:  # a damaged header fails in many ways
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({' '.join(str(error).split())[:200]})"
        ) from error


def _is_plain(weight: Tensor) -> bool:
    """Return whether a tensor is dense, real, not quantized, and of the size that is stored."""
    if weight.layout is not torch.strided or weight.is_meta or weight.is_quantized or weight.is_complex():
        return False
    # a stride of 0 makes any number of weights of one; an expanded buffer is small
    return weight.nbytes <= max(weight.untyped_storage().nbytes(), _EXPANDED_BYTES)


def check_resumable(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise ValueError if a checkpoint lacks data that is needed to resume, or has it in another form.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        path: of its file, for the message.
    """
    for name, is_right in _NEEDED.items():
        try:
            right = is_right(checkpoint)
        except (KeyError, TypeError, AttributeError, IndexError):
            right = False
        if not right:
            raise ValueError(
                f"{path} cannot be resumed: its {name} is missing, or not as this program writes it. Use another "
                "checkpoint, or start a new run with --start_from_model_statedict, which needs only the weights"
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
    "`adaface.class_images`": lambda c: all(
        _is_count(number) and digests and all(isinstance(digest, str) for digest in digests)
        for number, digests in c["adaface"].get("class_images", {}).items()
    ),
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


def file_of_threshold(path: str | Path) -> Path:
    """Return the file of a checkpoint, a file or a folder, to which ``store_threshold`` writes."""
    return (Path(path, REST) if Path(path).is_dir() else Path(path)).resolve()  # keep a link a link


def store_threshold(path: str | Path, threshold: dict[str, float | str]) -> None:
    """Write a calibrated threshold into a checkpoint; nothing else changes.

    Args:
        path: checkpoint of this project or the official code, file or folder.
        threshold: plain values: ``cosine``, and how it was determined.

    Raises:
        ValueError: not a checkpoint, or one that no threshold is stored in.
        RuntimeError: the file cannot be written; the checkpoint is untouched.
    """
    file = file_of_threshold(path)
    save_checkpoint({**load_for_threshold(file), THRESHOLD: threshold}, file)


def load_for_threshold(file: Path) -> dict[str, Any]:
    """Read a checkpoint in which ``store_threshold`` can store a threshold.

    Args:
        file: of the checkpoint.

    Raises:
        ValueError: not a checkpoint, or weights of another program, whose other contents are not read.
    """
    checkpoint = load_checkpoint(file)
    if FOUND_IN in checkpoint:
        raise ValueError(
            f"{file} is a file of another program, in which no threshold can be stored: leave --store_threshold out, "
            "and give the threshold that is printed to the other commands, with --threshold"
        )
    return checkpoint


def save_checkpoint(checkpoint: dict[str, Any], path: Path, *, overwrite: bool = True) -> None:
    """Write a checkpoint to a temporary name next to ``path``, then rename it.

    Args:
        checkpoint: tensors and plain values.
        path: the file; its folder is created if necessary.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and is not to be replaced, or another process writes it.
        RuntimeError: the file cannot be written (no space left); an existing file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handled = sys.exception()  # of the caller, such as a Ctrl-C that the checkpoint is written for
    try:
        with atomic_file(path, overwrite=overwrite) as file:
            torch.save(checkpoint, file)
    except FileExistsError:  # of another process: the disk is not full
        raise
    except (OSError, RuntimeError) as error:
        reasons: list[BaseException] = [error]  # PyTorch's zip writer hides why a write failed: the first one tells
        while (earlier := reasons[-1].__context__) not in (None, handled):
            reasons.append(earlier)
        for stop in reasons:
            if not isinstance(stop, Exception):  # Ctrl-C
                raise stop from None
        reason = next((one for one in reversed(reasons) if isinstance(one, OSError)), reasons[-1])
        raise not_written(path, reason) from error


def not_written(path: Path, reason: object) -> RuntimeError:
    """Return the error for a checkpoint that cannot be written.

    Args:
        path: the checkpoint.
        reason: message of the system.
    """
    advice = "The previous checkpoint, if any, is intact: {}, then resume with --resume_from_checkpoint"
    if isinstance(reason, OSError) and reason.errno == errno.EFBIG:
        return RuntimeError(
            f"the checkpoint {path} could not be written: it is larger than the limit of this shell (ulimit -f) or "
            f"file system allows. {advice.format('raise the limit')}"
        )
    if not path.parent.is_dir():
        return RuntimeError(f"the checkpoint {path} could not be written: the folder {path.parent} was deleted")
    free_mb = shutil.disk_usage(path.parent).free / 1e6
    return RuntimeError(
        f"the checkpoint {path} could not be written: {reason}. {free_mb:.0f} MB are free there; a full disk or a "
        f"quota is the usual cause. {advice.format('free some space')}"
    )
