"""Several models side by side, and on a private folder, clear and degraded: ``folder --compare a.ckpt b.ckpt``.

The numbers are those of ``evaluation.folder``: all models see the same images, gallery and probes, and the same
degradation. The table has a block for macro f1_score and one for rank-1, a row for each model, a column for each
condition; the CSV has all numbers, the chart is the table as bars.

    clear            gallery and probes as they are
    blurred          gallery and probes degraded, the comparison of the specification
    blurred probes   the gallery as it is, as when good photographs of the people are at hand
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
from adaface.metrics.comparison import Comparison, compare_decisions
from adaface.metrics.identification import compare_macro_f1, macro_f1
from adaface.metrics.outcome import EmbedImages, Outcome
from adaface.reporting.style import BLACK, BLUE, DPI, GREEN, ORANGE, PURPLE, SKY, VERMILION, dress, save_figure
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
    """What models reached on the same data.

    Attributes:
        data: name of the folder.
        models: names, the first is what the others are compared with.
        conditions: columns: some of ``CONDITIONS``, or sets of pairs.
        outcomes: by model and condition.
        differences: of the shown numbers to the first model's, by model, condition and number; fractions.
        notes: how images were degraded, and what is unusual about the data.
        protocol: that measured.
        shown: numbers in the table and the chart.
    """

    data: str
    models: tuple[str, ...]
    conditions: tuple[str, ...]
    outcomes: Mapping[tuple[str, str], Outcome]
    differences: Mapping[tuple[str, str, str], Comparison]
    notes: tuple[str, ...]
    protocol: str = PROTOCOL
    shown: tuple[str, ...] = SHOWN_NUMBERS


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
        models: by name, such as those of ``model_names``.
        root: as ``folder.run``.
        conditions: some of ``CONDITIONS``.
        gallery_images: as ``folder.run``.
        unknown_share: as ``folder.run``.
        strength: of the degradation, in [0, 1].
        seed: of the degradation, and of the draw of unknown identities.
        limit: as ``folder.run``.

    Raises:
        FileNotFoundError: as ``folder.run``.
        ValueError: as ``folder.run``; or no models, or other conditions.
    """
    if not models or not conditions or not set(conditions) <= set(CONDITIONS):
        raise ValueError(
            f"got {len(models)} models and the conditions {', '.join(conditions) or 'none'}: expected at least one "
            f"model, and some of {', '.join(CONDITIONS)}"
        )
    folder = open_identity_folder(root, limit)
    degraded = DegradedImages(folder.images, seed, strength)
    found: dict[tuple[str, str], Identification] = {}
    for model, embed in models.items():
        needed = sorted({is_degraded for condition in conditions for is_degraded in _DEGRADED[condition]})
        embedded = {is_degraded: embed(degraded if is_degraded else folder.images) for is_degraded in needed}
        for condition in conditions:
            gallery, probes = (embedded[is_degraded] for is_degraded in _DEGRADED[condition])
            found[model, condition] = identify(
                folder, gallery, probes, gallery_images=gallery_images, unknown_share=unknown_share, seed=seed
            )
    outcomes = {place: outcome_of(one, f"{folder.images.name}, {place[1]}") for place, one in found.items()}
    notes = [
        f"{condition}: {degradation_note('all' if _DEGRADED[condition][0] else 'probe', strength=strength, seed=seed)}"
        for condition in conditions
        if condition != CLEAR
    ]
    notes += dict.fromkeys(note for outcome in outcomes.values() for note in outcome.notes)
    differences = _differences(found, next(iter(models)))
    return ModelComparison(folder.images.name, tuple(models), tuple(conditions), outcomes, differences, tuple(notes))


def model_names(paths: Sequence[str | Path]) -> list[str]:
    """Return names for model files: the shortest ends of their paths that tell them apart.

    Args:
        paths: of different files.

    Raises:
        ValueError: the same file twice.
    """
    whole = [Path(path).resolve() for path in paths]
    twice = sorted({str(path) for path in whole if whole.count(path) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice: a comparison needs different models")
    return [_shortest_end(path, [other for other in whole if other != path]) for path in whole]


def comparison_text(comparison: ModelComparison) -> str:
    """Return the table: a block for each shown number, models down, conditions across.

    Args:
        comparison: what was measured.

    Returns:
        Lines of text without a newline at the end.
    """
    blocks = [_block(comparison, number) for number in comparison.shown]
    rows = [row for heads, *of_models in blocks for row in (None, heads, None, *of_models)]
    caption = f"{comparison.protocol}: {comparison.data}, percent, 95 % intervals"
    return "\n".join([caption, *aligned([*rows, None], "<"), *comparison.notes])


def comparison_csv(comparison: ModelComparison) -> str:
    """Return all numbers as CSV: a row for each model and condition; numbers that the data does not give are empty."""
    first = next(iter(comparison.outcomes.values()))
    names = ["model", "condition", *(f"{name}{end}" for name in first.numbers for end in ("", "_low", "_high"))]
    names += [f"{name}_{what}" for name in comparison.shown for what in ("difference", "p_value")]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for (model, condition), outcome in comparison.outcomes.items():
        row: dict[str, str | float] = {"model": model, "condition": condition}
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
    """Draw the table as groups of bars: a panel for each shown number, a group for each condition, a bar a model.

    Args:
        comparison: what was measured.
        path: PNG to write.
    """
    bars = len(comparison.models) * len(comparison.conditions)
    width = max(4.2, 1.0 + 0.85 * bars) * len(comparison.shown)
    figure = Figure(figsize=(width, 5.4), dpi=DPI, layout="constrained")
    for axes, number in zip(figure.subplots(1, len(comparison.shown), sharey=True), comparison.shown, strict=True):
        _draw_bars(axes, comparison, number)
    figure.suptitle(
        f"{_TITLES[comparison.protocol]} on {comparison.data}, with 95 % intervals", fontsize=14, fontweight="bold"
    )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), fontsize=11, frameon=False)
    save_figure(figure, path)


def write_comparison(comparison: ModelComparison, folder: Path) -> None:
    """Write ``comparison.txt``, ``comparison.csv`` and ``comparison.png``.

    Args:
        comparison: what was measured.
        folder: which exists.

    Raises:
        OSError: a file cannot be written; what was there before is untouched.
    """
    write_atomically(folder / "comparison.txt", comparison_text(comparison) + "\n")
    write_atomically(folder / "comparison.csv", comparison_csv(comparison))
    plot_comparison(comparison, folder / "comparison.png")


def _shortest_end(path: Path, others: Sequence[Path]) -> str:
    """Return the shortest end of a path that no other path has."""
    lengths = range(1, len(path.parts))
    ends = (
        path.parts[-length:] for length in lengths if path.parts[-length:] not in {o.parts[-length:] for o in others}
    )
    return "/".join(next(ends, path.parts))


def _differences(
    found: Mapping[tuple[str, str], Identification], baseline: str
) -> dict[tuple[str, str, str], Comparison]:
    """Compare each model with the first one, on the same probes."""
    differences = {}
    for (model, condition), second in found.items():
        if model == baseline:
            continue
        first = found[baseline, condition]
        f1 = [macro_f1(one.labels, one.predicted) for one in (first, second)]
        differences[model, condition, "f1_score"] = compare_macro_f1(*f1)
        differences[model, condition, "rank-1"] = compare_decisions(first.correct, second.correct, first.labels)
    return differences


def _block(comparison: ModelComparison, number: str) -> list[list[str]]:
    """Return the rows of one number: heads, models, differences to the first model."""
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
        axes.bar(middles, values, 0.92 * width, color=color, hatch=hatch, edgecolor="white", label=model)
        beyond = np.abs(ends.T - values)  # (2, conditions): below, above
        axes.errorbar(middles, values, beyond, fmt="none", ecolor=BLACK, elinewidth=1.4, capsize=4)
        for place, value, top in zip(middles, values, ends[:, 1], strict=True):
            axes.annotate(
                f"{value:.1f}", (place, top), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=10
            )
    axes.set_xticks(places, comparison.conditions)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    dress(axes, number, "", "percent")
    axes.tick_params(axis="x", labelsize=11, length=0)
    axes.grid(False, axis="x")
