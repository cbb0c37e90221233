"""Compare two models on the same pairs or probes: differences with confidence intervals and p-values.

Pure functions on arrays; rates are fractions; a difference is the second model minus the first.

Sources: McNemar's test in its exact form; Bonett and Price, "Adjusted Wald confidence interval for a difference of
binomial proportions based on paired data", 2012; DeLong, DeLong and Clarke-Pearson 1988 for two AUCs of the same pairs;
for TAR at FAR, the Bayesian bootstrap of pairs (Rubin 1981), or of identities as in Owen, "The pigeonhole bootstrap",
2007, which gives wide rather than narrow intervals.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

from adaface.metrics.dependence import Identities, placements
from adaface.metrics.intervals import Interval, including
from adaface.metrics.verification import auc, tar_at_far

_Z = float(norm.ppf(0.975))
_TAILS = (0.025, 0.975)
_REPLICATES = 2000
_CHUNK = 50
_KEPT_IMPOSTORS = 20  # multiple of the number that the FAR accepts


@dataclass(frozen=True)
class Comparison:
    """Two models on the same data.

    Attributes:
        first: rate of the first model.
        second: rate of the second model.
        difference: second minus first.
        interval: lower and upper end of the 95% interval of the difference.
        p_value: two-sided p-value of no difference.
        method: test that gave the p-value.
    """

    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float
    method: str


def compare_decisions(first: np.ndarray, second: np.ndarray, identities: np.ndarray | None = None) -> Comparison:
    """Compare the shares of correct decisions: accuracy of pairs, or rank-1 of probes.

    Args:
        first: (N,) booleans, which decisions of the first model were correct.
        second: (N,) booleans of the second model, on the same pairs or probes.
        identities: (N,) of the probes or (N, 2) of the pairs. None treats them as independent and applies McNemar's
            exact test. With identities, the test uses the difference and its variance between identities.

    Raises:
        ValueError: no decisions, or counts that do not match.
    """
    first, second = np.asarray(first).astype(bool), np.asarray(second).astype(bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"got decisions of shapes {first.shape} and {second.shape}, expected (N,) of both, N > 0")
    count = len(first)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    difference = (gained - lost) / count
    # Bonett and Price: one more pair of each discordant kind
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    variance, middle = (up + down - (up - down) ** 2) / (count + 2), up - down
    method = "McNemar, exact"
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    if identities is not None:
        if len(identities) != count:
            raise ValueError(f"got {len(identities)} identities for {count} decisions, expected one for each")
        residuals = second.astype(float) - first - difference
        variance *= Identities(identities).design_effect(residuals)
        method = "difference, variance between identities"
        p_value = float(2 * norm.sf(abs(middle) / np.sqrt(variance)))
    half = _Z * np.sqrt(variance)
    interval = max(-1.0, float(middle - half)), min(1.0, float(middle + half))
    return Comparison(float(first.mean()), float(second.mean()), difference, interval, p_value, method)


def compare_auc(
    first: np.ndarray, second: np.ndarray, issame: np.ndarray, identities: np.ndarray | None = None
) -> Comparison:
    """Compare the areas under two ROC curves.

    Args:
        first: (P,) scores of the first model, higher means more similar.
        second: (P,) scores of the second model for the same pairs.
        issame: (P,) booleans, with genuine and impostor pairs.
        identities: (P, 2) identities of both images; None treats the pairs as independent.

    Raises:
        ValueError: scores that ``metrics.verification.roc`` rejects.
    """
    areas = auc(first, issame), auc(second, issame)
    issame = np.asarray(issame).astype(bool)
    influence = np.empty(len(issame))
    shares = [placements(np.asarray(scores), issame) for scores in (first, second)]
    for kind, of_first, of_second in zip((True, False), *shares, strict=True):
        change = of_second - of_first
        influence[issame == kind] = (change - change.mean()) / len(change)
    variance = float(influence @ influence)
    if identities is not None:
        variance = Identities(identities).variance_of_sum(influence)
    difference, sd = areas[1] - areas[0], np.sqrt(variance)
    interval = max(-1.0, difference - _Z * sd), min(1.0, difference + _Z * sd)
    p_value = float(2 * norm.sf(abs(difference) / sd)) if sd > 0 else 1.0 if difference == 0 else 0.0
    return Comparison(areas[0], areas[1], difference, (float(interval[0]), float(interval[1])), p_value, "DeLong")


def compare_tar(
    first: np.ndarray,
    second: np.ndarray,
    issame: np.ndarray,
    far: float,
    identities: np.ndarray | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare the true accept rates of two models, each at its own threshold for a false accept rate.

    Args:
        first: (P,) scores of the first model, higher means more similar.
        second: (P,) scores of the second model for the same pairs.
        issame: (P,) booleans, both kinds present.
        far: false accept rate, in (0, 1).
        identities: (P, 2) of both images; None treats the pairs as independent.
        seed: random seed of the weights.

    Returns:
        The comparison. Memory grows with the number of genuine pairs and of impostor pairs near the thresholds, not
        with the number of all pairs times the replicates.

    Raises:
        ValueError: scores that ``metrics.verification.roc`` rejects.
    """
    scores = [np.asarray(first), np.asarray(second)]
    tars = [tar_at_far(model, issame, [far])[far] for model in scores]
    weights = _PairWeights(scores, np.asarray(issame).astype(bool), far, identities, np.random.default_rng(seed))
    drawn = []
    for _ in range(_REPLICATES // _CHUNK):
        genuine, impostor, allowed = weights.draw(_CHUNK)
        both = []
        for model in scores:
            threshold = _weighted_thresholds(model[weights.impostors], impostor, far * allowed)
            both.append(_weighted_share_above(model[weights.genuine], genuine, threshold))
        drawn.append(both[1] - both[0])
    differences = np.concatenate(drawn)
    tails = [(np.sum(side) + 1) / (_REPLICATES + 1) for side in (differences <= 0, differences >= 0)]
    low, high = np.quantile(differences, _TAILS)
    p_value = float(min(1.0, 2 * min(tails)))
    difference = tars[1] - tars[0]
    interval = including((float(low), float(high)), difference)
    return Comparison(tars[0], tars[1], difference, interval, p_value, "paired bootstrap")


class _PairWeights:
    """Draw random weights for genuine pairs and for impostor pairs near or above the threshold of either model.

    Attributes:
        genuine: (G,) indices of the genuine pairs.
        impostors: (N,) indices of the selected impostor pairs; for the others, only the sum of weights matters.
    """

    def __init__(
        self,
        scores: list[np.ndarray],
        issame: np.ndarray,
        far: float,
        identities: np.ndarray | None,
        generator: np.random.Generator,
    ) -> None:
        self.genuine, everyone = np.flatnonzero(issame), np.flatnonzero(~issame)
        kept = min(int(_KEPT_IMPOSTORS * (far * len(everyone) + 1)), len(everyone))
        highest = [np.argpartition(-model[everyone], kept - 1)[:kept] for model in scores]
        self.impostors = everyone[np.unique(np.concatenate(highest))]
        self._rest = len(everyone) - len(self.impostors)
        self._generator, self._who = generator, None
        if identities is not None:
            numbers = np.unique(identities, return_inverse=True)[1].reshape(-1, 2)
            self._people = int(numbers.max()) + 1
            self._who = numbers[self.genuine], numbers[self.impostors]
            low, high = np.sort(numbers[everyone], axis=1).T
            keys, self._times = np.unique(low * self._people + high, return_counts=True)
            self._couples = np.divmod(keys, self._people)

    def draw(self, replicates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return weights (replicates, G) and (replicates, N), and the sums of all impostor weights (replicates,)."""
        if self._who is None:
            genuine = self._generator.standard_exponential((replicates, len(self.genuine)))
            impostor = self._generator.standard_exponential((replicates, len(self.impostors)))
            return genuine, impostor, impostor.sum(axis=1) + self._generator.standard_gamma(self._rest, replicates)
        person = self._generator.standard_exponential((replicates, self._people))
        impostor = person[:, self._who[1][:, 0]] * person[:, self._who[1][:, 1]]
        sums = [(one[self._couples[0]] * one[self._couples[1]]) @ self._times for one in person]
        return person[:, self._who[0][:, 0]], impostor, np.array(sums)


def _weighted_thresholds(scores: np.ndarray, weights: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the scores (R,) above which lies the allowed weight (R,); scores (N,), weights (R, N)."""
    order = np.argsort(-scores)
    descending = scores[order]
    above = weights[:, order].cumsum(axis=1)
    return np.array([np.interp(most, row, descending) for most, row in zip(allowed, above, strict=True)])


def _weighted_share_above(scores: np.ndarray, weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of weight (R,) of the scores (G,) above thresholds (R,); weights (R, G)."""
    order = np.argsort(scores)
    # a threshold that equals a score is that of impostors, which would be accepted with it
    first = np.searchsorted(scores[order], thresholds, side="right")
    below = np.concatenate((np.zeros((len(weights), 1)), weights[:, order].cumsum(axis=1)), axis=1)
    return 1 - below[np.arange(len(weights)), first] / below[:, -1]
