"""Choose a cosine threshold for a target false accept rate, and report its measured rates with intervals.

Pure functions on arrays; rates are fractions. A threshold is valid for one model, on images like those it
was calibrated on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adaface.metrics.intervals import Interval, rate_interval
from adaface.metrics.results import SetResult
from adaface.metrics.verification import roc

DEFAULT_FARS = (1e-3, 1e-2)  # the second for sets with too few impostor pairs for the first
_ROUNDING = 1e-9
_HIGHEST = 1.0  # cosine that a decision can use
_WRITTEN_OUT = 1e12


@dataclass(frozen=True)
class Calibration:
    """A threshold and its rates.

    Attributes:
        threshold: cosine; pairs at or above it are accepted.
        wanted_far: target false accept rate.
        far: measured false accept rate, at most the target.
        far_interval: lower and upper end of its 95% interval.
        tar: measured true accept rate.
        tar_interval: lower and upper end of its 95% interval.
        genuine: number of genuine pairs (same person).
        impostors: number of impostor pairs (two people).
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
    """Find the lowest threshold whose measured false accept rate does not exceed the target.

    Args:
        similarity: (P,) cosines of genuine and impostor pairs.
        issame: (P,) booleans.
        wanted_far: target false accept rate, in (0, 1).
        identities: (P, 2) identities of both images, for the intervals; None treats the pairs as independent.

    Returns:
        The threshold, halfway between the lowest accepted and the highest rejected impostor score.

    Raises:
        ValueError: a rate outside (0, 1), a rate too low for the number of impostor pairs, or scores that
            ``metrics.verification.roc`` rejects.
    """
    if not 0 < wanted_far < 1:
        raise ValueError(f"the target false accept rate must be a fraction between 0 and 1, got {wanted_far}")
    roc(similarity, issame)  # raises for scores without error rates
    similarity, issame = np.asarray(similarity, dtype=np.float64), np.asarray(issame).astype(bool)
    impostor = np.sort(similarity[~issame])[::-1]
    allowed = int(wanted_far * len(impostor) + _ROUNDING)
    if allowed < 1:
        raise ValueError(
            f"{len(impostor):,} impostor pairs are too few to measure a false accept rate of {wanted_far:g}: a single "
            f"one is {1 / len(impostor):.2g} already; use at least {_count(1 / wanted_far)} impostor pairs, or "
            "a higher rate"
        )
    accepted = int(np.sum(impostor > impostor[allowed])) if allowed < len(impostor) else len(impostor)
    upper = impostor[accepted - 1] if accepted else similarity.max()
    middle = (upper + impostor[accepted]) / 2
    threshold = float(middle if middle > impostor[accepted] else np.nextafter(impostor[accepted], np.inf))
    above = similarity >= threshold
    of_kind = [None, None] if identities is None else [np.asarray(identities)[issame == kind] for kind in (False, True)]
    return Calibration(
        threshold=threshold,
        wanted_far=wanted_far,
        far=float(above[~issame].mean()),
        far_interval=rate_interval(above[~issame], of_kind[0]),
        tar=float(above[issame].mean()),
        tar_interval=rate_interval(above[issame], of_kind[1]),
        genuine=int(issame.sum()),
        impostors=len(impostor),
    )


def stored_threshold(results: Sequence[SetResult], wanted_far: float) -> dict[str, Any]:
    """Calibrate on the pairs of all sets together, and return what is stored with a model.

    Args:
        results: of one model, one for each set.
        wanted_far: target false accept rate, in (0, 1).

    Returns:
        Plain values: ``cosine``, ``sets`` and those of ``Calibration.as_dict``.

    Raises:
        ValueError: as ``calibrate``; or impostor pairs with a cosine of 1, which no cosine rejects.
    """
    stored = _pooled(results, wanted_far)
    if stored["cosine"] > _HIGHEST:
        raise ValueError(
            f"no threshold from {stored['sets']}: more impostor pairs than a false accept rate of {wanted_far:g} "
            "allows have a cosine of 1: either they show the same images, or the network is broken"
        )
    return stored


def _pooled(results: Sequence[SetResult], wanted_far: float) -> dict[str, Any]:
    similarity = np.concatenate([result.similarity for result in results])
    issame = np.concatenate([result.issame for result in results])
    names = ", ".join(result.name for result in results)
    try:
        calibration = calibrate(similarity, issame, wanted_far)
    except ValueError as error:
        raise ValueError(f"no threshold from {names}: {error}") from error
    return {"cosine": calibration.threshold, "sets": names, **calibration.as_dict()}


def default_threshold(results: Sequence[SetResult]) -> dict[str, Any] | None:
    """Return the threshold at the lowest of ``DEFAULT_FARS`` that the pairs allow, None if they allow none.

    Args:
        results: of one model, one for each set; may be empty.
    """
    genuine, impostors = sum(result.genuine for result in results), sum(result.impostors for result in results)
    fars = [far for far in DEFAULT_FARS if genuine and impostors * far >= 1 - _ROUNDING]
    stored = _pooled(results, fars[0]) if fars else None
    return stored if stored and stored["cosine"] <= _HIGHEST else None


def describe_threshold(stored: Mapping[str, Any] | None) -> list[str]:
    """Format a threshold and its measured rates in two lines, or say why there is none.

    Args:
        stored: what ``stored_threshold`` or ``default_threshold`` returned.
    """
    if stored is None:
        pairs = math.ceil(1 / DEFAULT_FARS[-1])
        return [
            f"  no threshold stored: a FAR of {DEFAULT_FARS[-1]:g} needs genuine pairs, and at least {pairs} impostor "
            "pairs, nearly all with a cosine below 1; use --threshold, or evaluate more pairs with --store_threshold"
        ]
    low, high = (100 * end for end in stored["far_interval"])
    return [
        f"threshold for FAR {stored['wanted_far']:g}: cosine {stored['cosine']:.4f}, from {stored['sets']}",
        f"  measured FAR {100 * stored['far']:.3f} % [{low:.3f}, {high:.3f}], TAR {100 * stored['tar']:.2f} %",
    ]


def _count(minimum: float) -> str:
    """Format the number of pairs that are needed."""
    return f"{math.ceil(minimum - _ROUNDING):,}" if minimum < _WRITTEN_OUT else f"{minimum:.1e}"
