"""A matplotlib figure as a small piece of SVG inside an HTML page.

Matplotlib's own SVG files are for viewers: fixed colours, ids that clash when two are in one page, and settings of the
whole process. Here text stays text in the page's font, colours are names that the page's style sheet fills in (so that
they suit a light and a dark page), curves are reduced to what a screen shows, and there are no ids but of the title.
"""

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from matplotlib.transforms import Transform

from plot_style import BLACK, BLUE, GREEN, GREY, GRID, ORANGE, PURPLE, SKY, VERMILION

POINTS_PER_INCH = 72
COLOR_NAMES = {
    BLUE: "blue", VERMILION: "vermilion", GREEN: "green", PURPLE: "purple", ORANGE: "orange", SKY: "sky",
    BLACK: "black", GREY: "grey", GRID: "grid", "#FFFFFF": "paper", "#000000": "ink",
}  # fmt: skip
_FINENESS_PX = 0.25  # what a simplified curve may be off
_SIMPLIFIED_FROM = 100  # points
_LETTERS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C", Outline.CLOSEPOLY: "Z"}
_LEGEND_DASHES = {"--": "6 3", "dashed": "6 3", ":": "2 3", "dotted": "2 3", "-.": "7 3 2 3", "dashdot": "7 3 2 3"}
_ANCHORS = {"left": ("start", 0.0), "center": ("middle", 0.5), "right": ("end", 1.0)}


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend, for the page to lay out.

    Attributes:
        label: its text, not escaped.
        color: a name of ``COLOR_NAMES``.
        dashes: SVG's ``stroke-dasharray``, empty for a whole line.
        kind: ``line``, ``area`` or ``mark``.
    """

    label: str
    color: str
    dashes: str
    kind: str


def legend_of(axes: Axes) -> list[LegendEntry]:
    """Return what a legend of these axes would hold.

    Args:
        axes: with everything drawn that is to be named.
    """
    handles, labels = axes.get_legend_handles_labels()
    return [_legend_entry(handle, label.replace(r"\$", "$")) for handle, label in zip(handles, labels, strict=True)]


def figure_as_svg(figure: Figure, title: str, description: str, identifier: str) -> str:
    """Draw a figure as an ``<svg>`` element that fills the width it is given.

    Args:
        figure: of ``POINTS_PER_INCH`` dots per inch; its background is left out.
        title: its name for screen readers.
        description: what it shows, in words.
        identifier: begins its ids; another one for each figure of a page.

    Returns:
        HTML; every text in it is escaped.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    width, height = figure.get_size_inches() * POINTS_PER_INCH
    renderer = _Renderer(width, height)
    figure.draw(renderer)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{identifier}-title {identifier}-description">'
        f'<title id="{identifier}-title">{escape(title)}</title>'
        f'<desc id="{identifier}-description">{escape(description)}</desc>{"".join(renderer.elements)}</svg>'
    )


class _Renderer(RendererBase):
    """Collects what matplotlib draws as SVG elements; its y axis goes up, that of SVG down."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__()
        self._size = (width, height)
        self.elements: list[str] = []

    def get_canvas_width_height(self) -> tuple[float, float]:
        return self._size

    def points_to_pixels(self, points: Any) -> Any:
        return points

    def draw_path(
        self, gc: GraphicsContextBase, path: Outline, transform: Transform, rgbFace: Any = None
    ) -> None:  # fmt: skip
        is_line = rgbFace is None
        clip = gc.get_clip_rectangle() if is_line else None
        simplified = is_line and len(np.asarray(path.vertices)) >= _SIMPLIFIED_FROM
        if simplified:
            path = Outline(path.vertices, path.codes)
            path.simplify_threshold, path.should_simplify = _FINENESS_PX, True
        words: list[str] = []
        for points, code in path.iter_segments(
            transform, clip=None if clip is None else clip.extents, simplify=simplified, curves=True
        ):
            words.append(_LETTERS[code])
            if code != Outline.CLOSEPOLY:
                xy = np.reshape(points, (-1, 2)) * (1, -1) + (0, self._size[1])
                words.append(" ".join(_short(number) for number in xy.ravel()))
        if words:
            self.elements.append(f'<path d="{"".join(words)}" {_look(gc, rgbFace)}/>')

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: FontProperties,
        angle: float,
        ismath: Any = False,
        mtext: Text | None = None,
    ) -> None:
        """Anchor the text where it is aligned, for its font, and so its width, is not the one laid out with."""
        anchor, share = _ANCHORS[mtext.get_horizontalalignment() if mtext else "left"]
        width = self.get_text_width_height_descent(s, prop, ismath)[0] * share
        turn = math.radians(angle)
        # matplotlib gives y downwards for text, unlike for paths
        x, y = x + width * math.cos(turn), y - width * math.sin(turn)
        place = f'x="{_short(x)}" y="{_short(y)}"'
        if angle:
            place += f' transform="rotate({-angle:g} {_short(x)} {_short(y)})"'
        size, color = prop.get_size_in_points(), _color_name(gc.get_rgb())
        self.elements.append(
            f'<text {place} font-size="{size:g}" text-anchor="{anchor}" class="fill-{color}">{escape(s)}</text>'
        )


def _look(gc: GraphicsContextBase, face: Any) -> str:
    """Return classes for colours, and attributes for the rest."""
    forced = gc.get_alpha() if gc.get_forced_alpha() else None
    classes, attributes = [], []
    if face is not None and (len(face) == 3 or face[3] > 0):
        classes.append(f"fill-{_color_name(face)}")
        opacity = forced if forced is not None else (face[3] if len(face) > 3 else 1)
        if opacity < 1:
            attributes.append(f'fill-opacity="{opacity:g}"')
    rgb = gc.get_rgb()
    if gc.get_linewidth() > 0 and rgb[3] > 0:
        classes.append(f"stroke-{_color_name(rgb)}")
        attributes.append(f'stroke-width="{gc.get_linewidth():g}"')
        if rgb[3] < 1:
            attributes.append(f'stroke-opacity="{rgb[3]:g}"')
        _, dashes = gc.get_dashes()
        if dashes is not None:
            attributes.append(f'stroke-dasharray="{" ".join(_short(dash) for dash in np.ravel(dashes))}"')
    return " ".join([f'class="{" ".join(classes)}"', *attributes])


def _color_name(color: Any) -> str:
    name = to_hex(color).upper()
    if name not in COLOR_NAMES:
        raise ValueError(f"the colour {name} has no name in a page: use one of plot_style's ({', '.join(COLOR_NAMES)})")
    return COLOR_NAMES[name]


def _legend_entry(handle: Any, label: str) -> LegendEntry:
    if isinstance(handle, Line2D):
        kind, color = "mark" if handle.get_linestyle() == "None" else "line", handle.get_color()
    elif handle.get_alpha() is None:
        kind, color = "line", handle.get_edgecolor()  # of an outline
    else:
        kind, color = "area", handle.get_facecolor()
    style = "own" if kind == "area" else str(handle.get_linestyle())
    first: Any = np.asarray(color)[0] if np.ndim(color) > 1 else color  # a collection has several
    return LegendEntry(label, _color_name(first), _LEGEND_DASHES.get(style, ""), kind)


def _short(number: float) -> str:
    """Return a number with one decimal, a tenth of a pixel, or none where that is zero."""
    return f"{number:.1f}".removesuffix(".0")
