"""Looking at what the pictures show: the figures as they are saved, their texts, and whether a file is a picture."""

from types import ModuleType

import cv2
import matplotlib
import pytest
from matplotlib.figure import Figure


def figures_saved_by(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return a list that the figures the module saves are added to."""
    figures: list[Figure] = []
    save = module.save_figure
    monkeypatch.setattr(module, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def assert_is_a_picture(path) -> None:
    """A whole PNG, large enough to read, with something on it."""
    image = cv2.imread(str(path))
    assert min(image.shape[:2]) >= 500
    assert (image < 128).any(axis=2).mean() > 0.005


def texts(figure: Figure) -> str:
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return "\n".join(found)
