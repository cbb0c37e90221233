import math
from dataclasses import dataclass, field

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from adaface.metrics.verification import roc
from adaface.reporting import curves as plots
from adaface.reporting import training
from adaface.reporting.curves import draw_det, draw_roc, plot_roc, plot_similarity_histograms
from adaface.reporting.style import power_of_ten
from adaface.reporting.training import plot_loss
from tests.support.drawn_figures import assert_is_a_picture, figures_saved_by, texts


@dataclass
class Scored:
    """What the plots need of a set."""

    name: str
    similarity: np.ndarray = field(default_factory=lambda: np.empty(0))
    issame: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    accuracy: float = 90.0
    cosine_threshold: float = 0.4


def scored(name: str, pairs: int = 300, seed: int = 0) -> Scored:
    generator = np.random.default_rng(seed)
    issame = np.arange(pairs) % 2 == 0
    return Scored(name, np.clip(generator.normal(np.where(issame, 0.6, 0.1), 0.15), -1, 1), issame)


def one_kind(name: str = "same") -> Scored:
    return Scored(name, np.array([0.5, 0.7]), np.array([True, True]))


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are saved."""
    return figures_saved_by(plots, monkeypatch)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 11])
def test_pictures_of_several_sets(tmp_path, drawn, count):
    sets = [scored(f"set_{number}", seed=number) for number in range(count)]
    assert plot_roc(sets, tmp_path / "roc.png")
    assert plot_similarity_histograms(sets, tmp_path / "similarity.png")
    assert_is_a_picture(tmp_path / "roc.png")
    assert_is_a_picture(tmp_path / "similarity.png")
    roc, histograms = drawn
    assert roc.axes[0].get_xscale() == "log"
    curves = [line for line in roc.axes[0].lines if line.get_label().startswith("set_")]
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == count  # told apart
    assert len(histograms.axes) == count
    histograms.canvas.draw()
    lowest = histograms.axes[-4 if count == 11 else -(count if count < 4 else 3) :]  # of each column
    assert all(any(label.get_visible() for label in axes.get_xticklabels()) for axes in lowest)
    for scored_set in sets:
        assert f"{scored_set.name}: AUC" in texts(roc)
        assert f"{scored_set.name} · 90.00 %" in texts(histograms)


def test_a_set_looks_the_same_in_every_picture(tmp_path, drawn, monkeypatch):
    losses = figures_saved_by(training, monkeypatch)
    sets = [scored("lfw"), one_kind("cfp_fp"), scored("calfw", seed=1)]
    assert plot_roc(sets, tmp_path / "roc.png")
    table = pd.DataFrame({"step": [9], "epoch": [0], "val_acc": [70.0], "calfw_acc": [60.0], "lfw_acc": [80.0]})
    assert plot_loss(table.assign(cfp_fp_acc=70.0), tmp_path / "loss.png")
    colors = [
        {line.get_label().partition(":")[0]: line.get_color() for line in f.axes[-1].lines} for f in drawn + losses
    ]
    assert colors[0]["lfw"] == colors[1]["lfw"]
    assert colors[0]["calfw"] == colors[1]["calfw"] != colors[1]["lfw"]


def test_roc_curve_is_the_share_of_genuine_pairs_accepted(tmp_path, drawn):
    # impostors at 0.2 and 0.5, genuine at 0.1, 0.3, 0.6, 0.7
    similarity = np.array([0.2, 0.5, 0.1, 0.3, 0.6, 0.7])
    assert plot_roc([Scored("x", similarity, np.array([0, 0, 1, 1, 1, 1], dtype=bool))], tmp_path / "roc.png")
    line = drawn[0].axes[0].lines[0]
    points = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))  # of equal FAR the last, the highest
    assert points == {0.5: 0.75, 1.0: 1.0}
    assert line.get_drawstyle() == "steps-post"


def test_sets_without_a_curve_are_named(tmp_path, drawn):
    assert plot_roc([scored("lfw"), one_kind("only_same")], tmp_path / "roc.png")
    assert "no curve, because genuine or impostor pairs are missing: only_same" in texts(drawn[0])


def test_histograms_share_their_bins_and_add_up(tmp_path, drawn):
    assert plot_similarity_histograms([scored("a"), one_kind()], tmp_path / "similarity.png")
    left, right = drawn[0].axes
    assert left.get_xlim() == right.get_xlim()
    for patch in left.patches:
        assert patch.get_data().values.sum() == pytest.approx(1)
    assert left.lines[0].get_xdata()[0] == pytest.approx(0.4)  # the threshold


def test_a_set_without_accuracy_or_spread(tmp_path, drawn):
    single = Scored("one", np.array([0.5]), np.array([True]), accuracy=math.nan, cosine_threshold=math.nan)
    assert plot_similarity_histograms([single], tmp_path / "similarity.png")
    assert drawn[0].axes[0].get_title(loc="left") == "one"
    assert "threshold" not in texts(drawn[0])


@pytest.mark.parametrize("sets", [[], [Scored("empty")]])
def test_nothing_scored_no_picture(tmp_path, sets):
    assert not plot_roc(sets, tmp_path / "roc.png")
    assert not plot_similarity_histograms(sets, tmp_path / "similarity.png")
    assert not list(tmp_path.iterdir())


def test_pairs_of_one_kind_alone_have_no_roc_picture(tmp_path):
    assert not plot_roc([one_kind()], tmp_path / "roc.png")
    assert not list(tmp_path.iterdir())


def test_matplotlib_settings_of_the_process_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    assert plot_similarity_histograms([scored("lfw")], tmp_path / "similarity.png")
    assert dict(matplotlib.rcParams) == before


def test_det_curve_ends_where_no_genuine_pair_is_rejected():
    # impostors at 0.2 and 0.5, genuine at 0.1, 0.3, 0.6, 0.7: of far 0.5 one genuine pair is rejected, of 1 none
    axes = Figure().subplots()
    similarity = np.array([0.2, 0.5, 0.1, 0.3, 0.6, 0.7])
    draw_det(axes, [Scored("x", similarity, np.array([0, 0, 1, 1, 1, 1], dtype=bool))])
    line = axes.lines[0]
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == {0.5: 0.25, 1.0: 0.25}
    assert line.get_label() == "x: equal error rate 50.00 %"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_a_million_pairs_make_a_curve_that_a_screen_can_show():
    axes = Figure().subplots()
    many = scored("many", 1_000_000)
    draw_roc(axes, [many])
    line = axes.lines[0]
    assert len(line.get_xdata()) < 2000
    far, tar, _ = roc(many.similarity, many.issame)
    far = np.maximum(far, line.get_xdata()[0])
    last = np.append(np.diff(far) > 0, True)  # of equal FAR the highest TAR
    shown = np.searchsorted(line.get_xdata(), far[last], side="right") - 1
    assert np.abs(np.asarray(line.get_ydata())[shown] - tar[last]).max() < 0.002


def test_a_name_that_looks_like_a_formula(tmp_path, drawn):
    assert plot_roc([scored(r"$\frac")], tmp_path / "roc.png")
    assert plot_similarity_histograms([scored(r"$\frac")], tmp_path / "similarity.png")
    assert r"\frac: AUC" in texts(drawn[0])


@pytest.mark.parametrize(("rate", "text"), [(1, "1"), (0.1, "0.1"), (0.01, "0.01"), (1e-3, "10⁻³"), (2e-4, "0.0002")])
def test_powers_of_ten(rate, text):
    assert power_of_ten(rate) == text
