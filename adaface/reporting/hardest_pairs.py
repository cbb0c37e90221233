"""The pairs that a model gets most wrong, as pictures: genuine pairs least alike, impostor pairs most alike."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from adaface.data.image_list import ImageList

_JPEG_QUALITY = 88


@dataclass(frozen=True)
class HardPair:
    """One pair.

    Attributes:
        index: its place in the list of pairs, from 0.
        similarity: cosine.
        pictures: both images as JPEG files; None for one that cannot be read.
        norms: of both images; None where they are not known.
    """

    index: int
    similarity: float
    pictures: tuple[bytes | None, bytes | None]
    norms: tuple[float, float] | None = None


@dataclass(frozen=True)
class HardestPairs:
    """The hardest pairs of one set.

    Attributes:
        name: of the set.
        genuine: pairs of one person, the least alike first.
        impostors: pairs of two people, the most alike first.
        threshold: similarity above which pairs are called the same; NaN where there is none.
    """

    name: str
    genuine: tuple[HardPair, ...]
    impostors: tuple[HardPair, ...]
    threshold: float = math.nan


def hardest_pairs(
    images: ImageList,
    similarity: np.ndarray,
    issame: np.ndarray,
    count: int,
    *,
    places: np.ndarray | None = None,
    norms: np.ndarray | None = None,
    threshold: float = math.nan,
) -> HardestPairs:
    """Find the hardest pairs and read their pictures, and no others.

    Args:
        images: those that the pairs are of.
        similarity: (P,) cosines; pairs without a finite one are passed over.
        issame: (P,) booleans.
        count: pairs of each kind, at most.
        places: (P, 2) index of each pair's images in ``images``; None where they are images 2k and 2k + 1.
        norms: (P, 2) of each pair's images.
        threshold: similarity above which pairs are called the same.

    Raises:
        ValueError: counts that do not fit.
    """
    similarity, issame = np.asarray(similarity), np.asarray(issame, dtype=bool)
    places = np.arange(len(images) // 2 * 2).reshape(-1, 2) if places is None else places
    shapes = {"similarity": similarity, "issame": issame, "places of images": places, "norms": norms}
    expected = (len(places),)
    for what, values in shapes.items():
        if values is not None and values.shape != expected + (2,) * (what not in ("similarity", "issame")):
            raise ValueError(
                f"the {what} of the pairs of {images.name} have the shape {values.shape}, expected "
                f"{expected[0]} pairs: {len(images)} images are there"
            )

    def read(pair: int) -> HardPair:
        first, second = (int(place) for place in places[pair])
        return HardPair(
            index=pair,
            similarity=float(similarity[pair]),
            pictures=(_picture(images, first), _picture(images, second)),
            norms=None if norms is None else (float(norms[pair, 0]), float(norms[pair, 1])),
        )

    usable = np.isfinite(similarity)
    genuine = _first(np.flatnonzero(usable & issame), similarity, count)
    impostors = _first(np.flatnonzero(usable & ~issame), -similarity, count)
    return HardestPairs(
        name=images.name,
        genuine=tuple(read(int(pair)) for pair in genuine),
        impostors=tuple(read(int(pair)) for pair in impostors),
        threshold=threshold,
    )


def _first(pairs: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """Return the pairs of lowest ``order``; of equal ones the first in the list."""
    return pairs[np.argsort(order[pairs], kind="stable")[:count]]


def _picture(images: ImageList, index: int) -> bytes | None:
    try:
        image = images.read(index)
    except ValueError:
        return None
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
