"""Lightning, imported safely and quietly: `from lightning_setup import pl`.

This is the one module of the project whose import has an effect:

* torchmetrics, which Lightning imports, imports torchvision whenever it is installed. PyPI's torchvision is
  built for CUDA; beside a CPU build of torch its compiled operators do not load and its Python part then
  raises ``operator torchvision::nms does not exist``. Nothing here calls those operators: declaring their
  schemas is enough to let the import through.
* Lightning's tips and the deprecation chatter of its dependencies are silenced: what is printed should be
  read.
"""

import importlib
import logging
import re
import warnings

import torch

_MISSING_OPERATOR = re.compile(r"operator (torchvision::\w+) does not exist")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_MOST_OPERATORS = 50


def _make_torchvision_importable() -> None:
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


def _silence() -> None:
    """Keep framework tips and deprecation notes off the screen."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for package in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=rf"{package}\..*")
    # about speed alone, printed by every process
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


_make_torchvision_importable()

import pytorch_lightning as pl  # noqa: E402
import pytorch_lightning.plugins.environments as environments  # noqa: E402

_silence()  # afterwards: the import sets the level of its loggers

__all__ = ["environments", "pl"]
