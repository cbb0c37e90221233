"""What is kept beside a large `.rec`: found again, shared, and never believed when it should not be."""

import json
import mmap
import multiprocessing
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

from adaface.conversion.unpack_rec import convert_images
from adaface.data.sources import records as record_source
from adaface.data.sources.folder import FolderSource
from adaface.data.sources.records import RecordSource
from adaface.records import index, sidecar
from adaface.records.reader import ImageHeader, RecordFile, RecordWriter, pack
from tests.support.large_records import IDENTITIES, IMAGES, PAST, large, records, write

__all__ = ["large"]
COLUMNS = ("keys", "offsets", "labels")
INDEX, ORDER = ".train.rec.index", ".train.rec.order"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_mapped(array: np.ndarray) -> bool:
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def same(a: RecordFile, b: RecordFile) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


def file_of(source: RecordSource) -> RecordFile:
    return source._records.files[0]


def labels_in(source: RecordSource) -> list[float]:
    """The labels of all samples by their class names, ordered by key."""
    keys = [int(source.describe(i).split("key ")[1].split(",")[0]) for i in range(len(source))]
    found = {key: float(source.class_names[label]) for key, label in zip(keys, source.labels, strict=True)}
    return [found[key] for key in range(1, PAST)]


def write_less(rec: Path, *keys: int) -> None:
    """Write the file again, without some records."""
    with RecordWriter(rec) as writer:
        for key, (label, image) in records().items():
            if key not in keys:
                writer.write(key, pack(ImageHeader(label, key), image))


def in_child(source: RecordSource) -> tuple[bool, bytes, int]:
    arrays = (source.labels, source._positions, file_of(source).offsets)
    return all(map(is_mapped, arrays)), source.read(70), int(source.labels[70])


@pytest.fixture
def opened(large: Path) -> RecordSource:
    return RecordSource(large)


def test_second_opening_maps_what_the_first_has_found(large: Path) -> None:
    first = RecordSource(large)
    assert names(large.parent) == [INDEX, ORDER, "train.idx", "train.rec"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_from_idx", None)
        patch.setattr(record_source, "_ordered", None)
        second = RecordSource(large)
    for source in (first, second):
        arrays = [source.labels, source._positions, *(getattr(file_of(source), name) for name in COLUMNS)]
        assert all(map(is_mapped, arrays))
        assert not any(array.flags.writeable for array in arrays)
        assert sum(array.nbytes for array in arrays) <= 24 * len(file_of(source))
        assert labels_in(source) == [label for key, (label, _) in records().items() if 0 < key < PAST]
    assert np.array_equal(first.labels, second.labels) and first.class_names == second.class_names
    assert [first.read(i) for i in range(IMAGES)] == [second.read(i) for i in range(IMAGES)]


def test_small_files_leave_nothing_behind(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_LARGE", PAST + IDENTITIES + 1)
    RecordSource(large)
    assert names(large.parent) == ["train.idx", "train.rec"]


def test_files_without_header_record_have_one_too(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = write(large.parent, {0: (3.0, b"an image")})
    first = RecordFile(rec)
    assert first.labels[0] == 3 and is_mapped(first.labels)
    monkeypatch.setattr(index, "_from_idx", None)
    assert same(RecordFile(rec), first)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_map_the_same_file(opened: RecordSource, method: str) -> None:
    expected = (True, opened.read(70), int(opened.labels[70]))
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(in_child, (opened,)) == expected
    assert len(pickle.dumps(opened)) < 3000 < opened.labels.nbytes


def test_copies_survive_the_loss_of_the_sidecar(opened: RecordSource, large: Path) -> None:
    pickled = pickle.dumps(opened)
    for name in (INDEX, ORDER):
        (large.parent / name).unlink()
    copy = pickle.loads(pickled)
    assert same(file_of(copy), file_of(opened)) and np.array_equal(copy.labels, opened.labels)
    assert [copy.read(i) for i in range(IMAGES)] == [opened.read(i) for i in range(IMAGES)]
    assert INDEX in names(large.parent)


@pytest.mark.parametrize("what", ["size of the .rec", "time of the .rec", "time of the .idx"])
def test_another_file_has_another_sidecar(opened: RecordSource, large: Path, what: str) -> None:
    before = (large.parent / INDEX).read_bytes()
    if what == "size of the .rec":
        write(large.parent, {IMAGES: (float(opened.labels.max()), b"longer than it was before")})
    else:
        path = large if ".rec" in what else large.with_suffix(".idx")
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = RecordFile(large)
    assert (large.parent / INDEX).read_bytes() != before
    assert file.read_image(IMAGES).startswith(b"longer" if "size" in what else records()[IMAGES][1])
    assert same(file, RecordFile(large))


def test_missing_images_are_said_with_the_sidecar_too(large: Path) -> None:
    write_less(large, 700)
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"announces {IMAGES:,} images, there are {IMAGES - 1:,}") as said:
            source = RecordSource(large)
        assert len(said) == 1 and len(source) == IMAGES - 1
    assert names(large.parent) == sorted([INDEX, ORDER, "train.idx", "train.rec"])


@pytest.mark.parametrize("name", [INDEX, ORDER])
def test_damage_anywhere_is_noticed_and_mended(opened: RecordSource, large: Path, name: str) -> None:
    path = large.parent / name
    content = path.read_bytes()
    places = np.linspace(0, len(content) - 9, 60).astype(int).tolist()
    damaged = [content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :] for at in (*range(0, 300, 7), *places)]
    damaged += [content[:size] for size in (0, 1, 4095, 4096, 5000, len(content) - 1)]
    damaged += [content + b"x", content[:5000] + bytes(len(content) - 5000), b"[" * 4096 + content[4096:]]
    for wrong in damaged:
        path.write_bytes(wrong)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            source = RecordSource(large)
        # A stamp that is no longer ours is that of another file: replaced without a word.
        assert len(caught) <= 1 and all(f"{name} is damaged (" in str(w.message) for w in caught)
        assert same(file_of(source), file_of(opened)) and np.array_equal(source._positions, opened._positions)
        assert np.array_equal(source.labels, opened.labels)
        assert path.read_bytes() == content or wrong[4096:] == content[4096:]  # a space of the header


HEADERS = {
    "no columns": {"columns": []},
    "no checksum": {"checksum": None},
    "another type": {"columns": [["keys", "|O8", 5]]},
    "a column that is too long": {"columns": [["keys", "<u4", 10**15]]},
    "a negative column": {"columns": [["keys", "<u4", -1]]},
    "an infinite column": {"columns": [["keys", "<u4", float("inf")]]},
    "columns that are none": {"columns": 7},
}


@pytest.mark.parametrize("changed", HEADERS.values(), ids=HEADERS.keys())
def test_headers_are_not_believed(opened: RecordSource, large: Path, changed: dict) -> None:
    path = large.parent / INDEX
    content = path.read_bytes()
    header = json.loads(content[:4096])
    path.write_bytes(json.dumps({**header, **changed}).encode().ljust(4096) + content[4096:])
    with pytest.warns(UserWarning, match=r"\.train\.rec\.index is damaged \(.*; it is rebuilt"):
        assert same(RecordFile(large), file_of(opened))
    assert path.read_bytes() == content


@pytest.mark.parametrize("offset", [-4, 2, 10**15, 2**62])
def test_offsets_of_a_forged_sidecar_are_clean_errors(opened: RecordSource, large: Path, offset: int) -> None:
    """Its checksum is right: all that is left is what stands at the offset."""
    file = file_of(opened)
    offsets = np.full(len(file), offset, np.int64)
    columns = {"keys": file.keys.copy(), "offsets": offsets, "labels": file.labels.copy()}
    assert file.stamp is not None and sidecar.store(file.stamp, "index", columns)
    with pytest.raises(ValueError, match=r"train\.rec, key 3, offset "):
        RecordFile(large).read(3)


@pytest.mark.parametrize(
    "columns",
    [
        {"labels": [0] * 9, "positions": [1]},
        {"labels": [0, -1], "positions": [1, 2]},
        {"labels": [0, 2**31 - 1], "positions": [1, 2]},
        {"labels": [0, IDENTITIES], "positions": [1, 2]},
        {"labels": [0, 0], "positions": [1, PAST + IDENTITIES]},
        {"labels": [0, 0]},
        {"labels": [], "positions": []},
    ],
)
def test_a_forged_order_is_made_again(opened: RecordSource, large: Path, columns: dict) -> None:
    arrays = {name: np.array(values, np.int32) for name, values in columns.items()}
    assert file_of(opened).stamp is not None and sidecar.store(file_of(opened).stamp, "order", arrays)
    assert np.array_equal(RecordSource(large).labels, opened.labels)


def test_forged_columns_are_made_again(opened: RecordSource, large: Path) -> None:
    stamp, count = file_of(opened).stamp, len(file_of(opened))
    good = {name: getattr(file_of(opened), name).copy() for name in COLUMNS}
    for changed in ({"keys": good["keys"][1:]}, {"offsets": good["labels"]}, {"labels": np.zeros(count, np.int32)}):
        assert sidecar.store(stamp, "index", good | changed)
        assert same(RecordFile(large), file_of(opened))
    assert sidecar.store(stamp, "index", {"keys": good["keys"]})
    assert same(RecordFile(large), file_of(opened))


def test_read_only_folder(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (INDEX, ORDER):
        (large.parent / name / "in the way").mkdir(parents=True)  # a file cannot replace it, whoever the user is
    first = RecordSource(large)
    cached = names(tmp_path / "cache" / "adaface")
    assert [Path(name).suffix for name in cached] == [".index", ".order"]
    assert is_mapped(first.labels) and is_mapped(file_of(first).offsets)
    write(tmp_path / "others")
    RecordSource(tmp_path / "others" / "train.rec")  # goes beside that one
    assert names(tmp_path / "cache" / "adaface") == cached
    monkeypatch.setattr(index, "_from_idx", None)
    assert same(file_of(RecordSource(large)), file_of(first))


def test_nowhere_to_write(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    source = RecordSource(large)
    assert not is_mapped(source.labels) and file_of(source).stamp is None
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.labels, source.labels) and copy.read(70) == source.read(70)
    assert names(large.parent) == ["train.idx", "train.rec"] and not names(tmp_path / "cache" / "adaface")


def test_a_stale_idx_leaves_no_sidecar(large: Path) -> None:
    idx = large.with_suffix(".idx")
    idx.write_text(idx.read_text()[:12_000].rpartition("\n")[0] + "\n")
    for _ in range(2):
        with pytest.warns(UserWarning, match="does not fit"):
            RecordSource(large)
    assert names(large.parent) == ["train.idx", "train.rec"]


def test_declared_identities_are_compared_each_time(large: Path) -> None:
    rec = write(large.parent, {0: (0.0, b"x"), **{PAST + i: (float(i), b"x") for i in range(IDENTITIES)}})
    RecordSource(rec)
    (rec.parent / "property").write_text(f"{IDENTITIES - 1},112,112")
    with pytest.raises(ValueError, match=f"is {IDENTITIES - 1}, but .*property declares {IDENTITIES - 1} identities"):
        RecordSource(rec)


def test_conversion_does_not_stumble_over_it(opened: RecordSource, large: Path, monkeypatch) -> None:
    monkeypatch.setattr("adaface.conversion.unpack_rec.image_suffix", lambda *_: ".jpg")
    convert_images([large], large.parent / "imgs")
    folder = FolderSource(large.parent / "imgs")
    assert np.array_equal(folder.labels, opened.labels) and folder.class_names == opened.class_names
    assert [folder.read(i) for i in range(IMAGES)] == [opened.read(i) for i in range(IMAGES)]
