"""95% confidence intervals of verification and identification rates: pure functions on arrays, rates as fractions.

A percentile bootstrap fails at the low error rates of face recognition: with no error among n pairs its width is 0.
Here every interval comes from a distribution that is valid at these rates. The sample size is replaced by an effective
one, which accounts for the dependence of pairs that share people (``metrics.dependence``):

- rates, 10-fold accuracy: Wilson, "Probable inference", 1927. With identities, and for the EER, which is linearized:
  Clopper and Pearson with the effective size of Korn and Graubard, "Confidence intervals for proportions with small
  expected number of positive counts estimated from survey data", 1998.
- TAR at FAR: the Bayesian bootstrap of pairs in closed form (Rubin, "The Bayesian bootstrap", 1981; for ROC curves
  Gu, Ghosal and Roy, 2008). For any distribution of impostor scores, the number of them above the threshold of a given
  FAR is binomial: the threshold is drawn between two of the sorted scores, and the rate of genuine scores above it from
  a beta distribution. Above the highest impostor score, the tail is assumed to be exponential.
- AUC: Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic", 2006, method 5,
  with its variance scaled to that of DeLong 1988, or with identities to that of Obuchowski 1997.

``python -m bench.interval_coverage`` measures their coverage.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtr
from scipy.stats import binom, norm

from adaface.metrics.dependence import Identities, PairScores, placements
from adaface.metrics.verification import auc, best_accuracy, eer, fold_decisions, tar_at_far

Interval = tuple[float, float]

_Z = float(norm.ppf(0.975))
_TAILS = (0.025, 0.975)
_NEARLY_0 = 1e-12
_DRAWS = 4000
_TAIL_SCORES = 20


def wilson(rate: float, size: float) -> Interval:
    """Return Wilson's interval of a rate.

    Args:
        rate: measured rate, in [0, 1].
        size: number of independent observations, above 0; not necessarily an integer.
    """
    middle = (rate + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * np.sqrt(rate * (1 - rate) / size + _Z**2 / (4 * size**2))
    ends = max(0.0, float(middle - half)), min(1.0, float(middle + half))
    return including(ends, rate)  # rounding may exclude 0 and 1


def exact(rate: float, size: float) -> Interval:
    """Return the interval of Clopper and Pearson, for effective sizes: as these are estimates, Wilson's is too short.

    Args:
        rate: measured rate, in [0, 1].
        size: effective number of observations, above 0; not necessarily an integer.
    """
    hits, misses = rate * size, (1 - rate) * size
    low = betaincinv(hits, misses + 1, _TAILS[0]) if hits > _NEARLY_0 else 0.0
    high = betaincinv(hits + 1, misses, _TAILS[1]) if misses > _NEARLY_0 else 1.0
    return float(low), float(high)


def including(interval: Interval, rate: float) -> Interval:
    """Return an interval that contains the measured rate.

    Equal scores are all accepted or all rejected by a threshold, but the intervals treat scores as a continuous
    distribution: the rate of many equal scores may lie outside.

    Args:
        interval: lower and upper end.
        rate: the measured rate.
    """
    return min(interval[0], rate), max(interval[1], rate)


def rate_interval(hits: np.ndarray, identities: np.ndarray | None = None) -> Interval:
    """Return the interval of a share of probes or pairs, such as rank-1, or TAR at a fixed threshold.

    Args:
        hits: (N,) booleans, N at least 1.
        identities: (N,) of the probes, or (N, 2) of the pairs; None treats all as independent.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: no observations, or counts that do not match.
    """
    hits = np.asarray(hits).astype(float)
    if hits.ndim != 1 or not len(hits):
        raise ValueError(f"got an array of shape {hits.shape}, expected (N,) with at least one observation")
    rate = float(hits.mean())
    known = _identities(identities, len(hits))
    return wilson(rate, len(hits)) if known is None else exact(rate, _size(known, hits - rate))


def accuracy_interval(
    embeddings: np.ndarray, issame: np.ndarray, thresholds: np.ndarray, identities: np.ndarray | None = None
) -> Interval:
    """Return the interval of the k-fold verification accuracy.

    With thresholds chosen on other folds, the accuracy is slightly too low and varies more than a binomial. With a
    threshold chosen on the same pairs, it is too high by about as much. The interval is centered on the mean of both.

    Args:
        embeddings: (2P, D) unit vectors; rows 2k and 2k + 1 are pair k.
        issame: (P,) booleans.
        thresholds: (folds,) the best thresholds of ``metrics.verification.evaluate``, without pca.
        identities: (P, 2) identities of both images; None treats the pairs as independent.

    Returns:
        Lower and upper end, for the accuracy of the best threshold on new pairs; the measured accuracy is inside.

    Raises:
        ValueError: counts that do not match.
    """
    correct = fold_decisions(embeddings, issame, thresholds).astype(float)
    rate = float(correct.mean())
    middle = (rate + best_accuracy(embeddings, issame)) / 2
    known = _identities(identities, len(correct))
    low, high = wilson(middle, len(correct)) if known is None else exact(middle, _size(known, correct - rate))
    return including((low, high), rate)


def tar_intervals(
    similarity: np.ndarray,
    issame: np.ndarray,
    fars: Sequence[float],
    identities: np.ndarray | None = None,
    seed: int = 0,
) -> dict[float, Interval]:
    """Return the intervals of the true accept rate at given false accept rates.

    Args:
        similarity: (P,) scores, higher means more similar, of genuine and impostor pairs.
        issame: (P,) booleans.
        fars: false accept rates, in (0, 1).
        identities: (P, 2) identities of both images; None treats the pairs as independent.
        seed: random seed of the draws.

    Returns:
        Lower and upper end for each rate; the measured rate is inside. With fewer than about four impostor pairs
        expected above the threshold, the lower end depends on the exponential tail.

    Raises:
        ValueError: a rate outside (0, 1), or scores that ``metrics.verification.roc`` rejects.
    """
    sides = PairScores(similarity, issame, identities)
    outside = [far for far in fars if not 0 < far < 1]
    if outside:
        raise ValueError(f"false accept rates are fractions between 0 and 1, got {outside}")
    genuine, impostor = np.sort(sides.genuine), np.sort(sides.impostor)[::-1]
    intervals, measured = {}, tar_at_far(similarity, issame, fars)
    for far in fars:
        threshold = impostor[min(max(round(far * len(impostor)) - 1, 0), len(impostor) - 1)]
        effects = sides.effects(threshold)
        draws = rate_draws(genuine, impostor, far, len(impostor), effects, np.random.default_rng(seed))
        intervals[far] = including(_ends(draws), measured[far])
    return intervals


def auc_interval(similarity: np.ndarray, issame: np.ndarray, identities: np.ndarray | None = None) -> Interval:
    """Return the interval of the area under the ROC curve.

    Args:
        similarity: (P,) scores, higher means more similar, of genuine and impostor pairs.
        issame: (P,) booleans.
        identities: (P, 2) identities of both images; None treats the pairs as independent.

    Returns:
        Lower and upper end.
    """
    sides = PairScores(similarity, issame, identities)
    area = auc(similarity, issame)
    sizes = len(sides.genuine), len(sides.impostor)
    genuine, impostor = placements(similarity, sides.issame)
    variance = sides.variance(genuine - area, impostor - area)
    modeled = _modeled_auc_variance(area, *sizes)
    # few misplaced scores give a poor estimate of the variance: the model's gets the weight of half an error
    errors = eer(similarity, issame) * len(sides.issame)
    scale = (errors * variance / modeled + 0.5) / (errors + 0.5) if modeled > 0 else 1.0

    def excess(value: float) -> float:
        return (value - area) ** 2 - _Z**2 * scale * _modeled_auc_variance(value, *sizes)

    inner = min(max(area, _NEARLY_0), 1 - _NEARLY_0)  # the modeled variance is 0 at 0 and at 1
    low, high = brentq(excess, 0.0, inner), brentq(excess, inner, 1.0)
    return float(low), float(high)


def eer_interval(similarity: np.ndarray, issame: np.ndarray, identities: np.ndarray | None = None) -> Interval:
    """Return the interval of the equal error rate.

    Args:
        similarity: (P,) scores, higher means more similar, of genuine and impostor pairs.
        issame: (P,) booleans.
        identities: (P, 2) identities of both images; None treats the pairs as independent.

    Returns:
        Lower and upper end.
    """
    sides = PairScores(similarity, issame, identities)
    genuine, impostor = np.sort(sides.genuine), np.sort(-sides.impostor)
    rate = eer(similarity, issame)
    threshold = _scores_at(impostor, rate) * -1
    share = _impostor_share(genuine, impostor, rate)
    genuine_effect, impostor_effect, correlation = sides.effects(threshold)
    genuine_sd = (1 - share) * np.sqrt(genuine_effect / len(genuine))
    impostor_sd = share * np.sqrt(impostor_effect / len(impostor))
    # rejecting genuine pairs has the opposite sign of accepting them
    return exact(rate, 1 / (genuine_sd**2 + impostor_sd**2 - 2 * correlation * genuine_sd * impostor_sd))


def _impostor_share(genuine: np.ndarray, impostor: np.ndarray, rate: float) -> float:
    """Return how much of an error in the FAR goes to the EER; the rest is the FRR's part.

    Where the rates cross, FAR falls with the density f_i of impostor scores and FRR rises with that of genuine scores
    f_g; then the error of the EER is (f_g * error of FAR + f_i * error of FRR) / (f_g + f_i).

    Args:
        genuine: (G,) ascending.
        impostor: (N,) ascending, with the sign changed.
        rate: the EER.
    """
    sizes = len(genuine), len(impostor)
    step = max(2 * np.sqrt(rate * (1 - rate) / min(sizes)), 5 / min(sizes))
    low, high = -_scores_at(impostor, min(rate + step, 1.0)), _scores_at(genuine, min(rate + step, 1.0))
    low, high = min(low, high), max(low, high)
    rejected = np.diff(np.searchsorted(genuine, [low, high], side="right"))[0] / sizes[0]
    accepted = np.diff(np.searchsorted(impostor, [-high, -low], side="right"))[0] / sizes[1]
    return float(rejected / (rejected + accepted)) if rejected + accepted > 0 else 0.5


def _scores_at(ascending: np.ndarray, rate: float) -> float:
    """Return the score below which about the given share of the scores lies."""
    return float(ascending[min(int(rate * len(ascending)), len(ascending) - 1)])


def _modeled_auc_variance(area: float, genuine: int, impostors: int) -> float:
    """Return the variance of an AUC under exponential scores (Hanley and McNeil 1982)."""
    two_genuine, two_impostors = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    single = area * (1 - area)
    return (single + (genuine - 1) * two_genuine + (impostors - 1) * two_impostors) / (genuine * impostors)


def _size(known: Identities, residuals: np.ndarray) -> float:
    """Return the effective sample size of a mean: the number of independent observations of the same variance."""
    if not residuals.any():  # all equal: the observations of one identity may count as one only
        return float(known.number)
    return len(residuals) / known.design_effect(residuals)


def _identities(identities: np.ndarray | None, observations: int) -> Identities | None:
    """Return the identities, or raise ValueError if their number is not that of the observations."""
    if identities is None:
        return None
    if len(identities) != observations:
        raise ValueError(f"got {len(identities)} identities for {observations} observations, expected one for each")
    return Identities(identities)


def _ends(draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, _TAILS)
    return float(low), float(high)


def rate_draws(
    genuine: np.ndarray,
    impostor: np.ndarray,
    far: float,
    trials: int,
    effects: tuple[float, float, float],
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw the accept rate of genuine scores at the unknown threshold whose false accept rate is ``far``.

    Args:
        genuine: (G,) ascending.
        impostor: (N,) descending.
        far: expected number of impostor scores above the threshold, divided by ``trials``.
        trials: number of impostor pairs, or of probes.
        effects: design effects of TAR and FAR, and the correlation of the two rates.
        generator: random generator of the draws.

    Returns:
        (4000,) rates.
    """
    genuine_effect, impostor_effect, correlation = effects
    first, second = generator.standard_normal((2, _DRAWS))
    independent = max(round(trials / impostor_effect), 1)
    above = binom.ppf(ndtr(first), independent, far)
    place = (above + generator.random(_DRAWS)) * trials / independent  # counted from the highest score, which is at 1
    needed = min(int(place.max()) + 2, len(impostor))
    thresholds = np.interp(place, np.arange(1, needed + 1), impostor[:needed])
    beyond = place < 1
    # the highest score's own rate, given that it is above ``far``, is far + Exp(1) / trials
    ratio = 1 + generator.exponential(size=_DRAWS) / (independent * far)
    thresholds[beyond] += _tail_scale(impostor) * np.log(ratio[beyond])

    rejected = np.searchsorted(genuine, thresholds)
    level = ndtr(-(correlation * first + np.sqrt(1 - correlation**2) * second))
    # half of the draws for each end of Clopper and Pearson: the mid-p distribution, which reaches 0 and 1
    up = np.arange(_DRAWS) % 2
    hits = (len(genuine) - rejected) / genuine_effect + up
    misses = rejected / genuine_effect + 1 - up
    rates = (hits > 0).astype(float)
    inside = (hits > 0) & (misses > 0)
    rates[inside] = betaincinv(hits[inside], misses[inside], level[inside])
    return rates


def _tail_scale(impostor: np.ndarray) -> float:
    """Return the mean excess of the highest scores over the next one, from (N,) descending scores."""
    highest = min(_TAIL_SCORES, len(impostor) // 10 + 1, len(impostor) - 1)
    return float(impostor[:highest].mean() - impostor[highest]) if highest else 0.0
