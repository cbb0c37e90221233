"""Exact similarity search of probes in a gallery, without holding all scores in memory.

Scores are cosines. Ranks begin at 1, the most similar; of equal scores the gallery's earlier feature comes first.
``search`` computes scores in blocks; the block size can change only the last bit of a score, by the order of additions
in BLAS.

Source of ``most_similar``: ``faiss.knn`` (inner product), an exhaustive search that copies no data. ``bench/search.py``
measures it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_BLOCK_BYTES = 256_000_000
_COPIES = 3  # the scores of a block, a temporary array of the same size, and boolean masks


@dataclass(frozen=True)
class Searches:
    """Result of a search for P probes.

    Attributes:
        mate_scores: (P,) float32 score of the most similar mate; minus infinity for a probe without mates.
        mate_ranks: (P,) integers, rank of that mate in the whole gallery; 0 for a probe without mates.
        best_nonmate_scores: (P,) float32 score of the most similar other subject; minus infinity without any.
        top_nonmate_scores: (K,) float32, the largest scores of all pairs of different subjects, descending; K is the
            requested number, or less if there are fewer pairs.
    """

    mate_scores: np.ndarray
    mate_ranks: np.ndarray
    best_nonmate_scores: np.ndarray
    top_nonmate_scores: np.ndarray


def most_similar(probes: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k most similar gallery features of each probe.

    Args:
        probes: (P, D) unit vectors.
        gallery: (G, D) unit vectors.
        k: number of features to return, 1 to G.

    Returns:
        Indices into the gallery (P, k) and their cosines (P, k) float32, most similar first; for equal cosines, the
        lower index first.

    Raises:
        ValueError: shapes that do not match, features that are not finite, or k out of range.
    """
    check_features(probes, gallery)
    if not 1 <= k <= len(gallery):
        raise ValueError(
            f"cannot find the {k} most similar of {len(gallery)} gallery features: k must be from 1 to that number"
        )
    if not len(probes):
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    probes, gallery = (np.ascontiguousarray(features, dtype=np.float32) for features in (probes, gallery))
    width = min(k + 1, len(gallery))
    places, scores = _knn(probes, gallery, width)  # (P, k + 1)
    # faiss returns arbitrary ones of the features that tie for the k-th cosine: search again for all of them
    tied = np.flatnonzero(scores[:, k - 1] == scores[:, -1]) if width > k else ()
    places, scores = places[:, :k], scores[:, :k]
    for row in tied:
        places[row], scores[row] = _untied(probes[row : row + 1], gallery, k)
    return places, scores


def _untied(probe: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices (k,) and cosines (k,) of one probe (1, D), where many features may tie for the k-th cosine."""
    width = k
    while True:
        width = min(2 * width + 1, len(gallery))
        places, scores = _knn(probe, gallery, width)
        if width == len(gallery) or scores[0, k - 1] > scores[0, -1]:
            return places[0, :k], scores[0, :k]


def _knn(probes: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and cosines (P, k) of contiguous float32 arrays, in the order of ``most_similar``."""
    import faiss  # slow to import, and only needed here

    scores, places = faiss.knn(probes, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    order = np.lexsort((places, -scores), axis=1)
    return np.take_along_axis(places, order, 1), np.take_along_axis(scores, order, 1)


def search(
    probes: np.ndarray,
    gallery: np.ndarray,
    probe_labels: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    nonmate_count: int = 0,
    block_bytes: int = _BLOCK_BYTES,
) -> Searches:
    """Search for every probe in the gallery.

    Args:
        probes: (P, D) unit vectors.
        gallery: (G, D) unit vectors.
        probe_labels: (P,) integers, the subjects.
        gallery_labels: (G,) integers; a subject may occur several times, or not at all.
        nonmate_count: number of largest scores between different subjects to return, for ``tpir_at_fpir``.
        block_bytes: limit on temporary memory, at least 12 bytes per gallery feature.

    Returns:
        Scores and ranks of mates, and the largest scores of non-mates.

    Raises:
        ValueError: shapes that do not match, features that are not finite, or a limit that is too small.
    """
    check_features(probes, gallery)
    probe_labels, gallery_labels = np.asarray(probe_labels), np.asarray(gallery_labels)
    if probe_labels.shape != (len(probes),) or gallery_labels.shape != (len(gallery),):
        raise ValueError(
            f"got labels of shape {probe_labels.shape} and {gallery_labels.shape} for {len(probes)} probes and "
            f"{len(gallery)} gallery features, expected one for each"
        )
    by_subject = np.argsort(gallery_labels, kind="stable")
    firsts, ends = (np.searchsorted(gallery_labels[by_subject], probe_labels, side) for side in ("left", "right"))
    mate_scores = np.full(len(probes), -np.inf, dtype=np.float32)
    mate_ranks = np.zeros(len(probes), dtype=np.int64)
    best_nonmate_scores = np.full(len(probes), -np.inf, dtype=np.float32)
    largest = _Largest(nonmate_count)
    for rows, block in score_blocks(probes, gallery, block_bytes):
        for row, line in zip(range(rows.start, rows.stop), block, strict=True):
            mates = by_subject[firsts[row] : ends[row]]  # ascending indices
            if len(mates):
                mate = mates[line[mates].argmax()]
                score = mate_scores[row] = line[mate]
                mate_ranks[row] = 1 + np.count_nonzero(line > score) + np.count_nonzero(line[:mate] == score)
                line[mates] = -np.inf  # leaves the scores of other subjects
            best_nonmate_scores[row] = line.max(initial=-np.inf)
        largest.add(block)
    return Searches(mate_scores, mate_ranks, best_nonmate_scores, largest.descending())


class _Largest:
    """Keep the largest of many scores.

    Args:
        count: number of scores to keep.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept = np.empty(0, dtype=np.float32)
        self._floor = -np.inf  # lower scores are not among the largest

    def add(self, scores: np.ndarray) -> None:
        if not self._count:
            return
        # in two steps, to allocate only one array of the block's size
        self._kept = np.concatenate((self._kept, self._most(scores[scores > self._floor])))
        self._kept = self._most(self._kept)
        if len(self._kept) == self._count:
            self._floor = self._kept.min()

    def descending(self) -> np.ndarray:
        return np.sort(self._kept)[::-1]

    def _most(self, scores: np.ndarray) -> np.ndarray:
        if len(scores) <= self._count:
            return scores
        scores.partition(len(scores) - self._count)
        return scores[-self._count :].copy()


def score_blocks(
    probes: np.ndarray, gallery: np.ndarray, block_bytes: int = _BLOCK_BYTES
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of probes, and their scores against the whole gallery; callers may modify the scores.

    Args:
        probes: (P, D) unit vectors.
        gallery: (G, D) unit vectors.
        block_bytes: limit on temporary memory.

    Raises:
        ValueError: a limit that is too small for one probe.
    """
    row_bytes = _COPIES * len(gallery) * np.dtype(np.float32).itemsize
    if block_bytes < row_bytes:
        raise ValueError(
            f"a limit of {block_bytes:,} bytes is too small for the scores of one probe against {len(gallery):,} "
            f"gallery features: use at least {row_bytes:,}"
        )
    rows = min(block_bytes // row_bytes, len(probes))
    across = np.asarray(gallery, dtype=np.float32).T
    for start in range(0, len(probes), max(1, rows)):
        stop = min(start + rows, len(probes))
        yield slice(start, stop), np.asarray(probes[start:stop], dtype=np.float32) @ across


def check_features(probes: np.ndarray, gallery: np.ndarray) -> None:
    """Raise ValueError if features cannot be compared.

    Args:
        probes: must be (P, D) and finite.
        gallery: must be (G, D) and finite, G at least 1.
    """
    if probes.ndim != 2 or gallery.ndim != 2 or probes.shape[1] != gallery.shape[1] or not len(gallery):
        raise ValueError(
            f"got probes of shape {probes.shape} and a gallery of shape {gallery.shape}, expected (P, D) and (G, D) "
            "with at least one in the gallery"
        )
    for features, what in ((probes, "probe"), (gallery, "gallery")):
        # a row's sum is not finite if one of its numbers is not; this needs no array of the features' size
        bad = int((~np.isfinite(features.sum(axis=1))).sum())
        if bad:
            raise ValueError(f"{bad} of {len(features)} {what} features are not finite (NaN or infinite)")
