"""Checkpoint files to read: an official one, one that would run a command."""

import os
from pathlib import Path

import torch

from adaface.models.registry import build_model

SMALL = "ir_mini"


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def official(arch: str) -> dict[str, torch.Tensor]:
    return {f"model.{key}": value for key, value in build_model(arch).state_dict().items()}


class Payload:
    """An object whose unpickling would run a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)
