"""Plots of feature norms: their distribution in each set, and the errors left when the lowest are rejected."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from adaface.reporting.style import PERCENT, dress, line_looks, plain

_FEWEST_BINS, _MOST_BINS = 5, 50
_POINTS = 400


class RejectCurve(Protocol):
    """The errors on genuine pairs as those with the lowest norms are rejected."""

    @property
    def rejected(self) -> np.ndarray:
        """Share of the genuine pairs that are rejected, (R,) in [0, 1], ascending."""

    @property
    def fnmr(self) -> np.ndarray:
        """False non-match rate of the remaining pairs, (R,) in [0, 1]."""

    @property
    def random_interval(self) -> np.ndarray:
        """Range of 95% of random rejections, (R, 2)."""

    @property
    def fmr(self) -> float:
        """False match rate at the fixed threshold, in [0, 1]."""


def draw_rejections(axes: Axes, curves: Mapping[str, RejectCurve], among: Sequence[str] = ()) -> None:
    """Draw error-versus-reject curves, each over the band of random rejections.

    Args:
        axes: changed in place; the legend entries are set, the legend is not drawn.
        curves: curves by name of the set, at least one.
        among: names of all sets of this report, so that all plots use the same colors; defaults to those of ``curves``.
    """
    looks = line_looks(among or list(curves))
    for name, curve in curves.items():
        shown = np.unique(np.linspace(0, len(curve.rejected) - 1, _POINTS).round().astype(int))
        rejected, band = curve.rejected[shown], curve.random_interval[shown]
        axes.fill_between(rejected, band[:, 0], band[:, 1], color=looks[name]["color"], alpha=0.15, linewidth=0)
        label = plain(f"{name}: threshold at FMR {curve.fmr:.2g}")
        axes.plot(rejected, curve.fnmr[shown], **looks[name], linewidth=2, label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    dress(axes, "Error versus reject", "genuine pairs rejected, lowest norm first", "false non-match rate (FNMR)")


def draw_norms(axes: Axes, norms: Mapping[str, np.ndarray], among: Sequence[str] = ()) -> None:
    """Draw a histogram of the feature norms of each set.

    Args:
        axes: changed in place; the legend entries are set, the legend is not drawn.
        norms: (N,) norms of the readable images, by name of the set; N at least 1.
        among: as in ``draw_rejections``.
    """
    looks = line_looks(among or list(norms))
    low, high = min(map(np.min, norms.values())), max(map(np.max, norms.values()))
    bins = int(np.clip(math.sqrt(min(map(len, norms.values()))), _FEWEST_BINS, _MOST_BINS))
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])
    for name, values in norms.items():
        counts, _ = np.histogram(values, edges)
        label = plain(f"{name}: median {np.median(values):.1f}")
        axes.stairs(counts / len(values), edges, **looks[name], linewidth=1.8, label=label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    dress(axes, "Feature norms", "feature norm", "share of images per bin")
