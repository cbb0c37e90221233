"""The hardest pairs of a model, with their images: least similar genuine pairs, most similar impostor pairs."""

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
        index: index in the list of pairs, from 0.
        similarity: cosine.
        pictures: both images as JPEG files; None for one that cannot be read.
        norms: feature norms of both images; None if unknown.
        text: a remark, such as who is shown; may be empty.
    """

    index: int
    similarity: float
    pictures: tuple[bytes | None, bytes | None]
    norms: tuple[float, float] | None = None
    text: str = ""


@dataclass(frozen=True)
class HardestPairs:
    """The hardest pairs of one set.

    Attributes:
        name: name of the set.
        genuine: genuine pairs, least similar first.
        impostors: impostor pairs, most similar first.
        threshold: similarity above which pairs are accepted; NaN if unknown.
        heading: of the impostor pairs, if they are chosen in another way.
    """

    name: str
    genuine: tuple[HardPair, ...]
    impostors: tuple[HardPair, ...]
    threshold: float = math.nan
    heading: str = ""


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
    """Find the hardest pairs, and read only their images.

    Args:
        images: images of the pairs.
        similarity: (P,) cosines; pairs without a finite one are skipped.
        issame: (P,) booleans.
        count: maximum number of genuine and of impostor pairs.
        places: (P, 2) indices of each pair's images in ``images``; None if they are images 2k and 2k + 1.
        norms: (P, 2) feature norms of each pair's images.
        threshold: similarity above which pairs are accepted.

    Raises:
        ValueError: counts that do not match.
    """
    similarity, issame = np.asarray(similarity), np.asarray(issame, dtype=bool)
    places = np.arange(len(images) // 2 * 2).reshape(-1, 2) if places is None else places
    shapes = {"similarity": similarity, "issame": issame, "places of images": places, "norms": norms}
    expected = (len(places),)
    for what, values in shapes.items():
        if values is not None and values.shape != expected + (2,) * (what not in ("similarity", "issame")):
            raise ValueError(
                f"got {what} of shape {values.shape} for the pairs of {images.name}, expected {expected[0]} pairs, "
                f"as there are {len(images)} images"
            )

    def read(pair: int) -> HardPair:
        first, second = (int(place) for place in places[pair])
        return HardPair(
            index=pair,
            similarity=float(similarity[pair]),
            pictures=(picture(images, first), picture(images, second)),
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
    """Return the pairs with the lowest ``order``, in list order if equal."""
    return pairs[np.argsort(order[pairs], kind="stable")[:count]]


def picture(images: ImageList, index: int) -> bytes | None:
    """Return an image as a JPEG file, or None if it cannot be read.

    Args:
        images: list of images.
        index: in the list.
    """
    try:
        image = images.read(index)
    except ValueError:
        return None
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
