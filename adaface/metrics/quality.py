"""Does the feature norm tell quality? Error-versus-reject curves, and the norm against a degradation.

Pure functions on arrays; rates are fractions.

Source: Grother and Tabassi, "Performance of biometric quality measures", IEEE PAMI 2007 (NIST): the false non-match
rate at a fixed threshold while the pairs whose lower quality is lowest are rejected.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom, norm, spearmanr

from adaface.metrics.intervals import Interval
from adaface.metrics.verification import roc

_TAILS = (0.025, 0.975)
_POINTS = 51


@dataclass(frozen=True)
class ErrorReject:
    """The false non-match rate of genuine pairs while those of the lowest norms are rejected.

    Attributes:
        rejected: (R,) share of genuine pairs that is rejected, ascending from 0.
        fnmr: (R,) false non-match rate of the others.
        random_interval: (R, 2) where 95% of random rejections lie, pairs taken to be independent.
        fmr: false match rate of the fixed threshold, measured on all impostor pairs.
        threshold: the cosine; pairs at or above it match.
        area: under ``fnmr``.
        random_area: under the curve of random rejection, which is level.
        ideal_area: under the curve that rejects the false non-matches first.
        pairs: number of genuine pairs.
    """

    rejected: np.ndarray
    fnmr: np.ndarray
    random_interval: np.ndarray
    fmr: float
    threshold: float
    area: float
    random_area: float
    ideal_area: float
    pairs: int

    @property
    def gain(self) -> float:
        """How much of the ideal gain rejection brings: 1 ideal, 0 as random, below 0 worse; NaN without errors."""
        possible = self.random_area - self.ideal_area
        return (self.random_area - self.area) / possible if possible > 0 else float("nan")


@dataclass(frozen=True)
class Correlation:
    """A rank correlation.

    Attributes:
        rho: Spearman's, in [-1, 1].
        interval: lower and upper end of the 95% interval.
        count: of the values.
    """

    rho: float
    interval: Interval
    count: int


def error_versus_reject(
    similarity: np.ndarray, issame: np.ndarray, norms: np.ndarray, fmr: float = 1e-2, most: float = 0.3
) -> ErrorReject:
    """Compute the error-versus-reject curve by feature norm.

    Args:
        similarity: (P,) cosines; both kinds of pairs present.
        issame: (P,) booleans.
        norms: (P, 2) feature norms of both images of each pair.
        fmr: false match rate of the threshold, in (0, 1); the curve's point that is nearest is taken, as in
            ``metrics.verification.tar_at_far``.
        most: up to which share to reject, in (0, 1).

    Returns:
        The curve, at 51 shares (fewer where there are fewer pairs).

    Raises:
        ValueError: shapes that do not fit, rates outside (0, 1), or scores that ``metrics.verification.roc`` refuses.
    """
    norms = np.asarray(norms)
    if norms.shape != (len(similarity), 2):
        raise ValueError(f"got norms of shape {norms.shape} for {len(similarity)} pairs, expected (P, 2)")
    if not (0 < fmr < 1 and 0 < most < 1):
        raise ValueError(f"fmr and most are fractions between 0 and 1, got {fmr} and {most}")
    far, _, thresholds = roc(similarity, issame)
    point = len(far) - 1 - int(np.abs(far - fmr)[::-1].argmin())
    issame = np.asarray(issame).astype(bool)
    order = np.argsort(norms[issame].min(axis=1), kind="stable")
    wrong = (np.asarray(similarity)[issame] < thresholds[point])[order]
    pairs, errors = len(wrong), int(wrong.sum())
    left_out = np.unique((np.linspace(0, most, _POINTS) * pairs).astype(int))
    kept = pairs - left_out
    left = errors - np.concatenate(([0], wrong.cumsum()))[left_out]
    band = np.stack([hypergeom.ppf(tail, pairs, errors, kept) for tail in _TAILS], axis=1) / kept[:, None]
    rejected = left_out / pairs
    return ErrorReject(
        rejected=rejected,
        fnmr=left / kept,
        random_interval=band,
        fmr=float(far[point]),
        threshold=float(thresholds[point]),
        area=float(np.trapezoid(left / kept, rejected)),
        random_area=float(errors / pairs * rejected[-1]),
        ideal_area=float(np.trapezoid(np.maximum(errors - left_out, 0) / kept, rejected)),
        pairs=pairs,
    )


def rank_correlation(norms: np.ndarray, levels: np.ndarray) -> Correlation:
    """Return Spearman's correlation of feature norms with the level of a degradation.

    Args:
        norms: (N,) or (N, 1) feature norms, N at least 4.
        levels: (N,) degradation of each image, more for worse.

    Returns:
        The correlation; NaN where norms or levels are all the same. Its interval takes the values to be independent.

    Raises:
        ValueError: counts that do not match, or fewer than 4.

    Source: interval of Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", 2000.
    """
    norms, levels = np.asarray(norms).reshape(-1), np.asarray(levels)
    if norms.shape != levels.shape or len(norms) < 4:
        raise ValueError(f"got {norms.shape} norms and {levels.shape} levels, expected as many of both and at least 4")
    if np.ptp(norms) == 0 or np.ptp(levels) == 0:
        return Correlation(float("nan"), (-1.0, 1.0), len(norms))
    rho = float(spearmanr(norms, levels).statistic)
    inner = np.clip(rho, -1 + 1e-9, 1 - 1e-9)
    half = norm.ppf(_TAILS[1]) * np.sqrt((1 + inner**2 / 2) / (len(norms) - 3))
    low, high = np.tanh(np.arctanh(inner) + np.array([-half, half]))
    return Correlation(rho, (float(low), float(high)), len(norms))


def quality_warning(curve: ErrorReject | None = None, correlation: Correlation | None = None) -> str | None:
    """Return one line where the norm runs against quality, None where it does not.

    Args:
        curve: warned about where rejecting the lowest norms, as many as the curve has at most, leaves a higher error
            than 97.5% of random rejections do.
        correlation: of norms with a degradation; warned about where its whole interval is above 0.
    """
    if curve is not None and curve.fnmr[-1] > curve.random_interval[-1, 1]:
        return (
            f"the feature norm runs against quality: without the {curve.rejected[-1]:.0%} of pairs of the lowest norms "
            f"{curve.fnmr[-1]:.2%} of the genuine pairs are rejected, with them {curve.fnmr[0]:.2%}"
        )
    if correlation is not None and correlation.interval[0] > 0:
        return (
            "the feature norm runs against quality: it rises with the degradation (rank correlation "
            f"{correlation.rho:.2f}, at least {correlation.interval[0]:.2f})"
        )
    return None
