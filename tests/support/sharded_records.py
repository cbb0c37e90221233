"""Training sets in several `.rec`: as mxnet's `im2rec --chunks` cuts them, and as parts of InsightFace's layout."""

import itertools
from pathlib import Path

import cv2
import numpy as np

from adaface.records.reader import ImageHeader, RecordWriter, pack


def face(number: int) -> bytes:
    """A JPEG that says its number."""
    rng = np.random.default_rng(number)
    pixels = cv2.resize(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), (112, 112), interpolation=cv2.INTER_LINEAR)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def write_chunks(folder: Path, labels: list[list[int]]) -> Path:
    """One file for each list: no header records, keys and labels count over all files; image k is ``face(k)``."""
    folder.mkdir(parents=True, exist_ok=True)
    key = 0
    for number, some in enumerate(labels):
        with RecordWriter(folder / f"train_{number}.rec") as writer:
            for label in some:
                writer.write(key, pack(ImageHeader(float(label), key), face(key)))
                key += 1
    return folder


def write_parts(folder: Path, labels: list[list[int]]) -> Path:
    """One file for each list, sorted: header record, images with keys from 1 on, identity records; images as above."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for part, some in enumerate(labels):
        past = len(some) + 1
        bounds = [0, *(i for i in range(1, len(some)) if some[i] != some[i - 1]), len(some)]
        with RecordWriter(folder / f"train_{part}.rec") as writer:
            header = np.array([past, past + len(bounds) - 1], np.float32)
            writer.write(0, pack(ImageHeader(header, 0), b""))
            for key, label in enumerate(some, 1):
                writer.write(key, pack(ImageHeader(float(label), key), face(number)))
                number += 1
            for key, (first, end) in enumerate(itertools.pairwise(bounds), past):
                writer.write(key, pack(ImageHeader(np.array([first + 1, end + 1], np.float32), key), b""))
    return folder
