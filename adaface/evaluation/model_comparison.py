"""Comparison of several models on a private folder, clear and degraded: ``folder --compare a.ckpt b.ckpt``.

The numbers are those of ``evaluation.folder``: all models see the same images, gallery and probes, and the same
degradation. The table has a block for macro f1_score and one for rank-1, a row for each model, a column for each
condition; the CSV has all numbers, and the bar chart shows the table.

    clear            gallery and probes as they are
    blurred          gallery and probes degraded, the comparison of the specification
    blurred probes   the gallery as it is, for the case that good photographs of the people are available
"""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaface.evaluation.degradation import DegradedImages
from adaface.evaluation.folder import PROTOCOL, Identification, degradation_note, identify, outcome_of
from adaface.evaluation.identity_folder import open_identity_folder
from adaface.inference.comparison import distinct_names
from adaface.metrics.comparison import Comparison, compare_decisions
from adaface.metrics.identification import compare_macro_f1, macro_f1
from adaface.metrics.outcome import EmbedImages, Outcome
from adaface.reporting.style import (
    BLACK,
    BLUE,
    DPI,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    drawable,
    dress,
    plain,
    save_figure,
)
from adaface.reporting.tables import Cell, ReportTable, Row, interval_text
from adaface.system.csv_text import safe
from adaface.system.files import write_atomically
from adaface.system.text_table import aligned

CLEAR, BLURRED, BLURRED_PROBES = "clear", "blurred", "blurred probes"
CONDITIONS = (CLEAR, BLURRED, BLURRED_PROBES)
_DEGRADED = {CLEAR: (False, False), BLURRED: (True, True), BLURRED_PROBES: (False, True)}  # gallery, probes
SHOWN_NUMBERS = ("f1_score", "rank-1")
_PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
_HATCHES = ("", "//", "..", "xx")
_GROUP_WIDTH = 0.8
_DECIMALS = 6
_TITLES = {"folder": "Identification", "pairs": "Verification"}
_SMALLEST_P = 0.001


@dataclass(frozen=True)
class ModelComparison:
    """Results of several models on the same data.

    Attributes:
        data: name of the data.
        models: names; the others are compared with the first.
        conditions: columns: some of ``CONDITIONS``, or verification sets.
        outcomes: results by model and condition.
        differences: differences of the shown numbers to the first model, by model, condition and number; fractions.
        notes: the degradation of the images, and remarks on the data.
        protocol: name of the protocol.
        shown: numbers in the table and the chart.
        title: of chart and table; empty for that of protocol and data.
    """

    data: str
    models: tuple[str, ...]
    conditions: tuple[str, ...]
    outcomes: Mapping[tuple[str, str], Outcome]
    differences: Mapping[tuple[str, str, str], Comparison]
    notes: tuple[str, ...]
    protocol: str = PROTOCOL
    shown: tuple[str, ...] = SHOWN_NUMBERS
    title: str = ""

    @property
    def heading(self) -> str:
        """Title of the chart and the table."""
        return self.title or f"{_TITLES[self.protocol]} on {self.data}"


def compare_models(
    models: Mapping[str, EmbedImages],
    root: Path,
    *,
    conditions: Sequence[str] = (CLEAR, BLURRED),
    gallery_images: int = 1,
    unknown_share: float = 0.0,
    strength: float = 1.0,
    seed: int = 0,
    limit: int | None = None,
) -> ModelComparison:
    """Measure identification with each model under each condition.

    Args:
        models: models by name; for names see ``model_names``.
        root: as in ``folder.run``.
        conditions: some of ``CONDITIONS``.
        gallery_images: as in ``folder.run``.
        unknown_share: as in ``folder.run``.
        strength: strength of the degradation, in [0, 1].
        seed: random seed of the degradation and of the choice of unknown identities.
        limit: as in ``folder.run``.

    Raises:
        FileNotFoundError: as in ``folder.run``.
        ValueError: as in ``folder.run``; or no models, or unknown conditions.
    """
    if not models or not conditions or not set(conditions) <= set(CONDITIONS):
        raise ValueError(
            f"got {len(models)} models and the conditions {', '.join(conditions) or 'none'}: expected at least one "
            f"model, and some of {', '.join(CONDITIONS)}"
        )
    folder = open_identity_folder(root, limit)
    degraded = DegradedImages(folder.images, seed, strength)
    results: dict[tuple[str, str], Identification] = {}
    for model, embed in models.items():
        needed = sorted({is_degraded for condition in conditions for is_degraded in _DEGRADED[condition]})
        embedded = {is_degraded: embed(degraded if is_degraded else folder.images) for is_degraded in needed}
        for condition in conditions:
            gallery, probes = (embedded[is_degraded] for is_degraded in _DEGRADED[condition])
            results[model, condition] = identify(
                folder, gallery, probes, gallery_images=gallery_images, unknown_share=unknown_share, seed=seed
            )
    outcomes = {place: outcome_of(one, f"{folder.images.name}, {place[1]}") for place, one in results.items()}
    notes = [
        f"{condition}: {degradation_note('all' if _DEGRADED[condition][0] else 'probe', strength=strength, seed=seed)}"
        for condition in conditions
        if condition != CLEAR
    ]
    notes += dict.fromkeys(note for outcome in outcomes.values() for note in outcome.notes)
    differences = _differences(results, next(iter(models)))
    return ModelComparison(folder.images.name, tuple(models), tuple(conditions), outcomes, differences, tuple(notes))


def model_names(paths: Sequence[str | Path]) -> list[str]:
    """Return names for model files: the shortest unique ends of their paths.

    Args:
        paths: paths of different files.

    Raises:
        ValueError: a file occurs twice.
    """
    whole = [Path(path).resolve() for path in paths]
    twice = sorted({str(path) for path in whole if whole.count(path) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice: a comparison needs different models")
    return distinct_names(whole)


def comparison_text(comparison: ModelComparison) -> str:
    """Format the table: a block for each shown number, with models as rows and conditions as columns.

    Args:
        comparison: results of the models.

    Returns:
        Lines of text without a trailing newline.
    """
    blocks = [_block(comparison, number) for number in comparison.shown]
    rows = [row for heads, *of_models in blocks for row in (None, heads, None, *of_models)]
    caption = f"{comparison.protocol}: {comparison.data}, percent, 95 % intervals"
    return "\n".join([caption, *aligned([*rows, None], "<"), *comparison.notes])


def comparison_table(comparison: ModelComparison) -> ReportTable:
    """Return the table of a report: a block for each shown number, as in the text.

    Args:
        comparison: results of the models.
    """
    rows = []
    for number in comparison.shown:
        for model in comparison.models:
            outcomes = [comparison.outcomes[model, condition] for condition in comparison.conditions]
            values = (Cell(f"{one.numbers[number]:.2f}", interval_text(one.intervals.get(number))) for one in outcomes)
            rows.append(Row((Cell(f"{number}, {model}"), *values)))
        first = comparison.models[0]
        for model in comparison.models[1:]:
            differences = (comparison.differences[model, condition, number] for condition in comparison.conditions)
            values = (Cell(*_as_text(difference).split(" ", 1)) for difference in differences)
            rows.append(Row((Cell(f"{model} - {first}"), *values), is_mean=True))
    caption = "In percent, with 95 % intervals; differences in points, with their p-value."
    return ReportTable(comparison.heading, caption, ("", *comparison.conditions), tuple(rows), comparison.notes)


def comparison_csv(comparison: ModelComparison) -> str:
    """Return all numbers as CSV, with a row for each model and condition; missing numbers are empty."""
    first = next(iter(comparison.outcomes.values()))
    names = ["model", "condition", *(f"{name}{end}" for name in first.numbers for end in ("", "_low", "_high"))]
    names += [f"{name}_{what}" for name in comparison.shown for what in ("difference", "p_value")]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for (model, condition), outcome in comparison.outcomes.items():
        row: dict[str, str | float] = {"model": safe(model), "condition": safe(condition)}
        for name, value in outcome.numbers.items():
            ends = outcome.intervals.get(name, ("", ""))
            for end, number in zip(("", "_low", "_high"), (value, *ends), strict=True):
                known = isinstance(number, float) and not math.isnan(number)
                row[name + end] = round(number, _DECIMALS) if known else ""
        for name in comparison.shown:
            if (model, condition, name) in comparison.differences:
                difference = comparison.differences[model, condition, name]
                row[f"{name}_difference"] = round(100 * difference.difference, _DECIMALS)
                row[f"{name}_p_value"] = float(f"{difference.p_value:.4g}")
        writer.writerow(row)
    return text.getvalue()


def plot_comparison(comparison: ModelComparison, path: str | Path) -> None:
    """Plot the table as a bar chart, with a panel for each shown number, a group of bars for each condition.

    Args:
        comparison: results of the models.
        path: PNG file to write.
    """
    bars = len(comparison.models) * len(comparison.conditions)
    width = max(4.2, 1.0 + 0.85 * bars) * len(comparison.shown)
    figure = Figure(figsize=(width, 5.4), dpi=DPI, layout="constrained")
    for axes, number in zip(figure.subplots(1, len(comparison.shown), sharey=True), comparison.shown, strict=True):
        _draw_bars(axes, comparison, number)
        axes.label_outer()  # the panels share their y axis
    figure.suptitle(plain(f"{comparison.heading}, with 95 % intervals"), fontsize=14, fontweight="bold")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), fontsize=11, frameon=False)
    save_figure(figure, path)


def write_comparison(comparison: ModelComparison, folder: Path) -> None:
    """Write ``comparison.txt``, ``comparison.csv`` and ``comparison.png``.

    Args:
        comparison: results of the models.
        folder: existing folder.

    Raises:
        OSError: a file cannot be written; an existing one is left unchanged.
    """
    write_atomically(folder / "comparison.txt", comparison_text(comparison) + "\n")
    write_atomically(folder / "comparison.csv", comparison_csv(comparison))
    plot_comparison(comparison, folder / "comparison.png")


def _differences(
    results: Mapping[tuple[str, str], Identification], baseline: str
) -> dict[tuple[str, str, str], Comparison]:
    """Compare each model with the first one, on the same probes."""
    differences = {}
    for (model, condition), second in results.items():
        if model == baseline:
            continue
        first = results[baseline, condition]
        f1 = [macro_f1(one.labels, one.predicted) for one in (first, second)]
        differences[model, condition, "f1_score"] = compare_macro_f1(*f1)
        differences[model, condition, "rank-1"] = compare_decisions(first.correct, second.correct, first.labels)
    return differences


def _block(comparison: ModelComparison, number: str) -> list[list[str]]:
    """Return the rows of one number: header, models, differences to the first model."""
    rows = [[number, *comparison.conditions]]
    for model in comparison.models:
        outcomes = [comparison.outcomes[model, condition] for condition in comparison.conditions]
        rows.append([model, *(_with_interval(outcome, number) for outcome in outcomes)])
    first = comparison.models[0]
    for model in comparison.models[1:]:
        differences = [comparison.differences[model, condition, number] for condition in comparison.conditions]
        rows.append([f"{model} - {first}", *map(_as_text, differences)])
    return rows


def _as_text(difference: Comparison) -> str:
    low, high = (100 * end for end in difference.interval)
    p_value = f"p = {difference.p_value:.3f}" if difference.p_value >= _SMALLEST_P else f"p < {_SMALLEST_P}"
    return f"{100 * difference.difference:+.2f} [{low:+.2f}, {high:+.2f}] {p_value}"


def _with_interval(outcome: Outcome, number: str) -> str:
    text = f"{outcome.numbers[number]:.2f}"
    if number not in outcome.intervals:
        return text
    low, high = outcome.intervals[number]
    return f"{text} [{low:.2f}, {high:.2f}]"


def _draw_bars(axes: Axes, comparison: ModelComparison, number: str) -> None:
    looks = itertools.cycle(itertools.product(_HATCHES, _PALETTE))
    width = _GROUP_WIDTH / len(comparison.models)
    places = np.arange(len(comparison.conditions))
    for bar, model in enumerate(comparison.models):
        hatch, color = next(looks)
        outcomes = [comparison.outcomes[model, condition] for condition in comparison.conditions]
        values = np.array([outcome.numbers[number] for outcome in outcomes])
        ends = np.array([outcome.intervals.get(number, (v, v)) for outcome, v in zip(outcomes, values, strict=True)])
        middles = places + (bar - (len(comparison.models) - 1) / 2) * width
        axes.bar(middles, values, 0.92 * width, color=color, hatch=hatch, edgecolor="white", label=plain(model))
        beyond = np.abs(ends.T - values)  # (2, conditions): below, above
        axes.errorbar(middles, values, beyond, fmt="none", ecolor=BLACK, elinewidth=1.4, capsize=4)
        for place, value, top in zip(middles, values, ends[:, 1], strict=True):
            axes.annotate(
                f"{value:.1f}", (place, top), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=10
            )
    axes.set_xticks(places, [plain(drawable(name)) for name in comparison.conditions])
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    dress(axes, number, "", "percent")
    axes.tick_params(axis="x", labelsize=11, length=0)
    axes.grid(False, axis="x")
