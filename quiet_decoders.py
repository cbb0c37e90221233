"""Decoders of images that keep their warnings to themselves: who reads a damaged file names it, once."""

import contextlib
import warnings
from collections.abc import Iterator

import cv2


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Drop the warnings of Pillow and OpenCV, about damaged metadata, large images and early ends of files."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        cv2.utils.logging.setLogLevel(level)
