import math
from dataclasses import dataclass, field

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import plots
from plots import plot_loss, plot_roc, plot_similarity_histograms
from training_metrics import read_metrics


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
def drawn(monkeypatch) -> list[Figure]:
    """The figures as they are saved."""
    figures: list[Figure] = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def assert_is_a_picture(path) -> None:
    """A whole PNG, large enough to read, with something on it."""
    image = cv2.imread(str(path))
    assert min(image.shape[:2]) >= 500
    assert (image < 128).any(axis=2).mean() > 0.005


def texts(figure: Figure) -> str:
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return "\n".join(found)


def metrics_file(path, epochs=range(6), steps=10, bonus=0.0):
    """What Lightning leaves of a training of ``steps`` steps an epoch, logged every 5."""
    rows = []
    for epoch in epochs:
        for step in range(epoch * steps + 4, (epoch + 1) * steps, 5):
            rate = 0.1 if epoch < 3 else 0.01
            rows.append({"epoch": epoch, "step": step, "train_loss": 20 / (1 + step) + bonus, "lr": rate})
        accuracy = 60 + 5 * epoch + bonus
        validation = {"val_acc": accuracy, "lfw_acc": accuracy + 2, "calfw_acc": accuracy - 2}
        rows.append({"epoch": epoch, "step": (epoch + 1) * steps - 1, **validation})
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_metrics_of_one_start(tmp_path):
    table = read_metrics(metrics_file(tmp_path / "metrics.csv"))
    assert table["train_loss"].count() == 12
    assert table["val_acc"].dropna().tolist() == [60, 65, 70, 75, 80, 85]
    assert table["step"].max() == 59


def test_metrics_of_a_resumed_run_continue_and_replace(tmp_path):
    metrics_file(tmp_path / "version_2" / "metrics.csv", range(4))
    metrics_file(tmp_path / "version_10" / "metrics.csv", range(2, 6), bonus=1.0)  # from the end of epoch 2
    table = read_metrics(tmp_path)
    assert table["val_acc"].dropna().tolist() == [60, 65, 71, 76, 81, 86]
    assert table["step"].is_monotonic_increasing


def test_another_table_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics.csv has the columns \['a', 'b'\], expected `step`"):
        read_metrics(tmp_path / "metrics.csv")


def test_loss_picture(tmp_path, drawn):
    assert plot_loss(metrics_file(tmp_path / "metrics.csv"), tmp_path / "loss.png")
    assert_is_a_picture(tmp_path / "loss.png")
    loss, rate, accuracy = drawn[0].axes
    assert len(loss.lines[0].get_xdata()) == 12
    assert set(rate.lines[0].get_ydata()) == {0.1, 0.01}
    mean = next(line for line in accuracy.lines if line.get_label() == "mean")
    assert mean.get_xdata().tolist() == pytest.approx([1, 2, 3, 4, 5, 6])  # epochs
    for text in ("cross-entropy loss", "training step", "learning rate", "epoch", "accuracy (%)", "lfw", "calfw"):
        assert text in texts(drawn[0])
    assert "best mean: 85.00 %" in texts(drawn[0])


def test_a_long_training_is_smoothed(tmp_path, drawn):
    steps = np.arange(2000)
    noise = np.random.default_rng(0).normal(size=2000)
    table = pd.DataFrame({"step": steps, "epoch": 0, "train_loss": 5 + noise, "lr": 0.1})
    assert plot_loss(table, tmp_path / "loss.png")
    logged, smoothed = (line.get_ydata() for line in drawn[0].axes[0].lines)
    assert len(logged) == len(smoothed) == 2000
    assert np.std(smoothed) < np.std(logged) / 4
    assert np.mean(smoothed) == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("missing", ["train_loss", "val_acc", "lr"])
def test_what_was_not_logged_is_not_missed(tmp_path, missing):
    table = read_metrics(metrics_file(tmp_path / "metrics.csv")).drop(columns=missing)
    assert plot_loss(table, tmp_path / "loss.png")
    assert cv2.imread(str(tmp_path / "loss.png")) is not None


def test_a_loss_that_blew_up_is_drawn_up_to_there(tmp_path, drawn):
    table = pd.DataFrame({"step": [0, 1, 2], "epoch": 0, "train_loss": [3.0, np.inf, np.nan], "lr": 0.1})
    assert plot_loss(table, tmp_path / "loss.png")
    assert drawn[0].axes[0].lines[0].get_ydata().tolist() == [3.0]


@pytest.mark.parametrize("content", [None, "", "epoch,step,train_loss\n"])
def test_nothing_logged_no_picture(tmp_path, content):
    if content is not None:
        (tmp_path / "version_0").mkdir()
        (tmp_path / "version_0" / "metrics.csv").write_text(content)
    assert not plot_loss(tmp_path, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


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
    for scored_set in sets:
        assert f"{scored_set.name}: AUC" in texts(roc)
        assert f"{scored_set.name} · 90.00 %" in texts(histograms)


def test_a_set_looks_the_same_in_every_picture(tmp_path, drawn):
    sets = [scored("lfw"), one_kind("cfp_fp"), scored("calfw", seed=1)]
    assert plot_roc(sets, tmp_path / "roc.png")
    table = pd.DataFrame({"step": [9], "epoch": [0], "val_acc": [70.0], "calfw_acc": [60.0], "lfw_acc": [80.0]})
    assert plot_loss(table.assign(cfp_fp_acc=70.0), tmp_path / "loss.png")
    colors = [{line.get_label().partition(":")[0]: line.get_color() for line in f.axes[-1].lines} for f in drawn]
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
    assert "no curve, for want of genuine or impostor pairs: only_same" in texts(drawn[0])


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
