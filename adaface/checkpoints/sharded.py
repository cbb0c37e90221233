"""A sharded head in a checkpoint: every process writes its own classes, and reads those it needs.

Format: a folder with ``rest.ckpt`` (all of an ordinary checkpoint but the head's matrices, read with ``weights_only``)
and one safetensors file of each process, written by torch.distributed.checkpoint: ``head.kernel`` and
what the optimizer keeps of its shape, (D, C) each, cut by columns; of a head with sub-centers (D * sub_centers, C), so
that no class is cut. There is no pickle but the restricted one, nobody
holds more than it trains, and any number of processes, sharded or not, can read it. A single file of a dense head is
read by a sharded one too, and ``export_single_file`` makes one, as the official code reads it.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from adaface.checkpoints.files import SHARDED_HEAD, load_checkpoint, save_checkpoint
from adaface.checkpoints.weights import head_shape
from adaface.distributed.collectives import world_size
from adaface.heads.partial_fc import PartialFC

KERNEL = "head.kernel"
_FILES = "*.safetensors"
_INSTEAD = "take another checkpoint, or start a new run with --start_from_model_statedict, which needs no head"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}  # nothing that a file names is looked up in torch


def strip_head(checkpoint: dict[str, Any], head: PartialFC, optimizer: torch.optim.Optimizer) -> None:
    """Take the head's matrices out of a checkpoint, and note there what ``write_head`` writes in their place.

    Args:
        checkpoint: of Lightning, with an ``adaface`` part; changed in place.
        head: this process's part.
        optimizer: the one whose states are the checkpoint's first.
    """
    del checkpoint["state_dict"][KERNEL]
    saved = checkpoint["optimizer_states"][0]
    number = _place_of(head.kernel, optimizer)
    matrices = _matrices(head, optimizer)
    state = {name: value for name, value in saved["state"].get(number, {}).items() if name not in matrices}
    # a new dictionary: the saved one is the optimizer's own
    checkpoint["optimizer_states"][0] = {**saved, "state": {**saved["state"], number: state}}
    checkpoint["adaface"][SHARDED_HEAD] = {
        "shape": [head.kernel.shape[1], head.columns],
        "sub_centers": head.sub_centers,
        "files": world_size(),
        "dtype": str(head.kernel.dtype).removeprefix("torch."),
        "states": sorted(matrices),
        "parameter": number,
    }


def write_head(folder: Path, head: PartialFC, optimizer: torch.optim.Optimizer) -> None:
    """Write the head's matrices; called by all processes at once.

    Args:
        folder: of the checkpoint, seen by all processes.
        head: this process's part.
        optimizer: of the head.

    Raises:
        RuntimeError: a file cannot be written.
    """
    tensors = {KERNEL: head.kernel.detach(), **_matrices(head, optimizer)}
    classes = {name: _by_class(value.t(), head.sub_centers) for name, value in tensors.items()}
    columns = {name: _global(value, head.class_num) for name, value in classes.items()}
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _alone_is_meant():
            dcp.save(columns, storage_writer=writer, no_dist=world_size() == 1)
    except dcp.api.CheckpointException as error:
        reasons = "; ".join(f"process {number}: {failure[0]}" for number, failure in error.failures.items())
        raise RuntimeError(
            f"the checkpoint {folder} could not be written: {reasons}. No space left, or a quota, is the usual cause. "
            "What was there before is whole: make room, then go on with --resume_from_checkpoint"
        ) from error


def fill_in_head(checkpoint: dict[str, Any], head: PartialFC | None) -> None:
    """Put the head's matrices into a checkpoint that was read: this process's classes, or all for a dense head.

    Args:
        checkpoint: of ``load_checkpoint``, changed in place; one of a dense head is cut where ``head`` is sharded.
        head: this process's part, None where the head is dense.

    Raises:
        ValueError: a file of the checkpoint is missing, or damaged.
    """
    sharded = checkpoint["adaface"].pop(SHARDED_HEAD, None)
    states = checkpoint["optimizer_states"][0]["state"]
    if sharded is None:
        if head is not None:
            _cut_states(checkpoint, head)
        return
    if "folder" not in checkpoint:
        raise ValueError("the checkpoint is one file of several, its head is in others: name the folder they are in")
    folder = Path(checkpoint["folder"])
    centers = sharded.get("sub_centers", 1)
    rows, C = sharded["shape"][0] * centers, sharded["shape"][1] // centers
    _check_files(folder, sharded, rows, C)
    width = C if head is None else head.end_class - head.first_class
    dtype = _DTYPES[sharded["dtype"]]
    columns = {name: torch.empty(rows, width, dtype=dtype) for name in (KERNEL, *sharded["states"])}
    # a process without classes reads nothing, and still has to take part
    to_load = {name: value if head is None else _global(value, C) for name, value in columns.items()}
    try:
        with _alone_is_meant():
            dcp.load(to_load, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=world_size() == 1)
    except (Exception, dcp.api.CheckpointException) as error:  # the latter is no Exception
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ValueError(f"{folder} is not a whole checkpoint: {reason}; take another one") from error
    columns = {name: _by_column(value, centers) for name, value in columns.items()}
    # a dense head is (D, C); of a sharded one the optimizer has rows
    checkpoint["state_dict"] = _with_kernel(checkpoint["state_dict"], columns.pop(KERNEL))
    by_rows = {name: value if head is None else value.t().contiguous() for name, value in columns.items()}
    states[sharded["parameter"]] = {**states.get(sharded["parameter"], {}), **by_rows}


def export_single_file(source: str | Path, target: str | Path) -> None:
    """Write a checkpoint folder as the single file of a dense head, which the official code reads.

    Args:
        source: checkpoint folder, or a link to one.
        target: file to write; replaced when whole.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a damaged one, or one that is a single file already.
    """
    checkpoint = load_checkpoint(source)
    if head_shape(checkpoint) is None:
        raise ValueError(f"{source} is a single file already: copy it")
    fill_in_head(checkpoint, None)
    del checkpoint["folder"]
    save_checkpoint(checkpoint, Path(target))


def _with_kernel(state: dict[str, Any], kernel: Tensor) -> dict[str, Any]:
    """Return a state dict with the kernel in its official place, before the head's other entries."""
    head = [key for key in state if key.startswith(KERNEL.partition(".")[0] + ".")]
    rest = {key: value for key, value in state.items() if key not in head}
    return {**rest, KERNEL: kernel, **{key: state[key] for key in head}}


def _cut_states(checkpoint: dict[str, Any], head: PartialFC) -> None:
    """Cut this process's rows out of the optimizer states of a dense head; the weights, ``load_state_dict`` cuts."""
    columns = checkpoint["state_dict"][KERNEL].shape  # (D, C)
    states = checkpoint["optimizer_states"][0]["state"]
    alike = [n for n, s in states.items() if any(isinstance(v, Tensor) and v.shape == columns for v in s.values())]
    if alike:  # a backbone's matrix may have the same shape; the head's comes after it
        state = states[max(alike)]
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == columns:
                state[name] = head.shard_of(value).contiguous()  # (K, D)


def _matrices(head: PartialFC, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what the optimizer keeps of the kernel's shape (K, D), by name."""
    state = optimizer.state.get(head.kernel, {})
    return {name: v for name, v in state.items() if isinstance(v, Tensor) and v.shape == head.kernel.shape}


def _place_of(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> int:
    """Return the number under which an optimizer's state dict keeps a parameter."""
    parameters = [other for group in optimizer.param_groups for other in group["params"]]
    return next(number for number, other in enumerate(parameters) if other is parameter)


def _by_class(columns: Tensor, centers: int) -> Tensor:
    """Put the columns of each class (D, C * centers) below each other, (D * centers, C)."""
    return columns.unflatten(1, (-1, centers)).transpose(1, 2).flatten(0, 1).contiguous()


def _by_column(classes: Tensor, centers: int) -> Tensor:
    """Put them side by side again, (D, C * centers)."""
    return classes.unflatten(0, (-1, centers)).transpose(1, 2).flatten(1)


def _global(columns: Tensor, number: int) -> Tensor:
    """Return this process's columns (D, K) as a part of (D, C), for torch.distributed.checkpoint."""
    if world_size() == 1:
        return columns
    mesh = init_device_mesh(columns.device.type, (world_size(),))
    shape = torch.Size((len(columns), number))
    return DTensor.from_local(columns, mesh, [Shard(1)], run_check=False, shape=shape, stride=(number, 1))


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    """Keep PyTorch from warning that a single process saves or loads by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _check_files(folder: Path, sharded: dict[str, Any], rows: int, classes: int) -> None:
    """Raise ValueError where the files are not all there, or do not hold each class once: PyTorch looks at neither."""
    files = sorted(folder.glob(_FILES))
    if len(files) != sharded["files"]:
        raise ValueError(
            f"{folder} has {len(files)} of the {sharded['files']} files of its head ({_FILES}): the folder was not "
            f"copied whole; {_INSTEAD}"
        )
    parts: dict[str, list[tuple[int, int]]] = {name: [] for name in (KERNEL, *sharded["states"])}
    for file in files:
        for name, (first_row, first), (height, width) in _parts_in(file):
            if name in parts and width and (first_row, height) == (0, rows):
                parts[name].append((first, first + width))
    for name, ranges in parts.items():
        ends = [0, *(end for _, end in sorted(ranges))]
        if [first for first, _ in sorted(ranges)] != ends[:-1] or ends[-1] != classes:
            raise ValueError(
                f"the files in {folder} do not hold each of the {classes} classes of {name} once: they are not of one "
                f"checkpoint; {_INSTEAD}"
            )


def _parts_in(file: Path) -> list[tuple[str, list[int], list[int]]]:
    """Return name, place (row, column) and shape of each tensor of a file."""
    try:
        with safe_open(file, framework="pt") as opened:
            places = json.loads((opened.metadata() or {}).get(CUSTOM_METADATA_KEY, "{}"))
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no mapping
        parts = [(name, places[name][SAVED_OFFSETS_KEY] if places else [0, 0], shape) for name, shape in shapes.items()]
        if any(len(place) != 2 or len(shape) != 2 for _, place, shape in parts):
            raise ValueError("a tensor that is no matrix")
    except Exception as error:  # whatever a damaged or made-up header leads to
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}); {_INSTEAD}") from error
    return parts
