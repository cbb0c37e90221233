"""The commands, one module each, and their table, which ``python -m adaface`` runs."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        module: its ``main(words)`` runs the command and returns the exit status.
        summary: its line in ``adaface --help``.
        named: whether ``main`` takes the command's name as its first word, because the module has several commands.
    """

    module: str
    summary: str
    named: bool = False


COMMANDS = {
    "train": Command("adaface.commands.train", "train a model, fine-tune one, or evaluate it on validation sets"),
    "convert": Command("adaface.commands.convert", "unpack MXNet .rec and .bin files, or pack images into them"),
    "audit": Command("adaface.commands.audit", "report problems in training images: duplicates, wrong labels, damage"),
    "evaluate": Command(
        "adaface.commands.evaluate", "evaluate a model: LFW-like sets, IJB-B, IJB-C, TinyFace, folders"
    ),
    "align": Command("adaface.commands.align", "find faces in photographs and align them to 112x112 pixels"),
    "compare": Command("adaface.commands.inference", "print the similarities of face images", named=True),
    "embed": Command("adaface.commands.inference", "compute the embeddings of a folder of images", named=True),
    "search": Command("adaface.commands.inference", "find the most similar faces in a gallery", named=True),
    "group": Command("adaface.commands.inference", "group the faces of a folder by person", named=True),
    "serve": Command("adaface.commands.inference", "serve a web page that compares two photographs", named=True),
    "export": Command("adaface.commands.export", "export a checkpoint to ONNX, in FP32 or INT8"),
    "models": Command("adaface.commands.list_models", "list the backbones with their parameters and operations"),
}
