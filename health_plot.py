"""A picture of a training's health, epoch by epoch: what ``health.HealthMonitor`` logged."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from plot_style import BLUE, DPI, GREY, ORANGE, SKY, VERMILION, dress, save_figure
from training_metrics import read_metrics

_FEW_EPOCHS = 40  # up to here each epoch is a dot too


def plot_health(metrics: str | Path | pd.DataFrame, path: str | Path) -> bool:
    """Draw gradient norm, target cosine and feature norms by epoch.

    Args:
        metrics: what ``training_metrics.read_metrics`` takes or returns.
        path: PNG to write.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    table = metrics if isinstance(metrics, pd.DataFrame) else read_metrics(metrics)
    if "feature_norm" not in table:
        return False
    rows = table[np.isfinite(table["feature_norm"])].drop_duplicates("epoch", keep="last")
    if rows.empty:
        return False
    figure = Figure(figsize=(9, 9.4), dpi=DPI, layout="constrained")
    gradient, cosine, norm = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1, 1.3])
    _draw_gradient_norm(gradient, rows)
    _line(cosine, rows, "target_cosine", BLUE, "")
    dress(cosine, "Cosine to the own class", "", "mean, before the margin")
    _draw_feature_norm(norm, rows)
    norm.xaxis.set_major_locator(MaxNLocator(nbins=13, steps=[1, 2, 5, 10], integer=True))
    save_figure(figure, path)
    return True


def _draw_gradient_norm(axes: Axes, rows: pd.DataFrame) -> None:
    _line(axes, rows, "gradient_norm_max", ORANGE, "highest")
    _line(axes, rows, "gradient_norm", BLUE, "mean")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.legend(loc="best", fontsize=10, framealpha=0.95)
    dress(axes, "Gradient norm", "", "all parameters")


def _draw_feature_norm(axes: Axes, rows: pd.DataFrame) -> None:
    epochs, mean, deviation = rows["epoch"] + 1, rows["feature_norm"], rows["feature_norm_std"]
    axes.fill_between(epochs, rows["feature_norm_min"], rows["feature_norm_max"], color=GREY, alpha=0.2, label="all")
    axes.fill_between(epochs, mean - deviation, mean + deviation, color=SKY, alpha=0.5, label="mean ± deviation")
    _line(axes, rows, "feature_norm", BLUE, "mean")
    if "adaface_mean" in rows:
        _line(axes, rows, "adaface_mean", VERMILION, "AdaFace's mean, ± deviation", "--")
        for sign in (-1, 1):
            axes.plot(epochs, rows["adaface_mean"] + sign * rows["adaface_std"], color=VERMILION, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize=10, framealpha=0.95)
    dress(axes, "Feature norm", "epoch", "before normalisation")


def _line(axes: Axes, rows: pd.DataFrame, column: str, color: str, label: str, style: str = "-") -> None:
    marker = "o" if len(rows) <= _FEW_EPOCHS else None
    axes.plot(
        rows["epoch"] + 1, rows[column], color=color, linewidth=2, marker=marker, markersize=4, linestyle=style,
        label=label,
    )  # fmt: skip
