"""Pictures of a run: its loss, the ROC curves and the similarities of genuine and impostor pairs, as PNG files.

How they look is in ``plot_style.py``; the training's health has pictures of its own (``health_plot.py``).
"""

import math
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from evaluate_utils import auc, roc, tar_at_far
from plot_style import BLACK, BLUE, DPI, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, dress, save_figure
from training_metrics import read_metrics

_PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_LINE_STYLES = ("-", "--", ":", "-.")
_MOST_BINS = 60
_FEWEST_BINS = 10
_SMOOTHED_SHARE = 1 / 40
_WIDEST_GRID = 4
_MOST_LEVELS = 6  # of a learning rate that falls in steps
_LEGEND_FAR = 1e-3
_MARGIN = 1.012
_CHANCE_BELOW = 0.5
_WHOLE_EPOCHS_FROM = 3
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")


class ScoredPairs(Protocol):
    """A verification set whose pairs have scores; ``results.SetResult`` is one."""

    @property
    def name(self) -> str:
        """Name of the set."""

    @property
    def accuracy(self) -> float:
        """Mean accuracy, percent; NaN where there is none."""

    @property
    def cosine_threshold(self) -> float:
        """Similarity above which pairs are called the same; NaN where there is none."""

    @property
    def similarity(self) -> np.ndarray:
        """Cosine of each pair, (P,)."""

    @property
    def issame(self) -> np.ndarray:
        """Whether each pair shows one person, (P,) booleans."""


def plot_loss(metrics: str | Path | pd.DataFrame, path: str | Path) -> bool:
    """Draw training loss and learning rate by step, and validation accuracy by epoch.

    Args:
        metrics: what ``training_metrics.read_metrics`` takes or returns.
        path: PNG to write.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    table = metrics if isinstance(metrics, pd.DataFrame) else read_metrics(metrics)
    training, validation = _training_rows(table), _validation_rows(table)
    if training.empty and validation.empty:
        return False
    # the step that ends the first epoch: validations are at epochs' ends or evenly inside them
    epoch_steps = max((validation["step"] + 1) / (validation["epoch"] + 1), default=0.0)
    last_step = (
        max(training["step"].max(), validation["step"].max()) if not training.empty else validation["step"].max()
    )
    heights = [3.2] * (not training.empty) + [1.1] * (not training.empty) + [3.0] * (not validation.empty)
    figure = Figure(figsize=(9, 1.2 + sum(heights)), dpi=DPI, layout="constrained")
    axes = iter(figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0])
    if not training.empty:
        _draw_loss(next(axes), training, last_step)
        _draw_learning_rate(next(axes), training, last_step)
    if not validation.empty:
        _draw_accuracy(next(axes), validation, epoch_steps, last_step)
    save_figure(figure, path)
    return True


def plot_roc(sets: Sequence[ScoredPairs], path: str | Path) -> bool:
    """Draw the ROC curve of each set over a logarithmic FAR axis.

    Args:
        sets: scored pairs; sets with genuine or impostor pairs alone have no curve and are named below the picture.
        path: PNG to write.

    Returns:
        Whether any set has a curve; if not, no file is written.
    """
    drawn, left_out = _with_both_kinds(sets)
    if not drawn:
        return False
    figure = Figure(figsize=(8, 6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    lowest_far, lowest_tar = 0.1, 1.0
    looks = _line_looks([scored.name for scored in sets])
    for scored in drawn:
        far, tar, _ = roc(scored.similarity, scored.issame)
        resolution = 1 / int((~scored.issame).sum())  # what one impostor pair makes
        first = np.searchsorted(far, resolution, side="right") - 1
        axes.plot(
            np.maximum(far[first:], resolution), tar[first:], **looks[scored.name], linewidth=2,
            drawstyle="steps-post", label=_roc_label(scored),
        )  # fmt: skip
        lowest_far, lowest_tar = min(lowest_far, resolution), min(lowest_tar, float(tar[first]))
    if lowest_tar < _CHANCE_BELOW:
        chance = np.geomspace(lowest_far, 1, 200)
        axes.plot(chance, chance, color=GREY, linewidth=1.2, linestyle=(0, (2, 3)), label="chance")
    axes.set_xscale("log")
    axes.set_xlim(lowest_far, 1)
    bottom = max(0.0, math.floor(lowest_tar * 10 - 0.5) / 10)
    axes.set_ylim(bottom, 1 + 0.02 * (1 - bottom))
    axes.yaxis.set_major_formatter(_PERCENT)
    dress(axes, "ROC by verification set", "false accept rate (FAR)", "true accept rate (TAR)")
    axes.legend(loc="lower right", fontsize=10, framealpha=0.95)
    _footnote(figure, left_out)
    save_figure(figure, path)
    return True


def plot_similarity_histograms(sets: Sequence[ScoredPairs], path: str | Path) -> bool:
    """Draw, for each set, how similar genuine and impostor pairs are, and the threshold between them.

    Args:
        sets: scored pairs.
        path: PNG to write.

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
    low = min(float(scored.similarity.min()) for scored in drawn)
    high = max(float(scored.similarity.max()) for scored in drawn)
    for place, axes in enumerate(grid.flat):
        if place >= len(drawn):
            axes.remove()
            continue
        _draw_histogram(axes, drawn[place], low, high)
        is_lowest = place + columns >= len(drawn)
        axes.tick_params(labelbottom=is_lowest)
        title = drawn[place].name
        if not math.isnan(drawn[place].accuracy):
            title += f" · {drawn[place].accuracy:.2f} %"
        dress(
            axes, title, "cosine similarity" if is_lowest else "", "" if place % columns else "share of pairs per bin"
        )
    figure.suptitle("Similarity of pairs, by verification set and its accuracy", fontsize=14, fontweight="bold")
    legends = (axes.get_legend_handles_labels() for axes in figure.axes)
    entries = {label: handle for handles, labels in legends for handle, label in zip(handles, labels, strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    save_figure(figure, path)
    return True


# the panels of plot_loss


def _draw_loss(axes: Axes, training: pd.DataFrame, last_step: float) -> None:
    steps, loss = training["step"] + 1, training["train_loss"]
    if len(loss) > 1 / _SMOOTHED_SHARE:
        window = 2 * int(len(loss) * _SMOOTHED_SHARE / 2) + 1
        smoothed = loss.rolling(window, center=True, min_periods=1).mean()
        axes.plot(steps, loss, color=SKY, linewidth=0.8, alpha=0.55, label="logged")
        axes.plot(steps, smoothed, color=BLUE, linewidth=2, label="smoothed")
        axes.legend(loc="upper right", fontsize=10, framealpha=0.95)
        low, high = np.nanpercentile(loss, [0, 99.5])
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9)
    else:
        axes.plot(steps, loss, color=BLUE, linewidth=2, marker="o", markersize=4)
    axes.set_xlim(0, _MARGIN * (last_step + 1))
    axes.tick_params(labelbottom=False)
    dress(axes, "Training", "", "cross-entropy loss")


def _draw_learning_rate(axes: Axes, training: pd.DataFrame, last_step: float) -> None:
    rates = training.dropna(subset=["lr"]) if "lr" in training else training.iloc[:0]
    if rates.empty:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=GREY)
    else:
        axes.plot(rates["step"] + 1, rates["lr"], color=VERMILION, linewidth=2, drawstyle="steps-pre")
        lowest, highest = rates["lr"].min(), rates["lr"].max()
        levels = sorted(set(rates["lr"].round(12)))
        if lowest > 0 and len(levels) <= _MOST_LEVELS:
            axes.set_yscale("log")
            axes.set_ylim(lowest / 2, highest * 2)
            axes.set_yticks(levels[-_WIDEST_GRID:], minor=False)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.minorticks_off()
        elif highest > 0:  # another rate at each step
            axes.set_ylim(0, 1.08 * highest)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.set_xlim(0, _MARGIN * (last_step + 1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    dress(axes, "", "training step", "learning rate")


def _draw_accuracy(axes: Axes, validation: pd.DataFrame, epoch_steps: float, last_step: float) -> None:
    epochs = (validation["step"] + 1) / epoch_steps
    marker = "o" if len(validation) <= 1 / _SMOOTHED_SHARE else None
    best = int(np.argmax(validation["val_acc"]))
    best_accuracy = validation["val_acc"].iloc[best]
    axes.plot(epochs, validation["val_acc"], color=BLACK, linewidth=3.2, marker=marker, label="mean")
    axes.plot(
        epochs.iloc[best], best_accuracy, marker="*", markersize=17, color=BLACK, markeredgecolor="white",
        linestyle="none", zorder=5, label=f"best mean: {best_accuracy:.2f} %",
    )  # fmt: skip
    columns = [str(column) for column in validation if validation[column].notna().any()]
    names = [name for name in columns if name.endswith("_acc") and name != "val_acc"]
    if len(names) > 1:
        for name, look in _line_looks([name.removesuffix("_acc") for name in names]).items():
            axes.plot(epochs, validation[f"{name}_acc"], **look, linewidth=1.5, label=name)
    axes.set_xlim(0, _MARGIN * (last_step + 1) / epoch_steps)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=13, steps=[1, 2, 5, 10], integer=epochs.max() >= _WHOLE_EPOCHS_FROM))
    dress(axes, "Validation", "epoch", "accuracy (%)")
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=10, frameon=False
    )


def _training_rows(table: pd.DataFrame) -> pd.DataFrame:
    if "train_loss" not in table:
        return table.iloc[:0]
    return table[np.isfinite(table["train_loss"])].drop_duplicates("step", keep="last")


def _validation_rows(table: pd.DataFrame) -> pd.DataFrame:
    if "val_acc" not in table:
        return table.iloc[:0]
    return table[np.isfinite(table["val_acc"])].drop_duplicates("step", keep="last")


# the pictures of scores


def _draw_histogram(axes: Axes, scored: ScoredPairs, low: float, high: float) -> None:
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
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_ylim(bottom=0)


def _roc_label(scored: ScoredPairs) -> str:
    """Return the name with AUC, and with the TAR at the lowest of the usual FARs that the impostor pairs give."""
    impostors = int((~scored.issame).sum())
    far = max(_LEGEND_FAR, 10.0 ** math.ceil(-math.log10(impostors)))
    tar = tar_at_far(scored.similarity, scored.issame, [far])[far]
    area = auc(scored.similarity, scored.issame)
    return f"{scored.name}: AUC {100 * area:.2f} %, TAR {100 * tar:.2f} % at FAR {far:g}"


def _with_both_kinds(sets: Iterable[ScoredPairs]) -> tuple[list[ScoredPairs], list[str]]:
    """Return the sets that have genuine and impostor pairs, and the names of the others."""
    both, others = [], []
    for scored in sets:
        if len(scored.issame) and 0 < int(scored.issame.sum()) < len(scored.issame):
            both.append(scored)
        else:
            others.append(scored.name)
    return both, others


def _line_looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line style by name, the same in each picture: they go by alphabet, not by order."""
    looks = ({"color": color, "linestyle": style} for style in cycle(_LINE_STYLES) for color in _PALETTE)
    return dict(zip(sorted(names), looks, strict=False))


def _grid_columns(count: int) -> int:
    """Return a number of columns that leaves few places empty: 1, 2, 3, 2 for 4, 3 up to 9, then 4."""
    if count <= 3:
        return count
    if count == 4:
        return 2
    return 3 if count <= 9 else _WIDEST_GRID


def _footnote(figure: Figure, left_out: Sequence[str]) -> None:
    if left_out:
        text = f"no curve, for want of genuine or impostor pairs: {', '.join(left_out)}"
        figure.supxlabel(text, fontsize=9, color=GREY, x=0.01, ha="left")
