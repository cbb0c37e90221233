"""The look of every picture: its colours, its axes, and how it becomes a PNG file.

Drawn with matplotlib's objects and its Agg renderer alone: no window system, no global state, so that nothing else
in the process is changed. The colours are Okabe and Ito's, told apart with every kind of colour vision.
"""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atomic_files import write_atomically

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#222222", "#8A8A8A"
DPI = 130


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give the axes their texts, a light grid behind the data, and no box.

    Args:
        axes: changed in place.
        title: above, at the left.
        x_label: below.
        y_label: at the left.
    """
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left")
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(True, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure as a whole PNG file or not at all.

    Args:
        figure: what to draw.
        path: PNG to write.
    """
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_atomically(path, content.getvalue())
