"""The training module under its official name; its code is in `training_module.py`."""

from training_module import FaceRecognitionModule as FaceRecognitionModule
