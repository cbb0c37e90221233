"""Import Lightning without its tips and deprecation warnings: `from adaface.system.lightning_setup import pl`.

Importing this module has a side effect: it filters these messages, so that the remaining output is worth reading.
"""

import logging
import warnings

from adaface.system.devices import import_torchvision


def _silence() -> None:
    """Filter framework tips and deprecation warnings."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for package in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=rf"{package}\..*")
    # only about speed, and printed by every process
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


import_torchvision()  # before Lightning, whose own error does not explain the cause

import pytorch_lightning as pl  # noqa: E402
import pytorch_lightning.plugins.environments as environments  # noqa: E402

_silence()  # after the import, which sets the level of its loggers

__all__ = ["environments", "pl"]
