import cv2
import numpy as np
import pandas as pd
import pytest

from adaface.reporting import training
from adaface.reporting.training import plot_health, plot_loss, read_metrics
from tests.support.drawn_figures import assert_is_a_picture, figures_saved_by, texts


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are saved."""
    return figures_saved_by(training, monkeypatch)


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


def test_damaged_numbers_are_counted_and_left_out(tmp_path, caplog):
    file = metrics_file(tmp_path / "metrics.csv")
    rows = pd.read_csv(file).astype(object)
    rows.loc[0, "train_loss"], rows.loc[1, "train_loss"] = "4.0x", "inf"
    rows.to_csv(file, index=False)
    table = read_metrics(file)
    assert table["train_loss"].count() == 11
    assert len(training.logged_rows(table, "train_loss", "step")) == 10
    assert f"{file} is damaged: 1 value is no number and left out" in caplog.text


def test_another_table_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics.csv has the columns \['a', 'b'\], expected at least `step`"):
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


@pytest.mark.parametrize("epochs", [1, 3])
def test_one_set_has_one_line_and_one_entry_in_the_legend(tmp_path, drawn, epochs):
    table = pd.DataFrame({"step": 9 + 10 * np.arange(epochs), "epoch": np.arange(epochs), "val_acc": 70.0})
    assert plot_loss(table.assign(held_out_acc=70.0), tmp_path / "loss.png")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["held_out, best 70.00 %"]


def test_a_training_of_two_steps_has_whole_steps_and_its_first_rate(tmp_path, drawn):
    table = pd.DataFrame({"step": [0, 1], "epoch": [0, 1], "train_loss": [3.0, 2.0], "lr": [0.1, 0.01]})
    assert plot_loss(table, tmp_path / "loss.png")
    loss, rate = drawn[0].axes
    assert all(tick == round(tick) for tick in loss.get_xticks())
    assert rate.lines[0].get_drawstyle() == "steps-pre"
    assert rate.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert rate.lines[0].get_ydata().tolist() == [0.1, 0.1, 0.01]


def test_a_single_validation_of_several_sets_is_visible(tmp_path, drawn):
    table = pd.DataFrame({"step": [9], "epoch": [0], "val_acc": [70.0], "lfw_acc": [80.0], "calfw_acc": [60.0]})
    assert plot_loss(table, tmp_path / "loss.png")
    assert all(line.get_marker() not in ("", "None") for line in drawn[0].axes[0].lines)


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


def table(epochs: int = 12, adaface: bool = True) -> pd.DataFrame:
    """What a training logs, its losses between the epochs' rows."""
    epoch = np.arange(epochs)
    health = pd.DataFrame({
        "epoch": epoch, "step": 10 * epoch + 9, "gradient_norm": 3 + 10 / (1 + epoch),
        "gradient_norm_max": 9 + 30 / (1 + epoch), "target_cosine": 0.6 * (1 - 0.8**epoch),
        "feature_norm": 20 + epoch / 4, "feature_norm_std": 4.0, "feature_norm_min": 8.0,
        "feature_norm_max": 33 + epoch,
    })  # fmt: skip
    if adaface:
        health = health.assign(adaface_mean=19 + epoch / 4, adaface_std=5.0)
    losses = pd.DataFrame({"epoch": epoch, "step": 10 * epoch + 4, "train_loss": 1.0})
    return pd.concat([losses, health], ignore_index=True)


def test_epochs_resumed_inside_are_told_below_the_plot(tmp_path, drawn):
    rows = table()
    assert plot_health(rows, tmp_path / "health.png")
    rows.loc[rows["feature_norm"].notna() & (rows["epoch"] == 2), "health_first_batch"] = 120.0
    assert plot_health(rows, tmp_path / "health.png")
    told = [figure.get_supxlabel() for figure in drawn]
    assert told == ["", "Resumed inside, numbers of the rest only: epoch 3 (batches from 121 on)."]


@pytest.mark.parametrize("adaface", [True, False])
@pytest.mark.parametrize("epochs", [1, 60])
def test_a_picture_of_every_training(tmp_path, epochs, adaface):
    assert plot_health(table(epochs, adaface), tmp_path / "health.png")
    image = cv2.imread(str(tmp_path / "health.png"))
    assert min(image.shape[:2]) >= 900
    assert (image < 128).any(axis=2).mean() > 0.005


@pytest.mark.filterwarnings("error")
def test_gradients_of_zero_are_drawn_without_a_warning(tmp_path):
    """As of a training on one identity; a logarithmic axis cannot show them."""
    assert plot_health(table(3).assign(gradient_norm=0.0, gradient_norm_max=0.0), tmp_path / "health.png")


@pytest.mark.parametrize("missing", [["feature_norm"], ["epoch", "step", "train_loss"]])
def test_no_health_logged_no_picture(tmp_path, missing):
    empty = table().drop(columns=missing) if missing == ["feature_norm"] else table(3)[:3]
    assert not plot_health(empty, tmp_path / "health.png")
    assert not list(tmp_path.iterdir())
