"""The training module, under the official import path: ``from train_val import FaceRecognitionModule``.

The code is in ``adaface/training/module.py``.
"""

from adaface.training.module import FaceRecognitionModule as FaceRecognitionModule
