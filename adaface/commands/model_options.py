"""The options that say which model: by name, by file, and its architecture where the file does not tell it."""

import argparse
from pathlib import Path

from adaface.checkpoints.download import FOLDER_VARIABLE, find_model, locate


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """Add the options on which model to use.

    Args:
        group: of a parser.
    """
    group.add_argument(
        "--model", default="", metavar="NAME",
        help="published model, such as adaface_ir101_webface12m, or hf:<owner>/<repository>/<file>.ckpt; cached in "
        f"~/.cache/adaface/models (or ${FOLDER_VARIABLE}), downloaded if necessary",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint",
        default="",
        metavar="FILE",
        help="checkpoint (.ckpt), of this project or the official code, or exported .onnx",
    )
    group.add_argument(
        "--arch", default=None, help="architecture (ir_50, timm:<name>, ...), if the file does not store it"
    )


def check_model_options(options: argparse.Namespace) -> None:
    """Raise ValueError where the options name no model, or two, or one that is not known.

    Args:
        options: parsed.
    """
    if bool(options.model) == bool(options.checkpoint):
        raise ValueError("give --model with the name of a published model, or --checkpoint with a file")
    if options.model:
        locate(options.model)


def model_path(options: argparse.Namespace) -> Path:
    """Return the file of the model, downloaded where ``--model`` names one that is absent.

    Args:
        options: parsed and checked.

    Raises:
        ValueError: a file that is not the named model.
        RuntimeError: it cannot be downloaded.
    """
    return find_model(options.model) if options.model else Path(options.checkpoint)
