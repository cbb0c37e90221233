"""Camera degradations: defocus, motion blur, JPEG compression. For augmentation, evaluation and synthetic faces.

Source: textbook optics and signal processing; nothing is taken from a paper.
"""

import math

import cv2
import numpy as np

_MOTION_STEPS_PER_PX = 8


def defocus(image: np.ndarray, sigma_px: float) -> np.ndarray:
    """Apply Gaussian blur, as of a lens that is out of focus.

    Args:
        image: (H, W, 3) uint8.
        sigma_px: standard deviation, 0 or more; 0 changes nothing.

    Returns:
        (H, W, 3) uint8: a new array, or ``image`` itself where nothing changes.
    """
    side = 2 * math.ceil(3 * sigma_px) + 1
    # a sigma of 0 would make OpenCV choose one
    return cv2.GaussianBlur(image, (side, side), sigma_px, borderType=cv2.BORDER_REPLICATE) if sigma_px > 0 else image


def move(image: np.ndarray, length_px: float, angle_rad: float) -> np.ndarray:
    """Apply motion blur along a line.

    Args:
        image: (H, W, 3) uint8.
        length_px: length of the movement, 0 or more.
        angle_rad: its angle to the rows.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    kernel = motion_kernel(length_px, angle_rad)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def motion_kernel(length_px: float, angle_rad: float) -> np.ndarray:
    """Return the kernel of a uniform movement along a line through its center.

    Args:
        length_px: of the line, 0 or more; fractions of pixels count.
        angle_rad: of the line against the rows.

    Returns:
        (K, K) float32, K odd, of sum 1.
    """
    radius = math.ceil(length_px / 2) + 1
    steps = max(1, math.ceil(length_px * _MOTION_STEPS_PER_PX))
    along = ((np.arange(steps) + 0.5) / steps - 0.5) * length_px
    columns, rows = along * math.cos(angle_rad) + radius, along * math.sin(angle_rad) + radius
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    left, top = np.floor(columns).astype(int), np.floor(rows).astype(int)
    for right in (0, 1):
        for below in (0, 1):  # each point of the line is distributed over the four pixels around it
            weight = np.abs(1 - right - (columns - left)) * np.abs(1 - below - (rows - top))
            np.add.at(kernel, (top + below, left + right), weight)
    return (kernel / steps).astype(np.float32)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress an image as JPEG with chroma subsampling, and decompress it.

    Args:
        image: (H, W, 3) uint8 BGR.
        quality: of JPEG, in [1, 100].

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if done else None
    assert decoded is not None, "JPEG takes every uint8 color image"
    return np.asarray(decoded, np.uint8)
