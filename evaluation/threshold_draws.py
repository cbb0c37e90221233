"""Draws of an accept rate at the unknown threshold that has a given false accept rate.

However impostor scores are distributed, the number of them above that threshold is binomial: it lies between two of the
sorted scores, drawn so. The rate of genuine scores above it is drawn from a beta distribution. Both together are the
Bayesian bootstrap of pairs in closed form. Above the highest impostor score the tail is taken to be exponential.

Source: Rubin, "The Bayesian bootstrap", 1981; for ROC curves Gu, Ghosal and Roy 2008.
"""

import numpy as np
from scipy.special import betaincinv, ndtr
from scipy.stats import binom

_DRAWS = 4000
_TAIL_SCORES = 20


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
        effects: design effects of both rates, and their correlation.
        generator: of the draws.

    Returns:
        (4000,) rates.
    """
    genuine_effect, impostor_effect, correlation = effects
    first, second = generator.standard_normal((2, _DRAWS))
    independent = max(round(trials / impostor_effect), 1)
    above = binom.ppf(ndtr(first), independent, far)
    place = (above + generator.random(_DRAWS)) * trials / independent  # counted from the highest score, which has 1
    needed = min(int(place.max()) + 2, len(impostor))
    thresholds = np.interp(place, np.arange(1, needed + 1), impostor[:needed])
    beyond = place < 1
    # the highest score's own rate, given that it is above ``far``, is far + Exp(1) / trials
    ratio = 1 + generator.exponential(size=_DRAWS) / (independent * far)
    thresholds[beyond] += _tail_scale(impostor) * np.log(ratio[beyond])

    rejected = np.searchsorted(genuine, thresholds)
    level = ndtr(-(correlation * first + np.sqrt(1 - correlation**2) * second))
    # half of the draws for either end of Clopper and Pearson: the mid-p distribution, which reaches 0 and 1
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
