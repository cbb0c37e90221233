"""Convert a matplotlib figure to an ``<svg>`` element for an HTML page, with matplotlib's SVG backend.

The output is adapted to the page: text remains text in the page's font, colors become CSS variables of the page's style
sheet (for light and dark mode), and ids get the figure's identifier as a prefix, so that they are unique.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaface.reporting.style import BLACK, BLUE, GRAY, GREEN, GRID, ORANGE, PURPLE, SKY, VERMILION

POINTS_PER_INCH = 72
COLOR_NAMES = {
    BLUE: "blue", VERMILION: "vermilion", GREEN: "green", PURPLE: "purple", ORANGE: "orange", SKY: "sky",
    BLACK: "black", GRAY: "gray", GRID: "grid", "#FFFFFF": "paper", "#000000": "ink",
}  # fmt: skip
_LEGEND_DASHES = {"--": "6 3", "dashed": "6 3", ":": "2 3", "dotted": "2 3", "-.": "7 3 2 3", "dashdot": "7 3 2 3"}
_LONG_NUMBER = re.compile(r"\d+\.\d\d+")  # a tenth of a pixel is enough
_AROUND_LETTERS = re.compile(r"\s+(?=[A-Za-z])|(?<=[A-Za-z])\s+|\s+$")


@dataclass(frozen=True)
class LegendEntry:
    """One entry of a legend, rendered by the page.

    Attributes:
        label: text, not escaped.
        color: a name of ``COLOR_NAMES``.
        dashes: SVG's ``stroke-dasharray``, empty for a solid line.
        kind: ``line``, ``area`` or ``mark``.
    """

    label: str
    color: str
    dashes: str
    kind: str


def legend_of(axes: Axes) -> list[LegendEntry]:
    """Return the legend entries of axes.

    Args:
        axes: axes with labeled content.
    """
    handles, labels = axes.get_legend_handles_labels()
    return [_legend_entry(handle, label.replace(r"\$", "$")) for handle, label in zip(handles, labels, strict=True)]


def _legend_entry(handle: Any, label: str) -> LegendEntry:
    if isinstance(handle, Line2D):
        kind, color = "mark" if handle.get_linestyle() == "None" else "line", handle.get_color()
    elif handle.get_alpha() is None:
        kind, color = "line", handle.get_edgecolor()  # an outline
    else:
        kind, color = "area", handle.get_facecolor()
    style = "own" if kind == "area" else str(handle.get_linestyle())
    first: Any = np.asarray(color)[0] if np.ndim(color) > 1 else color  # a collection has several
    return LegendEntry(label, _color_name(to_hex(first)), _LEGEND_DASHES.get(style, ""), kind)


def figure_as_svg(figure: Figure, title: str, description: str, identifier: str) -> str:
    """Draw a figure as an ``<svg>`` element that fills the available width.

    Args:
        figure: figure of ``POINTS_PER_INCH`` dots per inch; its background is not drawn.
        title: title for screen readers.
        description: description for screen readers.
        identifier: prefix of its ids; unique in a page.

    Returns:
        HTML with escaped text.

    Raises:
        ValueError: the figure uses a color that is not in ``COLOR_NAMES``.
    """
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identifier}):
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        _fit_for_a_page(element, identifier)
    names = {part: f"{identifier}-{part}" for part in ("title", "description")}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": " ".join(names.values())}
    for place, (tag, part, text) in enumerate((("title", "title", title), ("desc", "description", description))):
        named = ElementTree.Element(tag, id=names[part])
        named.text = text
        root.insert(place, named)
    return ElementTree.tostring(root, encoding="unicode")


def _fit_for_a_page(element: ElementTree.Element, identifier: str) -> None:
    """Change an element of matplotlib's SVG in place."""
    element.tag, element.tail = element.tag.partition("}")[2], None  # HTML has no namespaces
    if element.tag != "text":
        element.text = None
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    name = attributes.pop("id", "")
    if element.tag == "g":
        attributes.pop("clip-path", None)  # of markers: do not clip them at the edge of the axes
    elif name:  # nothing refers to the ids of groups
        attributes["id"] = f"{identifier}-{name}"
    for name in {"href", "clip-path"} & attributes.keys():
        attributes[name] = attributes[name].replace("#", f"#{identifier}-")
    for name in {"d", "x", "y", "width", "height", "transform"} & attributes.keys():
        shorter = _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.1f}", attributes[name])
        attributes[name] = _AROUND_LETTERS.sub("", shorter) if name == "d" else shorter
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    style = re.sub("font-family: [^;]*;? ?", "", attributes.pop("style", ""))  # the page's font
    if size := re.search(r"font-size: ([\d.]+)px;? ?", style):
        style = style.replace(size[0], "")
        attributes["font-size"] = size[1]  # an attribute, unlike a style, yields to the page's style sheet
    if style:
        attributes["style"] = re.sub("#[0-9a-f]{6}", lambda color: f"var(--{_color_name(color[0])})", style)
    element.attrib = attributes


def _color_name(color: str) -> str:
    name = COLOR_NAMES.get(color.upper())
    if name is None:
        raise ValueError(f"the color {color} has no CSS variable: use one of style.py ({', '.join(COLOR_NAMES)})")
    return name
