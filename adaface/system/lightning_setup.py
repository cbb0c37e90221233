"""Lightning, imported safely and quietly: `from lightning_setup import pl`.

This is the one module of the project whose import has an effect: Lightning's tips and the deprecation chatter of its
dependencies are silenced, since what is printed should be read.
"""

import logging
import warnings

from adaface.system.devices import import_torchvision


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


import_torchvision()  # before Lightning, which would fail without an explanation

import pytorch_lightning as pl  # noqa: E402
import pytorch_lightning.plugins.environments as environments  # noqa: E402

_silence()  # afterwards: the import sets the level of its loggers

__all__ = ["environments", "pl"]
