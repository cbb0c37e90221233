"""The index of a `.rec`: keys, offsets, lengths and labels as numpy arrays, from the `.idx` or from a scan.

Source: mxnet's `MXIndexedRecordIO` (the `.idx`: key, tab, offset, newline), the InsightFace layout of `train.rec`.
Differences: mxnet keeps a dictionary and knows no labels; here four arrays of 24 bytes a record in all are gathered
from the memory-mapped file, and an `.idx` that is missing or belongs to another file is replaced by a scan.
"""

import mmap
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atomic_files import atomic_file
from record_format import (
    FIRST,
    HEADER,
    LENGTH_BITS,
    LENGTH_MASK,
    MAGIC,
    PART,
    announced,
    join,
    map_file,
    padded,
    scan,
    unpack,
)

PathLike = str | os.PathLike[str]

# Words of 4 bytes from a record's start: magic, length, flag, label, id (2), id2 (2), further labels.
_FLAG_WORD, _LABEL_WORD, _ID_WORD, _LABELS_WORD = 2, 3, 4, 8
_RECORDS_AT_ONCE = 1 << 16  # few enough that their pages stay in memory while all fields are gathered
_IDX_BYTES_AT_ONCE = 1 << 26


class Index(NamedTuple):
    """One entry for each record.

    Attributes:
        keys: int64 (N,).
        offsets: int64 (N,), bytes.
        lengths: uint32 (N,), bytes.
        labels: float32 (N,), the first label; NaN without a valid image header.
    """

    keys: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


class _StaleIndexError(Exception):
    """The `.idx` does not belong to the `.rec`; the message says why."""


def open_index(data: mmap.mmap, rec_path: Path, idx_path: Path) -> Index:
    """Make the index from the `.idx`, or from a scan where that is missing or stale.

    Args:
        data: the mapped `.rec`.
        rec_path: its path.
        idx_path: the `.idx`, which may be missing.

    Returns:
        The index, ascending by key.

    Raises:
        ValueError: a damaged `.rec`; an `.idx` that is not one, or with a key twice.
    """
    if not idx_path.is_file():
        return _scanned_index(data, rec_path, idx_path, stale=None)
    keys, offsets = _read_idx(idx_path)
    try:
        return _by_key(_describe(data, keys, offsets, rec_path), idx_path)
    except _StaleIndexError as stale:
        return _scanned_index(data, rec_path, idx_path, str(stale))


def _scanned_index(data: mmap.mmap, rec_path: Path, idx_path: Path, stale: str | None) -> Index:
    """Make the index by a scan, and warn.

    Args:
        data: the mapped `.rec`.
        rec_path: its path.
        idx_path: the `.idx`.
        stale: what is wrong with the `.idx`; None where it is missing.
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
        f'python -c "import recordio; recordio.build_idx({str(rec_path)!r}, {str(idx_path)!r})"',
        stacklevel=4,
    )
    return _by_key(_describe(data, keys, offsets, rec_path), rec_path)


def _by_key(index: Index, path: Path) -> Index:
    """Sort by key and refuse a key that comes twice."""
    if not np.all(index.keys[1:] > index.keys[:-1]):
        index = Index(*(column[np.argsort(index.keys, kind="stable")] for column in index))
    twice = np.flatnonzero(index.keys[1:] == index.keys[:-1])
    if len(twice):
        raise ValueError(
            f"{path}: key {index.keys[twice[0]]} comes twice ({len(twice)} such keys); expected one record for each. "
            f"Delete the .idx to have it made again"
        )
    return index


def _describe(data: mmap.mmap, keys: np.ndarray, offsets: np.ndarray, rec_path: Path) -> Index:
    """Gather lengths and labels.

    Args:
        data: the mapped `.rec`.
        keys: int64 (N,).
        offsets: int64 (N,), in any order.
        rec_path: path of the `.rec`, for messages.

    Returns:
        The index in the order of the file: the disk is read front to back.

    Raises:
        _StaleIndexError: an offset where no whole record lies, or the last record does not end the file.
        ValueError: a record that reaches into the next one.
    """
    if not np.all(offsets[1:] > offsets[:-1]):
        order = np.argsort(offsets, kind="stable")
        keys, offsets = keys[order], offsets[order]
    outside = (offsets < 0) | (offsets > len(data) - PART.size) | (offsets % 4 != 0)
    if outside.any():
        first = int(np.argmax(outside))
        raise _StaleIndexError(f"offset {offsets[first]:,} of key {keys[first]} (the .rec has {len(data):,} bytes)")
    lengths, labels = np.empty(len(keys), np.uint32), np.empty(len(keys), np.float32)
    end = 0
    for start in range(0, len(keys), _RECORDS_AT_ONCE):
        chunk = slice(start, start + _RECORDS_AT_ONCE)
        starts = offsets[chunk]
        lengths[chunk], labels[chunk], ends, bad = _describe_chunk(data, starts)
        bad[1:] |= starts[1:] == starts[:-1]
        if bad.any():
            first = int(np.argmax(bad))
            raise _StaleIndexError(f"no record starts at offset {starts[first]:,}, key {keys[start + first]}")
        # A scan would take the next one for a part of it, and lose it.
        reached = np.concatenate(([end], ends[:-1]))
        if (starts < reached).any():
            first = int(np.argmax(starts < reached))
            raise ValueError(
                f"{rec_path}: damaged: the record before offset {starts[first]:,} (key {keys[start + first]}) ends at "
                f"{reached[first]:,}, expected at most {starts[first]:,}. Copy the file again, or pack it again"
            )
        end = int(ends[-1])
    if end != len(data):
        raise _StaleIndexError(f"its last record ends at {end:,}, the .rec has {len(data):,} bytes")
    return Index(keys, offsets, lengths, labels)


def _describe_chunk(data: mmap.mmap, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gather lengths (N,), first labels (N,), ends in the file (N,) and where no record starts, bool (N,)."""
    lrec = _word(data, offsets, 1)
    cflag = lrec >> LENGTH_BITS
    bad = (_word(data, offsets, 0) != MAGIC) | (cflag > FIRST)
    lengths = lrec & LENGTH_MASK
    ends = offsets + PART.size + padded(lengths.astype(np.int64))
    flags = _word(data, offsets, _FLAG_WORD)
    labels = _word(data, offsets, _LABEL_WORD).view(np.float32)
    several = np.flatnonzero(flags)
    labels[several] = _word(data, offsets[several], _LABELS_WORD).view(np.float32)
    # These have read beyond the record.
    labels[lengths < HEADER.size + 4 * flags.astype(np.int64)] = np.nan
    for i in np.flatnonzero((cflag == FIRST) & ~bad).tolist():
        try:
            record, ends[i] = join(data, int(offsets[i]))
        except ValueError:
            bad[i] = True
            continue
        lengths[i] = len(record)
        labels[i] = _first_label(record)
    return lengths, labels, ends, bad


def _word(data: mmap.mmap, offsets: np.ndarray, index: int) -> np.ndarray:
    """Gather one word of each record, uint32 (N,); beyond the end of the file, any word."""
    words = np.frombuffer(data, "<u4", len(data) // 4)
    return words[np.minimum((offsets >> 2) + index, len(words) - 1)]


def _first_label(record: bytes) -> float:
    """Return the first label of a record, NaN where it has no valid image header."""
    try:
        label = unpack(record)[0].label
    except ValueError:
        return float("nan")
    return float(label[0]) if isinstance(label, np.ndarray) else label


def _keys_by_id(data: mmap.mmap, offsets: np.ndarray) -> np.ndarray | None:
    """Return the ids in the image headers as keys, int64 (N,).

    None where they cannot be the keys: some record has no image header, two ids are the same or one does not fit, or
    one lies beyond what a header record announces.
    """
    lrec = _word(data, offsets, 1)
    ids = _word(data, offsets, _ID_WORD + 1).astype(np.uint64) << np.uint64(32) | _word(data, offsets, _ID_WORD)
    short = lrec < HEADER.size
    for i in np.flatnonzero(lrec > LENGTH_MASK).tolist():
        record = join(data, int(offsets[i]))[0]
        short[i] = len(record) < HEADER.size
        ids[i] = 0 if short[i] else HEADER.unpack_from(record)[2]
    if short.any() or (ids >= np.uint64(2**63 - 1)).any():
        return None
    keys = ids.view(np.int64)
    ascending = keys if np.all(keys[1:] > keys[:-1]) else np.sort(keys)
    if np.any(ascending[1:] == ascending[:-1]) or keys.max(initial=0) > _largest_key(data, keys, offsets):
        return None
    return keys


def _largest_key(data: mmap.mmap, keys: np.ndarray, offsets: np.ndarray) -> int:
    """Return the largest key that the header record allows, or the largest at all without one."""
    first = int(np.argmin(keys)) if len(keys) else 0
    if not len(keys) or keys[first] != 0:
        return 2**63 - 1
    totals = announced(join(data, int(offsets[first]))[0])
    return 2**63 - 1 if totals is None else int(totals[1] + np.spacing(np.float32(totals[1])))


def _read_idx(idx_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the keys and offsets of an `.idx`, int64 (N,) each, in the order of the file."""
    rows = [np.empty((0, 2), np.int64)]
    line = 1
    with idx_path.open("rb") as file:
        while text := file.read(_IDX_BYTES_AT_ONCE):
            text += file.readline()
            rows.append(_parse_lines(text.replace(b"\r\n", b"\n"), line, idx_path))
            line += len(rows[-1])
    table = np.concatenate(rows) if len(rows) != 2 else rows[1]
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


def _parse_lines(text: bytes, first_line: int, idx_path: Path) -> np.ndarray:
    """Parse lines of key, tab, offset; int64 (N, 2)."""
    if not text.endswith(b"\n"):
        text += b"\n"
    separators = np.frombuffer(text.translate(None, b"0123456789"), np.uint8)
    alternate = np.array_equal(separators[0::2], np.full((len(separators) + 1) // 2, ord("\t"), np.uint8))
    alternate &= np.array_equal(separators[1::2], np.full(len(separators) // 2, ord("\n"), np.uint8))
    if alternate:
        # Two separators in a row count as one here, so that an empty field is noticed too.
        numbers = np.fromstring(text, np.int64, sep=" ")
        # A number that does not fit comes out as the largest one.
        if len(numbers) == len(separators) and not (numbers == np.iinfo(np.int64).max).any():
            return numbers.reshape(-1, 2)
    lines = enumerate(text.split(b"\n"), first_line)
    number, line = next((number, line) for number, line in lines if not _is_entry(line))
    raise ValueError(
        f"{idx_path}, line {number}: expected `key<TAB>offset`, two whole numbers from 0 on, got {line[:60]!r}. "
        f"Delete the file to have the index made again from the .rec"
    )


def _is_entry(line: bytes) -> bool:
    """Whether this is key, tab, offset, both whole numbers from 0 to 2^63 - 2."""
    fields = line.split(b"\t")
    fits = (field.isdigit() and len(field.lstrip(b"0")) < 20 and int(field) < 2**63 - 1 for field in fields)
    return len(fields) == 2 and all(fits)


def build_idx(rec_path: PathLike, idx_path: PathLike | None = None) -> None:
    """Write the `.idx` of a `.rec`; an existing one is replaced, at once and at the end.

    Args:
        rec_path: the `.rec`; it is scanned.
        idx_path: where to write; None: beside it.

    Raises:
        FileNotFoundError: no such `.rec`.
        ValueError: an empty, truncated or damaged `.rec`.
        OSError: such as no space left.
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
    """Return the path of the `.idx`; None: beside the `.rec`, same name."""
    return rec_path.with_suffix(".idx") if idx_path is None else Path(idx_path)
