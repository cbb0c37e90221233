"""A cosine threshold for a wanted false accept rate, from pairs, with what it measured and how sure that is.

Pure functions on arrays; rates are fractions. A threshold belongs to a model, and to pictures like those it was
found on.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adaface.metrics.intervals import Interval, rate_interval
from adaface.metrics.verification import roc

_ROUNDING = 1e-9
_WRITTEN_OUT = 1e12


@dataclass(frozen=True)
class Calibration:
    """A threshold and its rates.

    Attributes:
        threshold: cosine; pairs at or above it are accepted.
        wanted_far: that was asked for.
        far: measured, at most the wanted one.
        far_interval: lower and upper end of its 95% interval.
        tar: measured.
        tar_interval: lower and upper end of its 95% interval.
        genuine: number of pairs of one person.
        impostors: number of pairs of two people.
    """

    threshold: float
    wanted_far: float
    far: float
    far_interval: Interval
    tar: float
    tar_interval: Interval
    genuine: int
    impostors: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, to be stored with a model."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def calibrate(
    similarity: np.ndarray, issame: np.ndarray, wanted_far: float, identities: np.ndarray | None = None
) -> Calibration:
    """Find the lowest threshold whose measured false accept rate is not above the wanted one.

    Args:
        similarity: (P,) cosines; both kinds of pairs present.
        issame: (P,) booleans.
        wanted_far: false accept rate, in (0, 1).
        identities: (P, 2) of both images, for the intervals; None takes the pairs to be independent.

    Returns:
        The threshold, in the middle between the lowest accepted and the highest rejected impostor score.

    Raises:
        ValueError: a rate outside (0, 1), one that so few impostor pairs cannot show, or scores that
            ``metrics.verification.roc`` refuses.
    """
    if not 0 < wanted_far < 1:
        raise ValueError(f"the wanted false accept rate is a fraction between 0 and 1, got {wanted_far}")
    roc(similarity, issame)  # refuses what has no error rates
    similarity, issame = np.asarray(similarity, dtype=np.float64), np.asarray(issame).astype(bool)
    impostor = np.sort(similarity[~issame])[::-1]
    allowed = int(wanted_far * len(impostor) + _ROUNDING)
    if allowed < 1:
        raise ValueError(
            f"{len(impostor):,} impostor pairs cannot show a false accept rate of {wanted_far:g}: one of them is "
            f"{1 / len(impostor):.2g} already; at least {_count(1 / wanted_far)} impostor pairs are "
            "needed, or a higher rate"
        )
    accepted = int(np.sum(impostor > impostor[allowed])) if allowed < len(impostor) else len(impostor)
    upper = impostor[accepted - 1] if accepted else similarity.max()
    middle = (upper + impostor[accepted]) / 2
    threshold = float(middle if middle > impostor[accepted] else np.nextafter(impostor[accepted], np.inf))
    above = similarity >= threshold
    known = [None, None] if identities is None else [np.asarray(identities)[issame == kind] for kind in (False, True)]
    return Calibration(
        threshold=threshold,
        wanted_far=wanted_far,
        far=float(above[~issame].mean()),
        far_interval=rate_interval(above[~issame], known[0]),
        tar=float(above[issame].mean()),
        tar_interval=rate_interval(above[issame], known[1]),
        genuine=int(issame.sum()),
        impostors=len(impostor),
    )


def _count(least: float) -> str:
    """Return the number of pairs that is needed, as people read it."""
    return f"{math.ceil(least - _ROUNDING):,}" if least < _WRITTEN_OUT else f"{least:.1e}"
