"""The feature norm as a measure of image quality: error-versus-reject curves, and correlation with a degradation.

Pure functions on arrays; rates are fractions.

Source: Grother and Tabassi, "Performance of biometric quality measures", IEEE PAMI 2007 (NIST): the false non-match
rate at a fixed threshold while the pairs whose lower quality is lowest are rejected.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom, norm, spearmanr

from adaface.metrics.intervals import Interval, including
from adaface.metrics.verification import roc

_TAILS = (0.025, 0.975)
_POINTS = 51
_WEAK = 0.3  # rank correlations nearer to 0


@dataclass(frozen=True)
class ErrorReject:
    """The false non-match rate of genuine pairs as those with the lowest norms are rejected.

    Attributes:
        rejected: (R,) share of genuine pairs that are rejected, ascending from 0.
        fnmr: (R,) false non-match rate of the remaining pairs.
        random_interval: (R, 2) range of 95% of random rejections, treating pairs as independent.
        fmr: false match rate at the fixed threshold, measured on all impostor pairs.
        threshold: cosine; pairs at or above it match.
        area: area under ``fnmr``.
        random_area: area under the curve of random rejection, which is constant.
        ideal_area: area under the curve that rejects the false non-matches first.
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
        """Share of the ideal gain: 1 is ideal, 0 equals random rejection, below 0 is worse; NaN without errors."""
        possible = self.random_area - self.ideal_area
        return (self.random_area - self.area) / possible if possible > 0 else float("nan")


@dataclass(frozen=True)
class Correlation:
    """A rank correlation.

    Attributes:
        rho: Spearman's, in [-1, 1].
        interval: lower and upper end of the 95% interval.
        count: number of values.
    """

    rho: float
    interval: Interval
    count: int


def error_versus_reject(
    similarity: np.ndarray, issame: np.ndarray, norms: np.ndarray, fmr: float = 1e-2, most: float = 0.3
) -> ErrorReject:
    """Compute the error-versus-reject curve by feature norm.

    Args:
        similarity: (P,) cosines of genuine and impostor pairs.
        issame: (P,) booleans.
        norms: (P, 2) feature norms of both images of each pair.
        fmr: false match rate of the threshold, in (0, 1); the nearest point of the ROC curve is taken, as in
            ``metrics.verification.tar_at_far``.
        most: largest share of pairs to reject, in (0, 1).

    Returns:
        The curve, at 51 shares (fewer if there are fewer pairs).

    Raises:
        ValueError: shapes that do not match, rates outside (0, 1), or scores that ``metrics.verification.roc`` rejects.
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
        levels: (N,) degradation of each image; higher is worse.

    Returns:
        The correlation; NaN if all norms or all levels are equal. Its interval treats the values as independent.

    Raises:
        ValueError: counts that do not match, or fewer than 4.

    Source: interval of Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", 2000.
    """
    norms, levels = np.asarray(norms).reshape(-1), np.asarray(levels)
    if norms.shape != levels.shape or len(norms) < 4:
        raise ValueError(
            f"got {norms.shape} norms and {levels.shape} levels, expected equal numbers of both, at least 4"
        )
    if np.ptp(norms) == 0 or np.ptp(levels) == 0:
        return Correlation(float("nan"), (-1.0, 1.0), len(norms))
    rho = float(spearmanr(norms, levels).statistic)
    inner = np.clip(rho, -1 + 1e-9, 1 - 1e-9)
    half = norm.ppf(_TAILS[1]) * np.sqrt((1 + inner**2 / 2) / (len(norms) - 3))
    low, high = np.tanh(np.arctanh(inner) + np.array([-half, half]))
    return Correlation(rho, including((float(low), float(high)), rho), len(norms))


def quality_conclusion(correlation: Correlation) -> str:
    """Say in words what a correlation of norm and degradation means.

    Args:
        correlation: result of ``rank_correlation``; higher levels are worse.
    """
    if math.isnan(correlation.rho):
        return "no conclusion: the norms are all equal"
    low, high = correlation.interval
    if low > 0:
        return "the norm rises with the degradation: it contradicts image quality"
    if high >= 0:
        return "the norm does not measurably depend on the degradation: it is no measure of quality here"
    if correlation.rho > -_WEAK:
        return "the norm falls only slightly with the degradation: it is a weak measure of quality here"
    return "the norm falls with the degradation, as a measure of quality should"


def quality_warning(curve: ErrorReject | None = None, correlation: Correlation | None = None) -> str | None:
    """Return a one-line warning if the norm contradicts image quality, else None.

    Args:
        curve: warn if rejecting the lowest norms, up to the end of the curve, leaves a higher error rate than 97.5% of
            random rejections.
        correlation: correlation of norms with a degradation; warn if its whole interval is above 0.
    """
    if curve is not None and curve.fnmr[-1] > curve.random_interval[-1, 1]:
        return (
            f"the feature norm contradicts image quality: without the {curve.rejected[-1]:.0%} of pairs of lowest "
            f"norm {curve.fnmr[-1]:.2%} of the genuine pairs are rejected, with them {curve.fnmr[0]:.2%}"
        )
    if correlation is not None and correlation.interval[0] > 0:
        return (
            "the feature norm contradicts image quality: it rises with the degradation (rank correlation "
            f"{correlation.rho:.2f}, at least {correlation.interval[0]:.2f})"
        )
    return None
