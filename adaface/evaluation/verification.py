"""The `pairs` protocol: 10-fold accuracy, TAR at FAR, AUC and EER on verification sets.

Source: LFW's protocol as InsightFace and the official AdaFace code compute it (``metrics/verification.py``).
Differs from them: no set is required; pairs with an unreadable image are left out and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adaface.data.chosen_sets import find_sets
from adaface.data.image_list import ChosenImages, ImageList, PairSetImages
from adaface.data.pair_sets import find_pair_sets, open_pair_set
from adaface.metrics.outcome import EmbedImages, unreadable_note
from adaface.metrics.results import SetResult, evaluate_set


@dataclass(frozen=True)
class PairList:
    """Pairs to verify.

    Attributes:
        images: 2P images; images 2k and 2k+1 are pair k.
        issame: (P,) booleans.
        identities: (P, 2) identities of both images, if known, for the intervals.
        notes: remarks on the pairs.
    """

    images: ImageList
    issame: np.ndarray
    identities: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifiedSet:
    """A verification set and the results of a model on it.

    Attributes:
        result: all numbers, of Q pairs.
        images: images of the set, to show them.
        places: (Q, 2) indices of each pair's images in ``images``.
        norms: (Q, 2) feature norms of each pair's images.
        identities: (Q, 2) identities of both images, if known.
    """

    result: SetResult
    images: ImageList
    places: np.ndarray
    norms: np.ndarray
    identities: np.ndarray | None = None


def run(embed: EmbedImages, root: str | Path, names: Sequence[str] = (), limit: int = 0) -> list[VerifiedSet]:
    """Verify the pairs of all or of some sets.

    Args:
        embed: the model.
        root: as in ``find_sets``.
        names: names of the sets; empty for all.
        limit: number of pairs per set, spread evenly; 0 for all.

    Raises:
        FileNotFoundError: there are no sets.
        ValueError: sets are damaged or ambiguous, or too many images are unreadable.
    """
    return [verify(embed, pair_list) for pair_list in open_pair_lists(root, names, limit)]


def open_pair_lists(root: str | Path, names: Sequence[str] = (), limit: int = 0) -> Iterator[PairList]:
    """Open the pairs of all or of some sets, one set at a time.

    Args:
        root: as in ``find_sets``.
        names: names of the sets; empty for all.
        limit: number of pairs per set, spread evenly; 0 for all.

    Raises:
        FileNotFoundError: there are no sets.
        ValueError: sets are damaged or ambiguous.
    """
    for name, folder in find_sets(root, names).items():
        yield _open(name, folder, limit)


def _open(name: str, folder: Path, limit: int) -> PairList:
    pair_set = open_pair_set(folder, name)
    chosen = _spread(len(pair_set.issame), limit)
    images: ImageList = PairSetImages(pair_set, find_pair_sets(folder)[name])
    if len(chosen) < len(pair_set.issame):
        images = ChosenImages(images, np.stack([2 * chosen, 2 * chosen + 1], axis=1).ravel())
    pairs_in_all = len(pair_set.issame)
    limited = len(chosen) < pairs_in_all
    notes = [pair_set.note] if pair_set.note else []
    notes += [f"quick test: {len(chosen):,} of {pairs_in_all:,} pairs"] if limited else []
    return PairList(images, pair_set.issame[chosen], notes=tuple(notes))


def verify(embed: EmbedImages, pair_list: PairList) -> VerifiedSet:
    """Verify pairs.

    Args:
        embed: the model.
        pair_list: pairs to verify.

    Raises:
        ValueError: too many images are unreadable.
    """
    embedded = embed(pair_list.images)
    readable_pairs = embedded.readable.reshape(-1, 2).all(axis=1)
    places = np.arange(len(pair_list.images)).reshape(-1, 2)[readable_pairs]
    identities = None if pair_list.identities is None else pair_list.identities[readable_pairs]
    result = evaluate_set(
        pair_list.images.name,
        np.asarray(embedded.embeddings)[places.ravel()],
        pair_list.issame[readable_pairs],
        intervals=True,
        identities=identities,
    )
    result = replace(result, notes=(*pair_list.notes, *unreadable_note(embedded.readable), *result.notes))
    return VerifiedSet(result, pair_list.images, places, np.asarray(embedded.norms)[places, 0], identities)


def _spread(count: int, limit: int) -> np.ndarray:
    """Return ``limit`` of ``count`` indices, spread evenly; all for 0."""
    if not 0 < limit < count:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(int)
