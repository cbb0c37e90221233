"""Training images in `.rec` files, in the order and with the labels of the folder they convert to.

Class names are the labels, sorted as text (0, 1, 10, 100, ..., 2, ...), as are the names of the images inside a class,
and classes are numbered from 0 in that order, as torchvision's `ImageFolder` does for `imgs/<label>/<key>.jpg`.

``RecordSource`` refuses gaps in the labels and invalid labels. ``FlawedRecordSource`` accepts such files for the audit:
it skips identities without images, which have no folder after the conversion either, and records whose label is not an
integer or so large that it must be damaged. Its ``flaws`` list what was skipped. If ``RecordSource`` accepts the files,
both give the same samples in the same order.

Source: the InsightFace data layout.
Differences: 24 bytes per record in memory, including the index, shared by all processes if sidecar files can be
written.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaface.data.sources.base import Flaw
from adaface.data.sources.class_order import NumberedNames, lexicographic_order, order_by_class
from adaface.records import sidecar
from adaface.records.reader import RecordFile
from adaface.records.shards import IMAGE_FOLDER, RecordShards
from adaface.system.command_line import invocation

_SIDECAR = "order"
_SHOWN = 6
_COUNTED_AT_ONCE = 1 << 22  # bincount copies its input to 8 bytes each
_LARGEST_PER_IMAGE = 4  # a label above this multiple of the number of images is damaged
_SMALL = 1000


class _RecordImages:
    """Samples of `.rec` files: images at given positions with their classes.

    Attributes:
        location: the files, for messages.
        labels: int32 (N,), class of each sample.
        class_names: label of each class.
    """

    class_names: Sequence[str]
    labels: np.ndarray
    _positions: np.ndarray  # (N,) in the files

    def __init__(self, rec_paths: Sequence[str | os.PathLike[str]]) -> None:
        self._records = RecordShards(list(map(Path, rec_paths)))
        self.location = self._records.location

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


class RecordSource(_RecordImages):
    """Images of one `.rec`, or of several that form one set.

    Args:
        rec_paths: the files; their `.idx` and, if any, `property` files are in the same folder.

    Attributes:
        labels: int32 (N,), class of each sample.
        class_names: label of each class.
        location: the files, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no images; labels that are not 0..C-1, or exceed the declared number of identities;
            or several files that each number their own identities.
    """

    def __init__(self, *rec_paths: str | os.PathLike[str]) -> None:
        super().__init__(rec_paths)
        self._shared = False
        self.labels, self._positions = self._shared_order() or self._order()
        self.class_names = NumberedNames(int(self.labels[-1]) + 1)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self._shared:
            del state["labels"], state["_positions"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._shared:
            self._shared = False
            self.labels, self._positions = self._shared_order(checked=True) or self._order()

    def _shared_order(self, *, checked: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
        """Memory-map the classes and positions (N,) that an earlier `_order` stored; None if there are none."""
        records = self._records
        if records.stamp is None:
            return None
        columns = sidecar.load(records.stamp, _SIDECAR, checked=checked)
        if columns is None or set(columns) != {"labels", "positions"}:
            return None
        labels, positions = columns["labels"], columns["positions"]
        if not 0 < len(labels) == len(positions) or not 0 <= positions.min() <= positions.max() < len(records):
            return None
        class_count = int(labels.max()) + 1
        if not (labels.min() >= 0 and labels[-1] == class_count - 1 and class_count <= len(labels)):
            return None
        declared = records.declared_identities()
        if declared is not None and not _fits(class_count, declared[0], len(records.files)):
            return None
        self._shared = True
        return labels, positions

    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute classes and positions of the samples, (N,) each, and store them for other processes."""
        columns = dict(zip(("labels", "positions"), _ordered(self._records), strict=True))
        stamp = self._records.stamp
        shared = None if stamp is None else sidecar.store(stamp, _SIDECAR, columns)
        self._shared = shared is not None
        columns = shared or columns
        return columns["labels"], columns["positions"]


def _ordered(records: RecordShards) -> tuple[np.ndarray, np.ndarray]:
    """Return class and position of each sample, (N,) each: sorted by class, then by file, then by key as text."""
    parts = [_whole_labels(file, slice(*images)) for file, _, images in records.shards()]
    total = sum(map(len, parts))
    if not total:
        raise ValueError(f"{records.location} holds no images; expected the training records of a data set")
    records.refuse_separate_sets(parts)
    counts = _images_of_labels(records, parts, total)
    numbers = NumberedNames(len(counts)).numbers()
    class_of_label = np.empty_like(numbers)
    class_of_label[numbers] = np.arange(len(numbers), dtype=np.int32)
    counts = counts[numbers]
    begins = np.cumsum(counts) - counts  # where the samples of the next file start in each class
    positions = np.empty(total, np.uint32 if len(records) < 2**32 else np.int64)
    for number, (file, start, (first, past)) in enumerate(records.shards()):
        classes = class_of_label[parts[number]]
        parts[number] = np.empty(0)  # no longer needed, and 170 MB for a file of 42 million images
        order = order_by_class(file.keys[first:past], classes).astype(positions.dtype)
        order += start + first
        if total == len(order):
            positions = order
            break
        own = _counted(classes, len(counts))
        classes = classes[order - (start + first)]
        places = (begins - (np.cumsum(own) - own))[classes]
        places += np.arange(len(order))
        positions[places] = order
        begins += own
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts), positions


def _whole_labels(file: RecordFile, images: slice) -> np.ndarray:
    """Return the labels of a file's images as int32 (N,), or raise an error if one is not an integer from 0 on."""
    labels = file.labels[images]
    bad = ~((labels >= 0) & (labels < 2**31) & (np.floor(labels) == labels))  # NaN is bad too
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"{file.rec_path}: the label of key {file.keys[images][first]} is {labels[first]:g}"
            f"{' (a damaged image header)' if np.isnan(labels[first]) else ''}, expected an integer from 0 on "
            f"({int(bad.sum())} such labels); the file is damaged or not a training set: pack it again"
        )
    return labels.astype(np.int32)


def _images_of_labels(records: RecordShards, parts: list[np.ndarray], total: int) -> np.ndarray:
    """Count the images of each label, int64 (C,); raise ValueError for gaps or another number than the declared one.

    Args:
        records: the files.
        parts: labels of the images of each file, int32.
        total: total number of images.
    """
    most = [int(part.max(initial=-1)) for part in parts]
    class_count = max(most) + 1
    declared = records.declared_identities()
    if declared is not None and class_count > declared[0]:
        number = int(np.argmax(most))
        file, _, (first, _) = list(records.shards())[number]
        key = file.keys[first + np.argmax(parts[number])]
        raise ValueError(
            f"{file.rec_path}: the label of key {key} is {class_count - 1}, but {declared[1]} declares {declared[0]} "
            f"identities (labels 0..{declared[0] - 1}); correct the declaration, or pack the file again"
        )
    # Not for a single damaged label of two billion, which would allocate 16 GB.
    counts = np.zeros(class_count if class_count <= total else 0, np.int64)
    for part in parts if len(counts) else ():
        counts += _counted(part, class_count)
    present = np.flatnonzero(counts) if len(counts) else np.unique(np.concatenate(parts))
    if len(present) < class_count:
        after = np.flatnonzero(np.diff(present, prepend=-1) > 1)[:_SHOWN]
        missing = [str(present[i - 1] + 1 if i else 0) for i in after]
        folder = records.folder
        raise ValueError(
            f"{records.location}: labels up to {class_count - 1} but only {len(present)} identities; without images "
            f"are for example {', '.join(missing)}. Convert it to a folder, which renumbers the labels: "
            f"{invocation('convert')} --rec_path {folder} --make_image_files, then train on {folder / IMAGE_FOLDER}"
        )
    if declared is not None and not _fits(class_count, declared[0], len(records.files)):
        raise ValueError(
            f"{records.location}: {class_count} identities, but {declared[1]} declares {declared[0]}: is a file "
            f"missing? Copy it, or correct the declaration"
        )
    return counts


def _counted(labels: np.ndarray, class_count: int) -> np.ndarray:
    """Count the labels 0..C-1 in (N,), int64 (C,)."""
    counts = np.zeros(class_count, np.int64)
    for start in range(0, len(labels), _COUNTED_AT_ONCE):
        counts += np.bincount(labels[start : start + _COUNTED_AT_ONCE], minlength=class_count)
    return counts


def _fits(class_count: int, declared: int, files: int) -> bool:
    """Return whether the number of classes fits the declared one; exactly for several files: one may be missing."""
    return class_count <= declared if files == 1 else class_count == declared


class FlawedRecordSource(_RecordImages):
    """Images of the `.rec` files that form one set, with any labels.

    Args:
        rec_paths: the files; their `.idx` and, if any, `property` files are in the same folder.

    Attributes:
        labels: int32 (N,), class of each sample.
        class_names: label of each class that has images.
        location: the files, for messages.
        files: their paths.
        flaws: what was skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no images with a usable label, or several files that each number their own identities.
    """

    def __init__(self, *rec_paths: str | os.PathLike[str]) -> None:
        super().__init__(rec_paths)
        self.files = [file.rec_path for file in self._records.files]
        positions, labels, self.flaws = _usable_images(self._records)
        numbers = np.unique(labels)
        names = numbers[lexicographic_order(numbers)]
        class_of = np.empty(len(names), np.int32)
        class_of[np.searchsorted(numbers, names)] = np.arange(len(names), dtype=np.int32)
        classes = class_of[np.searchsorted(numbers, labels)]
        order = self._in_files(positions, classes)
        self._positions, self.labels = positions[order], classes[order]
        self.class_names = [str(number) for number in names.tolist()]
        self.flaws += _gaps(numbers, self._records.declared_identities()) + _missing(self._records)

    def other_label(self, index: int) -> float | None:
        """Return the label in the record of one sample if it is not that of the index, see `RecordShards`."""
        return self._records.other_label(int(self._positions[index]))

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


def _usable_images(records: RecordShards) -> tuple[np.ndarray, np.ndarray, list[Flaw]]:
    """Return ascending positions and labels, int64 (N,) each, of images with valid labels, and other images' flaws."""
    positions, labels = [], []
    for file, start, (first, past) in records.shards():
        positions.append(np.arange(start + first, start + past))
        labels.append(file.labels[first:past])
    place, label = np.concatenate(positions), np.concatenate(labels)
    if not len(place):
        raise ValueError(f"{records.location} holds no images; expected the training records of a data set")
    most = _LARGEST_PER_IMAGE * len(place) + _SMALL
    good = (label >= 0) & (label <= most) & (np.floor(label) == label)  # NaN is bad too
    if not good.any():
        raise ValueError(f"{records.location}: no image has a label that is an integer from 0 to {most}")
    flaws = [
        Flaw("damaged label", "", f"{records.describe(int(p))}: its label is {found:g}, not a class number")
        for p, found in zip(place[~good], label[~good].tolist(), strict=True)
    ]
    if not flaws:
        records.refuse_separate_sets([part.astype(np.int32) for part in labels])
    return place[good], label[good].astype(np.int64), flaws


def _gaps(numbers: np.ndarray, declared: tuple[int, str] | None) -> list[Flaw]:
    """List labels without images, and a number of identities that differs from the declared one.

    Args:
        numbers: (C,) labels with images, ascending.
        declared: number of identities, and the file that declares it.
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


def _missing(records: RecordShards) -> list[Flaw]:
    """List images that the header record announces, but the files do not contain."""
    if not records.missing:
        return []
    images = sum(past - first for _, _, (first, past) in records.shards())
    announced = f"the header record announces {images + records.missing:,} images, there are {images:,}"
    return [Flaw("missing image", "", f"{records.location}: {announced}")]
