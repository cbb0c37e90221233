"""The style of all plots: colors, axes, and writing of PNG files.

Plots use matplotlib's object interface and its Agg renderer: no window system, and no global state that other code
could notice. The palette is that of Okabe and Ito, which is safe for color-blind readers.
"""

import io
import math
import re
from collections.abc import Iterable
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from adaface.system.command_line import printable
from adaface.system.files import write_atomically

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GRAY = "#E69F00", "#56B4E9", "#222222", "#8A8A8A"
GRID = "#DDDDDD"
DPI = 130
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")
POWER_OF_TEN = FuncFormatter(lambda value, _: power_of_ten(value))
_PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_LINE_STYLES = ("-", "--", ":", "-.")
_WRITTEN_OUT_FROM = 0.01
_DEFAULT_FAMILY = "DejaVu Sans"  # matplotlib brings it
_REGULAR = 400  # weight
_BOXES = "lastresort"  # "Last Resort" of matplotlib and ".LastResort" of macOS have a box for every letter
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Set title and labels of the axes, draw a light grid behind the data, and remove the box.

    Args:
        axes: changed in place.
        title: title above the axes, at the left.
        x_label: label of the x axis.
        y_label: label of the y axis.
    """
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left")
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def line_looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return color and line style by name, assigned alphabetically, so that they agree in all plots.

    Args:
        names: names of the sets.
    """
    looks = ({"color": color, "linestyle": style} for style in cycle(_LINE_STYLES) for color in _PALETTE)
    return dict(zip(sorted(names), looks, strict=False))


def plain(text: str) -> str:
    """Escape a text for matplotlib.

    ``$`` would begin a formula, and a malformed one raises an error; so does a file name that is not UTF-8.

    Args:
        text: any text, such as the name of a set.
    """
    return printable(text).replace("$", r"\$")


def drawable(text: str) -> str:
    r"""Escape letters that no installed font has, such as Chinese ones: ``\u5f35``.

    Args:
        text: any text; ``save_figure`` chooses the fonts of the other letters.
    """
    return "".join(
        letter if letter.isascii() or _family_with(letter) else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


@cache
def _family_with(letter: str) -> str | None:
    """Return a font family that has a letter, the default one if possible; None if no installed one has it."""
    upright = (font.name for font in fontManager.ttflist if (font.style, font.weight) == ("normal", _REGULAR))
    families = sorted({name for name in upright if not re.sub(r"[ .]", "", name).lower().startswith(_BOXES)})
    return next((one for one in (_DEFAULT_FAMILY, *families) if ord(letter) in _letters_of(one)), None)


@cache
def _letters_of(family: str) -> frozenset[int]:
    """Return the code points of a font family; none if matplotlib cannot draw it, such as colored emoji."""
    try:
        font = get_font(fontManager.findfont(FontProperties(family=family), fallback_to_default=False))
    except (OSError, RuntimeError, ValueError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def power_of_ten(value: float) -> str:
    """Format a rate: 1, 0.1, 0.01, then 10⁻³.

    Args:
        value: a rate, such as a false accept rate.
    """
    exponent = round(math.log10(value)) if value > 0 else 0
    if value < _WRITTEN_OUT_FROM and math.isclose(value, 10.0**exponent):
        return "10" + str(exponent).translate(_RAISED)
    return f"{value:g}"


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file, atomically; letters that the default font lacks are drawn in others, or escaped.

    Args:
        figure: figure to write.
        path: PNG file to write.
    """
    for text in figure.findobj(Text):
        shown = text.get_text()
        if not shown.isascii():
            text.set_text(drawable(shown))
            families = (_family_with(letter) for letter in shown if not letter.isascii())
            others = dict.fromkeys(family for family in families if family and family != _DEFAULT_FAMILY)
            if others:  # they need not be there in bold
                text.set(fontfamily=[_DEFAULT_FAMILY, *others], fontweight="normal")
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_atomically(path, content.getvalue())
