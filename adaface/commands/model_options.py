"""Options that select a model and its device, shared by several commands."""

import argparse
from pathlib import Path

from adaface.checkpoints.archive import check_checkpoint
from adaface.checkpoints.published import FOLDER_VARIABLE, check_available, locate
from adaface.config.choices import COLORS
from adaface.config.options import DeviceOptions
from adaface.models.names import check_name


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that select a model.

    Args:
        group: group of a parser.
    """
    group.add_argument(
        "--model", default="", metavar="NAME",
        help="published model, such as adaface_ir101_webface12m, or hf:<owner>/<repository>/<file>.ckpt; downloaded "
        f"if necessary and cached in ~/.cache/adaface/models, or ${FOLDER_VARIABLE} if set",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint",
        default="",
        metavar="FILE",
        help="checkpoint (.ckpt) of this project or the official code, weights of another program (needs --color), or "
        "exported model (.onnx)",
    )
    group.add_argument(
        "--color",
        choices=COLORS,
        default=None,
        help="color order that the network takes, for weights of another program (.pth, .pt, .safetensors), which do "
        "not store it",
    )
    group.add_argument(
        "--arch", default=None, help="architecture (ir_50, timm:<name>, ...), required if the file does not store it"
    )


def print_foreign(foreign: str, color: str | None) -> None:
    """Print which weights of another program's file are taken; nothing for other models.

    Args:
        foreign: as of the embedder.
        color: ``--color``.
    """
    if foreign:
        print(f"note: {foreign}; {color} images", flush=True)


def add_accelerator_option(group: argparse._ArgumentGroup) -> None:
    """Add the option on the device that runs the model.

    Args:
        group: group of a parser.
    """
    group.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="device; auto uses a GPU if available (default: auto)",
    )


def chosen_accelerator(accelerator: str, devices: int = 1) -> str:
    """Return ``cpu`` or ``gpu``, after a check that there are as many devices.

    Args:
        accelerator: ``--accelerator``.
        devices: number of processes, one per GPU.

    Raises:
        ValueError: the devices are not available.
    """
    from adaface.config.device_plan import plan_devices  # PyTorch

    plan = plan_devices(DeviceOptions(accelerator=accelerator, devices=devices, precision="32"))
    return "gpu" if plan.accelerator == "gpu" else "cpu"


def check_model_options(options: argparse.Namespace) -> None:
    """Raise ValueError if the options name no model, two models, or an unknown one.

    Args:
        options: parsed options.
    """
    if bool(options.model) == bool(options.checkpoint):
        raise ValueError("give --model with the name of a published model, or --checkpoint with a file")
    if options.model:
        locate(options.model)


def check_model_file(options: argparse.Namespace) -> None:
    """Raise an error for a model that cannot be read, or an unknown architecture, before PyTorch is imported.

    Args:
        options: parsed options.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint, or an unknown architecture.
        RuntimeError: a published model is not on this machine, and the package that downloads it is not installed.
    """
    if options.checkpoint:
        check_model_path(Path(options.checkpoint))
    if getattr(options, "model", ""):  # export has no such option
        check_available(options.model)
    if options.arch:
        check_name(options.arch)


def check_model_path(path: Path) -> None:
    """Raise an error for a file that is neither a checkpoint nor an exported model, before PyTorch is imported.

    Args:
        path: the file, or the folder of a sharded head's checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint, or damaged.
    """
    if path.suffix != ".onnx" or not path.exists():
        check_checkpoint(path)


def model_path(options: argparse.Namespace) -> Path:
    """Return the file of the model; download it if ``--model`` names one that is not cached.

    Args:
        options: parsed and checked options.

    Raises:
        ValueError: the file is not the named model.
        RuntimeError: it cannot be downloaded.
    """
    if not options.model:
        return Path(options.checkpoint)
    from adaface.checkpoints.download import find_model  # PyTorch

    return find_model(options.model)
