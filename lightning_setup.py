"""Lightning, imported safely and quietly: `from lightning_setup import pl`.

This is the one module of the project whose import has an effect: torchvision is made importable first
(``torchvision_setup.py``), and Lightning's tips and the deprecation chatter of its dependencies are silenced: what is
printed should be read.
"""

import logging
import warnings

from torchvision_setup import make_torchvision_importable


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


make_torchvision_importable()

import pytorch_lightning as pl  # noqa: E402
import pytorch_lightning.plugins.environments as environments  # noqa: E402

_silence()  # afterwards: the import sets the level of its loggers

__all__ = ["environments", "pl"]
