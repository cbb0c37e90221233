"""Warp a face to 112x112 by its five landmarks, as for training and evaluation of ArcFace and AdaFace.

Source: the similarity transform of Umeyama (1991) as scikit-image estimates it, onto the ArcFace template; OpenCV's
``warpAffine``, linear, black outside of the image.
"""

import cv2
import numpy as np
from skimage.transform import SimilarityTransform

from adaface.data.images import as_bgr

SIDE_PX = 112
_OUTSIDE_SHARE = 0.5  # of the distance between landmarks: faces at an edge are cut off
_MOST_RESIDUAL_PX = 18.0
_MOST_BLACK = 0.6
_FEWEST_PX = 2.0
_OPPOSITE_PX2 = -100.0
_GRID = 16
# left eye, right eye, tip of the nose, left and right corner of the mouth, as the viewer sees them: x, y in px
ARCFACE_TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)


def similarity_to_template(landmarks: np.ndarray) -> np.ndarray:
    """Estimate rotation, scale and shift that map five landmarks to the ArcFace template (least squares).

    Args:
        landmarks: (5, 2) x and y in px, in the order of ``ARCFACE_TEMPLATE``.

    Returns:
        (2, 3) float64 matrix for ``cv2.warpAffine``.

    Raises:
        ValueError: the landmarks have another shape, are not finite, or all coincide.
    """
    landmarks = np.asarray(landmarks)
    if landmarks.shape != ARCFACE_TEMPLATE.shape:
        raise ValueError(f"got landmarks of shape {landmarks.shape}, expected (5, 2): x and y of five points")
    if not np.isfinite(landmarks).all() or (landmarks == landmarks[0]).all():
        raise ValueError(
            f"the landmarks {landmarks.tolist()} do not determine a transform: they are not finite, or all coincide"
        )
    transform = SimilarityTransform.from_estimate(landmarks, ARCFACE_TEMPLATE)
    if not transform:
        raise ValueError(f"the landmarks {landmarks.tolist()} do not determine a transform: {transform}")
    return transform.params[:2]


def warp_face(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the aligned face, (112, 112, 3) uint8.

    Args:
        image: (H, W, 3) uint8, in any color order, which is kept; a Pillow image is converted to BGR.
        landmarks: (5, 2) x and y in px of the image, in the order of ``ARCFACE_TEMPLATE``.

    Raises:
        ValueError: the landmarks do not determine a transform.
    """
    return cv2.warpAffine(
        as_bgr(image, "the image"),
        similarity_to_template(landmarks),
        (SIDE_PX, SIDE_PX),
        flags=cv2.INTER_LINEAR,
        borderValue=0,
    )


def warp_listed_face(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the aligned face at landmarks of a file, after checking that they belong to this image.

    Landmarks of another image, of another size of it, or in another order give black or turned faces without any
    error. These measurements tell: points outside of the image, the extent of the points (fractions of the image are
    below 1), the residual of the fit (below 17 px for faces up to a full profile, above 19 px where left and right, or
    x and y, are exchanged), the direction from eye to eye, which is that of the mouth, and the share of the face
    outside.

    Args:
        image: as of ``warp_face``.
        landmarks: (5, 2) x and y in px of the image, in the order of ``ARCFACE_TEMPLATE``.

    Raises:
        ValueError: the landmarks do not belong to this image, or do not determine a transform.
    """
    image, matrix = as_bgr(image, "the image"), similarity_to_template(landmarks)
    height, width = image.shape[:2]
    margin = _OUTSIDE_SHARE * float(np.ptp(landmarks, axis=0).max())
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    if (low < -margin).any() or high[0] > width + margin or high[1] > height + margin:
        point = landmarks[np.argmax(np.abs(landmarks / (width, height) - 0.5).max(axis=1))]
        raise ValueError(
            f"the landmark ({point[0]:.0f}, {point[1]:.0f}) lies outside of the image, {width}x{height} px"
        )
    if (extent := float(np.ptp(landmarks, axis=0).max())) < _FEWEST_PX:
        raise ValueError(
            f"the landmarks lie within {extent:.2g} px, too small for a face: expected px, not fractions of the image"
        )
    placed = landmarks @ matrix[:, :2].T + matrix[:, 2]
    residual = np.sqrt(np.mean(np.sum((placed - ARCFACE_TEMPLATE) ** 2, axis=1)))
    eyes, mouth = placed[1] - placed[0], placed[4] - placed[3]
    if residual > _MOST_RESIDUAL_PX or eyes @ mouth < _OPPOSITE_PX2:
        raise ValueError(
            f"the landmarks do not fit a face (residual {residual:.0f} px of 112): left and right, or x and y, are "
            "exchanged, or the points are in another order"
        )
    black = float(outside_of_image(matrix, width, height).any(axis=(0, 2)).mean())
    if black > _MOST_BLACK:
        raise ValueError(f"{100 * black:.0f} % of the aligned face lie outside of the image, {width}x{height} px")
    return warp_face(image, landmarks)


def outside_of_image(matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return which of 16x16 points of an aligned face have their source outside of the image.

    Args:
        matrix: (2, 3), from ``similarity_to_template``.
        width: of the image in px.
        height: of the image in px.

    Returns:
        (2, 256, 2) bool: before the left and the upper edge, and behind the right and the lower one.
    """
    middles = (np.arange(_GRID) + 0.5) * SIDE_PX / _GRID
    places = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)  # (256, 2), x and y in the aligned face
    sources = np.linalg.solve(matrix[:, :2], (places - matrix[:, 2]).T).T  # (256, 2), in the image
    return np.stack((sources < 0, sources >= (width, height)))
