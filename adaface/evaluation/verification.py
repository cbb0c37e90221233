"""The `pairs` protocol: verification sets in any form, by 10-fold accuracy, TAR at FAR, AUC and EER.

Source: LFW's protocol as InsightFace and the official AdaFace code compute it (``metrics/verification.py``).
Differs from them: no set is compulsory; pairs with an image that cannot be read are left out and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adaface.data.image_list import ChosenImages, ImageList, PairSetImages
from adaface.data.pair_sets import PAPER_SETS, find_pair_sets, open_pair_set
from adaface.data.sources.folder import listing
from adaface.metrics.outcome import EmbedImages, unreadable_note
from adaface.metrics.results import SetResult, evaluate_set


@dataclass(frozen=True)
class PairList:
    """Pairs to verify.

    Attributes:
        images: 2P of them; images 2k and 2k+1 are pair k.
        issame: bool (P,).
        identities: (P, 2) whom they show, where it is known, for the intervals.
        notes: what is unusual about them.
    """

    images: ImageList
    issame: np.ndarray
    identities: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifiedSet:
    """A verification set and what a model makes of it.

    Attributes:
        result: all numbers; Q pairs.
        images: of the set, for pictures.
        places: (Q, 2) index of each pair's images in ``images``.
        norms: (Q, 2) of each pair's images.
        identities: (Q, 2) whom they show, where it is known.
    """

    result: SetResult
    images: ImageList
    places: np.ndarray
    norms: np.ndarray
    identities: np.ndarray | None = None


def find_sets(root: str | Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """Find verification sets: a ``.bin``, a folder of sets in any form, or a folder of such folders.

    Args:
        root: where to look.
        names: the sets that are wanted; all when empty.

    Returns:
        Name -> folder of the set, the paper's sets first.

    Raises:
        FileNotFoundError: nothing is there, or not what was named.
    """
    root = Path(root)
    if root.is_file() and root.suffix == ".bin":
        found = {root.stem: root.parent}
    elif root.is_dir():
        found = {}
        for folder in (root, *sorted(entry for entry in root.iterdir() if entry.is_dir())):
            for name in find_pair_sets(folder):
                found.setdefault(name, folder)
    else:
        raise FileNotFoundError(f"--root {root} is neither a folder nor a .bin file")
    missing = [name for name in names if name not in found]
    if missing or not found:
        wanted = f"set {', '.join(missing)}" if missing else "verification sets (lfw.bin, ... or converted ones)"
        there = ", ".join(found) or (listing(root) if root.is_dir() else root.name)
        raise FileNotFoundError(f"no {wanted} in {root}; found: {there}")
    order = {name: rank for rank, name in enumerate(PAPER_SETS)}
    chosen = sorted(names or found, key=lambda name: (order.get(name, len(order)), name))
    return {name: found[name] for name in chosen}


def run(embed: EmbedImages, root: str | Path, names: Sequence[str] = (), limit: int = 0) -> list[VerifiedSet]:
    """Verify the pairs of all sets, or of those that are named.

    Args:
        embed: of the model.
        root: what ``find_sets`` takes.
        names: sets; all when empty.
        limit: pairs of each set, spread evenly; 0 for all.

    Raises:
        FileNotFoundError: no sets.
        ValueError: damaged sets, or too many unreadable images.
    """
    return [verify(embed, pair_list) for pair_list in open_pair_lists(root, names, limit)]


def open_pair_lists(root: str | Path, names: Sequence[str] = (), limit: int = 0) -> Iterator[PairList]:
    """Open the pairs of all sets, or of those that are named, one set at a time.

    Args:
        root: what ``find_sets`` takes.
        names: sets; all when empty.
        limit: pairs of each set, spread evenly; 0 for all.

    Raises:
        FileNotFoundError: no sets.
        ValueError: damaged sets.
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
    notes = (f"a quick look: {len(chosen):,} of {pairs_in_all:,} pairs",) if limited else ()
    return PairList(images, pair_set.issame[chosen], notes=notes)


def verify(embed: EmbedImages, pair_list: PairList) -> VerifiedSet:
    """Verify pairs.

    Args:
        embed: of the model.
        pair_list: opened.

    Raises:
        ValueError: damaged images, or too many unreadable ones.
    """
    embedded = embed(pair_list.images)
    kept = embedded.readable.reshape(-1, 2).all(axis=1)
    places = np.arange(len(pair_list.images)).reshape(-1, 2)[kept]
    identities = None if pair_list.identities is None else pair_list.identities[kept]
    result = evaluate_set(
        pair_list.images.name,
        np.asarray(embedded.embeddings)[places.ravel()],
        pair_list.issame[kept],
        intervals=True,
        identities=identities,
    )
    result = replace(result, notes=(*pair_list.notes, *unreadable_note(embedded.readable), *result.notes))
    return VerifiedSet(result, pair_list.images, places, np.asarray(embedded.norms)[places, 0], identities)


def _spread(count: int, limit: int) -> np.ndarray:
    """Return the indices of ``limit`` of ``count`` things, spread evenly; of all for 0."""
    if not 0 < limit < count:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(int)
