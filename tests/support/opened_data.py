"""A data module from options by name, as the command line gives them."""

from pathlib import Path
from typing import Any

from adaface.config.options import GROUP_OF, Config
from data import FaceDataModule

FEW = {"val_data_path": "", "batch_size": 4, "seed": 7, "num_workers": 0}


def data_module(root: Path, **options: Any) -> FaceDataModule:
    """Return an opened data module of what lies in a folder; ``FEW`` in place of the defaults."""
    values = {**FEW, "data_root": str(root), **options}
    of_groups = {name: value for name, value in values.items() if GROUP_OF.get(name) in ("data", "augmentation")}
    config = Config().with_values(of_groups)
    others = {name: value for name, value in values.items() if name not in of_groups}
    data = FaceDataModule(config.data, config.augmentation, **others)
    data.open()
    return data
