"""The tables of a report: rows of text, numbers with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaface.metrics.outcome import Outcome
from adaface.metrics.results import FARS, SetResult
from adaface.reporting.style import power_of_ten

_CAPTION = "In percent, with 95 % intervals if known; the threshold is a cosine."
Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: text of the cell, such as a number.
        interval: text below it; may be empty.
    """

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        cells: cells; the first is the row's name.
        is_mean: whether it is the mean of the rows above.
    """

    cells: tuple[Cell, ...]
    is_mean: bool = False


@dataclass(frozen=True)
class ReportTable:
    """One table.

    Attributes:
        title: heading.
        caption: unit and meaning of the columns.
        heads: name of each column.
        rows: rows, each as long as ``heads``.
        notes: remarks shown below the table.
    """

    title: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def verification_table(results: Sequence[SetResult]) -> ReportTable:
    """Return the table of the verification sets, with a row of means if there are several.

    Args:
        results: at least one; columns without any number are left out.
    """
    fars = [far for far in FARS if any(not math.isnan(result.tar_at_far[far]) for result in results)]
    numbers = {
        "accuracy": ("accuracy", [result.accuracy for result in results]),
        **{
            f"tar_at_far_{far:g}": (f"TAR at {power_of_ten(far)}", [r.tar_at_far[far] for r in results]) for far in fars
        },
        "auc": ("AUC", [result.auc for result in results]),
        "eer": ("EER", [result.eer for result in results]),
    }
    shown = {key: column for key, column in numbers.items() if not all(map(math.isnan, column[1]))}
    heads = ["set", "pairs", *(head for head, _ in shown.values()), "std over folds", "threshold"]
    rows = []
    for place, result in enumerate(results):
        ends = result.intervals
        values = [
            Cell(_two_decimals(column[place]), interval_text(ends.get(key))) for key, (_, column) in shown.items()
        ]
        spread, threshold = Cell(_two_decimals(result.accuracy_std)), Cell(_decimals(result.cosine_threshold, 3))
        rows.append(Row((Cell(result.name), Cell(f"{result.pairs:,}"), *values, spread, threshold)))
    if len(results) > 1:
        means = [Cell(_two_decimals(mean_of(column))) for _, column in shown.values()]
        rows.append(Row((Cell("mean"), Cell(""), *means, Cell(""), Cell("")), is_mean=True))
    notes = tuple(f"{result.name}: {note}" for result in results for note in result.notes)
    return ReportTable("Verification sets", _CAPTION, tuple(heads), tuple(rows), notes)


def outcome_table(outcome: Outcome) -> ReportTable:
    """Return the numbers of a protocol as a table, one per row.

    Args:
        outcome: result of the protocol.
    """
    rows = [
        Row((Cell(name), Cell(_two_decimals(value) or "–"), Cell(interval_text(outcome.intervals.get(name)))))
        for name, value in outcome.numbers.items()
    ]
    heads: tuple[str, ...] = ("number", "value", "95 % interval")
    if not outcome.intervals:
        heads, rows = heads[:2], [Row(row.cells[:2]) for row in rows]
    return ReportTable(
        outcome.data, f"Protocol {outcome.protocol}; rates in percent.", heads, tuple(rows), outcome.notes
    )


def interval_text(ends: Interval | None) -> str:
    """Format an interval for a table; empty without one.

    Args:
        ends: lower and upper end.
    """
    if ends is None or any(map(math.isnan, ends)):
        return ""
    return f"{ends[0]:.2f} to {ends[1]:.2f}"


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of the numbers that are not NaN, or NaN if there is none.

    Args:
        values: numbers, or NaN.
    """
    present = [value for value in values if not math.isnan(value)]
    return float(np.mean(present)) if present else math.nan


def _two_decimals(value: float) -> str:
    return _decimals(value, 2)


def _decimals(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
