import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from plot_style import BLUE, GREY, VERMILION
from svg_figure import POINTS_PER_INCH, figure_as_svg, legend_of


def axes_of_a_figure():
    return Figure(figsize=(4, 3), dpi=POINTS_PER_INCH, layout="constrained").subplots()


def parsed(axes) -> ElementTree.Element:
    return ElementTree.fromstring(figure_as_svg(axes.figure, "a < b", "what it shows", "first"))


def points(path: ElementTree.Element) -> np.ndarray:
    return np.array([float(number) for number in re.findall(r"-?\d+\.?\d*", path.get("d"))]).reshape(-1, 2)


def paths(svg: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [path for path in svg.iter("path") if name in path.get("class").split()]


def test_it_is_named_for_those_who_cannot_see_it():
    svg = parsed(axes_of_a_figure())
    assert svg.get("role") == "img"
    assert svg.get("viewBox") == "0 0 288 216"
    assert svg.get("aria-labelledby") == "first-title first-description"
    texts = {element.get("id"): element.text for element in svg if element.get("id")}
    assert texts == {"first-title": "a < b", "first-description": "what it shows"}


def test_texts_stay_texts_and_are_escaped():
    axes = axes_of_a_figure()
    axes.set_xlabel("<script>alert(1)</script> & more")
    axes.set_ylabel("upwards")
    svg = parsed(axes)
    texts = {element.text: element for element in svg.iter("text")}
    assert "<script>alert(1)</script> & more" in texts
    assert texts["<script>alert(1)</script> & more"].get("text-anchor") == "middle"
    assert texts["upwards"].get("transform").startswith("rotate(-90 ")
    assert not list(svg.iter("script"))


def test_a_line_runs_where_its_data_are_with_y_upwards():
    axes = axes_of_a_figure()
    axes.plot([0, 1], [0, 1], color=BLUE, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    svg = parsed(axes)
    (line,) = paths(svg, "stroke-blue")
    assert line.get("stroke-dasharray")
    (left, bottom), (right, top) = points(line)
    box = axes.get_window_extent()
    assert (left, right) == pytest.approx((box.x0, box.x1), abs=0.1)
    assert (bottom, top) == pytest.approx((216 - box.y0, 216 - box.y1), abs=0.1)


def test_what_lies_outside_the_axes_is_cut_off():
    axes = axes_of_a_figure()
    axes.plot([-100, 100], [0.5, 0.5], color=BLUE)
    axes.set_xlim(0, 1)
    (line,) = paths(parsed(axes), "stroke-blue")
    assert points(line)[:, 0].min() >= 0
    assert points(line)[:, 0].max() <= 288


def test_a_long_curve_takes_the_space_of_a_screen():
    axes = axes_of_a_figure()
    steps = np.linspace(0, 20, 1_000_000)
    axes.plot(steps, np.sin(steps), color=BLUE)
    (line,) = paths(parsed(axes), "stroke-blue")
    assert len(line.get("d")) < 20_000
    shown = points(line)
    box = axes.get_window_extent()
    assert np.ptp(shown[:, 1]) > 0.85 * box.height  # peaks are kept


def test_areas_are_translucent():
    axes = axes_of_a_figure()
    axes.fill_between([0, 1], [0, 0], [1, 1], color=GREY, alpha=0.2, label="all")
    (area,) = paths(parsed(axes), "fill-grey")
    assert float(area.get("fill-opacity")) == pytest.approx(0.2)


def test_legend_entries_of_lines_areas_and_marks():
    axes = axes_of_a_figure()
    axes.plot([0, 1], [0, 1], color=BLUE, linestyle=":", label=r"cost \$")
    axes.plot([0], [0], marker="*", linestyle="none", color=VERMILION, label="best")
    axes.fill_between([0, 1], [0, 0], [1, 1], color=GREY, alpha=0.2, label="all")
    axes.stairs([1], [0, 1], color=BLUE, label="outline")
    axes.plot([0, 1], [1, 0], color=BLUE)
    assert [(entry.label, entry.color, entry.kind, bool(entry.dashes)) for entry in legend_of(axes)] == [
        ("cost $", "blue", "line", True),
        ("best", "vermilion", "mark", False),
        ("all", "grey", "area", False),
        ("outline", "blue", "line", False),
    ]


def test_a_colour_of_no_name_is_refused():
    axes = axes_of_a_figure()
    axes.plot([0, 1], [0, 1], color="#123456")
    with pytest.raises(ValueError, match="the colour #123456 has no name in a page: use one of plot_style's"):
        parsed(axes)


def test_no_ids_but_its_own_and_no_settings_of_the_process():
    before = dict(matplotlib.rcParams)
    svg = parsed(axes_of_a_figure())
    assert [element.get("id") for element in svg.iter() if element.get("id")] == ["first-title", "first-description"]
    assert dict(matplotlib.rcParams) == before
