"""Landmarks from a file: one line for each face, as in the files of IJB.

    <file> <x1> <y1> ... <x5> <y5> [<score>]

Separated by blanks; x and y in px of the upright photograph, in the order of ``warp.ARCFACE_TEMPLATE``.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from adaface.alignment.detector import Face
from adaface.system.text_table import read_table

_POINTS = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]


def read_landmarks(path: Path) -> dict[str, list[Face]]:
    """Return the faces of each file; their boxes are the bounding boxes of the five points.

    Args:
        path: text file. If the score is missing in all lines, it is 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed line (the message names file and line), or an empty file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected landmarks: <file> <x1> <y1> ... <x5> <y5> [<score>]")
    columns = {"name": "str", **dict.fromkeys(_POINTS, "float32"), "score": "float32"}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        first = next((line.split() for line in file if line.strip()), [])
    if len(first) == len(columns) - 1:
        del columns["score"]
    faces: dict[str, list[Face]] = defaultdict(list)
    for piece in read_table(path, columns):
        points = piece[_POINTS].to_numpy(np.float64).reshape(-1, 5, 2)
        scores = piece["score"].tolist() if "score" in columns else [1.0] * len(piece)
        for name, landmarks, score in zip(piece["name"], points, scores, strict=True):
            (left, top), (right, bottom) = landmarks.min(axis=0), landmarks.max(axis=0)
            box = (float(left), float(top), float(right), float(bottom))
            faces[Path(name).as_posix()].append(Face(box, landmarks, score))
    if not faces:
        raise ValueError(f"{path} lists no faces")
    return dict(faces)
