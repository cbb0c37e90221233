import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from adaface.reporting.style import BLUE, GRAY, VERMILION
from adaface.reporting.svg import POINTS_PER_INCH, figure_as_svg, legend_of


def axes_of_a_figure():
    return Figure(figsize=(4, 3), dpi=POINTS_PER_INCH, layout="constrained").subplots()


def parsed(axes) -> ElementTree.Element:
    return ElementTree.fromstring(figure_as_svg(axes.figure, "a < b", "what it shows", "first"))


def points(path: ElementTree.Element) -> np.ndarray:
    return np.array([float(number) for number in re.findall(r"-?\d+\.?\d*", path.get("d"))]).reshape(-1, 2)


def paths(svg: ElementTree.Element, look: str, kind: str = "path") -> list[ElementTree.Element]:
    return [path for path in svg.iter(kind) if look in path.get("style", "").split("; ")]


def clip_box(svg: ElementTree.Element, path: ElementTree.Element) -> list[float]:
    """Return the left, top, right and bottom of what is shown of a path."""
    (clip,) = [clip for clip in svg.iter("clipPath") if path.get("clip-path") == f"url(#{clip.get('id')})"]
    left, top, width, height = (float(clip.find("rect").get(name)) for name in ("x", "y", "width", "height"))
    return [left, top, left + width, top + height]


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
    assert texts["<script>alert(1)</script> & more"].get("style") == "text-anchor: middle"
    assert texts["<script>alert(1)</script> & more"].get("font-size")  # the page's style sheet may change it
    assert texts["upwards"].get("transform").startswith("rotate(-90 ")
    assert not list(svg.iter("script"))


def test_a_line_runs_where_its_data_are_with_y_upwards():
    axes = axes_of_a_figure()
    axes.plot([0, 1], [0, 1], color=BLUE, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    svg = parsed(axes)
    (line,) = paths(svg, "stroke: var(--blue)")
    assert "stroke-dasharray: " in line.get("style")
    (left, bottom), (right, top) = points(line)
    box = axes.get_window_extent()
    assert (left, right) == pytest.approx((box.x0, box.x1), abs=0.1)
    assert (bottom, top) == pytest.approx((216 - box.y0, 216 - box.y1), abs=0.1)


def test_what_lies_outside_the_axes_is_cut_off():
    axes = axes_of_a_figure()
    axes.plot([-100, 100], [0.5, 0.5], color=BLUE)
    axes.set_xlim(0, 1)
    svg = parsed(axes)
    (line,) = paths(svg, "stroke: var(--blue)")
    box = axes.get_window_extent()
    assert clip_box(svg, line) == pytest.approx([box.x0, 216 - box.y1, box.x1, 216 - box.y0], abs=0.2)


def test_a_marker_at_the_edge_is_shown_whole():
    axes = axes_of_a_figure()
    axes.plot([1], [1], marker="*", linestyle="none", color=VERMILION)
    axes.set_xlim(0, 1)
    svg = parsed(axes)
    assert len(paths(svg, "fill: var(--vermilion)", "use")) == 1
    assert not any(group.get("clip-path") for group in svg.iter("g"))


def test_a_long_curve_takes_the_space_of_a_screen():
    axes = axes_of_a_figure()
    steps = np.linspace(0, 20, 1_000_000)
    axes.plot(steps, np.sin(steps), color=BLUE)
    (line,) = paths(parsed(axes), "stroke: var(--blue)")
    assert len(line.get("d")) < 20_000
    shown = points(line)
    box = axes.get_window_extent()
    assert np.ptp(shown[:, 1]) > 0.85 * box.height  # peaks are kept


def test_areas_are_translucent():
    axes = axes_of_a_figure()
    axes.fill_between([0, 1], [0, 0], [1, 1], color=GRAY, alpha=0.2, label="all")
    (area,) = paths(parsed(axes), "fill: var(--gray)", "use")
    assert "fill-opacity: 0.2" in area.get("style").split("; ")


def test_legend_entries_of_lines_areas_and_marks():
    axes = axes_of_a_figure()
    axes.plot([0, 1], [0, 1], color=BLUE, linestyle=":", label=r"cost \$")
    axes.plot([0], [0], marker="*", linestyle="none", color=VERMILION, label="best")
    axes.fill_between([0, 1], [0, 0], [1, 1], color=GRAY, alpha=0.2, label="all")
    axes.stairs([1], [0, 1], color=BLUE, label="outline")
    axes.plot([0, 1], [1, 0], color=BLUE)
    assert [(entry.label, entry.color, entry.kind, bool(entry.dashes)) for entry in legend_of(axes)] == [
        ("cost $", "blue", "line", True),
        ("best", "vermilion", "mark", False),
        ("all", "gray", "area", False),
        ("outline", "blue", "line", False),
    ]


def test_a_colour_of_no_name_is_refused():
    axes = axes_of_a_figure()
    axes.plot([0, 1], [0, 1], color="#123456")
    with pytest.raises(ValueError, match=r"the color #123456 has no CSS variable: use one of style\.py"):
        parsed(axes)


def test_a_text_like_a_color_stays_as_it_is():
    axes = axes_of_a_figure()
    axes.set_xlabel('style="fill: #0072b2" #123456 url(#x) font-family: a; id="x"')
    svg = parsed(axes)
    assert axes.get_xlabel() in [element.text for element in svg.iter("text")]


def test_figures_of_a_page_do_not_clash_and_no_settings_of_the_process_change():
    before = dict(matplotlib.rcParams)
    seen: list[str] = []
    for identifier in ("first", "second"):
        sources = []
        for _ in range(2):
            axes = axes_of_a_figure()
            axes.plot([0, 1], [0, 1], color=BLUE, marker="o")
            sources.append(figure_as_svg(axes.figure, "a", "b", identifier))
        source = sources[0]
        assert source == sources[1]
        svg = ElementTree.fromstring(source)
        ids = [element.get("id") for element in svg.iter() if element.get("id")]
        used = {element.get("href") for element in svg.iter("use")} | set(re.findall(r"url\(([^)]*)\)", source))
        assert used <= {f"#{name}" for name in ids}
        assert all(name.startswith(f"{identifier}-") for name in ids)
        seen += ids
    assert len(set(seen)) == len(seen)
    assert dict(matplotlib.rcParams) == before


def test_nothing_of_matplotlib_s_own_page_is_left():
    source = figure_as_svg(axes_of_a_figure().figure, "a", "b", "first")
    assert not re.search(r"http|DejaVu|xmlns|metadata|<style|20\d\d-", source)
