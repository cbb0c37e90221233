"""A training set in one or several `.rec` files of a folder: `train.rec`, or `train_0.rec`, `train_1.rec`, ...

A folder with both raises an error, and so does one with a missing number. Labels are numbered over the whole set, as in
the shards of mxnet's `im2rec --chunks` (keys are also numbered over all shards, and there are no header records) and in
sets that were split into parts with InsightFace's layout (each with a header record, keys from 1 on, and identity
records). If every shard numbers its own identities from 0 on, they may be the same identities or different ones: the
file `property` in the same folder states their total number. Without it, an error is raised; such shards can be given
as separate data sets.

Source: mxnet's `im2rec`; the InsightFace data layout.
"""

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaface.records import sidecar
from adaface.records.reader import RecordFile, warn_of_missing_images
from adaface.records.sidecar import Stamp
from adaface.system.text_file import read_text

RECORD_FILE = "train.rec"
IMAGE_FOLDER = "imgs"  # in the same folder, the images that `convert.py` has unpacked
_SHARD = re.compile(r"train_([0-9]+)\.(rec|idx)")
_STAMPED_AS = "train_shards.rec"  # name of the sidecars of all shards together
_SHOWN = 6


def find_records(folder: Path) -> list[Path]:
    """Find the training records of a folder.

    Args:
        folder: any path.

    Returns:
        `train.rec`, or `train_0.rec`, `train_1.rec`, ... sorted by name (as text); an empty list if there are none, or
        if the folder does not exist.

    Raises:
        ValueError: there are both, or a shard is missing.
    """
    shards = _shards(folder)
    if not shards:
        return [folder / RECORD_FILE] if (folder / RECORD_FILE).is_file() else []
    if (folder / RECORD_FILE).is_file():
        raise ValueError(
            f"{folder} contains both {RECORD_FILE} and {shards[0].name}: give {folder / RECORD_FILE} itself to train "
            "on it, or move it to another folder to train on the shards"
        )
    # an index without its records indicates a shard that was not copied, which may be the last one
    indexed = [path for path in _shards(folder, "idx") if not path.with_suffix(".rec").is_file()]
    numbers = sorted(_number(path) for path in shards + indexed)
    known = set(numbers)
    missing = numbers[-1] + 1 - len(known) + len(indexed)  # not listed, because numbers may be as large as dates
    if missing or len(known) < len(numbers):
        gap = next((n for n in range(len(known)) if n not in known), None)
        first = min((_number(path) for path in indexed), default=None) if gap is None else gap
        what = "a number occurs twice" if first is None else f"train_{first}.rec is missing"
        more = f" ({missing} shards are missing)" if missing > 1 else ""
        names = ", ".join(path.name for path in shards[:_SHOWN]) + (", ..." if len(shards) > _SHOWN else "")
        raise ValueError(
            f"{folder} contains {names}, but {what}{more}; expected train_0.rec, train_1.rec, ... without a gap. Copy "
            f"the missing files, or give a single file"
        )
    return shards


def holds_records(folder: Path) -> bool:
    """Return whether a folder contains a `train.rec` or a shard."""
    return (folder / RECORD_FILE).is_file() or bool(_shards(folder))


def _shards(folder: Path, suffix: str = "rec") -> list[Path]:
    candidates = folder.glob(f"train_*.{suffix}") if folder.is_dir() else ()
    return sorted(path for path in candidates if _SHARD.fullmatch(path.name) and path.is_file())


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("train_"))


class Shard(NamedTuple):
    """One file of a set.

    Attributes:
        file: the file.
        start: position of its first record in the whole set.
        images: range of the positions of the images in the file: the first, and the end.
    """

    file: RecordFile
    start: int
    images: tuple[int, int]


class RecordShards:
    """Several `.rec` files as one, with consecutive positions; a warning says if announced images are missing.

    Args:
        rec_paths: at least one file, sorted by name (as text).

    Attributes:
        files: the files, in the same order.
        stamp: stamp of all files; None if the index of one of them is not in a sidecar.
        location: paths, for messages.
        missing: number of images that the header records announce, but the files do not contain; 0 if unknown.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is damaged; see `RecordFile`.
    """

    def __init__(self, rec_paths: Sequence[Path]) -> None:
        self.files = [RecordFile(path, part=True) for path in rec_paths]
        self._starts = [0, *itertools.accumulate(map(len, self.files))]
        first, last = rec_paths[0], rec_paths[-1]
        self.folder = first.parent
        self.location = str(first) if first == last else f"{first}, ..., {last.name} ({len(rec_paths)} files)"
        self.missing = warn_of_missing_images(self.files, self.location)
        stamps = [file.stamp for file in self.files if file.stamp is not None]
        self.stamp: Stamp | None = None
        if len(stamps) == len(self.files):
            one = len(stamps) == 1
            self.stamp = stamps[0] if one else sidecar.join_stamps(self.folder / _STAMPED_AS, stamps)

    def __len__(self) -> int:
        return self._starts[-1]

    def shards(self) -> Iterator[Shard]:
        """Yield the files with their positions in the set."""
        for file, start in zip(self.files, self._starts, strict=False):
            yield Shard(file, start, file.image_range())

    def read_image(self, position: int) -> bytes:
        """Return the encoded image of a record, see `RecordFile.read_image`.

        Args:
            position: 0 to N - 1 over all files.
        """
        number = bisect.bisect_right(self._starts, position) - 1
        return self.files[number].read_image(position - self._starts[number])

    def other_label(self, position: int) -> float | None:
        """Return the first label in a record if it is not that of the index, which may be from the identity records.

        Args:
            position: 0 to N - 1 over all files.

        Raises:
            ValueError: the file is damaged there.
        """
        number = bisect.bisect_right(self._starts, position) - 1
        file, place = self.files[number], position - self._starts[number]
        label = float(np.ravel(file.header(place).label)[0])
        return None if label == file.labels[place] else label

    def name(self, position: int) -> str:
        """Return the name of a record's image file, without suffix: its key, or `<shard>-<key>` with several files.

        The same key may occur in several files. Sorted as text, the names have the order of the files, then of the
        keys.

        Args:
            position: 0 to N - 1 over all files.
        """
        number = bisect.bisect_right(self._starts, position) - 1
        file = self.files[number]
        key = str(file.keys[position - self._starts[number]])
        return key if len(self.files) == 1 else f"{file.rec_path.stem.removeprefix('train_')}-{key}"

    def describe(self, position: int) -> str:
        """Return file and key of a record, for messages.

        Args:
            position: 0 to N - 1 over all files.
        """
        number = bisect.bisect_right(self._starts, position) - 1
        file = self.files[number]
        return f"{file.rec_path}, key {file.keys[position - self._starts[number]]}"

    def declared_identities(self) -> tuple[int, str] | None:
        """Return the declared number of identities and the source of the number; None if it is not declared.

        For a single file, the number is that of the header record; otherwise it is the first number of `property`,
        because the header records of several files count only their own images.

        Raises:
            ValueError: `property` does not begin with a number.
        """
        declared = self.files[0].num_identities() if len(self.files) == 1 else None
        if declared is not None:
            return declared, "its header record"
        path = self.folder / "property"
        if not path.is_file():
            return None
        text = read_text(path).strip()
        first = text.split(",")[0].strip()
        if not first.isdecimal():
            raise ValueError(f"{path}: expected `identities,height,width`, got {text[:40]!r}; correct or remove it")
        return int(first), str(path)

    def refuse_separate_sets(self, labels: Sequence[np.ndarray]) -> None:
        """Raise an error if each of several files numbers its own identities, unless `property` says they are the same.

        Args:
            labels: labels of the images of each file, (N,) integers from 0 on, in the order of the keys.

        Raises:
            ValueError: each file numbers its own identities; the message says how to train on them.
        """
        filled = [(file, part) for file, part in zip(self.files, labels, strict=True) if len(part)]
        counts = [int(part.max()) + 1 for _, part in filled]
        declared = self.declared_identities()
        if len(filled) < 2 or (declared is not None and declared[0] == max(counts)):
            return
        if all(_is_a_set(file, part) for file, part in filled):
            paths = ",".join(str(file.rec_path) for file, _ in filled[:2]) + (",..." if len(filled) > 2 else "")
            raise ValueError(
                f"{self.location}: each file numbers its own identities from 0 on ({counts[0]} in the first, "
                f"{counts[1]} in the second). If these are different identities, give them as several data "
                f"sets: --train_data_path {paths}. If they are the same in every file, declare that in "
                f"{self.folder / 'property'}: {max(counts)},112,112"
            )


def _is_a_set(file: RecordFile, labels: np.ndarray) -> bool:
    """Return whether labels (N,) are 0, 1, ... without a gap, and sorted or as many as the header record announces."""
    count = int(labels.max(initial=-1)) + 1
    if not 0 < count <= len(labels) or labels.min() != 0:
        return False
    steps = np.diff(labels)
    if (steps >= 0).all():
        return bool((steps <= 1).all())
    return file.num_identities() == count == len(np.unique(labels))
