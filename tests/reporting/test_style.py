"""Letters that the default font lacks."""

import dataclasses
import warnings

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from adaface.reporting import style
from adaface.reporting.style import DPI, drawable, save_figure

OTHERS = "\u1d8d\u231a"  # of STIX, which matplotlib brings, not of its default font


@pytest.fixture
def no_other_fonts(monkeypatch):
    monkeypatch.setattr(style, "_family_with", lambda letter: "DejaVu Sans" if letter < "\u0250" else None)


@pytest.fixture(autouse=True)
def nothing_logged(caplog):
    style._letters_of.cache_clear()
    style._family_with.cache_clear()
    yield
    assert not caplog.records


def saved(text: str, path, weight: str = "normal") -> Text:
    figure = Figure(figsize=(4, 2), dpi=DPI)
    shown = figure.text(0.1, 0.5, text, fontweight=weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, path)
    assert path.stat().st_size
    return shown


def test_a_letter_is_drawn_in_a_font_that_has_it(tmp_path):
    shown = saved(f"Zo\u00eb {OTHERS}", tmp_path / "plot.png", "bold")
    assert shown.get_text() == f"Zo\u00eb {OTHERS}"
    first, *others = shown.get_fontfamily()
    assert first == "DejaVu Sans" and others


def test_a_letter_that_no_font_has_is_escaped(tmp_path, no_other_fonts):
    assert saved("Zo\u00eb \u5f35.png", tmp_path / "plot.png").get_text() == "Zo\u00eb \\u5f35.png"
    assert drawable("\u5f35\n$") == "\\u5f35\n$"


@pytest.mark.parametrize("name", ["Last Resort", ".LastResort"])
def test_a_font_with_a_box_for_every_letter_has_none(name, monkeypatch):
    boxes = next(font for font in fontManager.ttflist if font.name.startswith("Last Resort"))
    entry = dataclasses.replace(boxes, name=name)
    monkeypatch.setattr(fontManager, "ttflist", [entry, *fontManager.ttflist])
    assert style._family_with.__wrapped__("\U0003fffd") is None  # of no script


def test_other_plots_keep_their_font(tmp_path):
    assert saved("a", tmp_path / "plot.png").get_fontfamily() == ["sans-serif"]
