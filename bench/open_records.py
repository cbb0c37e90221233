"""Opening a `.rec` of 5,000,000 records, against a plain loop that seeks, reads and unpacks each of them.

    python -m bench.open_records

The file is synthetic: InsightFace's layout with 4,914,999 images of 85,000 identities, each image 90 random bytes, so
that 0.6 GB stand for 30 and lie in memory. From a disk the loop reads the whole file, the index a thousandth of it.
"""

import pickle
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adaface.data.sources.records import RecordSource
from adaface.records.format import HEADER, LENGTH_MASK, MAGIC, PART
from bench.timing import Side, compare, options, report

_PAYLOAD_BYTES = 90
_RECORDS, _IDENTITIES = 5_000_000, 85_000
_QUICK_RECORDS, _QUICK_IDENTITIES = 20_000, 400
_MOST_REPEATS = 5  # the loop takes the better part of a minute
_ROWS_AT_ONCE = 1 << 16

_HEAD = [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")]
_IMAGE = np.dtype([*_HEAD, ("payload", "u1", (_PAYLOAD_BYTES,)), ("padding", "u1", (-_PAYLOAD_BYTES % 4,))])
IMAGE_BYTES = _IMAGE.itemsize
_IDENTITY = np.dtype([*_HEAD, ("labels", "<f4", (2,))])


def write_records(rec: Path, records: int, identities: int, first_label: int = 0) -> np.ndarray:
    """Write a `.rec` and its `.idx`.

    Args:
        rec: the `.rec`.
        records: how many, header and identity records included.
        identities: how many.
        first_label: label of the first identity.

    Returns:
        The label of each image, (records - 1 - identities,), in the order of the keys.
    """
    images = records - 1 - identities
    rng = np.random.default_rng(0)
    bounds = np.sort(rng.choice(np.arange(1, images), identities - 1, replace=False))
    ranges = np.stack((np.append(0, bounds), np.append(bounds, images)), 1) + 1
    labels = np.repeat(np.arange(first_label, first_label + identities), ranges[:, 1] - ranges[:, 0])
    with rec.open("wb") as file:
        file.write(_two_labels(np.array([[images + 1, records]]), 0))
        write_images(file, labels, first_key=1)
        file.write(_two_labels(ranges, images + 1))
    sizes = np.full(records, _IMAGE.itemsize)
    sizes[0], sizes[images + 1 :] = _IDENTITY.itemsize, _IDENTITY.itemsize
    write_idx(rec, np.arange(records), np.cumsum(sizes) - sizes)
    return labels


def write_images(file: BinaryIO, labels: np.ndarray, first_key: int) -> None:
    """Write a record for each label (N,), keys counted from ``first_key`` on; all as long as IMAGE_BYTES says."""
    payload = np.random.default_rng(1).integers(0, 128, (_ROWS_AT_ONCE, _PAYLOAD_BYTES), np.uint8)
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        chunk = labels[start : start + _ROWS_AT_ONCE]
        rows = np.zeros(len(chunk), _IMAGE)
        rows["magic"], rows["length"] = MAGIC, HEADER.size + _PAYLOAD_BYTES
        rows["label"], rows["payload"] = chunk, payload[: len(chunk)]  # below 128: never the magic number
        rows["id"] = first_key + start + np.arange(len(chunk))
        file.write(rows)


def write_idx(rec: Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Write the `.idx` of a `.rec`: keys and offsets (N,)."""
    with rec.with_suffix(".idx").open("wb") as file:
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            lines = np.stack((keys[start : start + _ROWS_AT_ONCE], offsets[start : start + _ROWS_AT_ONCE]), 1)
            file.write(b"%d\t%d\n" * len(lines) % tuple(lines.ravel().tolist()))


def _two_labels(labels: np.ndarray, first_key: int) -> np.ndarray:
    """Make header or identity records of labels (N, 2)."""
    rows = np.zeros(len(labels), _IDENTITY)
    rows["magic"], rows["length"], rows["flag"] = MAGIC, HEADER.size + 8, 2
    rows["labels"], rows["id"] = labels, first_key + np.arange(len(labels))
    return rows


def plain_loop(rec: Path) -> list[float]:
    """Return the first label of each record, as readers of RecordIO find it."""
    places = {}
    with rec.with_suffix(".idx").open(encoding="ascii") as file:
        for line in file:
            key, offset = line.split("\t")
            places[int(key)] = int(offset)
    labels = []
    with rec.open("rb") as file:
        for offset in places.values():
            file.seek(offset)
            _, lrec = PART.unpack(file.read(PART.size))
            record = file.read(lrec & LENGTH_MASK)
            flag, label, _, _ = struct.unpack("<IfQQ", record[: HEADER.size])
            if flag:
                label = struct.unpack_from(f"<{flag}f", record, HEADER.size)[0]
            labels.append(label)
    return labels


def same_labels(rec: Path, expected: np.ndarray) -> Callable[[list[float], RecordSource], dict[str, Any]]:
    """Make the check: raise unless both sides found the labels that were written; return what the index costs."""

    def check(found: list[float], source: RecordSource) -> dict[str, Any]:
        images = len(expected)
        np.testing.assert_array_equal(found[1 : 1 + images], expected)
        keys = [int(source.describe(i).split("key ")[1].split(",")[0]) for i in range(0, images, images // 1000)]
        names = [source.class_names[label] for label in source.labels[:: images // 1000]]
        np.testing.assert_array_equal(expected[np.array(keys) - 1], np.array(names, int))
        file = source._records.files[0]
        held = [source.labels, source._positions, file.keys, file.offsets, file.labels]
        return {
            "bytes a record, shared by all workers": round(sum(column.nbytes for column in held) / len(file), 2),
            "bytes of a worker's pickled copy": len(pickle.dumps(source)),
        }

    return check


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    records, identities = (_QUICK_RECORDS, _QUICK_IDENTITIES) if chosen.quick else (_RECORDS, _IDENTITIES)
    with tempfile.TemporaryDirectory() as folder:
        rec = Path(folder) / "train.rec"
        labels = write_records(rec, records, identities)
        for when, target, before in (("first time", 20, lambda: forget(rec)), ("from the sidecar", 200, None)):
            result = compare(
                f"open a .rec of 5,000,000 records, {when}",
                Side("a loop over all records", lambda: plain_loop(rec)),
                Side("RecordSource", lambda: RecordSource(rec), before),
                count=records,
                unit="records",
                target=target,
                check=same_labels(rec, labels),
                repeats=min(chosen.repeats, _MOST_REPEATS),
            )
            report(result, __file__, chosen.output)


def forget(rec: Path) -> None:
    """Delete the sidecars of a `.rec`."""
    for path in rec.parent.glob(f".{rec.name}.*"):
        path.unlink()


if __name__ == "__main__":
    main()
