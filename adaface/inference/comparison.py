"""Compare faces: similarities, decisions at a threshold of known origin, and a plot of both.

``embed_photograph`` embeds the largest face of a photograph given as bytes, such as an upload.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from textwrap import wrap
from typing import Any
from unicodedata import east_asian_width

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adaface.alignment.detector import MTCNN, Face, choose_faces
from adaface.alignment.photograph import decode_reduced
from adaface.alignment.warp import warp_face
from adaface.inference.embedder import Embedder
from adaface.reporting.style import BLACK, DPI, GREEN, drawable, plain, save_figure
from adaface.system.command_line import printable
from adaface.system.text_table import aligned

NO_THRESHOLD = (
    "no decision: the model has no threshold. Set --threshold, or calibrate one on pairs like yours: "
    "adaface evaluate pairs --target_far 0.001 --store_threshold"
)
_CELL_INCHES, _NAME_INCHES, _EDGE_INCHES = 1.1, 1.3, 0.12
_LETTERS_PER_INCH = 14  # of the caption
_LINE, _MOST_LINES = 20, 7  # letters and lines of a name in the margin
_LONGEST_NAME = 40
MOST_PIXELS = 50_000_000  # of a photograph
ENOUGH_PIXELS = 8_000_000  # a JPEG of four times as many is decoded at half its size
_OVERVIEW_PX = 320  # longer side
_LARGEST, _OTHER = (115, 158, 0), (0, 159, 230)  # BGR: the green and orange of Okabe and Ito


@dataclass(frozen=True)
class Threshold:
    """The lowest similarity at which two faces are decided to be the same person.

    Attributes:
        cosine: in [-1, 1].
        origin: where it comes from, in words.
    """

    cosine: float
    origin: str


@dataclass(frozen=True)
class FaceComparison:
    """Pairwise comparison of N faces.

    Attributes:
        names: (N,) names of the images.
        similarity: (N, N) cosines.
        norms: (N,) feature norms, the model's measure of quality.
        threshold: decision threshold; None without one.
    """

    names: Sequence[str]
    similarity: np.ndarray
    norms: np.ndarray
    threshold: Threshold | None

    def same(self, first: int, second: int) -> bool | None:
        """Whether two faces are decided to be the same person; None without a threshold."""
        return None if self.threshold is None else bool(self.similarity[first, second] >= self.threshold.cosine)


def choose_threshold(given: float | None, stored: Mapping[str, Any] | None) -> Threshold | None:
    """Return the decision threshold: that of the command line, else the model's, else None.

    Args:
        given: threshold from the command line.
        stored: threshold from the model file.

    Raises:
        ValueError: the threshold is not a cosine.
    """
    cosine: Any = given
    origin = "set by --threshold"
    if given is None:
        if stored is None:
            return None
        if not isinstance(stored, Mapping):
            raise ValueError(
                f"the model's threshold is {stored!r}, expected a mapping with its cosine: set --threshold"
            )
        cosine = stored.get("cosine")
        details = [f"FAR {stored['wanted_far']:g}"] if isinstance(stored.get("wanted_far"), float) else []
        details += [f"on {stored['sets']}"] if isinstance(stored.get("sets"), str) else []
        origin = "stored in the model" + (f": {' '.join(details)}" if details else "")
    if not isinstance(cosine, int | float) or isinstance(cosine, bool) or not -1 <= cosine <= 1:
        raise ValueError(f"the threshold {cosine!r} ({origin}) is not a cosine from -1 to 1")
    return Threshold(float(cosine), origin)


def compare_faces(
    embedder: Embedder, images: np.ndarray, names: Sequence[str], threshold: Threshold | None
) -> FaceComparison:
    """Compare each face with each other face.

    Args:
        embedder: the model.
        images: (N, 112, 112, 3) uint8 BGR, aligned.
        names: (N,) names of the images.
        threshold: decision threshold.
    """
    embeddings, norms = embedder.embed(images)
    similarity = np.clip(embeddings @ embeddings.T, -1, 1)
    return FaceComparison(names, similarity, norms[:, 0], threshold)


def comparison_text(comparison: FaceComparison) -> str:
    """Format a comparison as text: the matrix, with pairs of the same person marked, and the threshold."""
    names = [short_name(name) for name in comparison.names]
    rows = [["", "image", "quality", *map(str, range(1, len(names) + 1))]]
    for row, name in enumerate(names):
        cells = (
            f"{value:.4f}{'*' if row != column and comparison.same(row, column) else ' '}"
            for column, value in enumerate(comparison.similarity[row])
        )
        rows.append([str(row + 1), name, f"{comparison.norms[row]:.2f}", *cells])
    lines = [f"  {line}" for line in aligned(rows, "><>")]
    if comparison.threshold is None:
        return "\n".join([*lines, NO_THRESHOLD])
    lines.append(f"* same person if the cosine is at least {threshold_text(comparison.threshold)}")
    if len(names) == 2:
        lines.append("decision: " + decision(bool(comparison.same(0, 1))))
    return "\n".join(lines)


def decision(same: bool) -> str:
    """Return a decision in words.

    Args:
        same: whether both faces are decided to be the same person.
    """
    return "same person" if same else "different people"


def threshold_text(threshold: Threshold) -> str:
    """Format a threshold and its origin, the cosine with two to four decimals."""
    cosine = f"{threshold.cosine:.4f}"
    return f"{cosine[:-2] if cosine.endswith('00') else cosine.removesuffix('0')} ({threshold.origin})"


def short_name(name: str) -> str:
    """Return a name in printable form, or the end of a long one."""
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"


def draw_comparison(comparison: FaceComparison, images: np.ndarray, path: Path) -> None:
    """Plot the matrix of similarities, with the faces along both axes and frames around pairs of the same person.

    Args:
        comparison: comparison of N faces.
        images: (N, 112, 112, 3) uint8 BGR.
        path: PNG file to write.

    Raises:
        OSError: it cannot be written.
    """
    count = len(images)
    side = _CELL_INCHES * (count + 1)
    width = _NAME_INCHES + side + _EDGE_INCHES
    caption = wrap(_caption(comparison), int(width * _LETTERS_PER_INCH))
    below = 0.15 * (1 + len(caption))
    height = 0.3 + side + below
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((_NAME_INCHES / width, below / height, side / width, side / height))
    # up to a color that black text can be read on
    axes.imshow(comparison.similarity, cmap="Blues", vmin=-0.2, vmax=2.0, extent=(0, count, count, 0))
    for place, image in enumerate(images):
        picture = image[..., ::-1]  # BGR -> RGB
        axes.imshow(picture, extent=(place, place + 1, 0, -1))
        axes.imshow(picture, extent=(-1, 0, place + 1, place))
        axes.text(place + 0.5, -1.05, f"quality {comparison.norms[place]:.1f}", ha="center", va="bottom", fontsize=7)
    for row, column in np.ndindex(count, count):
        similarity = f"{comparison.similarity[row, column]:.3f}"
        axes.text(column + 0.5, row + 0.5, similarity, ha="center", va="center", color=BLACK)
        if row != column and comparison.same(row, column):
            axes.add_patch(Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, fill=False, edgecolor=GREEN, linewidth=3))
    axes.set(xlim=(-1, count), ylim=(count, -1), xticks=[])
    axes.set_yticks([place + 0.5 for place in range(count)])
    axes.set_yticklabels([_label(name) for name in distinct_names(comparison.names)], fontsize=7, color=BLACK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.text(
        _EDGE_INCHES / width, (below - 0.1) / height, _in_lines(caption), va="top", fontsize=8, color=BLACK
    )  # fmt: skip
    save_figure(figure, path)


def distinct_names(paths: Sequence[str | Path]) -> list[str]:
    """Return the shortest end of each path that no other path has: the file name, with folders where necessary.

    Args:
        paths: paths of files; one that occurs twice has the same name twice. Case alone is no difference to a reader.
    """
    whole = [Path(os.path.abspath(path)).parts for path in paths]  # noqa: PTH100 - resolve() would follow links
    names = []
    for parts in whole:
        own = _lower(parts)
        others = {_lower(other) for other in whole if other != parts}
        lengths = range(1, len(parts))
        ends = (parts[-length:] for length in lengths if all(other[-length:] != own[-length:] for other in others))
        names.append("/".join(next(ends, parts)))
    return names


def _lower(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.lower() for part in parts)


def _label(name: str) -> str:
    """Return the name of an image in lines that fit into the margin."""
    parts = drawable(printable(name)).split("/")
    length = _LINE // 2 if any(east_asian_width(letter) in "WF" for letter in "".join(parts)) else _LINE
    lines = [line for part in (*(f"{folder}/" for folder in parts[:-1]), parts[-1]) for line in wrap(part, length)]
    return _in_lines(lines if len(lines) <= _MOST_LINES else ["...", *lines[1 - _MOST_LINES :]])


def _in_lines(lines: Sequence[str]) -> str:
    return "\n".join(map(plain, lines))


def _caption(comparison: FaceComparison) -> str:
    if comparison.threshold is None:
        return "no threshold"
    framed = any(comparison.same(*pair) for pair in combinations(range(len(comparison.names)), 2))
    cosine = threshold_text(comparison.threshold)
    return f"framed: cosine at least {cosine}" if framed else f"no two faces have a cosine of at least {cosine}"


@dataclass(frozen=True)
class EmbeddedPhotograph:
    """A photograph whose largest face was embedded.

    Attributes:
        size_px: width and height of the photograph, upright, before it was shrunk.
        faces: number of detected faces.
        box: left, top, right, bottom of the largest face, in px of the photograph.
        overview: (h, w, 3) uint8 BGR, a small copy of the photograph, with the largest face framed in green, the others
            in orange.
        crop: (112, 112, 3) uint8 BGR, the aligned face.
        embedding: (D,) float32, of unit length.
        norm: feature norm, AdaFace's measure of quality.
    """

    size_px: tuple[int, int]
    faces: int
    box: tuple[float, float, float, float]
    overview: np.ndarray
    crop: np.ndarray
    embedding: np.ndarray
    norm: float


def embed_photograph(
    encoded: bytes, embedder: Embedder, detector: MTCNN, *, most_pixels: int = MOST_PIXELS
) -> EmbeddedPhotograph:
    """Embed the largest face of a photograph.

    Args:
        encoded: content of an image file.
        embedder: the model.
        detector: face detector.
        most_pixels: a photograph with more pixels is rejected before it is decoded. One with more than 32 million is
            shrunk while it is decoded, if it is a JPEG.

    Raises:
        ValueError: not an image, damaged, too large, without a face, or the model fails on it; the message is written
            for end users.
    """
    photograph, size_px = decode_reduced(encoded, "the file", most_pixels=most_pixels, enough_pixels=ENOUGH_PIXELS)
    shrunk = round(max(size_px) / max(photograph.shape[:2]))  # 1, 2, 4 or 8
    faces = choose_faces(detector.detect(photograph), "all", photograph.shape)  # the largest first
    if not faces:
        smallest = round(shrunk * detector.smallest_face_px(photograph.shape[:2]))
        raise ValueError(
            f"no face was found in the photograph of {size_px[0]}x{size_px[1]} px: faces smaller than "
            f"{smallest} px, in profile or covered are not detected"
        )
    left, top, right, bottom = faces[0].box
    crop = warp_face(photograph, faces[0].landmarks)
    embeddings, norms = embedder.embed(crop[None])
    return EmbeddedPhotograph(
        size_px=size_px,
        faces=len(faces),
        box=(left * shrunk, top * shrunk, right * shrunk, bottom * shrunk),
        overview=_overview(photograph, faces),
        crop=crop,
        embedding=embeddings[0],
        norm=float(norms[0, 0]),
    )


def _overview(photograph: np.ndarray, faces: list[Face]) -> np.ndarray:
    """Return a small copy with orange frames around the faces, and a green one around the first, drawn last."""
    height, width = photograph.shape[:2]
    scale = min(1, _OVERVIEW_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(photograph, size, interpolation=cv2.INTER_AREA)
    for place in reversed(range(len(faces))):
        left, top, right, bottom = (round(side * scale) for side in faces[place].box)
        cv2.rectangle(small, (left, top), (right, bottom), _OTHER if place else _LARGEST, 1 if place else 2)
    return small
