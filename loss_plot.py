"""The curves of a training: loss and learning rate by step, validation accuracy by epoch.

Each is drawn onto given axes, so that the PNG file (``loss.png``) and the report show the same.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from plot_style import BLACK, BLUE, DPI, GREY, SKY, VERMILION, dress, line_looks, plain, save_figure
from training_metrics import logged_rows, read_metrics

_SMOOTHED_SHARE = 1 / 40
_MOST_LEVELS = 6  # of a learning rate that falls in steps
_LABELLED_LEVELS = 4
_MARGIN = 1.012
_WHOLE_EPOCHS_FROM = 3
_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def plot_loss(metrics: str | Path | pd.DataFrame, path: str | Path) -> bool:
    """Draw training loss and learning rate by step, and validation accuracy by epoch.

    Args:
        metrics: what ``training_metrics.read_metrics`` takes or returns.
        path: PNG to write.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    table = metrics if isinstance(metrics, pd.DataFrame) else read_metrics(metrics)
    has_training, has_validation = not training_rows(table).empty, not validation_rows(table).empty
    if not has_training and not has_validation:
        return False
    heights = [3.2] * has_training + [1.1] * has_training + [3.0] * has_validation
    figure = Figure(figsize=(9, 1.2 + sum(heights)), dpi=DPI, layout="constrained")
    axes = iter(figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0])
    if has_training:
        loss, rate = next(axes), next(axes)
        draw_loss(loss, table)
        loss.tick_params(labelbottom=False)
        loss.set_xlabel("")
        draw_learning_rate(rate, table)
        rate.set_title("")
    if has_validation:
        accuracy = next(axes)
        draw_accuracy(accuracy, table)
        entries = accuracy.get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    save_figure(figure, path)
    return True


def training_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have a finite training loss, one for each step.

    Args:
        table: what ``training_metrics.read_metrics`` returns.
    """
    return logged_rows(table, "train_loss", "step")


def validation_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have a validation accuracy, one for each step.

    Args:
        table: what ``training_metrics.read_metrics`` returns.
    """
    return logged_rows(table, "val_acc", "step")


def draw_loss(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the training loss by step; of many steps also a smoothed curve.

    Args:
        axes: changed in place.
        table: has a row with a training loss.
    """
    training = training_rows(table)
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
    axes.set_xlim(0, _MARGIN * (_last_step(table) + 1))
    axes.xaxis.set_major_formatter(_THOUSANDS)
    dress(axes, "Training", "training step", "cross-entropy loss")


def draw_learning_rate(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the learning rate by step.

    Args:
        axes: changed in place.
        table: has a row with a training loss.
    """
    training = training_rows(table)
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
            axes.set_yticks(levels[-_LABELLED_LEVELS:], minor=False)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.minorticks_off()
        elif highest > 0:  # another rate at each step
            axes.set_ylim(0, 1.08 * highest)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.set_xlim(0, _MARGIN * (_last_step(table) + 1))
    axes.xaxis.set_major_formatter(_THOUSANDS)
    dress(axes, "Learning rate", "training step", "learning rate")


def draw_accuracy(axes: Axes, table: pd.DataFrame, among: Sequence[str] = ()) -> None:
    """Draw the validation accuracy, mean and by set, by epoch.

    Args:
        axes: changed in place; a legend is not drawn, but its entries are there.
        table: has a row with a validation accuracy.
        among: names of all sets of this report, for equal colours in all its pictures; those of ``table`` if none.
    """
    validation = validation_rows(table)
    # the step that ends the first epoch: validations are at epochs' ends or evenly inside them
    epoch_steps = max((validation["step"] + 1) / (validation["epoch"] + 1))
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
    names = [name.removesuffix("_acc") for name in columns if name.endswith("_acc") and name != "val_acc"]
    if len(names) > 1:
        looks = line_looks({*names, *among})
        for name in sorted(names):
            axes.plot(epochs, validation[f"{name}_acc"], **looks[name], linewidth=1.5, label=plain(name))
    axes.set_xlim(0, _MARGIN * (_last_step(table) + 1) / epoch_steps)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=13, steps=[1, 2, 5, 10], integer=epochs.max() >= _WHOLE_EPOCHS_FROM))
    dress(axes, "Validation", "epoch", "accuracy (%)")


def _last_step(table: pd.DataFrame) -> float:
    return max(rows["step"].max() for rows in (training_rows(table), validation_rows(table)) if not rows.empty)
