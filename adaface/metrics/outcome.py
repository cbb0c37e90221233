"""The interface of all protocols: embeddings of a list of images in, named numbers with intervals out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from adaface.data.image_list import ImageList
from adaface.system.text_table import aligned


@dataclass(frozen=True)
class Embedded:
    """The embeddings of N images.

    Attributes:
        embeddings: (N, D) float32 unit vectors; zeros where the image could not be read.
        norms: (N, 1) float32 lengths before normalization, the model's measure of quality; 0 where unreadable.
        readable: (N,) booleans.
    """

    embeddings: np.ndarray
    norms: np.ndarray
    readable: np.ndarray


class EmbedImages(Protocol):
    """A function that embeds a list of images with a model; protocols take it as an argument."""

    def __call__(self, images: ImageList, view: str = "fused") -> Embedded:
        """Embed all images of a list.

        Args:
            images: images to embed.
            view: ``fused`` (image and mirror), ``image`` or ``mirror`` alone.

        Raises:
            ValueError: more images than allowed cannot be read; the message names them.
        """


@dataclass(frozen=True)
class Outcome:
    """Result of a protocol on one data set.

    Attributes:
        protocol: name of the protocol, such as ``ijbc``.
        data: name of the data set, such as ``IJB-C``.
        numbers: by name, in the order of the table; rates in percent. NaN if the data does not allow to compute one.
        intervals: by name, the lower and upper end of the 95 % interval, for numbers that have one.
        notes: remarks on these numbers.
        similarity: (P,) cosine of each pair, for curves; empty where the protocol has no pairs.
        issame: (P,) booleans.
        norms: (N,) feature norms of the images, for histograms; empty unless requested.
    """

    protocol: str
    data: str
    numbers: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    similarity: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    issame: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool), repr=False, compare=False)
    norms: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields except arrays as plain values for JSON, with None for NaN."""
        return {
            "protocol": self.protocol,
            "data": self.data,
            "numbers": {name: None if math.isnan(value) else value for name, value in self.numbers.items()},
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "notes": list(self.notes),
        }


def unreadable_note(readable: np.ndarray) -> tuple[str, ...]:
    """Return a note on unreadable images, or nothing if there are none.

    Args:
        readable: (N,) booleans.
    """
    bad = int((~readable).sum())
    return (f"{bad:,} of {len(readable):,} images could not be read and are left out",) if bad else ()


def outcome_lines(outcome: Outcome) -> list[str]:
    """Format an outcome as lines of text: a caption, a line per number with its interval, and the notes."""
    rows = []
    for name, value in outcome.numbers.items():
        low, high = outcome.intervals.get(name, (math.nan, math.nan))
        interval = f"[{low:.2f}, {high:.2f}]" if name in outcome.intervals else ""
        rows.append([name, "-" if math.isnan(value) else f"{value:.2f}", interval])
    lines = [*aligned(rows, "<><"), *outcome.notes]
    return [f"{outcome.protocol}: {outcome.data}", *(f"  {line}" for line in lines)]
