"""Lightning, imported safely and quietly: `from lightning_setup import pl`.

Two things must happen before the first import of ``pytorch_lightning``, so this is the one module of the
project whose import has an effect:

* torchmetrics, which Lightning imports, imports torchvision whenever it is installed. PyPI's torchvision is
  built for CUDA; beside a CPU build of torch its compiled operators do not load and its Python part then
  raises ``operator torchvision::nms does not exist``. Nothing here calls those operators: declaring their
  schemas is enough to let the import through.
* Lightning's tips and the deprecation chatter of its dependencies are silenced: what is printed should be
  read.
"""

import logging
import warnings

import torch

_MISSING_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing_torchvision_operators() -> None:
    """Declare the operators that torchvision expects when its compiled library cannot be loaded."""
    if torch.version.cuda is not None:
        return  # a CUDA build of torch loads torchvision's library, which defines them itself
    for name in _MISSING_OPERATORS:
        try:
            torch.library.define(f"torchvision::{name}", _SCHEMA)
        except RuntimeError:
            return  # already defined: torchvision was imported before us


def _silence() -> None:
    """Keep framework tips and deprecation notes off the screen."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|pytorch_lightning|lightning_fabric).*")
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


_declare_missing_torchvision_operators()
_silence()

import pytorch_lightning as pl  # noqa: E402

__all__ = ["pl"]
