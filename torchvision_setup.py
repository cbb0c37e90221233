"""torchvision made importable beside a CPU build of PyTorch, for the packages that import it by themselves.

torchmetrics (which Lightning imports) and timm import torchvision wherever it is installed. PyPI's torchvision is built
for CUDA; beside a CPU build of torch its compiled operators do not load, and its Python part then raises ``operator
torchvision::nms does not exist``. Nothing here calls those operators: declaring their schemas lets the import through.
"""

import importlib
import re

import torch

_MISSING_OPERATOR = re.compile(r"operator (torchvision::\w+) does not exist")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_MOST_OPERATORS = 50


def make_torchvision_importable() -> None:
    """Import torchvision, declaring the operators whose compiled library cannot be loaded."""
    for _ in range(_MOST_OPERATORS):
        try:
            importlib.import_module("torchvision")
        except ImportError:
            return  # not installed: then nothing imports it either
        except RuntimeError as error:
            missing = _MISSING_OPERATOR.search(str(error))
            if missing is None:
                raise
            torch.library.define(missing.group(1), _SCHEMA)
        else:
            return
