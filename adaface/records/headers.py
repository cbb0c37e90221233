"""Lengths, labels and ids of many records at once, gathered from a mapped `.rec` with numpy.

Source: the format, see `records/format.py`.
Differences: no loop over records, except for those that the writer has split.
"""

import mmap
from typing import NamedTuple

import numpy as np

from adaface.records.format import (
    FIRST,
    HEADER,
    IDENTITY_BYTES,
    LENGTH_BITS,
    LENGTH_MASK,
    MAGIC,
    PART,
    join,
    padded,
    unpack,
)

# Words of 4 bytes from a record's start: magic, length, flag, label, id (2), id2 (2), further labels.
_FLAG_WORD, _LABEL_WORD, _ID_WORD, _LABELS_WORD = 2, 3, 4, 8


class Heads(NamedTuple):
    """Header fields of N records.

    Attributes:
        lengths: int64 (N,), bytes, image header included.
        labels: float32 (N,), the first label; NaN without a valid image header.
        ends: int64 (N,), where the next record starts, bytes.
        bad: bool (N,), whether no complete record starts there; the other columns are then undefined.
    """

    lengths: np.ndarray
    labels: np.ndarray
    ends: np.ndarray
    bad: np.ndarray


def read_heads(data: mmap.mmap, offsets: np.ndarray) -> Heads:
    """Gather lengths and labels.

    Args:
        data: the `.rec`.
        offsets: int64 (N,), multiples of 4 inside the file.

    Returns:
        One entry for each offset; ``ends`` may lie beyond the file.
    """
    lrec = _word(data, offsets, 1)
    cflag = lrec >> LENGTH_BITS
    bad = (_word(data, offsets, 0) != MAGIC) | (cflag > FIRST)
    lengths = (lrec & LENGTH_MASK).astype(np.int64)
    ends = offsets + PART.size + padded(lengths)
    flags = _word(data, offsets, _FLAG_WORD)
    labels = _word(data, offsets, _LABEL_WORD).view(np.float32)
    several = np.flatnonzero(flags)
    labels[several] = _word(data, offsets[several], _LABELS_WORD).view(np.float32)
    # the labels word lies beyond the end of these records
    labels[lengths < HEADER.size + 4 * flags.astype(np.int64)] = np.nan
    for i in np.flatnonzero((cflag == FIRST) & ~bad).tolist():
        try:
            record, ends[i] = join(data, int(offsets[i]))
        except ValueError:
            bad[i] = True
            continue
        lengths[i] = len(record)
        labels[i] = _first_label(record)
    return Heads(lengths, labels, ends, bad)


def read_ids(data: mmap.mmap, offsets: np.ndarray) -> np.ndarray | None:
    """Gather the ids of the image headers.

    Args:
        data: the `.rec`.
        offsets: int64 (N,), where its records start.

    Returns:
        uint64 (N,); None if a record has no image header.
    """
    lrec = _word(data, offsets, 1)
    ids = _word(data, offsets, _ID_WORD + 1).astype(np.uint64) << np.uint64(32) | _word(data, offsets, _ID_WORD)
    short = lrec < HEADER.size
    for i in np.flatnonzero(lrec > LENGTH_MASK).tolist():
        record = join(data, int(offsets[i]))[0]
        short[i] = len(record) < HEADER.size
        ids[i] = 0 if short[i] else HEADER.unpack_from(record)[2]
    return None if short.any() else ids


def read_identities(data: mmap.mmap, offsets: np.ndarray) -> np.ndarray | None:
    """Gather the two labels of identity records.

    Args:
        data: the `.rec`.
        offsets: int64 (N,), multiples of 4 inside the file.

    Returns:
        float32 (N, 2), first key and end; None if a record is anything but two labels.
    """
    fixed = ((0, MAGIC), (1, IDENTITY_BYTES), (_FLAG_WORD, 2))
    if any((_word(data, offsets, index) != value).any() for index, value in fixed):
        return None
    return np.stack([_word(data, offsets, _LABELS_WORD + i).view(np.float32) for i in range(2)], 1)


def _word(data: mmap.mmap, offsets: np.ndarray, index: int) -> np.ndarray:
    """Gather one word of each record, uint32 (N,); beyond the end of the file, any word."""
    words = np.frombuffer(data, "<u4", len(data) // 4)
    return words[np.minimum((offsets >> 2) + index, len(words) - 1)]


def _first_label(record: bytes) -> float:
    """Return the first label of a record; NaN if it has no valid image header."""
    try:
        label = unpack(record)[0].label
    except ValueError:
        return float("nan")
    return float(label[0]) if isinstance(label, np.ndarray) else label
