"""The pictures of a report: what is drawn, with its words, its legend and its SVG."""

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

_SIZE_INCHES = (4.5, 3.3)


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: what it is.
        text: what it shows, in a sentence.
        svg: an ``<svg>`` element, every text in it escaped.
        legend: empty where there is nothing to tell apart.
    """

    title: str
    text: str
    svg: str
    legend: tuple[LegendEntry, ...]


def score_panels(sets: Sequence[ScoredPairs]) -> list[Panel]:
    """Return ROC and DET of the sets that have both kinds of pairs; none where no set has.

    Args:
        sets: scored pairs.
    """
    drawn, left_out = with_both_kinds(sets)
    if not drawn:
        return []
    among = [scored.name for scored in sets]
    missing = f" No curve, for want of genuine or impostor pairs: {', '.join(left_out)}." if left_out else ""
    return [
        _panel(
            "roc",
            "ROC: true accepts against false accepts",
            f"Higher is better; the axis of false accepts is logarithmic.{missing}",
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
    """Return a histogram of similarities for each set that has pairs, all over the same range.

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
    """Return error against reject, and the feature norms, such as are given.

    Args:
        curves: by name of the set.
        norms: by name of the set, (N,); zeros, of images that could not be read, and sets without others are left out.
        among: names of all sets of the report.
    """
    found = {name: values[values > 0] for name, values in norms.items()}
    norms = {name: values for name, values in found.items() if len(values)}
    names = sorted({*among, *norms, *curves})
    panels = []
    if curves:
        panels.append(
            _panel(
                "rejections",
                "Error versus reject",
                "Where the norm tells quality, the curve falls below its band, where 95 % of random rejections lie.",
                lambda axes: draw_rejections(axes, curves, names),
            )
        )
    if norms:
        panels.append(
            _panel(
                "norms",
                "Feature norms",
                "The length of an image's feature, the model's own measure of its quality.",
                lambda axes: draw_norms(axes, norms, names),
            )
        )
    return panels


def training_panels(table: pd.DataFrame, among: Sequence[str] = ()) -> list[Panel]:
    """Return loss, learning rate, validation accuracy and health of a training, such as were logged.

    Args:
        table: what ``reporting.training.read_metrics`` returns.
        among: names of all sets of the report, for equal colours in all its pictures.
    """
    panels, training, validation, health = [], training_rows(table), validation_rows(table), health_rows(table)
    if not training.empty:
        last = f"It was {training['train_loss'].iloc[-1]:.3g} when it was last logged."
        panels.append(_panel("loss", "Loss", last, lambda axes: draw_loss(axes, table)))
        if "lr" in training and training["lr"].notna().any():
            highest = f"At most {training['lr'].max():g}."
            panels.append(
                _panel("learning-rate", "Learning rate", highest, lambda axes: draw_learning_rate(axes, table))
            )
    if not validation.empty:
        best = f"The best mean of {len(validation)} validations is {validation['val_acc'].max():.2f} %."
        panels.append(_panel("validation", "Validation accuracy", best, lambda axes: draw_accuracy(axes, table, among)))
    if not health.empty:
        panels += [
            _panel(
                "gradient-norm",
                "Gradient norm",
                "Of all parameters, before clipping.",
                lambda axes: draw_gradient_norm(axes, health),
            ),
            _panel(
                "target-cosine",
                "Cosine to the own class",
                f"Mean over an epoch, before the margin; {health['target_cosine'].iloc[-1]:.3f} in the last one.",
                lambda axes: draw_target_cosine(axes, health),
            ),
            _panel(
                "feature-norm", "Feature norm", "Before normalisation.", lambda axes: draw_feature_norm(axes, health)
            ),
        ]
    return panels


def _panel(identifier: str, title: str, text: str, draw: Callable[[Axes], None]) -> Panel:
    """Draw onto new axes; their title and legend are the page's."""
    figure = Figure(figsize=_SIZE_INCHES, dpi=POINTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title("", loc="left")
    entries = legend_of(axes)
    if legend := axes.get_legend():
        legend.remove()
    description = f"{text} {'; '.join(entry.label for entry in entries)}".strip()
    return Panel(title, text, figure_as_svg(figure, title, description, identifier), tuple(entries))
