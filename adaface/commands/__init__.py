"""The commands, one module each, and their table, which ``python -m adaface`` runs."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        module: its ``main(words)`` runs the command and returns the exit status.
        summary: its line in ``adaface --help``.
        named: whether ``main`` takes the command's name as its first word, because the module has several commands.
        options: module whose ``parse(words)`` and ``check_paths(options)`` find most mistakes without PyTorch, which
            takes seconds to import; empty where ``module`` does so itself.
    """

    module: str
    summary: str
    named: bool = False
    options: str = ""


def _inference(summary: str) -> Command:
    return Command("adaface.commands.inference", summary, named=True, options="adaface.commands.inference_options")


COMMANDS = {
    "train": Command(
        "adaface.commands.train",
        "train a model, fine-tune one, or evaluate it on validation sets",
        options="adaface.commands.train_options",
    ),
    "convert": Command("adaface.commands.convert", "unpack MXNet .rec and .bin files, or pack images into them"),
    "audit": Command("adaface.commands.audit", "report problems in training images: duplicates, wrong labels, damage"),
    "evaluate": Command(
        "adaface.commands.evaluate",
        "evaluate a model: LFW-like sets, IJB-B, IJB-C, TinyFace, folders",
        options="adaface.commands.evaluate_options",
    ),
    "align": Command("adaface.commands.align", "find faces in photographs and align them to 112x112 pixels"),
    "compare": _inference("print the similarities of face images"),
    "embed": _inference("compute the embeddings of a folder of images"),
    "search": _inference("find the most similar faces in a gallery"),
    "group": _inference("group the faces of a folder by person"),
    "serve": _inference("serve a web page that compares two photographs"),
    "export": Command(
        "adaface.commands.export",
        "export a checkpoint to ONNX, in FP32 or INT8",
        options="adaface.commands.export_options",
    ),
    "models": Command("adaface.commands.list_models", "list the backbones with their parameters and operations"),
    "completion": Command("adaface.commands.completion", "print a shell completion script"),
}
