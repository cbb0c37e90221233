"""What feature norms tell: how they are spread over each set, and the errors left when the lowest are rejected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plot_style import PERCENT, dress, line_looks, plain

_BINS = 50
_POINTS = 400


@dataclass(frozen=True)
class RejectCurve:
    """Error against the share of pairs that are rejected for their low norm.

    Attributes:
        name: of the set.
        rejected: (K,) shares of the pairs, in [0, 1], ascending.
        fnmr: (K,) false non-match rate of the pairs that are left, in [0, 1]; NaN where none is left.
        fmr: false match rate that the threshold was fixed at, in [0, 1].
    """

    name: str
    rejected: np.ndarray
    fnmr: np.ndarray
    fmr: float


def draw_rejections(axes: Axes, curves: Sequence[RejectCurve], among: Sequence[str] = ()) -> None:
    """Draw error-versus-reject curves.

    Args:
        axes: changed in place; a legend is not drawn, but its entries are there.
        curves: at least one.
        among: names of all sets of this report, for equal colours in all its pictures; those of ``curves`` if none.
    """
    looks = line_looks(among or [curve.name for curve in curves])
    for curve in curves:
        shown = np.unique(np.linspace(0, len(curve.rejected) - 1, _POINTS).round().astype(int))
        label = plain(f"{curve.name}: threshold at FMR {curve.fmr:g}")
        axes.plot(curve.rejected[shown], curve.fnmr[shown], **looks[curve.name], linewidth=2, label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    dress(axes, "Error versus reject", "pairs rejected, lowest norm first", "false non-match rate (FNMR)")


def draw_norms(axes: Axes, norms: Mapping[str, np.ndarray], among: Sequence[str] = ()) -> None:
    """Draw a histogram of the feature norms of each set.

    Args:
        axes: changed in place; a legend is not drawn, but its entries are there.
        norms: by name of the set, (N,) of its readable images, N at least 1.
        among: as in ``draw_rejections``.
    """
    looks = line_looks(among or list(norms))
    low, high = min(map(np.min, norms.values())), max(map(np.max, norms.values()))
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    for name, values in norms.items():
        counts, _ = np.histogram(values, edges)
        look = looks[name]
        label = plain(f"{name}: median {np.median(values):.1f}")
        axes.stairs(counts / len(values), edges, **look, linewidth=1.8, label=label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    dress(axes, "Feature norms", "norm of the image's feature", "share of images per bin")
