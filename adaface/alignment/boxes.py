"""Operations on face boxes for the cascade of detectors: overlap, correction, squaring, cropping.

Boxes are (N, 4) float64: left, top, right, bottom in px; pixel (0, 0) covers [0, 1), right and bottom are exclusive.

Source: Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks".
"""

import cv2
import numpy as np


def keep_best(boxes: np.ndarray, scores: np.ndarray, most_overlap: float, *, of_smaller: bool = False) -> np.ndarray:
    """Suppress boxes that overlap too much with a box of a higher score.

    Args:
        boxes: (N, 4).
        scores: (N,); of equal scores, the first counts as higher.
        most_overlap: largest allowed intersection over union, in [0, 1].
        of_smaller: use the intersection over the smaller box instead, which also suppresses a box inside another one.

    Returns:
        Indices of the remaining boxes, highest score first.
    """
    waiting = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        sides = np.minimum(boxes[waiting, 2:], boxes[best, 2:]) - np.maximum(boxes[waiting, :2], boxes[best, :2])
        common = sides.clip(min=0).prod(axis=1)
        whole = np.minimum(areas[waiting], areas[best]) if of_smaller else areas[waiting] + areas[best] - common
        waiting = waiting[common <= most_overlap * whole]
    return np.array(kept, dtype=np.int64)


def corrected(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Move the edges of boxes.

    Args:
        boxes: (N, 4).
        offsets: (N, 4) shift of each edge, as a multiple of the box's width (left, right) or height (top, bottom).
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * np.tile(sides, 2)


def squared(boxes: np.ndarray) -> np.ndarray:
    """Return squares of whole pixels with the same centers and the length of the longer side, at least 1 px.

    Args:
        boxes: (N, 4).
    """
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True).round().clip(min=1)
    start = ((boxes[:, :2] + boxes[:, 2:] - side) / 2).round()
    return np.concatenate([start, start + side], axis=1)


def cut_out(image: np.ndarray, boxes: np.ndarray, side_px: int) -> np.ndarray:
    """Crop squares from an image and resize them; areas outside of the image are black.

    Args:
        image: (X, Y, 3) uint8; its first axis is the first coordinate of a box.
        boxes: (N, 4), as returned by ``squared``.
        side_px: side of the crops.

    Returns:
        (N, side, side, 3) uint8.
    """
    cuts = np.empty((len(boxes), side_px, side_px, 3), np.uint8)
    size = np.array(image.shape[:2])
    for cut, box in zip(cuts, boxes.astype(np.int64), strict=True):
        start, end = box[:2], box[2:]
        inside_start, inside_end = start.clip(0, size), end.clip(0, size)
        part = image[inside_start[0] : inside_end[0], inside_start[1] : inside_end[1]]
        if (inside_start != start).any() or (inside_end != end).any():
            whole = np.zeros((*(end - start), 3), np.uint8)
            first, last = inside_start - start, inside_end - start
            whole[first[0] : last[0], first[1] : last[1]] = part
            part = whole
        cv2.resize(part, (side_px, side_px), dst=cut, interpolation=cv2.INTER_AREA)
    return cuts
