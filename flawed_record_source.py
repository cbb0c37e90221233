"""Training images of `.rec` files that training would refuse: labels with gaps, labels that are no class.

Samples are in the same order as in ``RecordSource``, and where that takes the files, it is the same data. Identities
without images are passed over, as the folder that `convert.py` makes has no folder of them; so are records whose label
is no whole number, or so large that it must be damaged. What was passed over is told.

Source: the data layout of InsightFace.
"""

import os
from pathlib import Path

import numpy as np

from class_order import lexicographic_order, order_by_class
from record_shards import RecordShards
from training_source import Flaw

_LARGEST_PER_IMAGE = 4  # a label of more than so many times the images is taken for damaged
_SMALL = 1000


class FlawedRecordSource:
    """Images of the `.rec` that make up one set, whatever their labels.

    Args:
        rec_paths: the files; each `.idx` and, where present, `property` lie beside them.

    Attributes:
        labels: int32 (N,), class of each sample.
        class_names: label of each class that has images.
        location: the files, for messages.
        files: their paths.
        flaws: what was passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no images with a usable label, or several files that each number their own identities.
    """

    def __init__(self, *rec_paths: str | os.PathLike[str]) -> None:
        self._records = RecordShards(list(map(Path, rec_paths)))
        self.files = [file.rec_path for file in self._records.files]
        self.location = self._records.location
        positions, labels, self.flaws = _usable(self._records)
        numbers = np.unique(labels)
        names = numbers[lexicographic_order(numbers)]
        class_of = np.empty(len(names), np.int32)
        class_of[np.searchsorted(numbers, names)] = np.arange(len(names), dtype=np.int32)
        classes = class_of[np.searchsorted(numbers, labels)]
        order = self._in_files(positions, classes)
        self._positions, self.labels = positions[order], classes[order]
        self.class_names = [str(number) for number in names.tolist()]
        self.flaws += _gaps(numbers, self._records.declared_identities())

    def _in_files(self, positions: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the order by class, file, then key as text."""
        parts = []
        for file, start, _ in self._records.shards():
            first, past = np.searchsorted(positions, (start, start + len(file)))
            if past > first:
                keys = file.keys[positions[first:past] - start]
                parts.append(order_by_class(keys, classes[first:past]) + first)
        order = np.concatenate(parts)
        return order if len(parts) == 1 else order[np.argsort(classes[order], kind="stable")]

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """Return the class of one sample."""
        return int(self.labels[index])

    def read(self, index: int) -> bytes:
        """Return the encoded image of one sample."""
        return self._records.read_image(int(self._positions[index]))

    def describe(self, index: int) -> str:
        """Return file, key and class of one sample, for messages."""
        where = self._records.describe(int(self._positions[index]))
        return f"{where}, class {self.class_names[self.labels[index]]}"


def _usable(records: RecordShards) -> tuple[np.ndarray, np.ndarray, list[Flaw]]:
    """Return positions and labels, int64 (N,) each, of the images that have a label, ascending; and which have none."""
    positions, labels = [], []
    for file, start, (first, past) in records.shards():
        positions.append(np.arange(start + first, start + past))
        labels.append(file.labels[first:past])
    place, label = np.concatenate(positions), np.concatenate(labels)
    if not len(place):
        raise ValueError(f"{records.location} holds no images; expected the training records of a data set")
    most = _LARGEST_PER_IMAGE * len(place) + _SMALL
    good = (label >= 0) & (label <= most) & (np.floor(label) == label)  # written so that NaN is bad too
    if not good.any():
        raise ValueError(f"{records.location}: no image has a label, a whole number from 0 to {most}")
    flaws = [
        Flaw("damaged label", "", f"{records.describe(int(p))}: its label is {found:g}, no number of an identity")
        for p, found in zip(place[~good], label[~good].tolist(), strict=True)
    ]
    if not flaws:
        records.refuse_separate_sets([part.astype(np.int32) for part in labels])
    return place[good], label[good].astype(np.int64), flaws


def _gaps(numbers: np.ndarray, declared: tuple[int, str] | None) -> list[Flaw]:
    """Tell of the labels without images, and of another number of identities than the declared one.

    Args:
        numbers: (C,) labels that have images, ascending.
        declared: number of identities, and what says so.
    """
    flaws = []
    steps = np.diff(numbers, prepend=-1)
    for place in np.flatnonzero(steps > 1).tolist():
        first, last = int(numbers[place] - steps[place] + 1), int(numbers[place]) - 1
        which = str(first) if first == last else f"{first} to {last}"
        flaws.append(Flaw("label gap", which, f"no images of label {which} ({last - first + 1} of {numbers[-1] + 1})"))
    if declared is not None and declared[0] != numbers[-1] + 1:
        text = f"labels 0 to {numbers[-1]}, but {declared[1]} declares {declared[0]} identities"
        flaws.append(Flaw("label gap", "", text))
    return flaws
