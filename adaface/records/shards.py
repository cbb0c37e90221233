"""A training set in one `.rec` or in several of one folder: `train.rec`, or `train_0.rec`, `train_1.rec`, ...

A folder with both raises an error, and so does one with a missing number. Labels count the identities of the whole set,
as in the shards of mxnet's `im2rec --chunks` (keys also count over all shards, and there are no header records) and in
sets that were split into parts of InsightFace's layout (header record, keys from 1 on, identity records in each). If
every shard numbers its own identities from 0 on, they may be the same identities or not: a file `property` beside them
states their total number. Without it an error is raised; such shards can be given as separate data sets.

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
from adaface.records.reader import RecordFile
from adaface.records.sidecar import Stamp

RECORD_FILE = "train.rec"
IMAGE_FOLDER = "imgs"  # beside it, what `convert.py` makes of it
_SHARD = re.compile(r"train_([0-9]+)\.(rec|idx)")
_STAMPED_AS = "train_shards.rec"  # what belongs to all shards is kept under this name
_SHOWN = 6


def find_records(folder: Path) -> list[Path]:
    """Find the training records of a folder.

    Args:
        folder: any path.

    Returns:
        `train.rec`, or `train_0.rec`, `train_1.rec`, ... in the order of their names as text; nothing where there is
        neither, or no such folder.

    Raises:
        ValueError: both are there, or some shard is missing.
    """
    shards = _shards(folder)
    if not shards:
        return [folder / RECORD_FILE] if (folder / RECORD_FILE).is_file() else []
    if (folder / RECORD_FILE).is_file():
        raise ValueError(
            f"{folder} holds both {RECORD_FILE} and {shards[0].name}: which are the training images? Name "
            f"{folder / RECORD_FILE} itself, or move it to another folder to have the shards"
        )
    # An index without its records is a shard that was not copied, the last one perhaps.
    indexed = [path for path in _shards(folder, "idx") if not path.with_suffix(".rec").is_file()]
    numbers = sorted(_number(path) for path in shards + indexed)
    known = set(numbers)
    missing = numbers[-1] + 1 - len(known) + len(indexed)  # a date may stand for a number: no list of them
    if missing or len(known) < len(numbers):
        gap = next((n for n in range(len(known)) if n not in known), None)
        first = min((_number(path) for path in indexed), default=None) if gap is None else gap
        what = "a number comes twice" if first is None else f"train_{first}.rec is missing"
        more = f" ({missing} shards are missing)" if missing > 1 else ""
        names = ", ".join(path.name for path in shards[:_SHOWN]) + (", ..." if len(shards) > _SHOWN else "")
        raise ValueError(
            f"{folder} holds {names}, but {what}{more}; expected train_0.rec, train_1.rec, ... without a gap. Copy "
            f"what is missing, or name one file"
        )
    return shards


def holds_records(folder: Path) -> bool:
    """Return whether there is a `train.rec` or a shard in a folder."""
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
        images: positions in the file of its first image and of the one past the last.
    """

    file: RecordFile
    start: int
    images: tuple[int, int]


class RecordShards:
    """Several `.rec` files as one, with consecutive positions.

    Args:
        rec_paths: at least one file, in the order of their names as text.

    Attributes:
        files: as given.
        stamp: of all files; None if the index of one of them is not in a sidecar.
        location: for messages.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: a damaged file; see `RecordFile`.
    """

    def __init__(self, rec_paths: Sequence[Path]) -> None:
        self.files = [RecordFile(path) for path in rec_paths]
        self._starts = [0, *itertools.accumulate(map(len, self.files))]
        first, last = rec_paths[0], rec_paths[-1]
        self.folder = first.parent
        self.location = str(first) if first == last else f"{first}, ..., {last.name} ({len(rec_paths)} files)"
        stamps = [file.stamp for file in self.files if file.stamp is not None]
        self.stamp: Stamp | None = None
        if len(stamps) == len(self.files):
            one = len(stamps) == 1
            self.stamp = stamps[0] if one else sidecar.join_stamps(self.folder / _STAMPED_AS, stamps)

    def __len__(self) -> int:
        return self._starts[-1]

    def shards(self) -> Iterator[Shard]:
        """Yield the files with their places."""
        for file, start in zip(self.files, self._starts, strict=False):
            yield Shard(file, start, file.image_range())

    def read_image(self, position: int) -> bytes:
        """Return the encoded image of a record, see `RecordFile.read_image`.

        Args:
            position: 0 to N - 1 over all files.
        """
        number = bisect.bisect_right(self._starts, position) - 1
        return self.files[number].read_image(position - self._starts[number])

    def name(self, position: int) -> str:
        """Return what a record's image file is called, without suffix: its key, or `<shard>-<key>` of several files.

        Keys may come again in the next file. The names ascend as text with the files, then with the keys.

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
        """Return how many identities the set says it has, and where it says so; None where it does not.

        Taken from the header record of a single file, otherwise from the first number of `property`: the header records
        of several files count their own images only.

        Raises:
            ValueError: `property` begins with something else.
        """
        declared = self.files[0].num_identities() if len(self.files) == 1 else None
        if declared is not None:
            return declared, "its header record"
        path = self.folder / "property"
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        first = text.split(",")[0].strip()
        if not first.isdecimal():
            raise ValueError(f"{path}: expected `identities,height,width`, got {text[:40]!r}; correct or remove it")
        return int(first), str(path)

    def refuse_separate_sets(self, labels: Sequence[np.ndarray]) -> None:
        """Raise where each of several files numbers its own identities, and `property` does not say they are the same.

        Args:
            labels: of the images of each file, whole numbers from 0 on, (N,) each, in the order of the keys.

        Raises:
            ValueError: so it is; says how to train on them.
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
    """Return whether labels (N,) are 0, 1, ... without a gap, sorted or as many as a header record announces."""
    count = int(labels.max(initial=-1)) + 1
    if not 0 < count <= len(labels) or labels.min() != 0:
        return False
    steps = np.diff(labels)
    if (steps >= 0).all():
        return bool((steps <= 1).all())
    return file.num_identities() == count == len(np.unique(labels))
