"""Training and validation data, under the official import path: ``import data``.

The code is in ``adaface/data/``: the data module in ``module.py``.
"""

from adaface.data.module import FaceDataModule as FaceDataModule
