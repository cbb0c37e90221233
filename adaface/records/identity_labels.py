"""The labels of a large `.rec` from its identity records, reading a thousandth of the file instead of all of it.

MS1MV2 has a header every 6 KB, so reading all headers means reading nearly all of its 35 GB. In InsightFace's layout
the identity records at the end of the file list the range of keys of each identity, and the label of an image is the
index of its identity. A sample of the image headers is compared with the result.

Source: the InsightFace layout of `train.rec`.
Differences: if the sample contradicts the identity records, they are not used; the caller then reads every header.
"""

import mmap

import numpy as np

from adaface.records.format import IDENTITY_BYTES, PART, announced, join, padded
from adaface.records.headers import read_heads, read_identities

_SAMPLED = 256
_EXACT_FLOAT32 = 1 << 24  # the ranges are float32 numbers; from here on they may have been rounded
_IDENTITY_END = PART.size + padded(IDENTITY_BYTES)


def labels_by_identity(data: mmap.mmap, keys: np.ndarray, offsets: np.ndarray) -> np.ndarray | None:
    """Compute the labels of all records from the identity records.

    Checks: the keys are 0, 1, 2, ..., and the offsets ascend from 0 in multiples of 4; every identity record is valid;
    256 images spread evenly over the file, and the first and the last image of 256 identities, are records that end
    where the next one starts and have the number of their identity as label; and the last record ends at the end of the
    file. An `.idx` of another file does not pass these checks. They do not detect a damaged header or a wrong offset
    between the sampled records (reading that record reports it, unless another record starts at the wrong offset), nor
    a few images whose label is not the number of their identity (the audit reports them).

    Args:
        data: the mapped `.rec`.
        keys: int64 (N,).
        offsets: int64 (N,).

    Returns:
        First labels, float32 (N,). None if the file does not begin with a header record and end with the identity
        records of all images, in the order of the keys; if it has 2^24 records or more; or if a check fails.
    """
    count = len(keys)
    if not (2 < count < _EXACT_FLOAT32 and _in_order(keys, offsets, len(data))):
        return None
    past = _key_after_images(data, count)
    ranges = None if past is None else _ranges(data, offsets[past:], past)
    if past is None or ranges is None:
        return None
    # identities in the order of their images, which normally is the order of their numbers
    order = np.argsort(ranges[:, 0], kind="stable")
    starts, ends = ranges[order].T
    if starts[0] != 1 or ends[-1] != past or (starts[1:] != ends[:-1]).any() or (starts >= ends).any():
        return None
    labels = np.empty(count, np.float32)
    labels[0], labels[past:] = past, ranges[:, 0]
    labels[1:past] = np.repeat(order.astype(np.float32), ends - starts)
    some = np.linspace(0, len(order) - 1, _SAMPLED).astype(np.int64)
    sample = np.concatenate((np.linspace(0, past - 1, _SAMPLED).astype(np.int64), starts[some], ends[some] - 1))
    return labels if _confirmed(data, offsets, labels, np.unique(sample)) else None


def _in_order(keys: np.ndarray, offsets: np.ndarray, size: int) -> bool:
    """Return whether keys are 0, 1, 2, ... and offsets ascend from 0 in multiples of 4 to a final identity record."""
    return bool(
        (keys[0], keys[-1], offsets[0], offsets[-1]) == (0, len(keys) - 1, 0, size - _IDENTITY_END)
        and np.all(keys[1:] > keys[:-1])
        and np.all(offsets[1:] > offsets[:-1])
        and np.bitwise_or.reduce(offsets) % 4 == 0
    )


def _key_after_images(data: mmap.mmap, count: int) -> int | None:
    """Return images + 1 from the header record; None if it does not announce ``count`` records."""
    try:
        totals = announced(join(data, 0)[0])
    except ValueError:
        return None
    if totals is None or totals[1] != count or not 1 < totals[0] < count:
        return None
    return int(totals[0])


def _ranges(data: mmap.mmap, offsets: np.ndarray, past: int) -> np.ndarray | None:
    """Return the first key and the end of the keys of each identity, int64 (C, 2); None without identity records."""
    pairs = read_identities(data, offsets)
    if pairs is None or not ((pairs >= 1) & (pairs <= past)).all() or (np.diff(offsets) != _IDENTITY_END).any():
        return None
    ranges = pairs.astype(np.int64)
    return ranges if np.array_equal(ranges, pairs) else None


def _confirmed(data: mmap.mmap, offsets: np.ndarray, labels: np.ndarray, sample: np.ndarray) -> bool:
    """Return whether the records of the sample have the expected positions and labels, except the last one."""
    data.madvise(mmap.MADV_RANDOM)  # otherwise the system reads 128 KB per head
    try:
        heads = read_heads(data, offsets[sample])
    finally:
        data.madvise(mmap.MADV_NORMAL)
    as_expected = ~heads.bad & (heads.ends == offsets[sample + 1]) & (heads.labels == labels[sample])
    return bool(as_expected.all())
