"""Opening a large `.rec` by its identity records, and when every header is read after all."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from adaface.records import identity_labels, index
from adaface.records.format import map_file
from adaface.records.reader import RecordFile
from tests.support.large_records import IDENTITIES, IMAGES, PAST, large, ranges, records, write

__all__ = ["large"]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one number for each pass over all headers."""
    made: list[int] = []
    full_pass = index._describe

    def counted(data, keys, offsets, rec_path):
        made.append(len(keys))
        return full_pass(data, keys, offsets, rec_path)

    monkeypatch.setattr(index, "_describe", counted)
    return made


def expected_labels() -> np.ndarray:
    return np.array([np.atleast_1d(label)[0] for label, _ in records().values()], np.float32)


def labels_of(rec: Path) -> np.ndarray | None:
    data, (keys, offsets) = map_file(rec), index.read_idx(rec.with_suffix(".idx"))
    return identity_labels.labels_by_identity(data, keys, offsets)


def fresh(rec: Path) -> RecordFile:
    for path in rec.parent.glob(".train.rec.*"):
        path.unlink()
    return RecordFile(rec)


def test_labels_and_records_are_those_of_a_pass_over_all_headers(large: Path, passes: list[int]) -> None:
    file = RecordFile(large)
    assert not passes
    assert file.keys.tolist() == list(range(PAST + IDENTITIES))
    assert np.array_equal(file.labels, expected_labels())
    assert [file.read_image(i) for i in range(len(file))] == [image for _, image in records().values()]
    assert np.array_equal(np.arange(*file.image_range()), np.arange(1, PAST)) and file.num_identities() == IDENTITIES


def test_only_a_sample_of_a_large_file_is_looked_at(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    read_heads = identity_labels.read_heads
    monkeypatch.setattr(identity_labels, "_SAMPLED", 10)
    monkeypatch.setattr(
        identity_labels, "read_heads", lambda data, at: looked_at.append(len(at)) or read_heads(data, at)
    )
    assert np.array_equal(labels_of(large), expected_labels())
    assert len(looked_at) == 1 and 20 < looked_at[0] <= 30


def test_identities_may_lie_in_another_order(large: Path, passes: list[int]) -> None:
    """The images of identity 0 come last: the label is the number of the identity record, not of the range."""
    pairs = ranges()
    sizes = pairs[::-1, 1] - pairs[::-1, 0]
    ends = 1 + np.cumsum(sizes)
    turned = np.stack((ends - sizes, ends), 1)[::-1]
    changed = {PAST + i: (pair.astype(np.float32), b"") for i, pair in enumerate(turned)}
    changed |= {key: (float(i), b"x") for i, pair in enumerate(turned) for key in range(*pair)}
    file = RecordFile(write(large.parent, changed))
    assert not passes
    assert [file.labels[key] for key in range(1, PAST)] == [file.header(key).label for key in range(1, PAST)]


def pair(first: float, past: float) -> tuple[np.ndarray, bytes]:
    return np.array([first, past], np.float32), b""


FIRST, SECOND = ranges()[:2].tolist()
CONTRADICTIONS = {
    "another label of an identity's first image": {1: (7.0, b"x")},
    "another label of the last image": {IMAGES: (7.0, b"x")},
    "labels count from 1": {key: (np.atleast_1d(value)[0] + 1, b"x") for key, (value, _) in records().items() if key},
    "a gap between identities": {PAST + 1: pair(SECOND[0] + 1, SECOND[1])},
    "identities that overlap": {PAST: pair(FIRST[0], FIRST[1] + 1)},
    "an identity without images": {PAST: pair(1, 1), PAST + 1: pair(1, SECOND[1])},
    "half a key": {PAST: pair(1, FIRST[1] + 0.5)},
    "no number": {PAST: pair(np.nan, FIRST[1])},
    "a range beyond the images": {PAST + IDENTITIES - 1: pair(ranges()[-1, 0], 3e38)},
    "an image among the identities": {PAST + 3: (3.0, b"image")},
    "no header record": {0: (0.0, b"image")},
    "a header record of another file": {0: pair(PAST - 1, PAST + IDENTITIES)},
    "fewer identities announced": {0: pair(PAST, PAST + IDENTITIES - 1)},
    "a senseless header record": {0: pair(2.5, PAST + IDENTITIES)},
}


@pytest.mark.parametrize("changed", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_any_doubt_leads_to_a_pass_over_all_headers(large: Path, changed: dict, passes: list[int]) -> None:
    rec = write(large.parent, changed)
    assert labels_of(rec) is None
    file = RecordFile(rec)
    assert passes == [len(file)]
    stored = [np.atleast_1d(label)[0] for label, _ in (records() | changed).values()]
    assert np.array_equal(file.labels, np.array(stored, np.float32), equal_nan=True)


def test_rounded_ranges_are_not_believed(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_labels, "_EXACT_FLOAT32", PAST + IDENTITIES + 1)
    assert labels_of(large) is not None
    monkeypatch.setattr(identity_labels, "_EXACT_FLOAT32", PAST + IDENTITIES)
    assert labels_of(large) is None


@pytest.mark.parametrize("change", ["shuffled", "of a part", "of another file", "shifted", "odd"])
def test_idx_that_is_not_as_usual(large: Path, change: str, passes: list[int]) -> None:
    whole, idx = RecordFile(large), large.with_suffix(".idx")
    lines = idx.read_text().splitlines(keepends=True)
    if change in ("shuffled", "of a part"):
        idx.write_text("".join(lines[::-1] if change == "shuffled" else lines[:5] + lines[6:]))
        with pytest.warns(UserWarning, match="lines, the header rec") if change == "of a part" else nullcontext():
            file = fresh(large)
        assert np.array_equal(file.offsets, whole.offsets) and np.array_equal(file.labels, whole.labels)
        assert file.read(4) == whole.read(4)
    else:
        moved = whole.offsets.copy()
        moved[1:-1] += 2 if change == "odd" else 4
        if change == "of another file":
            moved = np.arange(len(whole)) * 40
        idx.write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(moved)))
        with pytest.warns(UserWarning, match=r"train\.idx does not fit .*made by a scan"):
            file = fresh(large)
        assert np.array_equal(file.offsets, whole.offsets) and np.array_equal(file.labels, whole.labels)
    assert len(passes) == 1 + (change != "shuffled")


SAMPLED = int(np.linspace(0, IMAGES, identity_labels._SAMPLED)[128])


@pytest.mark.parametrize("position", [0, 1, SAMPLED, IMAGES, PAST, PAST + IDENTITIES - 1])
def test_damaged_heads(large: Path, position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the sample: refused when it is opened. Elsewhere: when that record is read."""
    content, offset = bytearray(large.read_bytes()), int(RecordFile(large).offsets[position])
    content[offset + 3] ^= 0xFF
    large.write_bytes(content)
    with pytest.raises(ValueError, match=rf"train\.rec.* damaged at offset {offset:,}: expected the magic number"):
        fresh(large)
    if 1 < position < IMAGES:
        monkeypatch.setattr(identity_labels, "_SAMPLED", 2)
        file = fresh(large)
        with pytest.raises(ValueError, match=rf"train\.rec, key {position}, offset {offset:,}: damaged at offset"):
            file.read_image(position)
        assert file.read_image(position + 1) == records()[position + 1][1]


@pytest.mark.parametrize("length", [0, 100, 2**20])
def test_damaged_length_between_the_samples(large: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content, offset = bytearray(large.read_bytes()), int(RecordFile(large).offsets[500])
    content[offset + 4 : offset + 8] = length.to_bytes(4, "little")
    large.write_bytes(content)
    monkeypatch.setattr(identity_labels, "_SAMPLED", 2)
    with pytest.raises(ValueError, match=rf"train\.rec, key 500, offset {offset:,}: (damaged|truncated|the record)"):
        fresh(large).read_image(500)


def test_truncated_file(large: Path) -> None:
    content = large.read_bytes()
    for cut in (1, 4, 40, 41, 3000):
        large.write_bytes(content[:-cut])
        if cut == 40:  # a whole record less
            with pytest.warns(UserWarning, match="does not fit"):
                assert len(RecordFile(large)) == PAST + IDENTITIES - 1
        else:
            with pytest.raises(ValueError, match=r"train\.rec: truncated"):
                RecordFile(large)
