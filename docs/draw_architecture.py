"""Draw ``architecture.png``, next to this file: from images to a trained model, and from a photograph to an answer.

python -m docs.draw_architecture
"""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from adaface.reporting.style import BLACK, BLUE, DPI, GRAY, GREEN, PURPLE, VERMILION, save_figure

PICTURE = Path(__file__).with_name("architecture.png")
_WIDTH, _HEIGHT = 2.3, 0.98


@dataclass(frozen=True)
class Box:
    """A part of the project.

    Attributes:
        x: of its center.
        y: of its center.
        title: its name.
        text: what it does.
        folders: of `adaface/`.
        color: of its frame.
        more_height: beyond that of the other boxes.
    """

    x: float
    y: float
    title: str
    text: str
    folders: str
    color: str
    more_height: float = 0.0


BOXES = {
    "images": Box(0, 3, "images", ".rec, folders, several", "data/sources, records", GREEN),
    "batches": Box(2.8, 3, "batches", "decode, augment, flip: uint8 BGR", "data, augmentation", GREEN),
    "backbone": Box(5.6, 3, "backbone", "IR-ResNet: embedding (B, 512)", "models", BLUE),
    "head": Box(8.4, 3, "margin head", "cosines to C classes, margin, loss", "heads", BLUE),
    "training": Box(11.2, 3, "training", "SGD, validation, checkpoints", "training, distributed", BLUE),
    "model": Box(0, 1.5, "model file", "official keys, no code in it", "checkpoints", VERMILION),
    "onnx": Box(2.8, 1.5, "ONNX (optional)", "FP32 and INT8, compared", "export", VERMILION),
    "photographs": Box(0, 0, "photographs", "any kind, any size", "alignment", GREEN),
    "alignment": Box(2.8, 0, "alignment", "detector, five landmarks, warp", "alignment", GREEN),
    "embeddings": Box(5.6, 0.75, "embeddings", "direction: identity; norm: quality", "inference", VERMILION, 1.5),
    "evaluation": Box(8.4, 1.5, "evaluation", "pairs, IJB, TinyFace, folders", "evaluation, metrics", PURPLE),
    "report": Box(11.2, 1.5, "report", "accuracy, TAR, intervals, curves", "reporting", PURPLE),
    "answers": Box(8.4, 0, "answers", "compare, search, a web page", "inference, serving", VERMILION),
}
# from, to, what passes along
ARROWS = (
    ("images", "batches", ""), ("batches", "backbone", ""), ("backbone", "head", "norm"), ("head", "training", ""),
    ("training", "model", ""), ("model", "onnx", ""), ("onnx", "embeddings", ""),
    ("photographs", "alignment", ""), ("alignment", "embeddings", ""),
    ("embeddings", "evaluation", ""), ("evaluation", "report", ""), ("embeddings", "answers", ""),
)  # fmt: skip


def draw(path: Path) -> None:
    """Draw the boxes and the arrows between them.

    Args:
        path: PNG to write.
    """
    figure = Figure(figsize=(13.2, 4.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(-1.35, 12.55)
    axes.set_ylim(-0.7, 3.7)
    axes.set_axis_off()
    for box in BOXES.values():
        _draw_box(axes, box)
    for start, end, label in ARROWS:
        _draw_arrow(axes, BOXES[start], BOXES[end], label)
    save_figure(figure, path)


def _draw_box(axes: Axes, box: Box) -> None:
    height = _HEIGHT + box.more_height
    corner = box.x - _WIDTH / 2, box.y - height / 2
    patch = FancyBboxPatch(
        corner, _WIDTH, height, boxstyle="round,pad=0,rounding_size=0.1", linewidth=1.8,
        facecolor="white", edgecolor=box.color,
    )  # fmt: skip
    axes.add_patch(patch)
    axes.text(box.x, box.y + 0.26, box.title, ha="center", va="center", fontsize=11, fontweight="bold", color=BLACK)
    axes.text(box.x, box.y, box.text, ha="center", va="center", fontsize=7.5, color=BLACK)
    axes.text(box.x, box.y - 0.28, box.folders, ha="center", va="center", fontsize=7, color=GRAY, family="monospace")


def _draw_arrow(axes: Axes, start: Box, end: Box, label: str) -> None:
    if end.x > start.x:
        y = end.y if start.more_height else start.y
        begin, tip = (start.x + _WIDTH / 2, y), (end.x - _WIDTH / 2, y)
    else:  # on to the next row, like a line of text
        between = (start.y + end.y) / 2
        begin, tip = (end.x, between), (end.x, end.y + _HEIGHT / 2)
        axes.plot(
            (start.x, start.x, end.x), (start.y - _HEIGHT / 2, between, between), color=BLACK, linewidth=1.2
        )  # fmt: skip
    axes.annotate("", tip, begin, arrowprops={"arrowstyle": "-|>", "color": BLACK, "linewidth": 1.2, "shrinkA": 0})
    if label:
        axes.text((begin[0] + tip[0]) / 2, begin[1] + 0.08, label, ha="center", fontsize=7.5, color=BLACK)


if __name__ == "__main__":
    draw(PICTURE)
