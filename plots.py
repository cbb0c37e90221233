"""Pictures of a run: training curves, ROC, similarity histograms. matplotlib without a display and global state."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atomic_files import atomic_file
from evaluate_utils import roc
from results import SetResult

# Okabe and Ito's colours, told apart by colour-blind eyes too
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#777777"
_DPI = 130
_SMOOTH_SHARE = 0.03
_HISTOGRAM_COLUMNS = 3


def read_metrics(folder: Path) -> pd.DataFrame:
    """Read the metrics of a run, of its resumed parts too.

    Where a resumed part repeats steps of an earlier one, the later counts.

    Args:
        folder: holds ``version_<n>/metrics.csv`` as Lightning's CSVLogger writes them.

    Returns:
        All rows in order of their step; empty where nothing was logged.
    """
    files = sorted(folder.glob("version_*/metrics.csv"), key=lambda file: int(file.parent.name.split("_")[1]))
    parts: list[pd.DataFrame] = []
    for file in files:
        part = pd.read_csv(file)
        if len(part):
            parts = [earlier[earlier["step"] < part["step"].min()] for earlier in parts] + [part]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"step": []})


def plot_loss(metrics: Path, path: Path) -> None:
    """Draw the training loss with the learning rate's drops, and below it the validation accuracies.

    Args:
        metrics: folder of the run's metrics, see ``read_metrics``.
        path: PNG to write.
    """
    rows = read_metrics(metrics)
    accuracies = [c for c in rows.columns if c.endswith("_acc") and rows[c].notna().any()]
    figure, axes = _figure(1 + bool(accuracies), 1, width=9.0, height=3.4)
    _draw_loss(axes[0], rows)
    if accuracies:
        _draw_accuracies(axes[1], rows, accuracies)
    axes[-1].set_xlabel("training step")
    _save(figure, path)


def plot_roc(results: Sequence[SetResult], path: Path) -> None:
    """Draw the ROC of each set over a logarithmic false accept rate.

    Args:
        results: of each set; those without both kinds of pairs are left out.
        path: PNG to write.
    """
    figure, (ax,) = _figure(1, 1, width=7.5, height=5.2)
    lowest = 1.0
    for color, result in zip(_cycle(len(results)), results, strict=True):
        if not math.isnan(result.auc):
            far, tar, _ = roc(result.similarity, result.issame)
            step = 1 / int((~result.issame).sum())
            lowest = min(lowest, step)
            label = f"{result.name} (AUC {result.auc:.2f} %)"
            ax.plot(np.maximum(far, step), 100 * tar, color=color, label=label, lw=1.8, drawstyle="steps-post")
    ax.set(xscale="log", xlim=(lowest, 1), ylim=(0, 101))
    ax.set(xlabel="false accept rate", ylabel="true accept rate, %", title="Verification: ROC of each set")
    if ax.lines:
        ax.legend(loc="lower right", frameon=False)
    _save(figure, path)


def plot_similarity_histograms(results: Sequence[SetResult], path: Path) -> None:
    """Draw how the similarities of genuine and of impostor pairs are spread, with each set's threshold.

    Args:
        results: of each set.
        path: PNG to write.
    """
    columns = min(_HISTOGRAM_COLUMNS, max(1, len(results)))
    rows = max(1, math.ceil(len(results) / columns))
    figure, axes = _figure(rows, columns, width=4.4 * columns, height=3.2)
    bins = np.linspace(-0.5, 1.0, 61)
    for ax, result in zip(axes, results, strict=False):
        kinds = (("impostor", result.similarity[~result.issame], _COLORS[1]),
                 ("genuine", result.similarity[result.issame], _COLORS[0]))  # fmt: skip
        for label, values, color in kinds:
            if len(values):
                ax.hist(np.clip(values, bins[0], bins[-1]), bins, color=color, alpha=0.65, label=label)
        ax.axvline(result.threshold, color=_GREY, ls="--", lw=1.2, label=f"threshold {result.threshold:.2f}")
        ax.set(title=f"{result.name}: {result.accuracy:.2f} %", xlabel="cosine similarity", ylabel="pairs")
        ax.legend(frameon=False, fontsize=8)
    for ax in axes[len(results) :]:
        ax.set_axis_off()
    _save(figure, path)


def _draw_loss(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set(title="Training loss", ylabel="loss")
    if "train_loss" not in rows or not rows["train_loss"].notna().any():
        ax.text(0.5, 0.5, "nothing was logged yet", ha="center", va="center", transform=ax.transAxes, color=_GREY)
        return
    logged = rows[rows["train_loss"].notna()]
    window = max(1, int(len(logged) * _SMOOTH_SHARE))
    ax.plot(logged["step"], logged["train_loss"], color=_COLORS[0], alpha=0.3 if window > 1 else 1.0, lw=1)
    if window > 1:
        smooth = logged["train_loss"].rolling(window, center=True, min_periods=1).mean()
        ax.plot(logged["step"], smooth, color=_COLORS[0], lw=2)
    if "lr" in logged:
        lr = logged["lr"].ffill()
        for place in np.flatnonzero(np.diff(lr) != 0):
            ax.axvline(logged["step"].iloc[place + 1], color=_GREY, ls=":", lw=1)
            top = ax.get_xaxis_transform()
            ax.text(logged["step"].iloc[place + 1], 0.98, f" lr {lr.iloc[place + 1]:g}", color=_GREY, fontsize=8,
                    va="top", transform=top)  # fmt: skip


def _draw_accuracies(ax: Axes, rows: pd.DataFrame, accuracies: list[str]) -> None:
    sets = [name for name in accuracies if name != "val_acc"]
    for color, name in zip(_cycle(len(sets)), sets, strict=True):
        points = rows[rows[name].notna()]
        label = name.removesuffix("_acc")
        ax.plot(points["step"], points[name], color=color, lw=1.2, marker="o", ms=3, label=label)
    points = rows[rows["val_acc"].notna()]
    ax.plot(points["step"], points["val_acc"], color="black", lw=2.2, marker="o", ms=4, label="mean")
    ax.set(title="Validation accuracy", ylabel="accuracy, %")
    ax.legend(frameon=False, ncols=3, fontsize=8, loc="lower right")


def _cycle(count: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(count)]


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row; ``height`` is that of one row, in inches."""
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    flat: list[Axes] = list(axes.ravel())
    for ax in flat:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, flat


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
