"""Genuine and impostor scores of the same people: variances and correlation of the rates made of them.

Source: for the AUC, DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves",
1988, and with identities Obuchowski, "Nonparametric analysis of clustered ROC curve data", 1997.
"""

import numpy as np
from scipy.stats import rankdata

from evaluation.dependence import Identities
from verification_metrics import roc


def placements(similarity: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how the scores of each kind lie among those of the other.

    Args:
        similarity: (P,) scores.
        issame: (P,) booleans, both kinds present.

    Returns:
        For each genuine pair the share of impostor scores below it, for each impostor pair the share of genuine scores
        above it, ties counted half. The mean of either is the AUC.

    Source: DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", 1988.
    """
    ranks = rankdata(similarity)
    genuine, impostor = ranks[issame], ranks[~issame]
    below = (genuine - rankdata(similarity[issame])) / len(impostor)
    above = 1 - (impostor - rankdata(similarity[~issame])) / len(genuine)
    return below, above


class PairScores:
    """The genuine and the impostor scores of a set, and how far they depend on each other.

    Args:
        similarity: (P,) scores, higher for more alike; both kinds of pairs present.
        issame: (P,) booleans.
        identities: (P, 2) of both images; None takes the pairs to be independent.

    Attributes:
        issame: (P,) booleans.
        genuine: (G,) scores, in the order of the pairs.
        impostor: (N,) scores, in the order of the pairs.

    Raises:
        ValueError: scores that ``verification_metrics.roc`` refuses, or identities of another shape.
    """

    def __init__(self, similarity: np.ndarray, issame: np.ndarray, identities: np.ndarray | None) -> None:
        roc(similarity, issame)  # refuses what has no error rates
        similarity, self.issame = np.asarray(similarity), np.asarray(issame).astype(bool)
        self.genuine, self.impostor = similarity[self.issame], similarity[~self.issame]
        self._known: tuple[Identities, Identities] | None = None
        if identities is None:
            return
        if np.shape(identities) != (len(self.issame), 2):
            raise ValueError(f"got identities of shape {np.shape(identities)} for {len(self.issame)} pairs: (P, 2)")
        numbers = np.unique(identities, return_inverse=True)[1].reshape(-1, 2)
        people = int(numbers.max()) + 1
        self._known = Identities(numbers[self.issame], people), Identities(numbers[~self.issame], people)

    def _sums(self, genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float, float]:
        """Return the variances of the sums of both kinds of residuals, and the covariance of these sums."""
        if self._known is None:
            return float(genuine @ genuine), float(impostor @ impostor), 0.0
        known, other = self._known
        shared = known.sums(genuine) @ other.sums(impostor)
        found = np.array([known.variance_of_sum(genuine), other.variance_of_sum(impostor), shared]) * known.widening
        return float(found[0]), float(found[1]), float(found[2])

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
        effects = [found / single if single > 0 else 1.0 for found, single in zip((own, other), alone, strict=True)]
        return effects[0], effects[1], float(np.clip(correlation, -1, 1))
