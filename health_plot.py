"""A picture of a training's health, epoch by epoch: what ``health.HealthMonitor`` logged.

Its panels are drawn onto given axes, so that the PNG file (``health.png``) and the report show the same.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from plot_style import BLUE, DPI, GREY, ORANGE, SKY, VERMILION, dress, save_figure
from training_metrics import logged_rows, read_metrics

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
    rows = health_rows(table)
    if rows.empty:
        return False
    figure = Figure(figsize=(9, 9.4), dpi=DPI, layout="constrained")
    gradient, cosine, norm = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1, 1.3])
    draw_gradient_norm(gradient, rows)
    draw_target_cosine(cosine, rows)
    draw_feature_norm(norm, rows)
    for axes in (gradient, cosine):
        axes.set_xlabel("")
    for axes in (gradient, norm):
        axes.legend(loc="best", fontsize=10, framealpha=0.95)
    save_figure(figure, path)
    return True


def health_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that ``health.HealthMonitor`` logged, one for each epoch.

    Args:
        table: what ``training_metrics.read_metrics`` returns.
    """
    return logged_rows(table, "feature_norm", "epoch")


def draw_gradient_norm(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the mean and the highest gradient norm of each epoch.

    Args:
        axes: changed in place; a legend is not drawn, but its entries are there.
        rows: of ``health_rows``, not empty.
    """
    _line(axes, rows, "gradient_norm_max", ORANGE, "highest")
    _line(axes, rows, "gradient_norm", BLUE, "mean")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    _dress(axes, "Gradient norm", "all parameters")


def draw_target_cosine(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the mean cosine to the own class of each epoch.

    Args:
        axes: changed in place.
        rows: of ``health_rows``, not empty.
    """
    _line(axes, rows, "target_cosine", BLUE, "")
    _dress(axes, "Cosine to the own class", "mean, before the margin")


def draw_feature_norm(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the feature norms of each epoch, and AdaFace's running statistics of them.

    Args:
        axes: changed in place; a legend is not drawn, but its entries are there.
        rows: of ``health_rows``, not empty.
    """
    epochs, mean, deviation = rows["epoch"] + 1, rows["feature_norm"], rows["feature_norm_std"]
    axes.fill_between(epochs, rows["feature_norm_min"], rows["feature_norm_max"], color=GREY, alpha=0.2, label="all")
    below = np.maximum(mean - deviation, 0)
    axes.fill_between(epochs, below, mean + deviation, color=SKY, alpha=0.5, label="mean ± deviation")
    _line(axes, rows, "feature_norm", BLUE, "mean")
    if "adaface_mean" in rows:
        _line(axes, rows, "adaface_mean", VERMILION, "AdaFace's mean, ± deviation", "--")
        for sign in (-1, 1):
            axes.plot(epochs, rows["adaface_mean"] + sign * rows["adaface_std"], color=VERMILION, linestyle=":")
    axes.set_ylim(bottom=0)
    _dress(axes, "Feature norm", "before normalisation")


def _dress(axes: Axes, title: str, y_label: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=13, steps=[1, 2, 5, 10], integer=True))
    dress(axes, title, "epoch", y_label)


def _line(axes: Axes, rows: pd.DataFrame, column: str, color: str, label: str, style: str = "-") -> None:
    marker = "o" if len(rows) <= _FEW_EPOCHS else None
    axes.plot(
        rows["epoch"] + 1, rows[column], color=color, linewidth=2, marker=marker, markersize=4, linestyle=style,
        label=label,
    )  # fmt: skip
