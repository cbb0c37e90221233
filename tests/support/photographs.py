"""Photographs for the tests of alignment: one of scikit-image's, with a face whose place is known, and copies of it."""

import functools

import cv2
import numpy as np
from skimage import data

# by eye, in px of the photograph, to 2 px: eyes, nose, corners of the mouth
ASTRONAUT_LANDMARKS = np.array([(204, 101), (247, 103), (225, 129), (201, 139), (245, 142)], dtype=np.float64)


@functools.cache
def astronaut() -> np.ndarray:
    """Return the photograph, (512, 512, 3) uint8 BGR."""
    return np.ascontiguousarray(data.astronaut()[..., ::-1])


def turned(image: np.ndarray, degrees: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the image turned about its centre and resized, and the (2, 3) matrix from old to new places."""
    side = round(image.shape[0] * scale)
    middle = image.shape[0] / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, scale)
    matrix[:, 2] += side / 2 - middle
    flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, (side, side), flags=flags), matrix


def head() -> np.ndarray:
    """Return the part of the photograph that holds the face and little more, (200, 200, 3)."""
    return astronaut()[20:220, 120:320]


def two_heads() -> np.ndarray:
    """Return a grey (300, 600, 3) with a face in the middle, and one of twice its size at the right."""
    image = np.full((300, 600, 3), 110, dtype=np.uint8)
    image[100:200, 250:350] = cv2.resize(head(), (100, 100), interpolation=cv2.INTER_AREA)
    image[50:250, 390:590] = head()
    return image
