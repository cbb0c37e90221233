"""Contact sheets: faces in a grid, or in rows under titles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from adaface.system.files import write_atomically

_GAP_PX = 2
COLUMNS = 20
_FACE_PX = 64
_TITLE_PX = 24
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
_INK, _PAPER = (34, 34, 34), 255


@dataclass(frozen=True)
class Section:
    """Faces under a title.

    Attributes:
        title: ASCII text.
        images: at least one, of (112, 112, 3) uint8 BGR.
    """

    title: str
    images: Sequence[np.ndarray]


def tiled(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return images in a grid, row by row.

    Args:
        images: at least one, of (side, side, 3) uint8 BGR.
        columns: number of columns.

    Returns:
        (rows * (side + 2), columns * (side + 2), 3) uint8 BGR.
    """
    side = len(images[0])
    cell = side + _GAP_PX
    grid = np.full((math.ceil(len(images) / columns) * cell, columns * cell, 3), _PAPER, np.uint8)
    for place, image in enumerate(images):
        top, left = cell * (place // columns), cell * (place % columns)
        grid[top : top + side, left : left + side] = image
    return grid


def draw_sheet(sections: Sequence[Section], path: Path) -> None:
    """Draw faces in rows of ``COLUMNS``, each section under its title.

    Args:
        sections: at least one.
        path: PNG file to write.

    Raises:
        OSError: it cannot be written.
    """
    parts = []
    for section in sections:
        small = [cv2.resize(image, (_FACE_PX, _FACE_PX), interpolation=cv2.INTER_AREA) for image in section.images]
        faces = tiled(small, COLUMNS)
        title = np.full((_TITLE_PX, faces.shape[1], 3), _PAPER, np.uint8)
        cv2.putText(title, section.title, (2, _TITLE_PX - 7), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
        parts += [title, faces]
    write_atomically(path, cv2.imencode(".png", np.concatenate(parts))[1].tobytes())
