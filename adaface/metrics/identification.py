"""Metrics of identification (1:N): pure functions of search scores and ranks, and macro F1 of predicted labels.

A probe's mates are the gallery's features of the same subject. ``fpir`` and ``tpir`` are fractions; ranks begin at 1.

Macro F1: with C[i, c] probes of identity i predicted as c, n_c probes of c and TP_c = C[c, c],

    F1_c = 2 TP_c / (n_c + sum over i of C[i, c]),    M = mean of F1_c over the identities that have probes.

The F1 scores of identities are not independent observations: an identity that is confused with others lowers their F1
too. The interval is based on the influence of an identity with all of its probes, the derivative of M by its weight:

    u_i = F1_i - M + F1_i FP_i / d_i - sum over c != i of F1_c C[i, c] / d_c,    d_c = n_c + sum over i of C[i, c]

The variance of M is that of the mean of the influences. The interval is Wilson's, for the number of independent
observations that has this variance, so that it stays within [0, 1] and has a width even without errors.

Sources: ISO/IEC 19795-1 and the reports of NIST's FRVT 1:N for the terms (mated and non-mated searches, FPIR, TPIR =
1 - FNIR, rank); the IJB 1:N evaluation of InsightFace for ``tpir_at_fpir``; scikit-learn's ``f1_score`` with
``average="macro"``; for the influence, Efron's infinitesimal jackknife, "The jackknife, the bootstrap and other
resampling plans", 1982; for the interval of macro F1, see ``metrics.intervals``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t
from sklearn.metrics import f1_score

from adaface.metrics.comparison import Comparison
from adaface.metrics.intervals import Interval, wilson

_UPPER = 0.975


@dataclass(frozen=True)
class OpenSetRate:
    """An operating point of a watch list.

    Attributes:
        threshold: scores above it are accepted.
        fpir: share of the non-mated probes for which somebody is accepted, at most the target.
        tpir: share of the mated probes whose mate is accepted.
    """

    threshold: float
    fpir: float
    tpir: float


def rank_rates(mate_ranks: np.ndarray, ranks: Sequence[int]) -> dict[int, float]:
    """Return the share of probes whose mate is among the k most similar, for each k.

    Args:
        mate_ranks: (P,) as in ``inference.search.search``; 0 for a probe without a mate, which counts as a miss.
        ranks: values of k.

    Raises:
        ValueError: there are no probes.
    """
    mate_ranks = np.asarray(mate_ranks)
    if not len(mate_ranks):
        raise ValueError("got no probes: rates need at least one")
    return {k: float(((mate_ranks >= 1) & (mate_ranks <= k)).mean()) for k in ranks}


def nonmates_needed(probes: int, fpirs: Sequence[float]) -> int:
    """Return the number of largest non-mate scores that ``tpir_at_fpir`` needs.

    Args:
        probes: number of probes.
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
    """Return the open-set rates of a watch list, where some probes show people who are not in the gallery.

    A mated probe is one with a mate in the gallery, a non-mated one has none. The FPIR at a threshold is the share of
    non-mated probes for which at least one gallery entry scores above it; the TPIR (1 - FNIR) is the share of mated
    probes whose mate scores above it and, if ``max_rank`` is set, is among the ``max_rank`` most similar. For each
    target FPIR, the threshold is the lowest that does not exceed it.

    With ``result = inference.search.search(...)`` and ``mated = result.mate_ranks > 0``:
    ``open_set_rates(result.mate_scores[mated], result.mate_ranks[mated], result.best_nonmate_scores[~mated], fpirs)``.

    Args:
        mate_scores: (M,) score of each mated probe's best mate.
        mate_ranks: (M,) its rank, from 1.
        best_nonmate_scores: (U,) the largest score of each non-mated probe.
        fpirs: target rates in [0, 1].
        max_rank: highest rank at which a mate counts as a hit; None for any (FRVT's identification with R = N).

    Returns:
        The operating point for each target rate. With few non-mated probes its FPIR may be well below the target.

    Raises:
        ValueError: a rate outside [0, 1], no mated or no non-mated probe, or counts that do not match.

    Source: ISO/IEC 19795-1; NIST FRVT part 2, identification.
    """
    mate_scores, mate_ranks = np.asarray(mate_scores), np.asarray(mate_ranks)
    outside = [fpir for fpir in fpirs if not 0 <= fpir <= 1]
    if outside:
        raise ValueError(f"false positive identification rates are fractions in [0, 1], got {outside}")
    if mate_scores.shape != mate_ranks.shape:
        raise ValueError(f"got {len(mate_scores)} scores and {len(mate_ranks)} ranks of mates, expected equal numbers")
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


def _allowed(probes: int, fpir: float) -> int:
    return max(1, _whole(fpir * probes, math.ceil))


def _whole(product: float, rounding: Callable[[float], int]) -> int:
    """Round a product of a rate and a count: 0.07 * 100 should be 7 but is 7.000000000000001 in floating point."""
    return rounding(round(product, 6))


@dataclass(frozen=True)
class MacroF1:
    """Macro F1 over identities.

    Attributes:
        score: mean F1, a fraction.
        influences: (I,) influence of each identity with all of its probes on the mean; their sum is 0.
    """

    score: float
    influences: np.ndarray

    def interval(self) -> Interval:
        """Return the 95 % interval of the score over identities, as fractions."""
        people = len(self.influences)
        spread = float(self.influences @ self.influences)
        size = float(people)
        if spread > 0:
            size = self.score * (1 - self.score) * people * max(people - 1, 1) / spread
        # the variance of few identities is poorly estimated
        return wilson(self.score, size / float(_quantile(people) / norm.ppf(_UPPER)) ** 2)


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> MacroF1:
    """Compute macro F1 over the identities that have probes.

    An identity of the gallery without probes has no F1 of its own: a probe predicted as such an identity counts as an
    error of its true identity.

    Args:
        labels: (M,) integers, true identities of the probes; at least one probe.
        predicted: (M,) integers, predicted identities.
    """
    people, own = np.unique(labels, return_inverse=True)
    scores = f1_score(labels, predicted, labels=people, average=None, zero_division=0.0)
    mean = float(scores.mean())
    swapped = np.flatnonzero(
        (labels != predicted) & np.isin(predicted, people)
    )  # confused with an identity that has probes
    other = np.searchsorted(people, predicted[swapped])
    false_positives = np.bincount(other, minlength=len(people))
    true_positives = np.bincount(own[labels == predicted], minlength=len(people))
    lost = scores / (
        np.bincount(own) + true_positives + false_positives
    )  # F1 lost by one more false positive of the identity
    caused = np.bincount(own[swapped], lost[other], len(people))
    return MacroF1(mean, scores - mean + lost * false_positives - caused)


def compare_macro_f1(first: MacroF1, second: MacroF1) -> Comparison:
    """Compare two models by macro F1 on the same probes.

    Each identity gives one difference, that of the scores plus that of its influences. Two extra identities with the
    extreme differences 1 and -1 keep a few identities that agree by chance from looking significant, as Bonett and
    Price do for two rates (``metrics.comparison``).

    Args:
        first: F1 of the first model.
        second: F1 of the second model, over the same identities.

    Raises:
        ValueError: the numbers of identities differ.
    """
    if len(first.influences) != len(second.influences):
        raise ValueError(
            f"got F1 over {len(first.influences)} and {len(second.influences)} identities: a comparison needs the same "
            "probes"
        )
    difference = second.score - first.score
    differences = np.append(difference + second.influences - first.influences, [1.0, -1.0])
    middle = float(differences.mean())
    deviation = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    half = _quantile(len(differences)) * deviation
    interval = max(-1.0, middle - half), min(1.0, middle + half)
    p_value = float(2 * t.sf(abs(middle) / deviation, len(differences) - 1))
    method = "difference, variance between identities"
    return Comparison(first.score, second.score, difference, interval, p_value, method)


def _quantile(observations: int) -> float:
    """Return Student's quantile for a number of independent observations."""
    return float(t.ppf(_UPPER, max(observations - 1, 1)))
