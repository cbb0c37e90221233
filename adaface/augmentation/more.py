"""Augmentations beyond the paper's three, all off by default: for conditions that are rare in the training data.

They are enabled by ``--mask_augmentation_prob 0.1`` and so on, and applied after the paper's three in the order of
``MORE_AUGMENTATIONS``, that of image formation: occlusion, lens, movement, sensor, file.

Sources: cutout is DeVries and Taylor, arXiv 1708.04552 (there a square of 16 of 32 px, of the data's mean); the mask
covers what a surgical mask covers of the ArcFace template. The strengths range from barely visible to about the worst
level of ``evaluation/degradation.py``; they are not taken from a paper.
"""

import math
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from adaface.augmentation.camera import compress, defocus, move

CUTOUT_SHARE = (0.15, 0.5)  # side of the square, as a share of the image's
BLUR_SIGMA_PX = (0.3, 2.5)
MOTION_PX = (2.0, 14.0)
NOISE_LEVELS = (2.0, 20.0)  # standard deviation, of 255
JPEG_QUALITY = (10, 80)
_MIDDLE = 127  # is 0 after normalization
_SIDE_PX = 112  # of the template that the mask was drawn on
# BGR: blue, white, green and black masks
_MASK_COLORS = ((200, 170, 120), (235, 235, 235), (170, 190, 120), (40, 40, 40))
# from the left ear over the bridge of the nose to the right ear, and around the chin; x, y in px of the template
_MASK_OUTLINE = np.array(
    [(12, 62), (34, 63), (56, 58), (78, 63), (100, 62), (97, 84), (88, 101), (72, 111), (56, 113), (40, 111), (24, 101),
     (15, 84)], np.float32
)  # fmt: skip
_MASK_SHIFT_PX = 4.0
_FOLDS = 3


def _between(interval: tuple[float, float], number: float) -> float:
    return interval[0] + (interval[1] - interval[0]) * number


def mask(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover nose, mouth and chin of an aligned face with a mask of one color, with folds.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        rng: source of randomness.

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    color, down, across, shade = rng.random(4).tolist()
    shift = (_between((-_MASK_SHIFT_PX, _MASK_SHIFT_PX), across), _between((-_MASK_SHIFT_PX, _MASK_SHIFT_PX), down))
    scale = np.array(image.shape[1::-1], np.float32) / _SIDE_PX
    outline = ((_MASK_OUTLINE + np.array(shift, np.float32)) * scale).round().astype(np.int32)
    cloth = tuple(level * _between((0.8, 1.05), shade) for level in _MASK_COLORS[int(color * len(_MASK_COLORS))])
    result = image.copy()
    cv2.fillPoly(result, [outline], cloth, lineType=cv2.LINE_AA)
    fold = tuple(0.85 * level for level in cloth)
    (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    inset = (right - left) // 8
    for number in range(1, _FOLDS + 1):
        height = top + (bottom - top) * number // (_FOLDS + 2)
        cv2.line(result, (left + inset, height), (right - inset, height), fold, lineType=cv2.LINE_AA)
    return result


def cutout(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill a square with middle gray; its center is anywhere in the image, so that it may be cut off.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        rng: source of randomness.

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    share, down, across = rng.random(3).tolist()
    height, width = image.shape[:2]
    half = _between(CUTOUT_SHARE, share) * min(height, width) / 2
    row, column = down * height, across * width
    result = image.copy()
    rows = slice(max(0, round(row - half)), round(row + half))
    result[rows, max(0, round(column - half)) : round(column + half)] = _MIDDLE
    return result


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian, as ``augmentation.camera.defocus``; sigma U(0.3, 2.5) px.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        rng: source of randomness.

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    return defocus(image, _between(BLUR_SIGMA_PX, rng.random()))


def motion_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur along a line in any direction, as ``augmentation.camera.move``; U(2, 14) px.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        rng: source of randomness.

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    length, angle = rng.random(2).tolist()
    return move(image, _between(MOTION_PX, length), math.pi * angle)


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to each pixel and color; its standard deviation is U(2, 20) of 255.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        rng: source of randomness.

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    sigma = _between(NOISE_LEVELS, rng.random())
    noisy = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def gray(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Convert to grayscale, as of an infrared camera; deterministic.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        rng: not used.

    Returns:
        (H, W, 3) uint8 BGR of three equal channels, a new array.
    """
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compress and decompress, as ``augmentation.camera.compress``; quality 10 to 80.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        rng: source of randomness.

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    return compress(image, round(_between(JPEG_QUALITY, rng.random())))


# in the order in which they are applied; `--<name>_augmentation_prob` is the option of each
MORE_AUGMENTATIONS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "mask": mask,
    "cutout": cutout,
    "blur": blur,
    "motion_blur": motion_blur,
    "noise": noise,
    "grey": gray,
    "jpeg": jpeg,
}
