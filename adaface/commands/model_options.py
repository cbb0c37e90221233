"""Options that select a model: name, file, and architecture."""

import argparse
from pathlib import Path

from adaface.checkpoints.download import FOLDER_VARIABLE, find_model, locate


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
        help="checkpoint (.ckpt) of this project or the official code, or exported model (.onnx)",
    )
    group.add_argument(
        "--arch", default=None, help="architecture (ir_50, timm:<name>, ...), required if the file does not store it"
    )


def check_model_options(options: argparse.Namespace) -> None:
    """Raise ValueError if the options name no model, two models, or an unknown one.

    Args:
        options: parsed options.
    """
    if bool(options.model) == bool(options.checkpoint):
        raise ValueError("give --model with the name of a published model, or --checkpoint with a file")
    if options.model:
        locate(options.model)


def model_path(options: argparse.Namespace) -> Path:
    """Return the file of the model; download it if ``--model`` names one that is not cached.

    Args:
        options: parsed and checked options.

    Raises:
        ValueError: the file is not the named model.
        RuntimeError: it cannot be downloaded.
    """
    return find_model(options.model) if options.model else Path(options.checkpoint)
