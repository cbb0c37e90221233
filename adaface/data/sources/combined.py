"""Several training sets as one, with concatenated samples and classes.

Identities are not merged: an identity that occurs in two sets becomes two classes. Nothing but the sets themselves is
kept in memory.
"""

import bisect
import itertools
from collections.abc import Sequence

import numpy as np

from adaface.data.sources.base import TrainingSource
from adaface.data.sources.class_order import PrefixedNames
from adaface.system.command_line import counted


class CombinedSource:
    """The samples of several sources.

    Args:
        parts: names and sources, at least one; names are distinct.

    Attributes:
        class_names: `<name>/<name of the class>`.
        location: names, sizes and locations of all sets, for messages.
        flaws: what was skipped in them.
    """

    def __init__(self, parts: Sequence[tuple[str, TrainingSource]]) -> None:
        self._names, self._parts = [name for name, _ in parts], [part for _, part in parts]
        self._starts = [0, *itertools.accumulate(map(len, self._parts))]
        self._first_classes = [0, *itertools.accumulate(len(part.class_names) for part in self._parts)]
        self.class_names: Sequence[str] = PrefixedNames([(name, part.class_names) for name, part in parts])
        described = (
            f"{name} ({counted(len(part), 'image', 'images')} of "
            f"{counted(len(part.class_names), 'identity', 'identities')}, {part.location})"
            for name, part in parts
        )
        self.location = " + ".join(described)
        self.flaws = [
            flaw._replace(identity=flaw.identity and f"{name}/{flaw.identity}")
            for name, part in parts
            for flaw in getattr(part, "flaws", [])
        ]

    def parts(self) -> list[TrainingSource]:
        """Return the sources."""
        return list(self._parts)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def labels(self) -> np.ndarray:
        """Class of each sample, int32 (N,), computed at each access to save 4 bytes per sample."""
        labels = np.empty(len(self), np.int32)
        for part, start, first_class in zip(self._parts, self._starts, self._first_classes, strict=False):
            np.add(part.labels, first_class, out=labels[start : start + len(part)], casting="unsafe")
        return labels

    def locate(self, index: int) -> tuple[TrainingSource, int]:
        """Return the source of one sample, and its index there."""
        number = self._part_of(index)
        return self._parts[number], index - self._starts[number]

    def label(self, index: int) -> int:
        """Return the class of one sample."""
        number = self._part_of(index)
        return self._parts[number].label(index - self._starts[number]) + self._first_classes[number]

    def read(self, index: int) -> bytes:
        """Return the encoded image of one sample."""
        part, place = self.locate(index)
        return part.read(place)

    def describe(self, index: int) -> str:
        """Return the set and location of one sample, for messages."""
        number = self._part_of(index)
        return f"data set {self._names[number]}: {self._parts[number].describe(index - self._starts[number])}"

    def _part_of(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1
