"""The panels of a report: plots with title, text, legend and SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaface.reporting.curves import (
    ScoredPairs,
    draw_det,
    draw_roc,
    draw_similarities,
    similarity_span,
    with_both_kinds,
)
from adaface.reporting.quality import RejectCurve, draw_norms, draw_rejections
from adaface.reporting.svg import POINTS_PER_INCH, LegendEntry, figure_as_svg, legend_of
from adaface.reporting.training import (
    describe_incomplete_epochs,
    draw_accuracy,
    draw_feature_norm,
    draw_gradient_norm,
    draw_learning_rate,
    draw_loss,
    draw_target_cosine,
    health_rows,
    training_rows,
    validation_rows,
)
from adaface.system.command_line import counted

_SIZE_INCHES = (4.5, 3.3)


@dataclass(frozen=True)
class Panel:
    """One plot of a report.

    Attributes:
        title: title of the plot.
        text: a sentence that describes it.
        svg: an ``<svg>`` element with escaped text.
        legend: entries of the legend; may be empty.
    """

    title: str
    text: str
    svg: str
    legend: tuple[LegendEntry, ...]


def score_panels(sets: Sequence[ScoredPairs]) -> list[Panel]:
    """Return ROC and DET curves of the sets with both genuine and impostor pairs; empty without such sets.

    Args:
        sets: scored pairs.
    """
    drawn, left_out = with_both_kinds(sets)
    if not drawn:
        return []
    among = [scored.name for scored in sets]
    missing = f" No curve, because genuine or impostor pairs are missing: {', '.join(left_out)}." if left_out else ""
    return [
        _panel(
            "roc",
            "ROC: true accepts against false accepts",
            f"Higher is better; the false accept axis is logarithmic.{missing}",
            lambda axes: draw_roc(axes, drawn, among),
        ),
        _panel(
            "det",
            "DET: false rejects against false accepts",
            "Lower is better; both axes are logarithmic.",
            lambda axes: draw_det(axes, drawn, among),
        ),
    ]


def similarity_panels(sets: Sequence[ScoredPairs]) -> list[Panel]:
    """Return a similarity histogram for each set with pairs, all over the same range.

    Args:
        sets: scored pairs.
    """
    drawn = [scored for scored in sets if len(scored.similarity)]
    if not drawn:
        return []
    span = similarity_span(drawn)
    return [
        _panel(
            f"similarity-{number}",
            scored.name,
            f"{int(scored.issame.sum()):,} genuine, {int((~scored.issame).sum()):,} impostor pairs"
            + ("" if math.isnan(scored.cosine_threshold) else f"; threshold {scored.cosine_threshold:.3f}"),
            lambda axes, scored=scored: draw_similarities(axes, scored, span),  # type: ignore[misc]
        )
        for number, scored in enumerate(drawn)
    ]


def quality_panels(
    curves: Mapping[str, RejectCurve], norms: Mapping[str, np.ndarray], among: Sequence[str] = ()
) -> list[Panel]:
    """Return the error-versus-reject curves and the histograms of feature norms.

    Args:
        curves: error-versus-reject curves by name of the set; may be empty.
        norms: (N,) feature norms by name of the set; may be empty. Zeros (unreadable images) are skipped.
        among: names of all sets of the report.
    """
    positive = {name: values[values > 0] for name, values in norms.items()}
    norms = {name: values for name, values in positive.items() if len(values)}
    names = sorted({*among, *norms, *curves})
    panels = []
    if curves:
        panels.append(
            _panel(
                "rejections",
                "Error versus reject",
                "If the norm measures quality, the curve falls below its band, the range of 95 % of random rejections.",
                lambda axes: draw_rejections(axes, curves, names),
            )
        )
    if norms:
        panels.append(
            _panel(
                "norms",
                "Feature norms",
                "The norm of an image's feature, the model's own measure of image quality.",
                lambda axes: draw_norms(axes, norms, names),
            )
        )
    return panels


def training_panels(table: pd.DataFrame, among: Sequence[str] = ()) -> list[Panel]:
    """Return the plots of loss, learning rate, validation accuracy and health that were logged by a training run.

    Args:
        table: metrics as returned by ``reporting.training.read_metrics``.
        among: names of all sets of the report, so that all plots use the same colors.
    """
    panels, training, validation, health = [], training_rows(table), validation_rows(table), health_rows(table)
    if not training.empty:
        last = f"Last logged value: {training['train_loss'].iloc[-1]:.3g}."
        panels.append(_panel("loss", "Loss", last, lambda axes: draw_loss(axes, table)))
        if "lr" in training and training["lr"].notna().any():
            highest = f"Maximum: {training['lr'].max():g}."
            panels.append(
                _panel("learning-rate", "Learning rate", highest, lambda axes: draw_learning_rate(axes, table))
            )
    if not validation.empty:
        validations = counted(len(validation), "validation", "validations")
        best = f"Best mean of {validations}: {validation['val_acc'].max():.2f} %."
        panels.append(_panel("validation", "Validation accuracy", best, lambda axes: draw_accuracy(axes, table, among)))
    if not health.empty:
        incomplete = describe_incomplete_epochs(health)
        panels += [
            _panel(
                "gradient-norm",
                "Gradient norm",
                f"Over all parameters, before clipping. {incomplete}".strip(),
                lambda axes: draw_gradient_norm(axes, health),
            ),
            _panel(
                "target-cosine",
                "Target cosine",
                f"Cosine to the true class, mean over each epoch, without margin; last epoch: "
                f"{health['target_cosine'].iloc[-1]:.3f}. {incomplete}".strip(),
                lambda axes: draw_target_cosine(axes, health),
            ),
            _panel(
                "feature-norm",
                "Feature norm",
                f"Before normalization. {incomplete}".strip(),
                lambda axes: draw_feature_norm(axes, health),
            ),
        ]
    return panels


def _panel(identifier: str, title: str, text: str, draw: Callable[[Axes], None]) -> Panel:
    """Draw onto new axes, without title and legend: the page shows them."""
    figure = Figure(figsize=_SIZE_INCHES, dpi=POINTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title("", loc="left")
    entries = legend_of(axes)
    if legend := axes.get_legend():
        legend.remove()
    description = f"{text} {'; '.join(entry.label for entry in entries)}".strip()
    return Panel(title, text, figure_as_svg(figure, title, description, identifier), tuple(entries))
