"""How observations that share an identity depend on each other: variances of sums over pairs or probes.

Two pairs with a person in common are not two independent observations. The variance of a sum over pairs is that of
all products of two of them that share a person, the robust variance for dyadic data.

Sources: Fafchamps and Gubert, "The formation of risk sharing networks", 2007, and Aronow, Samii and Assenova,
"Cluster-robust variance estimation for dyadic data", Political Analysis 2015, of which this is the case without
regressors; for one identity each it is the usual cluster-robust variance.
Resampling identities and giving a pair the product of their counts (Owen, "The pigeonhole bootstrap", 2007) counts the
noise of a pair three times, which for sets with few pairs a person, such as LFW, is most of it.
"""

import numpy as np
from scipy.stats import norm, t

_TAIL = 0.975


class Identities:
    """Whom each of N observations shows.

    Args:
        identities: (N,) for images or probes, (N, 2) for pairs, the same number twice where a pair shows one person;
            any integers or strings.
        number: how many there are, where the identities are 0 to ``number`` - 1 and need no numbering.

    Attributes:
        number: how many there are.
        widening: by which the variance estimated from so few identities is too small for a 95% interval of the normal
            distribution: the squared ratio of Student's quantile to the normal one.

    Raises:
        ValueError: another shape.
    """

    def __init__(self, identities: np.ndarray, number: int | None = None) -> None:
        identities = np.asarray(identities)
        if identities.ndim not in (1, 2) or identities.shape[1:] not in ((), (2,)):
            raise ValueError(
                f"got identities of shape {identities.shape}, expected (N,), or (N, 2) with those of both images"
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
        """Return the sum of the values (N,) of all observations of each identity, (number,)."""
        sums = np.bincount(self._first, values, self.number)
        return sums + np.bincount(self._second[self._two], values[self._two], self.number)

    def variance_of_sum(self, residuals: np.ndarray) -> float:
        """Estimate the variance of a sum of N observations.

        Args:
            residuals: (N,) the observations less their mean.

        Returns:
            The variance, not below that of independent observations, which the estimate may be by chance.
        """
        shared = np.square(self.sums(residuals)).sum()
        twice = np.square(np.bincount(self._couple, residuals[self._two])).sum()  # each couple is in two of the sums
        small_sample = self.number / max(self.number - 1, 1)
        return float(max(small_sample * (shared - twice), np.square(residuals).sum()))

    def design_effect(self, residuals: np.ndarray) -> float:
        """Return by how much shared identities raise the variance of a sum, and how few they are (``widening``).

        Args:
            residuals: (N,) the observations less their mean.
        """
        alone = float(residuals @ residuals)
        return self.widening * self.variance_of_sum(residuals) / alone if alone > 0 else 1.0
