"""The trained model that a run starts from: a checkpoint, or the name of a published model."""

from dataclasses import replace
from pathlib import Path

from checkpoints import find_architecture, load_checkpoint
from config import Config
from inference import read_model
from input_format import InputFormat
from model_files import find_model

_OPTIONS = ("finetune", "start_from_model_statedict")


def find_pretrained(word: str) -> Path:
    """Return the checkpoint that an option names.

    Args:
        word: a file (or the folder of a sharded head's checkpoint), else the name of a published model, downloaded
            where it is absent.

    Raises:
        ValueError: neither.
        RuntimeError: a published model that cannot be downloaded.
    """
    return Path(word) if Path(word).exists() else find_model(word)


def with_pretrained(config: Config) -> Config:
    """Find the model to start from, and take its architecture where none was given.

    Args:
        config: of a run that is not resumed.

    Returns:
        The options to run with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or one of no architecture that is known.
        RuntimeError: a published model that cannot be downloaded.
    """
    name = next((name for name in _OPTIONS if getattr(config, name)), None)
    if name is None:
        return config
    path = find_pretrained(getattr(config, name))
    if path.suffix == ".onnx":
        raise ValueError(f"--{name} {path} is an ONNX export: give the checkpoint (.ckpt) that it was made of")
    config = with_whole_path(config)
    if "arch" in config.given:
        return config
    return replace(config, arch=find_architecture(load_checkpoint(path), path))


def with_whole_path(config: Config) -> Config:
    """Name a file to fine-tune by its whole path: it is needed again at the end, maybe after a resume elsewhere.

    Args:
        config: with or without such a file.
    """
    file = Path(config.finetune)
    return replace(config, finetune=str(file.absolute())) if config.finetune and file.exists() else config


def fingerprint_to_finetune(word: str, arch: str) -> str:
    """Return what identifies the weights of the model to fine-tune.

    Args:
        word: as of ``find_pretrained``.
        arch: its architecture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: of another architecture, or it wants other images than a training gives.
        RuntimeError: a published model that cannot be downloaded.
    """
    path = find_pretrained(word)
    _, told = read_model(path, arch)
    if told.input_format != InputFormat():
        raise ValueError(
            f"{path} wants {told.input_format.color} images less {told.input_format.mean:g} over "
            f"{told.input_format.std:g}; a training gives BGR less 127.5 over 127.5, so it cannot be fine-tuned here"
        )
    return told.fingerprint
