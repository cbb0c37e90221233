"""A cleaned index: which training images are used, and with which label.

`adaface audit --apply` writes it as a CSV file that can be edited by hand. The first line identifies the data, the
second names the columns:

    # adaface index 1: 4527 images, fingerprint 01b2...
    sample,use,identity,train_as,why,image,checksum
    0,1,Ada,Ada,,faces/Ada/0.jpg,crc 0d4a1185
    1,0,Ada,,copy of faces/Ada/0.jpg,faces/Ada/1.jpg,crc 0d4a1185
    2,1,Ada,Bob,looks like Bob,faces/Ada/2.jpg,crc 9be3c1f0

``sample`` counts from 0 in the order of the data (that of torchvision's ``ImageFolder``), which is the same for a
`.rec` and the folder converted from it. ``use`` is 1 or 0; ``train_as`` is an identity of the data. ``checksum`` is the
CRC-32 of the encoded image, compared when training reads it; it may be empty. Nothing is deleted.
"""

import csv
import io
import itertools
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaface.data.sources.base import TrainingSource, fingerprint_of
from adaface.data.sources.class_order import describe_change
from adaface.data.sources.selection import SelectedSource
from adaface.system.command_line import counted, nearest
from adaface.system.csv_text import SafeWriter, original
from adaface.system.files import atomic_file

COLUMNS = ("sample", "use", "identity", "train_as", "why", "image", "checksum")
_FIRST_LINE = re.compile(r"# adaface index 1: (\d+) images, fingerprint ([0-9a-f]{64})")
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
_FROM_SPREADSHEET = "utf-8-sig"  # some write a byte order mark
_SHOWN = 12
_LINES_AT_ONCE = 1 << 14
_CHECKSUM = "crc "  # a spreadsheet would read 12e45678 as a number


@dataclass(frozen=True)
class TrainingIndex:
    """Which samples are used.

    Attributes:
        classes: (N,) int32, class that each sample is trained as; -1 for unused samples.
        reasons: reasons why samples are not used, or are used with another label.
    """

    classes: np.ndarray
    reasons: Mapping[int, str]

    @property
    def used(self) -> int:
        """How many samples are used."""
        return int((self.classes >= 0).sum())


def write_index(path: Path, source: TrainingSource, index: TrainingIndex) -> None:
    """Write an index file atomically.

    Args:
        path: the CSV file; its folder exists.
        source: the data that the index refers to.
        index: which samples are used.

    Raises:
        OSError: the file cannot be written; an existing file is unchanged.
    """
    with atomic_file(path) as file:
        first = f"# adaface index 1: {len(source)} images, fingerprint {fingerprint_of(source)}\n"
        file.write(first.encode() + f"{','.join(COLUMNS)}\n".encode())
        rows = _rows(source, index)
        while text := _csv_text(rows):
            file.write(text.encode(_ENCODING["encoding"], _ENCODING["errors"]))


def _rows(source: TrainingSource, index: TrainingIndex) -> Iterator[tuple[object, ...]]:
    names, labels = source.class_names, source.labels
    for sample, taken in enumerate(index.classes.tolist()):
        as_whom = names[taken] if taken >= 0 else ""
        why = index.reasons.get(sample, "")
        try:
            checksum = f"{_CHECKSUM}{zlib.crc32(source.read(sample)):08x}"
        except (OSError, ValueError):  # damaged
            checksum = ""
        yield sample, int(taken >= 0), names[labels[sample]], as_whom, why, source.describe(sample), checksum


def _csv_text(rows: Iterator[tuple[object, ...]]) -> str:
    """Return the next rows as text; empty when there are none left."""
    text = io.StringIO()
    SafeWriter(text).writerows(itertools.islice(rows, _LINES_AT_ONCE))
    return text.getvalue()


def select_indexed(source: TrainingSource, path: str | os.PathLike[str]) -> SelectedSource:
    """Select the samples of a data set that an index uses, with the labels of the index.

    Args:
        source: the data; opened with its flaws skipped, as the index may exclude them.
        path: the index.

    Returns:
        The samples, in the order of the data; classes without samples are dropped, and the others are renumbered in
        their order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an index, an index of other data, or an invalid line; fewer than two identities are used.
    """
    classes, checksums = _read(Path(path), source)
    kept = np.unique(classes[classes >= 0])
    if len(kept) < 2:
        raise ValueError(
            f"{path} uses images of {counted(len(kept), 'identity', 'identities')}, training needs at least 2"
        )
    chosen = np.flatnonzero(classes >= 0)
    names = [source.class_names[number] for number in kept.tolist()]
    small = np.uint32 if len(source) < 2**32 else np.int64
    labels = np.searchsorted(kept, classes[chosen])
    location = f"the samples of {source.location} used by {path}"
    return SelectedSource(source, chosen.astype(small), labels, names, location, checksums[chosen])


def _read(path: Path, source: TrainingSource) -> tuple[np.ndarray, np.ndarray]:
    """Return the class that each sample is trained as, int32 (N,), -1 if it is not used; and CRC-32s or -1, int64."""
    if not path.is_file():
        raise FileNotFoundError(f"--train_data_index: there is no file {path}")
    with path.open(**_ENCODING | {"encoding": _FROM_SPREADSHEET}) as file:
        start = file.readline() + file.readline()
        file.seek(0)
        saved_with = re.search(rf'{COLUMNS[0]}"?([;\t])', start)  # where a comma is part of a number
        rows = csv.reader(file, delimiter=saved_with[1] if saved_with else ",")
        _check_first_line(path, rows, source)
        names, labels = source.class_names, source.labels
        place = {name: number for number, name in enumerate(names)}
        classes, checksums = np.full(len(source), -1, np.int32), np.full(len(source), -1, np.int64)
        seen = np.zeros(len(source), bool)
        try:
            columns = next(rows, [])
            if missing := [name for name in COLUMNS[:4] if name not in columns]:
                raise ValueError(f"there is no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
            at = [columns.index(name) for name in (*COLUMNS[:4], *COLUMNS[-1:]) if name in columns]
            for row in filter(any, rows):
                cells = (original(row[column]) if column < len(row) else "" for column in at)
                sample, used, whose, as_whom, *checksum = cells
                number = _take(classes, seen, place, sample, used, as_whom)
                if checksum and checksum[0]:
                    checksums[number] = _parse_checksum(checksum[0])
                if whose != (name := names[labels[number]]):
                    raise ValueError(
                        f"identity is {_short(whose)!r}, sample {number} is of {_short(name)!r}: a spreadsheet may "
                        "have changed it (such as 007 to 7), or sorted one column alone"
                    )
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
    if not seen.all():
        raise ValueError(
            f"{path} lacks {int((~seen).sum()):,} of {len(seen):,} images, the first is sample "
            f"{int(np.argmin(seen))}: the file is incomplete; create it again with adaface audit ... --apply"
        )
    return classes, checksums


def _parse_checksum(text: str) -> int:
    if not (match := re.fullmatch(f"{_CHECKSUM}([0-9a-f]{{8}})", text)):
        raise ValueError(f"checksum is {_short(text)!r}, expected {_CHECKSUM}and 8 hexadecimal digits, or nothing")
    return int(match.group(1), 16)


def _take(classes: np.ndarray, seen: np.ndarray, place: Mapping[str, int], sample: str, used: str, as_whom: str) -> int:
    """Apply one line; return its sample."""
    if not (sample.isascii() and sample.isdigit() and int(sample) < len(classes)):
        raise ValueError(f"sample is {sample!r}, expected a number from 0 to {len(classes) - 1}")
    if used not in ("0", "1"):
        raise ValueError(f"use is {used!r}, expected 1 or 0")
    number = int(sample)
    if seen[number]:
        raise ValueError(f"sample {number} occurs twice")
    seen[number] = True
    if used == "1":
        if as_whom not in place:
            some = list(place)
            hint = nearest(as_whom, some) if len(some) <= _SHOWN * 1000 else f"they are {', '.join(some[:_SHOWN])}, ..."
            raise ValueError(f"train_as is {as_whom!r}, which is not an identity of the data; {_short(hint)}")
        classes[number] = place[as_whom]
    return number


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _check_first_line(path: Path, rows: Iterator[list[str]], source: TrainingSource) -> None:
    try:
        line = ",".join(next(rows, [])).rstrip(", ")  # spreadsheets pad each line to the longest
    except csv.Error:
        line = ""
    match = _FIRST_LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"{path} is not an index of `adaface audit <data> --apply`: it begins with {line[:60]!r}")
    count, fingerprint = int(match.group(1)), match.group(2)
    if count == len(source) and fingerprint == fingerprint_of(source):
        return
    what = f"is for {count:,} images, {source.location} has {len(source):,}"
    if count == len(source):
        what = f"belongs to other data than {source.location}, or the data has changed since"
    raise ValueError(f"{path} {what}: {_difference(rows, source)}; audit it again")


def _difference(rows: Iterator[list[str]], source: TrainingSource) -> str:
    """Return how the identities of an index, after its first line, differ from those of the data."""
    column = COLUMNS.index("identity")
    try:
        listed = dict.fromkeys(original(row[column]) for row in itertools.islice(rows, 1, None) if len(row) > column)
    except csv.Error:
        return "it is damaged"
    if change := describe_change(listed, source.class_names):
        return f"the identities are others: {change}"
    if list(listed) != list(source.class_names):
        return "the identities are the same, in another order: give several data sets in the order of the audit"
    return "the identities are the same, images or their labels are not"
