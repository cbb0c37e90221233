"""The curves of a training run: the logged metrics, and their plots.

Loss and learning rate are plotted by step, validation accuracy and the numbers of ``training.health.HealthMonitor`` by
epoch. Each panel is drawn onto given axes, so that the PNG files (``loss.png``, ``health.png``) and the report show the
same plots.
"""

import logging
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator

from adaface.reporting.style import (
    BLACK,
    BLUE,
    DPI,
    GRAY,
    ORANGE,
    SKY,
    VERMILION,
    dress,
    line_looks,
    plain,
    save_figure,
)
from adaface.system.command_line import counted

logger = logging.getLogger(__name__)

_SMOOTHED_SHARE = 1 / 40
_MOST_LEVELS = 6  # of a stepwise learning rate schedule
_LABELLED_LEVELS = 4
_MARGIN = 1.012
_NOTE_LETTERS = 110  # a line of text below a plot
_WHOLE_EPOCHS_FROM = 3
_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
_FEW_EPOCHS = 40  # up to this number, each epoch has a marker


def read_metrics(source: str | Path) -> pd.DataFrame:
    """Read the metrics written by Lightning's CSV logger, over all starts of a resumed run.

    Args:
        source: a ``metrics.csv``, or the folder with its ``version_<n>`` folders.

    Returns:
        One row for each logged step: ``step``, ``epoch``, and the logged columns among ``train_loss``, ``lr``,
        ``val_acc``, ``<set>_acc`` (percent) and the numbers of ``training.health.HealthMonitor``; NaN elsewhere. If a
        resumed run repeated steps, the later rows count. Empty if nothing was logged.

    Raises:
        ValueError: the file is not a metrics table.
    """
    source = Path(source)
    files = [source] if source.is_file() else sorted(source.glob("version_*/metrics.csv"), key=_version_number)
    table = pd.DataFrame({"step": [], "epoch": []})
    for file in files:
        try:
            newer = pd.read_csv(file)
        except pd.errors.EmptyDataError:
            continue
        if not {"step", "epoch"} <= set(newer.columns):
            raise ValueError(f"{file} has the columns {list(newer.columns)}, expected at least `step` and `epoch`")
        newer = _numbers(newer, file).dropna(subset=["step", "epoch"])
        if not newer.empty:
            table = pd.concat([table[table["step"] < newer["step"].min()], newer], ignore_index=True)
    return table


def _numbers(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Return the table with NaN in place of what is no number, which is counted in a warning."""
    numbers = table.apply(pd.to_numeric, errors="coerce")
    if others := int((numbers.isna() & table.notna()).to_numpy().sum()):
        logger.warning(f"{file} is damaged: {counted(others, 'value is', 'values are')} no number and left out")
    return numbers


def logged_rows(table: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    """Return the rows with a finite value of a metric, the last one of each step or epoch.

    Args:
        table: metrics as returned by ``read_metrics``.
        column: name of the metric; no rows are returned if it was never logged.
        by: ``step`` or ``epoch``.
    """
    if column not in table:
        return table.iloc[:0]
    return table[np.isfinite(table[column])].drop_duplicates(by, keep="last")


def _version_number(file: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", file.parent.name)
    return int(match.group(1)) if match else -1


def _as_table(metrics: str | Path | pd.DataFrame) -> pd.DataFrame:
    return metrics if isinstance(metrics, pd.DataFrame) else read_metrics(metrics)


def plot_loss(metrics: str | Path | pd.DataFrame, path: str | Path) -> bool:
    """Draw training loss and learning rate by step, and validation accuracy by epoch.

    Args:
        metrics: argument or result of ``read_metrics``.
        path: PNG file to write.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    table = _as_table(metrics)
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
    """Return the rows with a finite training loss, one for each step.

    Args:
        table: metrics as returned by ``read_metrics``.
    """
    return logged_rows(table, "train_loss", "step")


def validation_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a validation accuracy, one for each step.

    Args:
        table: metrics as returned by ``read_metrics``.
    """
    return logged_rows(table, "val_acc", "step")


def draw_loss(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the training loss by step, with a smoothed curve if there are many steps.

    Args:
        axes: changed in place.
        table: metrics with at least one training loss.
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
    _dress_by_step(axes, table, "Training", "cross-entropy loss")


def draw_learning_rate(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the learning rate by step.

    Args:
        axes: changed in place.
        table: metrics with at least one training loss.
    """
    training = training_rows(table)
    rates = training.dropna(subset=["lr"]) if "lr" in training else training.iloc[:0]
    if rates.empty:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=GRAY)
    else:
        # each logged rate is that of the steps before it, the first one since the beginning
        steps, values = np.append(0, rates["step"] + 1), np.append(rates["lr"].iloc[0], rates["lr"])
        steps[0] = max(0, 2 * steps[1] - steps[2]) if len(rates) > 1 else 0  # a table may begin at a resume
        axes.plot(steps, values, color=VERMILION, linewidth=2, drawstyle="steps-pre")
        lowest, highest = rates["lr"].min(), rates["lr"].max()
        levels = sorted(set(rates["lr"].round(12)))
        if lowest > 0 and len(levels) <= _MOST_LEVELS:
            axes.set_yscale("log")
            axes.set_ylim(lowest / 2, highest * 2)
            axes.set_yticks(levels[-_LABELLED_LEVELS:], minor=False)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.minorticks_off()
        elif highest > 0:  # a continuous schedule
            axes.set_ylim(0, 1.08 * highest)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    _dress_by_step(axes, table, "Learning rate", "learning rate")


def draw_accuracy(axes: Axes, table: pd.DataFrame, among: Sequence[str] = ()) -> None:
    """Draw the validation accuracy, mean and by set, by epoch.

    Args:
        axes: changed in place; the legend entries are set, the legend is not drawn.
        table: metrics with at least one validation accuracy.
        among: names of all sets of this report, so that all plots use the same colors; defaults to those of ``table``.
    """
    validation = validation_rows(table)
    # steps of an epoch: validations are at the end of epochs or evenly spread inside them
    epoch_steps = max((validation["step"] + 1) / (validation["epoch"] + 1))
    epochs = (validation["step"] + 1) / epoch_steps
    marker = "o" if len(validation) <= 1 / _SMOOTHED_SHARE else None
    best = int(np.argmax(validation["val_acc"]))
    best_accuracy = validation["val_acc"].iloc[best]
    columns = [str(column) for column in validation if validation[column].notna().any()]
    names = [name.removesuffix("_acc") for name in columns if name.endswith("_acc") and name != "val_acc"]
    several = len(names) > 1
    best_text = f"best mean: {best_accuracy:.2f} %"
    if not several:  # one line, one legend entry
        best_text = plain(f"{names[0] if names else 'accuracy'}, best {best_accuracy:.2f} %")
    mean_label = "mean" if several else "_nolegend_"
    axes.plot(epochs, validation["val_acc"], color=BLACK, linewidth=3.2, marker=marker, label=mean_label)
    axes.plot(
        epochs.iloc[best], best_accuracy, marker="*", markersize=17, color=BLACK, markeredgecolor="white",
        linestyle="none", zorder=5, label=best_text,
    )  # fmt: skip
    looks = line_looks({*names, *among})
    for name in sorted(names) if several else ():
        axes.plot(  # with markers, as a line of one point is invisible
            epochs, validation[f"{name}_acc"], **looks[name], marker=marker, markersize=3, linewidth=1.5,
            label=plain(name),
        )  # fmt: skip
    axes.set_xlim(0, _MARGIN * (_last_step(table) + 1) / epoch_steps)
    _dress_by_epoch(axes, "Validation", "accuracy (%)", whole_epochs=epochs.max() >= _WHOLE_EPOCHS_FROM)


def _last_step(table: pd.DataFrame) -> float:
    return max(rows["step"].max() for rows in (training_rows(table), validation_rows(table)) if not rows.empty)


def plot_health(metrics: str | Path | pd.DataFrame, path: str | Path) -> bool:
    """Draw gradient norm, target cosine and feature norms by epoch.

    Args:
        metrics: argument or result of ``read_metrics``.
        path: PNG file to write.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    table = _as_table(metrics)
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
    if incomplete := describe_incomplete_epochs(rows):
        figure.supxlabel(textwrap.fill(incomplete, _NOTE_LETTERS), fontsize=10)
    save_figure(figure, path)
    return True


def health_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows logged by ``training.health.HealthMonitor``, one for each epoch.

    Args:
        table: metrics as returned by ``read_metrics``.
    """
    return logged_rows(table, "feature_norm", "epoch")


def describe_incomplete_epochs(rows: pd.DataFrame) -> str:
    """Return which epochs were resumed inside, so that their numbers cover only the batches after it; "" for none.

    Args:
        rows: rows as returned by ``health_rows``.
    """
    if "health_first_batch" not in rows:
        return ""
    resumed = rows[rows["health_first_batch"] > 0]
    epochs, firsts = (resumed["epoch"] + 1).astype(int), (resumed["health_first_batch"] + 1).astype(int)
    places = [f"epoch {epoch} (batches from {first:,} on)" for epoch, first in zip(epochs, firsts, strict=True)]
    return f"Resumed inside, numbers of the rest only: {', '.join(places)}." if places else ""


def draw_gradient_norm(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the mean and the highest gradient norm of each epoch.

    Args:
        axes: changed in place; the legend entries are set, the legend is not drawn.
        rows: rows as returned by ``health_rows``, not empty.
    """
    _line(axes, rows, "gradient_norm_max", ORANGE, "highest")
    _line(axes, rows, "gradient_norm", BLUE, "mean")
    if (rows["gradient_norm_max"] > 0).any():  # all are 0 in a training on one identity
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    _dress_by_epoch(axes, "Gradient norm", "all parameters")


def draw_target_cosine(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the mean target cosine (to the true class) of each epoch.

    Args:
        axes: changed in place.
        rows: rows as returned by ``health_rows``, not empty.
    """
    _line(axes, rows, "target_cosine", BLUE, "")
    _dress_by_epoch(axes, "Target cosine", "mean, without margin")


def draw_feature_norm(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the feature norms of each epoch, and AdaFace's running statistics of them.

    Args:
        axes: changed in place; the legend entries are set, the legend is not drawn.
        rows: rows as returned by ``health_rows``, not empty.
    """
    epochs, mean, deviation = rows["epoch"] + 1, rows["feature_norm"], rows["feature_norm_std"]
    axes.fill_between(epochs, rows["feature_norm_min"], rows["feature_norm_max"], color=GRAY, alpha=0.2, label="all")
    below = np.maximum(mean - deviation, 0)
    axes.fill_between(epochs, below, mean + deviation, color=SKY, alpha=0.5, label="mean ± deviation")
    _line(axes, rows, "feature_norm", BLUE, "mean")
    if "adaface_mean" in rows:
        _line(axes, rows, "adaface_mean", VERMILION, "AdaFace's mean, ± deviation", "--")
        for sign in (-1, 1):
            axes.plot(epochs, rows["adaface_mean"] + sign * rows["adaface_std"], color=VERMILION, linestyle=":")
    axes.set_ylim(bottom=0)
    _dress_by_epoch(axes, "Feature norm", "before normalization")


def _dress_by_step(axes: Axes, table: pd.DataFrame, title: str, y_label: str) -> None:
    axes.set_xlim(0, _MARGIN * (_last_step(table) + 1))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter(_THOUSANDS)
    dress(axes, title, "training step", y_label)


def _dress_by_epoch(axes: Axes, title: str, y_label: str, *, whole_epochs: bool = True) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=13, steps=[1, 2, 5, 10], integer=whole_epochs))
    dress(axes, title, "epoch", y_label)


def _line(axes: Axes, rows: pd.DataFrame, column: str, color: str, label: str, style: str = "-") -> None:
    marker = "o" if len(rows) <= _FEW_EPOCHS else None
    axes.plot(
        rows["epoch"] + 1, rows[column], color=color, linewidth=2, marker=marker, markersize=4, linestyle=style,
        label=label,
    )  # fmt: skip
