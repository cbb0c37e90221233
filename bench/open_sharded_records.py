"""Opening WebFace42M, 42,474,557 images of 2,059,906 identities, against a plain loop over a tenth of it.

    python -m bench.open_sharded_records

The files are synthetic: ten `.rec` in InsightFace's layout, one with all records (its header and identity records are
beyond what float32 holds exactly), and ten without header records and with the labels shuffled, as `im2rec --chunks
--shuffle` writes them. Each image is 90 random bytes, so that 5.5 GB stand for 300 and lie in memory. A loop over all
records takes minutes and 6 GB: the baseline is a loop over the first of the ten files alone, and the ratio is that of
its time to the time for all. At 0.1x both would be as fast.
"""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adaface.data.sources.records import RecordSource
from adaface.records.shards import find_records
from bench.open_records import IMAGE_BYTES, forget, plain_loop, write_idx, write_images, write_records
from bench.timing import Side, compare, options, report

_IMAGES, _IDENTITIES, _FILES = 42_474_557, 2_059_906, 10
_QUICK_IMAGES, _QUICK_IDENTITIES = 120_000, 2_001  # large enough for sidecars
_MOST_REPEATS = 3
_ASKED = 2000  # samples whose labels are compared


def write_parts(folder: Path, images: int, identities: int) -> list[np.ndarray]:
    """Write ten files of InsightFace's layout; return the labels of each."""
    ends = [np.linspace(0, count, _FILES + 1).astype(int) for count in (images, identities)]
    written = []
    for number in range(_FILES):
        some, people = (int(end[number + 1] - end[number]) for end in ends)
        first_label = int(ends[1][number])
        written.append(write_records(folder / f"train_{number}.rec", some + people + 1, people, first_label))
    return written


def write_one(folder: Path, images: int, identities: int) -> list[np.ndarray]:
    """Write one file of InsightFace's layout; return its labels."""
    return [write_records(folder / "train.rec", images + identities + 1, identities)]


def write_chunks(folder: Path, images: int, identities: int) -> list[np.ndarray]:
    """Write ten files without header records and shuffled; return the labels of each."""
    rng = np.random.default_rng(0)
    labels = np.concatenate((np.arange(identities), rng.integers(0, identities, images - identities)))
    rng.shuffle(labels)
    written = np.array_split(labels, _FILES)
    first_key = 0
    for number, some in enumerate(written):
        rec = folder / f"train_{number}.rec"
        with rec.open("wb") as file:
            write_images(file, some, first_key)
        write_idx(rec, first_key + np.arange(len(some)), np.arange(len(some)) * IMAGE_BYTES)
        first_key += len(some)
    return written


def same_labels(looped: np.ndarray, written: list[np.ndarray]) -> Callable[[list[float], RecordSource], dict[str, Any]]:
    """Make the check: raise unless both sides found the labels that were written; return what the index costs."""

    def check(found: list[float], source: RecordSource) -> dict[str, Any]:
        np.testing.assert_array_equal(found[1 : 1 + len(looped)], looped)
        everything = np.concatenate(written)
        counts = np.bincount(everything)
        assert len(source.class_names) == len(counts)
        np.testing.assert_array_equal(np.bincount(source.labels), counts[source.class_names.numbers()])
        for i in np.linspace(0, len(source) - 1, _ASKED).astype(int).tolist():
            where, key, name = source.describe(i).replace(", key ", ", class ").split(", class ")
            number = int(Path(where).stem.partition("_")[2] or 0)
            has_header = source._records.files[number].image_range()[0] == 1
            first = 1 if has_header else sum(map(len, written[:number]))
            assert written[number][int(key) - first] == int(name), (i, where, key, name)
        files = source._records.files
        held = [source.labels, source._positions, *(c for f in files for c in (f.keys, f.offsets, f.labels))]
        return {
            "records of the baseline": len(found),
            "bytes a record, shared by all workers": round(sum(c.nbytes for c in held) / len(source._records), 2),
            "bytes of a worker's pickled copy": len(pickle.dumps(source)),
            "MB of the identities' numbers, in each process that asks for a name": round(4 * len(counts) / 1e6, 1),
        }

    return check


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    images, identities = (_QUICK_IMAGES, _QUICK_IDENTITIES) if chosen.quick else (_IMAGES, _IDENTITIES)
    with tempfile.TemporaryDirectory() as base:
        looped = write_parts(Path(base), images, identities)
        rec = Path(base) / "train_0.rec"
        for what, write in (
            ("10 .rec", None),
            ("one .rec", write_one),
            ("10 shuffled .rec without header records", write_chunks),
        ):
            with tempfile.TemporaryDirectory() as other:
                folder = Path(base if write is None else other)
                written = looped if write is None else write(folder, images, identities)
                _measure(what, rec, looped[0], folder, written, min(chosen.repeats, _MOST_REPEATS), chosen.output)


def _measure(
    what: str, rec: Path, looped: np.ndarray, folder: Path, written: list[np.ndarray], repeats: int, output: Path
) -> None:
    """Measure the first and the second opening of one set."""
    recs = find_records(folder)

    def forget_all() -> None:
        for path in (*recs, folder / "train_shards.rec"):
            forget(path)

    for when, target, before in (("first time", 0.3, forget_all), ("from the sidecar", 10, None)):
        result = compare(
            f"open 42 million records in {what}, {when}, against a loop over 4 million",
            Side("a loop over the records of one file", lambda: plain_loop(rec), count=len(looped)),
            Side("RecordSource of all", lambda: RecordSource(*recs), before),
            count=sum(map(len, written)),
            unit="images",
            target=target,
            check=same_labels(looped, written),
            repeats=repeats,
        )
        report(result, __file__, output)


if __name__ == "__main__":
    main()
