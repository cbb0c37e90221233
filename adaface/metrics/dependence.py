"""Dependence of observations that share an identity: variances of sums over pairs or probes.

Two pairs with a person in common are not independent observations. The variance of a sum over pairs is estimated by the
sum of products of all two pairs that share a person, the robust variance for dyadic data.

Sources: Fafchamps and Gubert, "The formation of risk sharing networks", 2007, and Aronow, Samii and Assenova,
"Cluster-robust variance estimation for dyadic data", Political Analysis 2015, here without regressors;
with one identity per observation it is the usual cluster-robust variance.
Resampling identities and giving a pair the product of their counts (Owen, "The pigeonhole bootstrap", 2007) counts the
noise of a pair three times, which dominates on sets with few pairs per person, such as LFW.
For the area under the ROC curve (``PairScores``): DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or
more correlated ROC curves", 1988, and with identities Obuchowski, "Nonparametric analysis of clustered ROC curve data",
1997.
"""

import numpy as np
from scipy.stats import norm, rankdata, t

from adaface.metrics.verification import roc

_TAIL = 0.975


class Identities:
    """The identities of N observations.

    Args:
        identities: (N,) for images or probes, (N, 2) for pairs (twice the same for a genuine pair); integers or
            strings.
        number: number of identities, if they are numbered from 0 to ``number`` - 1 already.

    Attributes:
        number: number of identities.
        widening: small-sample factor of the variance for a 95% interval: the squared ratio of Student's quantile to
            the normal quantile.

    Raises:
        ValueError: identities of any other shape.
    """

    def __init__(self, identities: np.ndarray, number: int | None = None) -> None:
        identities = np.asarray(identities)
        if identities.ndim not in (1, 2) or identities.shape[1:] not in ((), (2,)):
            raise ValueError(
                f"got identities of shape {identities.shape}, expected (N,), or (N, 2) for pairs of images"
            )
        if number is None:
            names, identities = np.unique(identities, return_inverse=True)
            number = len(names)
        self.number = number
        self.widening = float((t.ppf(_TAIL, max(number - 1, 1)) / norm.ppf(_TAIL)) ** 2)
        places = identities.reshape(len(identities), -1)
        self._first, self._second = places[:, 0], places[:, -1]
        self._two = np.flatnonzero(self._first != self._second)
        low, high = np.minimum(*places[self._two].T[[0, -1]]), np.maximum(*places[self._two].T[[0, -1]])
        _, self._couple = np.unique(low * self.number + high, return_inverse=True)

    def __len__(self) -> int:
        return len(self._first)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return, for each identity, the sum of the values (N,) of its observations: (number,)."""
        sums = np.bincount(self._first, values, self.number)
        return sums + np.bincount(self._second[self._two], values[self._two], self.number)

    def variance_of_sum(self, residuals: np.ndarray) -> float:
        """Estimate the variance of a sum of N observations.

        Args:
            residuals: (N,) observations minus their mean.

        Returns:
            The variance, at least that of independent observations (by chance, the raw estimate can be lower).
        """
        shared = np.square(self.sums(residuals)).sum()
        twice = np.square(
            np.bincount(self._couple, residuals[self._two])
        ).sum()  # each pair of identities is in two of the sums
        small_sample = self.number / max(self.number - 1, 1)
        return float(max(small_sample * (shared - twice), np.square(residuals).sum()))

    def design_effect(self, residuals: np.ndarray) -> float:
        """Return the factor by which shared identities raise the variance of a sum, with ``widening`` applied.

        Args:
            residuals: (N,) observations minus their mean.
        """
        alone = float(residuals @ residuals)
        return self.widening * self.variance_of_sum(residuals) / alone if alone > 0 else 1.0


def placements(similarity: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the placement of the scores of each kind among those of the other.

    Args:
        similarity: (P,) scores.
        issame: (P,) booleans, with genuine and impostor pairs.

    Returns:
        For each genuine pair, the share of impostor scores below it; for each impostor pair, the share of genuine
        scores above it. Ties count half. The mean of either is the AUC.

    Source: DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", 1988.
    """
    ranks = rankdata(similarity)
    genuine, impostor = ranks[issame], ranks[~issame]
    below = (genuine - rankdata(similarity[issame])) / len(impostor)
    above = 1 - (impostor - rankdata(similarity[~issame])) / len(genuine)
    return below, above


class PairScores:
    """The genuine and impostor scores of a set, and their dependence through shared identities.

    Args:
        similarity: (P,) scores, higher means more similar, of genuine and impostor pairs.
        issame: (P,) booleans.
        identities: (P, 2) identities of both images; None treats the pairs as independent.

    Attributes:
        issame: (P,) booleans.
        genuine: (G,) scores, in the order of the pairs.
        impostor: (N,) scores, in the order of the pairs.

    Raises:
        ValueError: scores that ``metrics.verification.roc`` rejects, or identities of any other shape.
    """

    def __init__(self, similarity: np.ndarray, issame: np.ndarray, identities: np.ndarray | None) -> None:
        roc(similarity, issame)  # raises for scores without error rates
        similarity, self.issame = np.asarray(similarity), np.asarray(issame).astype(bool)
        self.genuine, self.impostor = similarity[self.issame], similarity[~self.issame]
        self._known: tuple[Identities, Identities] | None = None
        if identities is None:
            return
        if np.shape(identities) != (len(self.issame), 2):
            raise ValueError(f"got identities of shape {np.shape(identities)}, expected ({len(self.issame)}, 2)")
        numbers = np.unique(identities, return_inverse=True)[1].reshape(-1, 2)
        people = int(numbers.max()) + 1
        self._known = Identities(numbers[self.issame], people), Identities(numbers[~self.issame], people)

    def _sums(self, genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float, float]:
        """Return the variances of the sums of both kinds of residuals, and the covariance of these sums."""
        if self._known is None:
            return float(genuine @ genuine), float(impostor @ impostor), 0.0
        known, other = self._known
        shared = known.sums(genuine) @ other.sums(impostor)
        sums = np.array([known.variance_of_sum(genuine), other.variance_of_sum(impostor), shared]) * known.widening
        return float(sums[0]), float(sums[1]), float(sums[2])

    def variance(self, genuine: np.ndarray, impostor: np.ndarray) -> float:
        """Return the variance of the sum of the means of both kinds of residuals."""
        own, other, shared = self._sums(genuine, impostor)
        G, N = len(genuine), len(impostor)
        independent = (genuine @ genuine) / G**2 + (impostor @ impostor) / N**2
        return max(own / G**2 + other / N**2 + 2 * shared / (G * N), independent)

    def effects(self, threshold: float) -> tuple[float, float, float]:
        """Return the design effects of TAR and FAR at a threshold, and the correlation of the two rates."""
        genuine, impostor = (self.genuine >= threshold).astype(float), (self.impostor >= threshold).astype(float)
        genuine, impostor = genuine - genuine.mean(), impostor - impostor.mean()
        alone = float(genuine @ genuine), float(impostor @ impostor)
        own, other, shared = self._sums(genuine, impostor)
        both = own * other
        correlation = shared / np.sqrt(both) if both > 0 else 0.0
        effects = [full / single if single > 0 else 1.0 for full, single in zip((own, other), alone, strict=True)]
        return effects[0], effects[1], float(np.clip(correlation, -1, 1))
