"""Identification (1:N) metrics: pure functions on features, labels and scores, nothing of files or networks.

A probe is searched for in a gallery. Its mates are the gallery's features of the same subject. Scores are cosines. No
more than a block of the probes x gallery scores exists at any time.

Sources: ISO/IEC 19795-1 and the reports of NIST's FRVT 1:N for the terms (mated and non-mated searches, FPIR, TPIR =
1 - FNIR, rank); the IJB 1:N evaluation of InsightFace for ``tpir_at_fpir``.

``fpir`` and ``tpir`` are fractions. Ranks begin at 1, the most similar; of equal scores the gallery's earlier feature
comes first, so that a result does not depend on how the work is cut.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK_BYTES = 256_000_000
_COPIES = 3  # the scores of a block, one more array of their size while they are compared, and boolean masks


@dataclass(frozen=True)
class Searches:
    """What searching for P probes found.

    Attributes:
        mate_scores: (P,) float32, the score of the most similar mate; minus infinity for a probe without one.
        mate_ranks: (P,) integers, that mate's rank in the whole gallery; 0 for a probe without one.
        best_nonmate_scores: (P,) float32, the score of the most similar other subject; minus infinity without any.
        top_nonmate_scores: (K,) float32, the largest scores of all pairs of different subjects, descending; as many
            as were asked for, or all where there are fewer.
    """

    mate_scores: np.ndarray
    mate_ranks: np.ndarray
    best_nonmate_scores: np.ndarray
    top_nonmate_scores: np.ndarray


@dataclass(frozen=True)
class OpenSetRate:
    """An operating point of a watch list.

    Attributes:
        threshold: scores above it are accepted.
        fpir: share of the non-mated probes for which somebody is accepted, never above what was asked for.
        tpir: share of the mated probes whose mate is accepted.
    """

    threshold: float
    fpir: float
    tpir: float


def nearest(
    probes: np.ndarray, gallery: np.ndarray, k: int, *, block_bytes: int = _BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k most similar gallery features of each probe.

    Args:
        probes: (P, D) unit vectors.
        gallery: (G, D) unit vectors.
        k: how many, 1 to G.
        block_bytes: bound on the memory used beside input and result, at least some 12 bytes for each of G.

    Returns:
        Places in the gallery (P, k) and their scores (P, k), most similar first; of equal scores the earlier first.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, another k, or too small a bound.
    """
    _check_features(probes, gallery)
    if not 1 <= k <= len(gallery):
        raise ValueError(
            f"cannot find the {k} most similar of {len(gallery)} gallery features: k is from 1 to that many"
        )
    places = np.empty((len(probes), k), dtype=np.int64)
    scores = np.empty((len(probes), k), dtype=np.float32)
    for rows, block in _score_blocks(probes, gallery, block_bytes):
        for row, line in zip(range(rows.start, rows.stop), block, strict=True):
            least = line[line.argmax()] if k == 1 else np.partition(line, -k)[-k]
            candidates = np.flatnonzero(line >= least)  # in order of place; more than k where scores are equal
            chosen = candidates[np.argsort(-line[candidates], kind="stable")[:k]]
            places[row], scores[row] = chosen, line[chosen]
    return places, scores


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
        gallery_labels: (G,) integers; a subject may be there several times, or not at all.
        nonmate_count: how many of the largest scores between different subjects to keep, for ``tpir_at_fpir``.
        block_bytes: bound on the memory used beside input and result, at least some 12 bytes for each of G.

    Returns:
        Scores and ranks of mates, and the largest scores of non-mates.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or too small a bound.
    """
    _check_features(probes, gallery)
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
    for rows, block in _score_blocks(probes, gallery, block_bytes):
        for row, line in zip(range(rows.start, rows.stop), block, strict=True):
            mates = by_subject[firsts[row] : ends[row]]  # ascending places
            if len(mates):
                mate = mates[line[mates].argmax()]
                score = mate_scores[row] = line[mate]
                mate_ranks[row] = 1 + np.count_nonzero(line > score) + np.count_nonzero(line[:mate] == score)
                line[mates] = -np.inf  # what remains are the scores of other subjects
            best_nonmate_scores[row] = line.max(initial=-np.inf)
        largest.add(block)
    return Searches(mate_scores, mate_ranks, best_nonmate_scores, largest.descending())


def rank_rates(mate_ranks: np.ndarray, ranks: Sequence[int]) -> dict[int, float]:
    """Return the share of probes whose mate is among the k most similar, for each k.

    Args:
        mate_ranks: (P,) of ``search``; 0 for a probe without a mate, which is never found but counts.
        ranks: the values of k.

    Raises:
        ValueError: no probes.
    """
    mate_ranks = np.asarray(mate_ranks)
    if not len(mate_ranks):
        raise ValueError("got no probes: rates need at least one")
    return {k: float(((mate_ranks >= 1) & (mate_ranks <= k)).mean()) for k in ranks}


def nonmates_needed(probes: int, fpirs: Sequence[float]) -> int:
    """Return how many of the largest non-mate scores ``tpir_at_fpir`` needs.

    Args:
        probes: P.
        fpirs: false positive identification rates.
    """
    return max((_allowed(probes, fpir) for fpir in fpirs), default=0)


def tpir_at_fpir(mate_scores: np.ndarray, top_nonmate_scores: np.ndarray, fpirs: Sequence[float]) -> dict[float, float]:
    """Return the true positive identification rate of IJB at given false positive identification rates.

    Every probe has a mate here, so false positives are counted in pairs: the threshold is the k-th largest score over
    all probe x gallery pairs of different subjects, k = ceil(FPIR * P); the TPIR is the share of probes whose mate
    scores above it, whatever its rank. For probes without mates see ``open_set_rates``.

    Args:
        mate_scores: (P,) score of each probe's mate.
        top_nonmate_scores: descending, at least the k largest scores between different subjects.
        fpirs: rates in (0, 1].

    Raises:
        ValueError: a rate outside (0, 1], no probes, or fewer non-mate scores than k.

    Source: IJB 1:N evaluation of InsightFace.
    """
    mate_scores, top_nonmate_scores = np.asarray(mate_scores), np.asarray(top_nonmate_scores)
    outside = [fpir for fpir in fpirs if not 0 < fpir <= 1]
    if outside or not len(mate_scores):
        raise ValueError(f"rates need probes and are fractions in (0, 1], got {len(mate_scores)} probes, {outside}")
    rates = {}
    for fpir in fpirs:
        k = _allowed(len(mate_scores), fpir)
        if k > len(top_nonmate_scores):
            raise ValueError(
                f"an FPIR of {fpir:g} over {len(mate_scores)} probes needs the {k} largest scores between different "
                f"subjects, got {len(top_nonmate_scores)}"
            )
        rates[fpir] = float((mate_scores > top_nonmate_scores[k - 1]).mean())
    return rates


def open_set_rates(
    mate_scores: np.ndarray,
    mate_ranks: np.ndarray,
    best_nonmate_scores: np.ndarray,
    fpirs: Sequence[float],
    *,
    max_rank: int | None = None,
) -> dict[float, OpenSetRate]:
    """Return the rates of a watch list, where some probes show people who are not in the gallery.

    A mated probe is one with a mate in the gallery, a non-mated one has none. The FPIR at a threshold is the share of
    non-mated probes for which at least one gallery entry scores above it; the TPIR (1 - FNIR) is the share of mated
    probes whose mate scores above it, and is among the ``max_rank`` most similar where that is asked for. For each
    wanted FPIR the threshold is the lowest that does not exceed it.

    With the result ``found`` of ``search``: ``mated = found.mate_ranks > 0``, then
    ``open_set_rates(found.mate_scores[mated], found.mate_ranks[mated], found.best_nonmate_scores[~mated], fpirs)``.

    Args:
        mate_scores: (M,) score of each mated probe's best mate.
        mate_ranks: (M,) its rank, from 1.
        best_nonmate_scores: (U,) the largest score of each non-mated probe.
        fpirs: wanted rates in [0, 1].
        max_rank: rank up to which a mate counts as found; None for any (FRVT's identification with R = N).

    Returns:
        For each wanted rate the operating point. With few non-mated probes its FPIR may be well below the wanted one.

    Raises:
        ValueError: a rate outside [0, 1], no mated or no non-mated probe, or counts that do not fit.

    Source: ISO/IEC 19795-1; NIST FRVT part 2, identification.
    """
    mate_scores, mate_ranks = np.asarray(mate_scores), np.asarray(mate_ranks)
    outside = [fpir for fpir in fpirs if not 0 <= fpir <= 1]
    if outside:
        raise ValueError(f"false positive identification rates are fractions in [0, 1], got {outside}")
    if mate_scores.shape != mate_ranks.shape:
        raise ValueError(f"got {len(mate_scores)} scores and {len(mate_ranks)} ranks of mates, expected as many")
    if not len(mate_scores) or not len(best_nonmate_scores):
        raise ValueError(
            f"got {len(mate_scores)} mated and {len(best_nonmate_scores)} non-mated probes: open-set rates need both"
        )
    descending = np.sort(np.asarray(best_nonmate_scores))[::-1]
    in_rank = np.full(len(mate_ranks), True) if max_rank is None else mate_ranks <= max_rank
    rates = {}
    for fpir in fpirs:
        accepted = _whole(fpir * len(descending), math.floor)
        threshold = float(descending[accepted]) if accepted < len(descending) else -math.inf
        rates[fpir] = OpenSetRate(
            threshold, float((descending > threshold).mean()), float(((mate_scores > threshold) & in_rank).mean())
        )
    return rates


class _Largest:
    """Keep the largest of many scores.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept = np.empty(0, dtype=np.float32)
        self._floor = -np.inf  # scores that are not above it are not among the largest

    def add(self, scores: np.ndarray) -> None:
        if not self._count:
            return
        self._kept = np.concatenate((self._kept, scores[scores > self._floor]))
        if len(self._kept) > self._count:
            self._kept = np.partition(self._kept, -self._count)[-self._count :]
            self._floor = self._kept.min()

    def descending(self) -> np.ndarray:
        return np.sort(self._kept)[::-1]


def _score_blocks(probes: np.ndarray, gallery: np.ndarray, block_bytes: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the scores of some probes against the whole gallery, with the probes' places; the scores may be changed."""
    row_bytes = _COPIES * len(gallery) * np.dtype(np.float32).itemsize
    if block_bytes < row_bytes:
        raise ValueError(
            f"a bound of {block_bytes:,} bytes does not hold the scores of one probe against {len(gallery):,} gallery "
            f"features: give at least {row_bytes:,}"
        )
    rows = min(block_bytes // row_bytes, len(probes))
    across = np.asarray(gallery, dtype=np.float32).T
    for start in range(0, len(probes), max(1, rows)):
        stop = min(start + rows, len(probes))
        yield slice(start, stop), np.asarray(probes[start:stop], dtype=np.float32) @ across


def _check_features(probes: np.ndarray, gallery: np.ndarray) -> None:
    if probes.ndim != 2 or gallery.ndim != 2 or probes.shape[1] != gallery.shape[1] or not len(gallery):
        raise ValueError(
            f"got probes of shape {probes.shape} and a gallery of shape {gallery.shape}, expected (P, D) and (G, D) "
            "with at least one in the gallery"
        )
    for features, what in ((probes, "probe"), (gallery, "gallery")):
        # the sum is not finite where a number is not; it costs no array of the features' size
        bad = int((~np.isfinite(features.sum(axis=1))).sum())
        if bad:
            raise ValueError(f"{bad} of {len(features)} {what} features are not finite (NaN or infinite)")


def _allowed(probes: int, fpir: float) -> int:
    return max(1, _whole(fpir * probes, math.ceil))


def _whole(product: float, rounding: Callable[[float], int]) -> int:
    """Round a product of a rate and a count: 0.07 * 100 is meant to be 7, in floating point it is 7.000000000000001."""
    return rounding(round(product, 6))
