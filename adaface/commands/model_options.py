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
        help="a published model, such as adaface_ir101_webface12m, or hf:<owner>/<repository>/<file>.ckpt: looked for "
        f"in ~/.cache/adaface/models (or ${FOLDER_VARIABLE}), downloaded where it is absent",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint", default="", metavar="FILE", help="a .ckpt, ours or official, or an exported .onnx"
    )
    group.add_argument(
        "--arch", default=None, help="architecture, where the file does not tell it (ir_50, timm:<name>, ...)"
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
