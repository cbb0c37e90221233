"""The paper's augmentations, under the official import path: ``from augmenter import Augmenter``.

The code is in ``adaface/augmentation/paper.py``.
"""

from adaface.augmentation.paper import Augmenter as Augmenter
