"""Macro F1 of identification, and what each identity contributes to it: pure functions on labels.

With C[i, c] probes of identity i taken for c, n_c probes of c and TP_c = C[c, c],

    F1_c = 2 TP_c / (n_c + sum over i of C[i, c]),    M = mean of F1_c over the identities that have probes.

The F1 of identities are no independent observations: somebody who is taken for others lowers their F1 too. What counts
for an interval is the influence of an identity with all of its probes, the derivative of M by its weight:

    u_i = F1_i - M + F1_i FP_i / d_i - sum over c != i of F1_c C[i, c] / d_c,    d_c = n_c + sum over i of C[i, c]

The variance of M is that of the mean of the influences, and the interval is Wilson's for as many independent
observations as have this variance, so that it stays within [0, 1] and has a width where nothing is wrong.

Sources: scikit-learn's ``f1_score`` with ``average="macro"``; for the influence, Efron's infinitesimal jackknife, "The
jackknife, the bootstrap and other resampling plans", 1982; for the interval, see ``evaluation.intervals``.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t
from sklearn.metrics import f1_score

from evaluation.comparison import Comparison
from evaluation.intervals import Interval, wilson

_UPPER = 0.975


@dataclass(frozen=True)
class MacroF1:
    """F1 over identities.

    Attributes:
        score: their mean, a fraction.
        influences: (I,) by how much an identity with all of its probes moves the mean of I; their sum is 0.
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
        # few identities do not tell their own variance well
        return wilson(self.score, size / float(_quantile(people) / norm.ppf(_UPPER)) ** 2)


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> MacroF1:
    """Compute macro F1 over the identities that have probes.

    An identity of the gallery without probes has no F1 of its own: a probe that is taken for it counts against the
    identity that it shows.

    Args:
        labels: (M,) integers, the probes' identities; at least one probe.
        predicted: (M,) integers, the identities that they are taken for.
    """
    people, own = np.unique(labels, return_inverse=True)
    scores = f1_score(labels, predicted, labels=people, average=None, zero_division=0.0)
    mean = float(scores.mean())
    swapped = np.flatnonzero((labels != predicted) & np.isin(predicted, people))  # taken for somebody who has probes
    other = np.searchsorted(people, predicted[swapped])
    false_positives = np.bincount(other, minlength=len(people))
    true_positives = np.bincount(own[labels == predicted], minlength=len(people))
    lost = scores / (np.bincount(own) + true_positives + false_positives)  # by one more probe taken for the identity
    caused = np.bincount(own[swapped], lost[other], len(people))
    return MacroF1(mean, scores - mean + lost * false_positives - caused)


def compare_macro_f1(first: MacroF1, second: MacroF1) -> Comparison:
    """Compare two models by macro F1 on the same probes.

    Each identity tells a difference, that of the scores and of its influences. One more identity of each extreme
    difference, 1 and -1, keeps few identities that agree by chance from being a proof, as Bonett and Price do it for
    two rates (``evaluation.comparison``).

    Args:
        first: of the one model.
        second: of the other, the same identities.

    Raises:
        ValueError: numbers of identities that differ.
    """
    if len(first.influences) != len(second.influences):
        raise ValueError(
            f"got F1 over {len(first.influences)} and {len(second.influences)} identities: a comparison needs the same "
            "probes"
        )
    difference = second.score - first.score
    told = np.append(difference + second.influences - first.influences, [1.0, -1.0])
    middle, deviation = float(told.mean()), float(told.std(ddof=1) / np.sqrt(len(told)))
    half = _quantile(len(told)) * deviation
    interval = max(-1.0, middle - half), min(1.0, middle + half)
    p_value = float(2 * t.sf(abs(middle) / deviation, len(told) - 1))
    method = "difference, variance between identities"
    return Comparison(first.score, second.score, difference, interval, p_value, method)


def _quantile(observations: int) -> float:
    """Return Student's quantile for as many independent observations."""
    return float(t.ppf(_UPPER, max(observations - 1, 1)))
