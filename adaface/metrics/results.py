"""Results on verification sets: the numbers, the table on the screen, ``results.csv`` and ``results.json``.

Source: the tables of the AdaFace paper (mean 10-fold accuracy), with the 95% intervals, the spread over folds, the
threshold and the error rates that the official code leaves out. Rates are in percent here, fractions in
``metrics.verification``.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adaface.metrics.intervals import Interval, accuracy_interval, auc_interval, eer_interval, tar_intervals
from adaface.metrics.verification import auc, eer, evaluate, fold_decisions, pair_similarities, tar_at_far
from adaface.system.csv_text import safe
from adaface.system.files import write_atomically
from adaface.system.text_table import aligned

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
_FOLDS = 10
_DECIMALS = 6
_ROUNDING = 1e-9
_EQUAL = 1e-6  # float32 embeddings of equal images, in other batches
_MEAN = "mean"
_ENDS = ("low", "high")  # of 95% intervals, in the names of columns
_CAPTION = "verification in percent: accuracy, 95% interval, cosine threshold, TAR @ FAR"


@dataclass(frozen=True)
class SetResult:
    """Results on one verification set.

    Rates are in percent. NaN means that the pairs do not allow to compute a number: accuracy of a single pair, error
    rates without genuine or without impostor pairs, TAR at a FAR below one impostor pair.

    Args:
        name: name of the set.
        genuine: number of genuine pairs (same person).
        impostors: number of impostor pairs (two people).
        folds: number of folds of the cross-validation; 10 unless there are fewer pairs.
        accuracy: mean accuracy over the folds.
        accuracy_std: standard deviation of the folds' accuracies (population, as in the official code).
        threshold: mean of the folds' best thresholds, as squared distance in [0, 4].
        tar_at_far: TAR by FAR, the FAR as a fraction.
        auc: area under the ROC curve.
        eer: equal error rate.
        notes: remarks on these numbers.
        intervals: lower and upper end of the 95% intervals by name: ``accuracy``, ``auc``, ``eer``,
            ``tar_at_far_0.1``, ...; empty unless requested.
        similarity: (P,) cosine of each pair, for plots; not written to files.
        issame: (P,) booleans.
        correct: (P,) booleans, which pairs the folds' thresholds decide correctly; empty for a single pair.
    """

    name: str
    genuine: int
    impostors: int
    folds: int
    accuracy: float
    accuracy_std: float
    threshold: float
    tar_at_far: dict[float, float]
    auc: float
    eer: float
    notes: tuple[str, ...] = ()
    intervals: dict[str, Interval] = field(default_factory=dict)
    similarity: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    issame: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool), repr=False, compare=False)
    correct: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool), repr=False, compare=False)

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.genuine + self.impostors

    @property
    def cosine_threshold(self) -> float:
        """The threshold as a cosine: pairs above it are "same"."""
        return 1 - self.threshold / 2

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON, None for NaN."""
        names = ("accuracy", "accuracy_std", "threshold", "cosine_threshold", "auc", "eer")
        return {
            "set": self.name,
            "pairs": self.pairs,
            "genuine": self.genuine,
            "impostors": self.impostors,
            "folds": self.folds,
            **{name: _number_or_none(getattr(self, name)) for name in names},
            "tar_at_far": {f"{far:g}": _number_or_none(tar) for far, tar in self.tar_at_far.items()},
            "intervals": {name: [round(end, _DECIMALS) for end in ends] for name, ends in self.intervals.items()},
            "notes": list(self.notes),
        }


def evaluate_set(
    name: str,
    embeddings: np.ndarray,
    issame: np.ndarray,
    *,
    intervals: bool = False,
    identities: np.ndarray | None = None,
) -> SetResult:
    """Compute all results of one verification set.

    Args:
        name: name of the set.
        embeddings: (2P, D) unit vectors; rows 2k and 2k + 1 are pair k.
        issame: (P,) booleans, P at least 1.
        intervals: compute the 95% intervals too, which takes about 0.1 seconds for 6,000 pairs.
        identities: (P, 2) identities of both images, for the intervals; None treats the pairs as independent.

    Raises:
        ValueError: counts that do not match, no pairs, or embeddings that are not finite; the message names the set.
    """
    try:
        return _evaluate_set(name, np.asarray(embeddings), np.asarray(issame), intervals, identities)
    except ValueError as error:
        raise ValueError(f"verification set {name}: {error}") from error


def _evaluate_set(
    name: str, embeddings: np.ndarray, issame: np.ndarray, intervals: bool, identities: np.ndarray | None
) -> SetResult:
    similarity, issame = pair_similarities(embeddings, issame), issame.astype(bool)
    pairs, genuine = len(issame), int(issame.sum())
    if pairs == 0:
        raise ValueError("it has no pairs")
    folds, notes = min(_FOLDS, pairs), []
    ends: dict[str, Interval] = {}
    accuracy, thresholds, correct = np.array([math.nan]), np.array([math.nan]), np.empty(0, dtype=bool)
    if pairs == 1:
        notes.append("1 pair is too few for an accuracy")
    else:
        _, _, accuracy, thresholds = evaluate(embeddings, issame, folds)
        correct = fold_decisions(embeddings, issame, thresholds)
        if intervals:
            ends["accuracy"] = accuracy_interval(embeddings, issame, thresholds, identities)
        if folds < _FOLDS:
            notes.append(f"{folds} folds instead of {_FOLDS}, because there are only {pairs} pairs")
        notes += _one_kind_folds(issame, folds)

    tars, area, equal_error = dict.fromkeys(FARS, math.nan), math.nan, math.nan
    if pairs > 1 and np.ptp(similarity) < _EQUAL:
        notes.append("all similarities are equal: the embeddings do not depend on the images, the network is broken")
    if genuine in (0, pairs):
        absent, there = ("impostor", "genuine") if genuine else ("genuine", "impostor")
        notes.append(f"no {absent} pairs: no error rates, and the accuracy tells only how {there} pairs are decided")
    else:
        reachable = [far for far in FARS if far * (pairs - genuine) >= 1 - _ROUNDING]
        tars |= {far: 100 * tar for far, tar in tar_at_far(similarity, issame, reachable).items()}
        area, equal_error = 100 * auc(similarity, issame), 100 * eer(similarity, issame)
        if intervals:
            ends["auc"], ends["eer"] = (make(similarity, issame, identities) for make in (auc_interval, eer_interval))
            of_tars = tar_intervals(similarity, issame, reachable, identities)
            ends |= {_tar_name(far): of_tars[far] for far in reachable}
    return SetResult(
        name=name,
        genuine=genuine,
        impostors=pairs - genuine,
        folds=folds,
        accuracy=100 * float(accuracy.mean()),
        accuracy_std=100 * float(accuracy.std()),
        threshold=float(thresholds.mean()),
        tar_at_far=tars,
        auc=area,
        eer=equal_error,
        notes=tuple(notes),
        intervals={key: (100 * low, 100 * high) for key, (low, high) in ends.items()},
        similarity=similarity,
        issame=issame,
        correct=correct,
    )


def _one_kind_folds(issame: np.ndarray, folds: int) -> list[str]:
    """Return a note if more folds than necessary have pairs of one kind only, though the set has both."""
    rarest = min(int(issame.sum()), int((~issame).sum()))
    if not rarest or len(issame) < 2 * folds:
        return []
    single = sum(part.all() == part.any() for part in np.array_split(issame, folds))
    if single <= max(0, folds - rarest):
        return []
    return [
        f"{single} of {folds} folds have genuine or impostor pairs only, which distorts the accuracy: folds are "
        "consecutive pairs, so mix both kinds in the file"
    ]


def results_table(results: Sequence[SetResult]) -> str:
    """Format results as a plain-text table with a row of means, at most 80 columns wide for names up to 12 letters.

    Args:
        results: one for each set; the columns of FARs that no set reaches are left out.

    Returns:
        Lines of text without a trailing newline.
    """
    if not results:
        return "no verification sets, no results"
    fars = [far for far in FARS if any(not math.isnan(result.tar_at_far[far]) for result in results)]
    heads = ["set", "pairs", "acc", "95%", "cos", *(f"@{_short(far)}" for far in fars), "AUC"]
    rows = [
        [
            result.name,
            f"{result.pairs:,}",
            _percent(result.accuracy),
            _range(result.intervals.get("accuracy")),
            _blank_or(result.cosine_threshold, ".3f"),
            *(_percent(result.tar_at_far[far]) for far in fars),
            _percent(result.auc),
        ]
        for result in results
    ]
    mean = _means(results)
    means = [_MEAN, "", _percent(mean["accuracy"]), "", "", *(_percent(mean["tar_at_far"][far]) for far in fars)]
    means.append(_percent(mean["auc"]))
    lines = [_CAPTION, *aligned([None, heads, None, *rows, None, means])]
    return "\n".join(lines + [f"{result.name}: {note}" for result in results for note in result.notes])


def write_results(folder: str | Path, results: Sequence[SetResult]) -> None:
    """Write ``results.csv`` (one row for each set) and ``results.json`` (the same and the means).

    Args:
        folder: existing run folder.
        results: one for each set.

    Raises:
        OSError: a file cannot be written; an existing one is left unchanged.
    """
    mean = _means(results)
    summary = {
        "accuracy": _number_or_none(mean["accuracy"]),
        "auc": _number_or_none(mean["auc"]),
        "tar_at_far": {f"{far:g}": _number_or_none(tar) for far, tar in mean["tar_at_far"].items()},
    }
    rows = [result.as_dict() for result in results]
    content = {"unit": "percent; threshold: squared distance", "sets": rows, "mean": summary}
    write_atomically(Path(folder) / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_atomically(Path(folder) / "results.csv", _as_csv(rows))


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Flatten rows of ``SetResult.as_dict`` into CSV; missing numbers are empty."""
    names = ["set", "pairs", "genuine", "impostors", "folds", "accuracy", "accuracy_std", "threshold"]
    rates = [*map(_tar_name, FARS), "auc", "eer"]
    names += ["cosine_threshold", *rates]
    names += [f"{name}_{end}" for name in ("accuracy", *rates) for end in _ENDS] + ["notes"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        tars = {f"tar_at_far_{far}": tar for far, tar in row["tar_at_far"].items()}
        ends = {
            f"{name}_{end}": value
            for name, interval in row["intervals"].items()
            for end, value in zip(_ENDS, interval, strict=True)
        }
        writer.writerow({**row, **tars, **ends, "set": safe(row["set"]), "notes": "; ".join(row["notes"])})
    return text.getvalue()


def _means(results: Sequence[SetResult]) -> dict[str, Any]:
    """Return the means of accuracy, auc and tar_at_far over the sets that have the number, NaN if none has it."""
    return {
        "accuracy": _mean([result.accuracy for result in results]),
        "auc": _mean([result.auc for result in results]),
        "tar_at_far": {far: _mean([result.tar_at_far[far] for result in results]) for far in FARS},
    }


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return float(np.mean(present)) if present else math.nan


def _number_or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DECIMALS)


def _blank_or(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _percent(value: float) -> str:
    return _blank_or(value, ".2f")


def _range(ends: Interval | None) -> str:
    return "" if ends is None else "-".join(map(_percent, ends))


def _tar_name(far: float) -> str:
    return f"tar_at_far_{far:g}"


def _short(far: float) -> str:
    """Format a power of ten, such as 1e-3."""
    return f"1e{round(math.log10(far))}"
