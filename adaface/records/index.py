"""The index of a `.rec`: keys, offsets and labels as numpy arrays, 16 bytes per record.

A large file is opened with its `.idx` and its identity records (`records/identity_labels.py`), and the index is cached
in a sidecar (`records/sidecar.py`). If that is not possible, or if the file is small, every header is read.

Source: mxnet's `MXIndexedRecordIO` (the `.idx`: key, tab, offset, newline), the InsightFace layout of `train.rec`.
Differences: mxnet keeps a dictionary and knows no labels; an `.idx` that is missing or belongs to another file is
replaced by a scan.
"""

import mmap
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaface.records import sidecar
from adaface.records.format import PART, announced, join, map_file, scan
from adaface.records.headers import read_heads, read_ids
from adaface.records.identity_labels import labels_by_identity
from adaface.records.idx import read_idx
from adaface.records.sidecar import Stamp
from adaface.system.files import atomic_file

PathLike = str | os.PathLike[str]

_LARGE = 10_000  # records; for smaller files, every header is read, which is fast and finds any damage
_RECORDS_AT_ONCE = 1 << 16  # few enough that their pages stay in memory while all fields are gathered
_SIDECAR = "index"
_EXACT_FLOAT32 = 1 << 24  # the header record stores counts as float32


class Index(NamedTuple):
    """One entry for each record.

    Attributes:
        keys: uint32 (N,), int64 where one is too large.
        offsets: int64 (N,), bytes.
        labels: float32 (N,), the first label; NaN without a valid image header.
    """

    keys: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray


class _StaleIndexError(Exception):
    """The `.idx` does not belong to the `.rec`; the message says why."""


def open_index(rec_path: Path, idx_path: Path) -> tuple[Index, int, Stamp | None]:
    """Load the index from the sidecar, or build it from the `.idx`, or by a scan if that is missing or stale.

    Args:
        rec_path: the `.rec`.
        idx_path: the `.idx`, which may be missing.

    Returns:
        The index, ascending by key; the size of the `.rec` in bytes; and the stamp for `map_index`, None if the index
        exists only in the memory of this process.

    Raises:
        FileNotFoundError: the `.rec` does not exist.
        ValueError: an empty or damaged `.rec`; a malformed `.idx`, or one with a duplicate key.
    """
    data = map_file(rec_path)
    if not idx_path.is_file():
        return _scanned_index(data, rec_path, idx_path, stale=None), len(data), None
    stamp = sidecar.take_stamp(rec_path, idx_path)
    index = map_index(stamp)
    if index is not None:
        return index, len(data), stamp
    try:
        index = _from_idx(data, rec_path, idx_path)
    except _StaleIndexError as stale:
        return _scanned_index(data, rec_path, idx_path, str(stale)), len(data), None
    columns = sidecar.store(stamp, _SIDECAR, index._asdict()) if len(index.keys) >= _LARGE else None
    return (index, len(data), None) if columns is None else (Index(**columns), len(data), stamp)


def map_index(stamp: Stamp, *, checked: bool = False) -> Index | None:
    """Load the index from the sidecar.

    Args:
        stamp: of the files that it must have been built from.
        checked: whether another process has verified its checksum.

    Returns:
        The index, in memory shared by all processes; None if there is none for this stamp.
    """
    columns = sidecar.load(stamp, _SIDECAR, checked=checked)
    if columns is None or set(columns) != set(Index._fields):
        return None
    index = Index(**columns)
    types = (index.keys.dtype.kind in "ui", index.offsets.dtype == np.int64, index.labels.dtype == np.float32)
    return index if all(types) and len(index.keys) == len(index.offsets) == len(index.labels) > 0 else None


def _from_idx(data: mmap.mmap, rec_path: Path, idx_path: Path) -> Index:
    """Build the index from the `.idx`."""
    keys, offsets = read_idx(idx_path)
    labels = labels_by_identity(data, keys, offsets) if len(keys) >= _LARGE else None
    if labels is not None:
        return Index(_compact(keys), offsets, labels)
    index = _by_key(_describe(data, keys, offsets, rec_path), idx_path)
    _check_keys(data, index)
    return index


def _check_keys(data: mmap.mmap, index: Index) -> None:
    """Raise _StaleIndexError if an image's key is not one of those that the header record announces for images.

    Such an image would be left out. Counts beyond float32's whole numbers are not compared.
    """
    if not len(index.keys) or index.keys[0] != 0:
        return
    totals = _announced(data, int(index.offsets[0]))
    if totals is None or totals[1] >= _EXACT_FLOAT32:
        return
    images = int(np.searchsorted(index.keys, index.keys.dtype.type(totals[0]))) - 1
    beyond = len(index.keys) - 1 - images
    if images < totals[0] - 1 and beyond > totals[1] - totals[0]:
        raise _StaleIndexError(f"{images:,} keys of images, the header record announces {totals[0] - 1:,.0f}")


def _scanned_index(data: mmap.mmap, rec_path: Path, idx_path: Path, stale: str | None) -> Index:
    """Build the index by a scan, and warn.

    Args:
        data: the mapped `.rec`.
        rec_path: its path.
        idx_path: the `.idx`.
        stale: why the `.idx` is stale; None if it is missing.
    """
    try:
        offsets = scan(rec_path)
    except ValueError as error:
        raise ValueError(f"{error}" if stale is None else f"{error} ({idx_path}: {stale})") from None
    keys = _keys_by_id(data, offsets)
    source = "the ids in the image headers"
    if keys is None:
        keys = np.arange(len(offsets), dtype=np.int64)
        source = "running numbers, as the ids in the image headers cannot be keys"
    reason = f"{idx_path} is missing" if stale is None else f"{idx_path} does not fit {rec_path}: {stale}"
    warnings.warn(
        f"{reason}. An index of {len(offsets):,} records was made by a scan of {rec_path.name}, in memory only; its "
        f"keys are {source}. To write it: "
        f'python -c "from adaface.records.reader import build_idx; build_idx({str(rec_path)!r}, {str(idx_path)!r})"',
        stacklevel=4,
    )
    return _by_key(_describe(data, keys, offsets, rec_path), rec_path)


def _by_key(index: Index, path: Path) -> Index:
    """Sort by key; raise an error for duplicate keys."""
    if not np.all(index.keys[1:] > index.keys[:-1]):
        index = Index(*(column[np.argsort(index.keys, kind="stable")] for column in index))
    duplicates = np.flatnonzero(index.keys[1:] == index.keys[:-1])
    if len(duplicates):
        raise ValueError(
            f"{path}: key {index.keys[duplicates[0]]} occurs twice ({len(duplicates)} such keys); expected one record "
            f"for each. Delete the .idx to rebuild it"
        )
    return index._replace(keys=_compact(index.keys))


def _compact(keys: np.ndarray) -> np.ndarray:
    """Return ascending keys as uint32 if they fit."""
    return keys.astype(np.uint32) if len(keys) == 0 or (keys[0] >= 0 and keys[-1] < 2**32) else keys


def _describe(data: mmap.mmap, keys: np.ndarray, offsets: np.ndarray, rec_path: Path) -> Index:
    """Read every header.

    Args:
        data: the mapped `.rec`.
        keys: int64 (N,).
        offsets: int64 (N,), in any order.
        rec_path: path of the `.rec`, for messages.

    Returns:
        The index in the order of the file, so that the disk is read sequentially.

    Raises:
        _StaleIndexError: no complete record starts at an offset, a record has no line, or the file does not end with
            the last record.
        ValueError: a record overlaps the next one.
    """
    if not np.all(offsets[1:] > offsets[:-1]):
        order = np.argsort(offsets, kind="stable")
        keys, offsets = keys[order], offsets[order]
    outside = (offsets < 0) | (offsets > len(data) - PART.size) | (offsets % 4 != 0)
    if outside.any():
        first = int(np.argmax(outside))
        raise _StaleIndexError(f"offset {offsets[first]:,} of key {keys[first]} (the .rec has {len(data):,} bytes)")
    labels = np.empty(len(keys), np.float32)
    end, gap = 0, None
    for start in range(0, len(keys), _RECORDS_AT_ONCE):
        chunk = slice(start, start + _RECORDS_AT_ONCE)
        starts = offsets[chunk]
        _, labels[chunk], ends, bad = read_heads(data, starts)
        bad[1:] |= starts[1:] == starts[:-1]
        if bad.any():
            first = int(np.argmax(bad))
            raise _StaleIndexError(f"no record starts at offset {starts[first]:,}, key {keys[start + first]}")
        # a scan would mistake the next record for a part of this one
        reached = np.concatenate(([end], ends[:-1]))
        if (starts < reached).any():
            first = int(np.argmax(starts < reached))
            raise ValueError(
                f"{rec_path}: damaged: the record before offset {starts[first]:,} (key {keys[start + first]}) ends at "
                f"{reached[first]:,}, expected at most {starts[first]:,}. Copy the file again, or pack it again"
            )
        if gap is None and (starts > reached).any():
            gap = int(reached[np.argmax(starts > reached)])
        end = int(ends[-1])
    if end != len(data):
        raise _StaleIndexError(f"its last record ends at {end:,}, the .rec has {len(data):,} bytes")
    if gap is not None:
        _check_gap(data, keys, offsets, rec_path, gap)
    return Index(keys, offsets, labels)


def _check_gap(data: mmap.mmap, keys: np.ndarray, offsets: np.ndarray, rec_path: Path, gap: int) -> None:
    """Handle an `.idx` without a line for the record at ``gap``: images would be missing without a word.

    Raises:
        _StaleIndexError: the header record announces more records.
    """
    # the line of the header record itself can be the one that is missing: it is the first record
    totals = _announced(data, int(offsets[np.argmin(keys)]) if keys.min() == 0 else 0)
    if totals is not None and len(keys) < totals[1]:
        raise _StaleIndexError(f"it has {len(keys):,} lines, the header record announces {totals[1]:,.0f} records")
    warnings.warn(
        f"the .idx of {rec_path} has no line for some records, the first at offset {gap:,}: they are left out. Delete "
        "the .idx to read them too",
        stacklevel=5,
    )


def _keys_by_id(data: mmap.mmap, offsets: np.ndarray) -> np.ndarray | None:
    """Return the ids in the image headers as keys, int64 (N,).

    None if they cannot be the keys: a record has no image header, an id is duplicate or too large, or an id is beyond
    the number of records that the header record announces.
    """
    ids = read_ids(data, offsets)
    if ids is None or (ids >= np.uint64(2**63 - 1)).any():
        return None
    keys = ids.view(np.int64)
    ascending = keys if np.all(keys[1:] > keys[:-1]) else np.sort(keys)
    if np.any(ascending[1:] == ascending[:-1]) or keys.max(initial=0) > _largest_key(data, keys, offsets):
        return None
    return keys


def _largest_key(data: mmap.mmap, keys: np.ndarray, offsets: np.ndarray) -> int:
    """Return the largest key that the header record allows; without one, the largest possible key."""
    first = int(np.argmin(keys)) if len(keys) else 0
    if not len(keys) or keys[first] != 0:
        return 2**63 - 1
    totals = _announced(data, int(offsets[first]))
    return 2**63 - 1 if totals is None else int(totals[1] + np.spacing(np.float32(totals[1])))


def _announced(data: mmap.mmap, offset: int) -> tuple[float, float] | None:
    """Return what a header record announces; None too if it is damaged, which `RecordFile` reports when it is read."""
    try:
        return announced(join(data, offset)[0])
    except ValueError:
        return None


def build_idx(rec_path: PathLike, idx_path: PathLike | None = None) -> None:
    """Write the `.idx` of a `.rec`; an existing one is replaced atomically.

    Args:
        rec_path: the `.rec`, which is scanned.
        idx_path: output file; None: same folder and name as the `.rec`.

    Raises:
        FileNotFoundError: the `.rec` does not exist.
        ValueError: an empty, truncated or damaged `.rec`.
        OSError: for example no space left.
    """
    rec_path = Path(rec_path)
    target = default_idx_path(rec_path, idx_path)
    offsets = scan(rec_path)
    keys = _keys_by_id(map_file(rec_path), offsets)
    if keys is None:
        keys = np.arange(len(offsets), dtype=np.int64)
    with atomic_file(target) as file:
        for start in range(0, len(keys), _RECORDS_AT_ONCE):
            rows = np.stack((keys[start : start + _RECORDS_AT_ONCE], offsets[start : start + _RECORDS_AT_ONCE]), 1)
            file.write(b"%d\t%d\n" * len(rows) % tuple(rows.ravel().tolist()))


def default_idx_path(rec_path: Path, idx_path: PathLike | None) -> Path:
    """Return the path of the `.idx`; None: same folder and name as the `.rec`."""
    return rec_path.with_suffix(".idx") if idx_path is None else Path(idx_path)
