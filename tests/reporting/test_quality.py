from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib.figure import Figure

from adaface.reporting.quality import draw_norms, draw_rejections
from tests.support.drawn_figures import texts


@dataclass
class Curve:
    """What ``draw_rejections`` needs."""

    rejected: np.ndarray
    fnmr: np.ndarray
    fmr: float

    @property
    def random_interval(self) -> np.ndarray:
        return np.stack([self.fnmr * 0 + 0.09, self.fnmr * 0 + 0.11], axis=1)


SHARES = np.linspace(0, 0.95, 5000)


def test_error_versus_reject():
    axes = Figure().subplots()
    curves = {"lfw": Curve(SHARES, 0.1 * (1 - SHARES), 1e-3), "x": Curve(SHARES, 0.1 + 0 * SHARES, 1e-4)}
    draw_rejections(axes, curves)
    first, second = axes.lines
    assert len(first.get_xdata()) <= 400
    assert first.get_ydata()[[0, -1]] == pytest.approx([0.1, 0.005])
    assert first.get_color() != second.get_color()
    assert first.get_label() == "lfw: threshold at FMR 0.001"
    assert axes.get_ylim()[0] == 0
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    assert [(band[:, 1].min(), band[:, 1].max()) for band in bands] == [pytest.approx((0.09, 0.11))] * 2


def test_norms_are_shares_over_common_bins():
    axes = Figure().subplots()
    draw_norms(axes, {"a": np.array([10.0, 20, 30]), "b": np.array([15.0])}, among=["a", "b", "c"])
    first, second = (patch.get_data() for patch in axes.patches)
    assert first.values.sum() == second.values.sum() == pytest.approx(1)
    assert (first.edges == second.edges).all()
    assert (first.edges[0], first.edges[-1]) == (10, 30)


@pytest.mark.parametrize(("images", "bins"), [(4, 5), (100, 10), (900, 30), (90_000, 50)])
def test_few_norms_have_few_bins(images, bins):
    axes = Figure().subplots()
    draw_norms(axes, {"a": np.linspace(10, 30, images)})
    assert len(axes.patches[0].get_data().values) == bins


def test_norms_that_are_all_equal():
    axes = Figure().subplots()
    draw_norms(axes, {"a": np.full(5, 20.0)})
    assert axes.patches[0].get_data().values.tolist() == [1]


def test_a_name_that_looks_like_a_formula():
    figure = Figure()
    draw_norms(figure.subplots(), {r"$\frac": np.array([1.0, 2.0])})
    figure.axes[0].legend()
    figure.canvas.draw()
    assert "frac" in texts(figure)
