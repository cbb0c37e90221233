import cv2
import numpy as np
import pandas as pd
import pytest

from health_plot import plot_health


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


@pytest.mark.parametrize("adaface", [True, False])
@pytest.mark.parametrize("epochs", [1, 60])
def test_a_picture_of_every_training(tmp_path, epochs, adaface):
    assert plot_health(table(epochs, adaface), tmp_path / "health.png")
    image = cv2.imread(str(tmp_path / "health.png"))
    assert min(image.shape[:2]) >= 900
    assert (image < 128).any(axis=2).mean() > 0.005


@pytest.mark.parametrize("missing", [["feature_norm"], ["epoch", "step", "train_loss"]])
def test_nothing_logged_no_picture(tmp_path, missing):
    empty = table().drop(columns=missing) if missing == ["feature_norm"] else table(3)[:3]
    assert not plot_health(empty, tmp_path / "health.png")
    assert not list(tmp_path.iterdir())
