"""Checkpoints of a sharded head: every process writes its own classes and reads those it needs.

Format: a folder with ``rest.ckpt`` (an ordinary checkpoint without the head's matrices, read with ``weights_only``) and
one safetensors file per process, written by torch.distributed.checkpoint, with a text file beside it: its CRC-32 and
the name of the save, which ``rest.ckpt`` has too, so that parts of different checkpoints are not mixed.
These hold ``head.kernel`` and the optimizer states of the same shape, (D, C) each, split by columns; for a head with
sub-centers (D * sub_centers, C), so that no class is split. Apart from the restricted pickle in ``rest.ckpt`` there is
no pickle. No process holds more than it trains, and any number of processes, sharded or not, can read the folder. A
sharded head also reads the single file of a dense head, and ``export_single_file`` writes one that the official code
reads.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from adaface.checkpoints.files import KERNEL, REST, SHARDED_HEAD, load_checkpoint, save_checkpoint
from adaface.checkpoints.weights import head_shape
from adaface.distributed.collectives import rank, world_size
from adaface.heads.partial_fc import PartialFC
from adaface.system.files import checksum_of, write_atomically

_FILES = "*.safetensors"
_SAVE = "save"  # key in the description of the head: the name of the save
_INSTEAD = "take another checkpoint, or start a new run with --start_from_model_statedict, which needs no head"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}  # names in a file are looked up here alone


def strip_head(checkpoint: dict[str, Any], head: PartialFC, optimizer: torch.optim.Optimizer) -> None:
    """Remove the head's matrices from a checkpoint, and store the description of what ``write_head`` writes instead.

    Args:
        checkpoint: of Lightning, with an ``adaface`` part; changed in place.
        head: this process's shard.
        optimizer: the one whose states come first in the checkpoint.
    """
    del checkpoint["state_dict"][KERNEL]
    saved = checkpoint["optimizer_states"][0]
    number = _place_of(head.kernel, optimizer)
    matrices = _matrices(head, optimizer)
    state = {name: value for name, value in saved["state"].get(number, {}).items() if name not in matrices}
    # a new dictionary: the saved one belongs to the optimizer
    checkpoint["optimizer_states"][0] = {**saved, "state": {**saved["state"], number: state}}
    checkpoint["adaface"][SHARDED_HEAD] = {
        "shape": [head.kernel.shape[1], head.columns],
        "sub_centers": head.sub_centers,
        "files": world_size(),
        "dtype": str(head.kernel.dtype).removeprefix("torch."),
        "states": sorted(matrices),
        "parameter": number,
    }


def name_save(checkpoint: dict[str, Any], folder: Path) -> None:
    """Store the name of the save in a checkpoint, if its head was stripped.

    Args:
        checkpoint: changed in place.
        folder: the one given to ``write_head``, with a name that no other save has had.
    """
    sharded = checkpoint.get("adaface", {}).get(SHARDED_HEAD)
    if sharded is not None:
        sharded[_SAVE] = folder.name


def write_head(folder: Path, head: PartialFC, optimizer: torch.optim.Optimizer) -> None:
    """Write the head's matrices; called by all processes.

    Args:
        folder: of the checkpoint, shared by all processes.
        head: this process's shard.
        optimizer: of the head.

    Raises:
        RuntimeError: a file cannot be written.
    """
    tensors = {KERNEL: head.kernel.detach(), **_matrices(head, optimizer)}
    classes = {name: _by_class(value.t(), head.sub_centers) for name, value in tensors.items()}
    columns = {name: _global(value, head.class_num) for name, value in classes.items()}
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _single_process_not_warned():
            dcp.save(columns, storage_writer=writer, no_dist=world_size() == 1)
    except dcp.api.CheckpointException as error:
        reasons = "; ".join(f"process {number}: {failure[0]}" for number, failure in error.failures.items())
        raise RuntimeError(
            f"the checkpoint {folder} could not be written: {reasons}. A full disk or a quota is the usual cause. The "
            "previous checkpoint, if any, is intact: free some space, then resume with --resume_from_checkpoint"
        ) from error
    for file in folder.glob(f"shard-{rank() + 1:05d}-{_FILES}"):  # this process's
        write_atomically(_checksum_file(file), f"{checksum_of(file):08x} {folder.name}\n")


def fill_in_head(checkpoint: dict[str, Any], head: PartialFC | None) -> None:
    """Add the head's matrices to a loaded checkpoint: this process's classes, or all for a dense head.

    Args:
        checkpoint: of ``load_checkpoint``, changed in place; that of a dense head is split if ``head`` is sharded.
        head: this process's shard; None if the head is dense.

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
        raise ValueError("this file is a part of a checkpoint folder, whose other files hold the head: give the folder")
    folder = Path(checkpoint["folder"])
    centers = sharded.get("sub_centers", 1)
    rows, C = sharded["shape"][0] * centers, sharded["shape"][1] // centers
    _check_files(folder, sharded, rows, C)
    _check_checksums(folder, sharded.get(_SAVE, ""))
    width = C if head is None else head.end_class - head.first_class
    dtype = _DTYPES[sharded["dtype"]]
    columns = {name: torch.empty(rows, width, dtype=dtype) for name in (KERNEL, *sharded["states"])}
    # a process without classes reads nothing, but must still take part
    to_load = {name: value if head is None else _global(value, C) for name, value in columns.items()}
    try:
        with _single_process_not_warned():
            dcp.load(to_load, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=world_size() == 1)
    except (Exception, dcp.api.CheckpointException) as error:  # the latter is not a subclass of Exception
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ValueError(f"{folder} is damaged or incomplete: {reason}; use another checkpoint") from error
    columns = {name: _by_column(value, centers) for name, value in columns.items()}
    # a dense head is (D, C); the optimizer of a sharded one holds rows
    checkpoint["state_dict"] = _with_kernel(checkpoint["state_dict"], columns.pop(KERNEL))
    by_rows = {name: value if head is None else value.t().contiguous() for name, value in columns.items()}
    states[sharded["parameter"]] = {**states.get(sharded["parameter"], {}), **by_rows}


def export_single_file(source: str | Path, target: str | Path, *, overwrite: bool = True) -> None:
    """Write a checkpoint folder as the single file of a dense head, which the official code reads.

    Args:
        source: checkpoint folder, or a link to one.
        target: file to write, atomically.
        overwrite: replace an existing file.

    Raises:
        FileNotFoundError: no such checkpoint.
        FileExistsError: the file exists and is not to be replaced, or another process writes it.
        ValueError: damaged, or already a single file.
    """
    checkpoint = load_checkpoint(source)
    if head_shape(checkpoint) is None:
        raise ValueError(f"{source} is already a single file: copy it")
    fill_in_head(checkpoint, None)
    del checkpoint["folder"]
    save_checkpoint(checkpoint, Path(target), overwrite=overwrite)


def _with_kernel(state: dict[str, Any], kernel: Tensor) -> dict[str, Any]:
    """Return a state dict with the kernel at its official position, before the other entries of the head."""
    head = [key for key in state if key.startswith(KERNEL.partition(".")[0] + ".")]
    rest = {key: value for key, value in state.items() if key not in head}
    return {**rest, KERNEL: kernel, **{key: state[key] for key in head}}


def _cut_states(checkpoint: dict[str, Any], head: PartialFC) -> None:
    """Select this process's rows of the optimizer states of a dense head (``load_state_dict`` splits the weights)."""
    columns = checkpoint["state_dict"][KERNEL].shape  # (D, C)
    states = checkpoint["optimizer_states"][0]["state"]
    alike = [n for n, s in states.items() if any(isinstance(v, Tensor) and v.shape == columns for v in s.values())]
    if alike:  # a backbone's matrix may have the same shape; the head's comes after it
        state = states[max(alike)]
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == columns:
                state[name] = head.shard_of(value).contiguous()  # (K, D)


def _matrices(head: PartialFC, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer states of the kernel's shape (K, D), by name."""
    state = optimizer.state.get(head.kernel, {})
    return {name: v for name, v in state.items() if isinstance(v, Tensor) and v.shape == head.kernel.shape}


def _place_of(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> int:
    """Return the index of a parameter in an optimizer's state dict."""
    parameters = [other for group in optimizer.param_groups for other in group["params"]]
    return next(number for number, other in enumerate(parameters) if other is parameter)


def _by_class(columns: Tensor, centers: int) -> Tensor:
    """Stack the columns of each class: (D, C * centers) to (D * centers, C)."""
    return columns.unflatten(1, (-1, centers)).transpose(1, 2).flatten(0, 1).contiguous()


def _by_column(classes: Tensor, centers: int) -> Tensor:
    """Undo ``_by_class``: (D * centers, C) to (D, C * centers)."""
    return classes.unflatten(0, (-1, centers)).transpose(1, 2).flatten(1)


def _global(columns: Tensor, number: int) -> Tensor:
    """Return this process's columns (D, K) as a part of (D, C), for torch.distributed.checkpoint."""
    if world_size() == 1:
        return columns
    # not init_device_mesh: on a machine with CUDA, that creates a process group each time for a group of gloo
    group = dist.group.WORLD
    assert group is not None
    mesh = DeviceMesh.from_group(group, columns.device.type)
    shape = torch.Size((len(columns), number))
    return DTensor.from_local(columns, mesh, [Shard(1)], run_check=False, shape=shape, stride=(number, 1))


@contextmanager
def _single_process_not_warned() -> Iterator[None]:
    """Suppress PyTorch's warning that a single process saves or loads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _check_files(folder: Path, sharded: dict[str, Any], rows: int, classes: int) -> None:
    """Raise ValueError unless all files are there and hold each class once; PyTorch checks neither."""
    files = sorted(folder.glob(_FILES))
    if len(files) != sharded["files"]:
        raise ValueError(
            f"{folder} has {len(files)} of the {sharded['files']} files of its head ({_FILES}): the copy is "
            f"incomplete; {_INSTEAD}"
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
                f"the files in {folder} do not hold each of the {classes} classes of {name} once: they belong to "
                f"different checkpoints; {_INSTEAD}"
            )


def _checksum_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.crc32")


def _check_checksums(folder: Path, save: str) -> None:
    """Raise ValueError in all processes if a file is not as it was written, or not of this save.

    Each process checks some of the files. Older versions wrote no checksum, and no name of the save.
    """
    faults = [_first_fault(sorted(folder.glob(_FILES))[rank() :: world_size()], save)]
    if world_size() > 1:
        faults *= world_size()
        dist.all_gather_object(faults, faults[rank()])
    for fault in faults:
        if fault:
            raise ValueError(f"{fault}; {_INSTEAD}")


def _first_fault(files: Sequence[Path], save: str) -> str:
    """Return what is wrong with the first file that is not as it was written, or of another save; empty if none is."""
    for file in files:
        with suppress(FileNotFoundError):
            written = _checksum_file(file).read_text(encoding="utf-8", errors="replace").strip()
            checksum, _, of_save = written.partition(" ")
            if checksum != f"{checksum_of(file):08x}":
                return f"{file} is damaged: its checksum is not the one it was written with"
            if save and of_save != save:
                return f"{file} and {REST} beside it belong to different checkpoints"
    return ""


def _parts_in(file: Path) -> list[tuple[str, list[int], list[int]]]:
    """Return name, offset (row, column) and shape of each tensor in a file."""
    try:
        with safe_open(file, framework="pt") as opened:
            places = json.loads((opened.metadata() or {}).get(CUSTOM_METADATA_KEY, "{}"))
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no mapping
        parts = [(name, places[name][SAVED_OFFSETS_KEY] if places else [0, 0], shape) for name, shape in shapes.items()]
        if any(len(place) != 2 or len(shape) != 2 for _, place, shape in parts):
            raise ValueError("a tensor is not a matrix")
    except Exception as error:  # a damaged or forged header can cause any error
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}); {_INSTEAD}") from error
    return parts
