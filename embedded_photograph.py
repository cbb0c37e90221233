"""A photograph as it comes from outside, in bytes: its face found, aligned and embedded, or a sentence why not."""

from dataclasses import dataclass

import cv2
import numpy as np

from alignment.detector import MTCNN, Face, choose_faces
from alignment.photograph import decode_photograph
from alignment.warp import warp_face
from inference import Embedder

MOST_PIXELS = 50_000_000  # of a photograph; to decode one of 49 megapixels and find its face took 1.3 GB
_OVERVIEW_PX = 320  # longer side
_TAKEN, _OTHER = (115, 158, 0), (0, 159, 230)  # BGR: the green and orange of Okabe and Ito


@dataclass(frozen=True)
class EmbeddedPhotograph:
    """A photograph whose largest face was embedded.

    Attributes:
        size_px: width and height of the photograph, upright.
        faces: how many were found.
        box: left, top, right, bottom of the one that was taken, in px of the photograph.
        overview: (h, w, 3) uint8 BGR, the photograph made small, the faces framed in orange, the taken one in green.
        crop: (112, 112, 3) uint8 BGR, the aligned face.
        embedding: (D,) float32, of unit length.
        norm: AdaFace's measure of quality.
    """

    size_px: tuple[int, int]
    faces: int
    box: tuple[float, float, float, float]
    overview: np.ndarray
    crop: np.ndarray
    embedding: np.ndarray
    norm: float


def embed_photograph(
    encoded: bytes, embedder: Embedder, detector: MTCNN, *, most_pixels: int = MOST_PIXELS
) -> EmbeddedPhotograph:
    """Embed the largest face of a photograph.

    Args:
        encoded: content of an image file.
        embedder: the model.
        detector: finds the faces.
        most_pixels: a photograph that announces more is refused before it is decoded.

    Raises:
        ValueError: no image, a damaged or a too large one, no face in it, or a model that fails on it; a sentence for
            people.
    """
    photograph = decode_photograph(encoded, "the file", most_pixels=most_pixels)
    height, width = photograph.shape[:2]
    faces = choose_faces(detector.detect(photograph), "all", photograph.shape)  # the largest first
    if not faces:
        raise ValueError(
            f"no face was found in the photograph of {width}x{height} px: faces that are smaller than "
            f"{detector.smallest_face_px((height, width))} px, turned far aside or covered are not found"
        )
    crop = warp_face(photograph, faces[0].landmarks)
    embeddings, norms = embedder.embed(crop[None])
    return EmbeddedPhotograph(
        size_px=(width, height),
        faces=len(faces),
        box=faces[0].box,
        overview=_overview(photograph, faces),
        crop=crop,
        embedding=embeddings[0],
        norm=float(norms[0, 0]),
    )


def _overview(photograph: np.ndarray, faces: list[Face]) -> np.ndarray:
    """Return a small copy with orange frames around the faces; the first one's is green, and above the others."""
    height, width = photograph.shape[:2]
    scale = min(1, _OVERVIEW_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(photograph, size, interpolation=cv2.INTER_AREA)
    for place in reversed(range(len(faces))):
        left, top, right, bottom = (round(side * scale) for side in faces[place].box)
        cv2.rectangle(small, (left, top), (right, bottom), _OTHER if place else _TAKEN, 1 if place else 2)
    return small
