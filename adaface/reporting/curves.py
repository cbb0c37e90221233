"""Plots of scored pairs: ROC and DET curves, and similarity histograms of genuine and impostor pairs.

Each is drawn onto given axes, so that the PNG files (``roc.png``, ``similarity.png``) and the report show the same
plots. The style is in ``reporting/style.py``; plots of a training run are in ``reporting/training.py``.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from adaface.metrics.verification import auc, eer, roc, tar_at_far
from adaface.reporting.style import (
    BLACK,
    BLUE,
    DPI,
    GRAY,
    PERCENT,
    POWER_OF_TEN,
    VERMILION,
    dress,
    line_looks,
    plain,
    save_figure,
)

_MOST_BINS = 60
_FEWEST_BINS = 10
_WIDEST_GRID = 4
_LEGEND_FAR = 1e-3
_CHANCE_BELOW = 0.5
_SCREEN_COLUMNS = 800
_CHANCE: dict[str, Any] = {"color": GRAY, "linewidth": 1.2, "linestyle": (0, (2, 3))}


class ScoredPairs(Protocol):
    """A verification set whose pairs have scores; ``metrics.results.SetResult`` is one."""

    @property
    def name(self) -> str:
        """Name of the set."""

    @property
    def accuracy(self) -> float:
        """Mean accuracy in percent; NaN if unknown."""

    @property
    def cosine_threshold(self) -> float:
        """Similarity above which pairs are accepted; NaN if unknown."""

    @property
    def similarity(self) -> np.ndarray:
        """Cosine of each pair, (P,)."""

    @property
    def issame(self) -> np.ndarray:
        """Whether each pair is genuine (same person), (P,) booleans."""


def plot_roc(sets: Sequence[ScoredPairs], path: str | Path) -> bool:
    """Draw the ROC curve of each set over a logarithmic FAR axis.

    Args:
        sets: scored pairs; sets with only genuine or only impostor pairs have no curve and are named below the plot.
        path: PNG file to write.

    Returns:
        Whether any set has a curve; if not, no file is written.
    """
    drawn, left_out = with_both_kinds(sets)
    if not drawn:
        return False
    figure = Figure(figsize=(8, 6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    draw_roc(axes, drawn, among=[scored.name for scored in sets])
    axes.legend(loc="lower right", fontsize=10, framealpha=0.95)
    if left_out:
        text = f"no curve, because genuine or impostor pairs are missing: {plain(', '.join(left_out))}"
        figure.supxlabel(text, fontsize=9, color=GRAY, x=0.01, ha="left")
    save_figure(figure, path)
    return True


def plot_similarity_histograms(sets: Sequence[ScoredPairs], path: str | Path) -> bool:
    """Draw the similarity histograms of the genuine and impostor pairs of each set, with its threshold.

    Args:
        sets: scored pairs.
        path: PNG file to write.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    drawn = [scored for scored in sets if len(scored.similarity)]
    if not drawn:
        return False
    columns = _grid_columns(len(drawn))
    rows = math.ceil(len(drawn) / columns)
    size = (max(6.5, 3.9 * columns), 1.4 + 3.1 * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    span = similarity_span(drawn)
    for place, axes in enumerate(grid.flat):
        if place >= len(drawn):
            axes.remove()
            continue
        draw_similarities(axes, drawn[place], span)
        is_below = place + columns < len(drawn)  # whether there is a plot below
        axes.tick_params(labelbottom=not is_below)
        if is_below:
            axes.set_xlabel("")
        if place % columns:
            axes.set_ylabel("")
    figure.suptitle("Similarity of pairs by verification set, with accuracy", fontsize=14, fontweight="bold")
    legends = (axes.get_legend_handles_labels() for axes in figure.axes)
    entries = {label: handle for handles, labels in legends for handle, label in zip(handles, labels, strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    save_figure(figure, path)
    return True


def with_both_kinds(sets: Iterable[ScoredPairs]) -> tuple[list[ScoredPairs], list[str]]:
    """Return the sets with both genuine and impostor pairs, and the names of the other sets.

    Args:
        sets: scored pairs.
    """
    both, others = [], []
    for scored in sets:
        if len(scored.issame) and 0 < int(scored.issame.sum()) < len(scored.issame):
            both.append(scored)
        else:
            others.append(scored.name)
    return both, others


def similarity_span(sets: Iterable[ScoredPairs]) -> tuple[float, float]:
    """Return the lowest and the highest similarity of all pairs, for histograms with a common range.

    Args:
        sets: scored pairs, at least one of each set.
    """
    ends = [(float(scored.similarity.min()), float(scored.similarity.max())) for scored in sets]
    return min(low for low, _ in ends), max(high for _, high in ends)


def draw_roc(axes: Axes, sets: Sequence[ScoredPairs], among: Iterable[str] = ()) -> None:
    """Draw the ROC curves of some sets over a logarithmic FAR axis, and that of chance if a curve is near it.

    Args:
        axes: changed in place; the legend entries are set, the legend is not drawn.
        sets: scored pairs, each with genuine and impostor pairs.
        among: names of all sets of this report, so that all plots use the same colors; defaults to those of ``sets``.
    """
    looks = line_looks(list(among) or [scored.name for scored in sets])
    lowest_far, lowest_tar = 0.1, 1.0
    for scored in sets:
        far, tar = _on_screen(scored)
        label = _roc_label(scored)
        axes.plot(far, tar, **looks[scored.name], linewidth=2, drawstyle="steps-post", label=label)
        lowest_far, lowest_tar = min(lowest_far, float(far[0])), min(lowest_tar, float(tar[0]))
    if lowest_tar < _CHANCE_BELOW:
        chance = np.geomspace(lowest_far, 1, 200)
        axes.plot(chance, chance, **_CHANCE, label="chance")
    axes.set_xscale("log")
    _label_powers(axes.xaxis)
    axes.set_xlim(lowest_far, 1)
    bottom = max(0.0, math.floor(lowest_tar * 10 - 0.5) / 10)
    axes.set_ylim(bottom, 1 + 0.02 * (1 - bottom))
    axes.yaxis.set_major_formatter(PERCENT)
    dress(axes, "ROC by verification set", "false accept rate (FAR)", "true accept rate (TAR)")


def draw_det(axes: Axes, sets: Sequence[ScoredPairs], among: Iterable[str] = ()) -> None:
    """Draw the detection error tradeoff of some sets on logarithmic axes, and the line of equal error rates.

    Args:
        axes: changed in place; the legend entries are set, the legend is not drawn.
        sets: scored pairs, each with genuine and impostor pairs.
        among: as in ``draw_roc``.
    """
    looks = line_looks(list(among) or [scored.name for scored in sets])
    lowest_far, lowest_frr = 0.1, 0.1
    for scored in sets:
        far, tar = _on_screen(scored)
        resolution = 1 / int(scored.issame.sum())  # share of one genuine pair
        left = np.searchsorted(tar, 1) + 1  # up to zero rejections, which a logarithmic axis cannot show
        far, frr = far[:left], np.maximum(1 - tar[:left], resolution)
        label = plain(f"{scored.name}: equal error rate {100 * eer(scored.similarity, scored.issame):.2f} %")
        axes.plot(far, frr, **looks[scored.name], linewidth=2, drawstyle="steps-post", label=label)
        lowest_far, lowest_frr = min(lowest_far, float(far[0])), min(lowest_frr, resolution)
    equal = np.array([max(lowest_far, lowest_frr), 1])
    axes.plot(equal, equal, **_CHANCE, label="equal error rates")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _label_powers(axes.xaxis)
    _label_powers(axes.yaxis)
    axes.set_xlim(lowest_far, 1)
    axes.set_ylim(lowest_frr / 1.1, 1.1)
    dress(axes, "DET by verification set", "false accept rate (FAR)", "false reject rate (FRR)")


def draw_similarities(axes: Axes, scored: ScoredPairs, span: tuple[float, float]) -> None:
    """Draw the similarity histograms of the genuine and impostor pairs of a set, with its threshold.

    Args:
        axes: changed in place; the legend entries are set, the legend is not drawn.
        scored: at least one pair.
        span: lowest and highest similarity shown, as returned by ``similarity_span``.
    """
    low, high = span
    bins = int(np.clip(2 * math.sqrt(len(scored.similarity)), _FEWEST_BINS, _MOST_BINS))
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.05, low + 0.05])
    for same, color, label in ((False, VERMILION, "impostor pairs"), (True, BLUE, "genuine pairs")):
        chosen = scored.similarity[scored.issame == same]
        if len(chosen):
            counts, _ = np.histogram(chosen, edges)
            axes.stairs(counts / len(chosen), edges, fill=True, color=color, alpha=0.35)
            axes.stairs(counts / len(chosen), edges, color=color, linewidth=1.6, label=label)
    if not math.isnan(scored.cosine_threshold):
        axes.axvline(scored.cosine_threshold, color=BLACK, linewidth=1.4, linestyle="--", label="threshold")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_ylim(bottom=0)
    title = scored.name if math.isnan(scored.accuracy) else f"{scored.name} · {scored.accuracy:.2f} %"
    dress(axes, plain(title), "cosine similarity", "share of pairs per bin")


def _label_powers(axis: Axis) -> None:
    axis.set_major_formatter(POWER_OF_TEN)
    axis.set_minor_formatter(NullFormatter())


def _on_screen(scored: ScoredPairs) -> tuple[np.ndarray, np.ndarray]:
    """Return FAR (at least that of one impostor pair) and TAR of a curve, at the resolution of a screen."""
    far, tar, _ = roc(scored.similarity, scored.issame)
    resolution = 1 / int((~scored.issame).sum())
    first = np.searchsorted(far, resolution, side="right") - 1
    far, tar = np.maximum(far[first:], resolution), tar[first:]
    column = np.floor(np.log(far / resolution) * (_SCREEN_COLUMNS / max(-math.log(resolution), 1)))
    row = np.floor(tar * _SCREEN_COLUMNS)
    moved = np.diff(column, prepend=-1) + np.diff(row, prepend=-1) > 0
    moved[-1] = True
    return far[moved], tar[moved]


def _roc_label(scored: ScoredPairs) -> str:
    """Return the name with AUC, and the TAR at the lowest usual FAR that the impostor pairs allow to measure."""
    impostors = int((~scored.issame).sum())
    far = max(_LEGEND_FAR, 10.0 ** math.ceil(-math.log10(impostors)))
    tar = tar_at_far(scored.similarity, scored.issame, [far])[far]
    area = auc(scored.similarity, scored.issame)
    return plain(f"{scored.name}: AUC {100 * area:.2f} %, TAR {100 * tar:.2f} % at FAR {far:g}")


def _grid_columns(count: int) -> int:
    """Return a number of columns that leaves few cells empty: 1, 2, 3, 2 for 4, 3 up to 9, then 4."""
    if count <= 3:
        return count
    if count == 4:
        return 2
    return 3 if count <= 9 else _WIDEST_GRID
