"""Warp a face to 112x112 by its five landmarks, as for training and evaluation of ArcFace and AdaFace.

Source: the similarity transform of Umeyama (1991) as scikit-image estimates it, onto the ArcFace template; OpenCV's
``warpAffine``, linear, black outside of the image.
"""

import cv2
import numpy as np
from skimage.transform import SimilarityTransform

SIDE_PX = 112
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
        image: (H, W, 3) uint8, in any color order.
        landmarks: (5, 2) x and y in px of the image, in the order of ``ARCFACE_TEMPLATE``.

    Raises:
        ValueError: the landmarks do not determine a transform.
    """
    return cv2.warpAffine(
        image, similarity_to_template(landmarks), (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR, borderValue=0
    )
