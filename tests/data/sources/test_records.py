"""Training from several `.rec`: the same as from the folder made of them, shared by workers, refused when unclear."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from adaface.conversion.unpack_rec import convert_images
from adaface.data.sources import records
from adaface.data.sources.base import fingerprint_of
from adaface.data.sources.finder import open_training_source
from adaface.data.sources.folder import FolderSource
from adaface.data.sources.records import FlawedRecordSource, RecordSource
from adaface.records import index
from adaface.records.reader import ImageHeader, RecordWriter, pack
from adaface.records.shards import find_records
from tests.records.test_sidecar import is_mapped, names
from tests.support.sharded_records import face, write_chunks, write_parts

CLASSES = 24


def labels_by_class() -> list[int]:
    return [label for label in range(CLASSES) for _ in range(1 + label % 4)]


def cut(labels: list[int], places: list[int]) -> list[list[int]]:
    return [labels[a:b] for a, b in zip([0, *places], [*places, len(labels)], strict=True)]


def source_of(folder: Path) -> RecordSource:
    return RecordSource(*find_records(folder))


SORTED = labels_by_class()
SHUFFLED = np.random.default_rng(0).permutation(SORTED).tolist()
# 13 files: as text 0, 1, 10, 11, 12, 2, ...; some begin inside a class, one holds a single image
PLACES = [4, 9, 12, 13, 20, 23, 27, 31, 35, 41, 46, 50]


def write_sorted_chunks(folder: Path) -> Path:
    return write_chunks(folder, cut(SORTED, PLACES))


def write_shuffled_chunks(folder: Path) -> Path:
    return write_chunks(folder, cut(SHUFFLED, PLACES))


def write_sorted_parts(folder: Path) -> Path:
    return write_parts(folder, cut(SORTED, PLACES))


@pytest.mark.parametrize("write", [write_sorted_chunks, write_shuffled_chunks, write_sorted_parts])
def test_shards_and_the_folder_made_of_them_are_the_same_data(tmp_path: Path, write) -> None:
    recs = find_records(write(tmp_path))
    source = RecordSource(*recs)
    convert_images(recs, tmp_path / "imgs")
    folder = FolderSource(tmp_path / "imgs")
    assert len(source) == len(folder) == len(SORTED)
    assert source.class_names == folder.class_names == sorted(map(str, range(CLASSES)))
    assert np.array_equal(source.labels, folder.labels)
    assert [source.read(i) for i in range(len(source))] == [folder.read(i) for i in range(len(source))]
    assert fingerprint_of(source) == fingerprint_of(folder)
    for i in range(len(source)):
        shard, key = Path(folder.path(i)).stem.split("-")
        assert (
            source.describe(i)
            == f"{tmp_path / f'train_{shard}.rec'}, key {key}, class {Path(folder.path(i)).parent.name}"
        )
        assert source.label(i) == folder.label(i)


def test_files_without_images_do_no_harm(tmp_path: Path) -> None:
    write_parts(tmp_path, [[0, 0, 1], [], [2]])
    source = source_of(tmp_path)
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert [source.read(i) for i in range(4)] == [source._records.read_image(i) for i in (1, 2, 3, 9)]


# --- whose labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_chunks, write_parts])
@pytest.mark.parametrize("counts", [(3, 3), (3, 2)])
def test_files_that_number_their_own_identities_are_refused_with_the_way_out(tmp_path: Path, write, counts) -> None:
    write(tmp_path, [sorted([*range(count), 0]) for count in counts])
    first, second = tmp_path / "train_0.rec", tmp_path / "train_1.rec"
    with pytest.raises(
        ValueError,
        match=rf"own identities .* several data sets: --train_data_path {first},{second}\. .*property: 3,112",
    ):
        source_of(tmp_path)
    (tmp_path / "property").write_text(f"{sum(counts)},112,112")
    with pytest.raises(ValueError, match="own identities"):
        source_of(tmp_path)
    (tmp_path / "property").write_text("3,112,112")
    assert source_of(tmp_path).class_names == ["0", "1", "2"]
    assert len(source_of(tmp_path)) == sum(counts) + 2


def test_shuffled_shards_with_all_identities_are_one_set(tmp_path: Path) -> None:
    write_chunks(tmp_path, [[2, 0, 1], [1, 2, 0, 0]])
    assert source_of(tmp_path).labels.tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_shuffled_files_with_header_records_are_asked_too(tmp_path: Path) -> None:
    write_parts(tmp_path, [[1, 0, 2], [2, 1, 0]])
    with pytest.raises(ValueError, match="each file numbers its own identities from 0 on"):
        source_of(tmp_path)


def test_a_file_without_images_does_not_hide_that_the_others_are_sets_of_their_own(tmp_path: Path) -> None:
    write_parts(tmp_path, [[0, 0, 1], [0, 1, 2], []])
    with pytest.raises(ValueError, match=r"each file numbers its own identities from 0 on \(2 in the first, 3 in the"):
        source_of(tmp_path)
    write_parts(tmp_path, [[], [0, 0, 1], []])
    assert source_of(tmp_path).labels.tolist() == [0, 0, 1]


def test_a_missing_last_shard_is_noticed_by_the_declared_number(tmp_path: Path) -> None:
    write_sorted_chunks(tmp_path)
    (tmp_path / "property").write_text(f"{CLASSES},112,112")
    assert len(source_of(tmp_path)) == len(SORTED)
    for suffix in ("rec", "idx"):
        (tmp_path / f"train_12.{suffix}").unlink()
    with pytest.raises(
        ValueError, match=rf"{SORTED[49] + 1} identities, but .*property declares {CLASSES}: is a file missing"
    ):
        source_of(tmp_path)


def test_bad_labels_are_named_with_their_file(tmp_path: Path) -> None:
    write_chunks(tmp_path, [[0, 0], [1, -3]])
    with pytest.raises(ValueError, match=r"train_1.rec: the label of key 3 is -3, expected an integer"):
        source_of(tmp_path)
    write_chunks(tmp_path, [[0, 0], [1, 4]])
    with pytest.raises(ValueError, match=r"2 files\): labels up to 4 but only 3 identities; .* example 2"):
        source_of(tmp_path)
    (tmp_path / "property").write_text("4,112,112")
    with pytest.raises(ValueError, match=r"train_1.rec: the label of key 3 is 4, but .*property declares 4 identities"):
        source_of(tmp_path)


# --- what is kept and shared ------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards that are large enough for sidecars."""
    monkeypatch.setattr(index, "_LARGE", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_shuffled_chunks(tmp_path / "faces")


def arrays_of(source: RecordSource) -> list[np.ndarray]:
    files = [[file.keys, file.offsets, file.labels] for file in source._records.files]
    return [source.labels, source._positions, *(array for arrays in files for array in arrays)]


def in_child(source: RecordSource) -> tuple[bool, list[bytes], list[str]]:
    return (
        all(map(is_mapped, arrays_of(source))),
        [source.read(i) for i in range(len(source))],
        list(source.class_names),
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_map_what_the_first_process_found(kept: Path, method: str) -> None:
    source = source_of(kept)
    assert ".train_shards.rec.order" in names(kept)
    assert sum(array.nbytes for array in arrays_of(source)) <= 24 * len(source._records)
    expected = (True, [source.read(i) for i in range(len(source))], list(source.class_names))
    assert in_child(source) == expected
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(in_child, (source,)) == expected
    assert len(pickle.dumps(source)) < 700 * len(source._records.files)


def test_second_opening_orders_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source_of(kept)
    monkeypatch.setattr(index, "_from_idx", None)
    monkeypatch.setattr(records, "_ordered", None)
    second = source_of(kept)
    assert np.array_equal(first.labels, second.labels) and np.array_equal(first._positions, second._positions)


def test_without_sidecars_copies_are_whole(tmp_path: Path) -> None:
    source = source_of(write_shuffled_chunks(tmp_path))
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.labels, source.labels) and copy.class_names == source.class_names
    assert [copy.read(i) for i in range(len(copy))] == [source.read(i) for i in range(len(source))]
    assert not any(name.startswith(".") for name in names(tmp_path))


def test_a_changed_shard_or_another_number_of_them_is_another_set(kept: Path) -> None:
    source_of(kept)
    before = (kept / ".train_shards.rec.order").read_bytes()
    write_chunks(kept, cut(SORTED, PLACES))
    assert np.array_equal(source_of(kept).labels, np.sort(source_of(kept).labels))
    assert (kept / ".train_shards.rec.order").read_bytes() != before
    (kept / "property").write_text(f"{CLASSES + 1},112,112")  # what was kept is not believed against a declaration
    with pytest.raises(ValueError, match="is a file missing"):
        source_of(kept)


def test_a_shard_alone_has_an_order_of_its_own(kept: Path) -> None:
    write_chunks(kept, [[0, 0, 1], [1, 2, 2]])
    for path in kept.glob("train_*"):
        if int(path.stem.removeprefix("train_")) > 1:
            path.unlink()
    whole_set, alone = source_of(kept), RecordSource(kept / "train_0.rec")
    assert {".train_0.rec.order", ".train_shards.rec.order"} <= set(names(kept))
    assert (len(whole_set), len(alone)) == (6, 3) and (len(source_of(kept)), alone.labels.tolist()) == (6, [0, 0, 1])


# what the audit opens: gaps in the labels, damaged labels are passed over


def write_labels(folder: Path, labels: list[float]) -> Path:
    with RecordWriter(folder / "train.rec") as writer:
        for key, label in enumerate(labels):
            writer.write(key, pack(ImageHeader(label, key), face(key)))
    return folder / "train.rec"


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: write_chunks(folder, cut(SORTED, PLACES)),
        lambda folder: write_chunks(folder, cut(SHUFFLED, PLACES)),
        lambda folder: write_parts(folder, cut(SORTED, PLACES)),
        lambda folder: write_chunks(folder, [SHUFFLED]),
    ],
)
def test_data_without_flaws_is_the_same_data(tmp_path, make):
    paths = find_records(make(tmp_path))
    strict, flawed = RecordSource(*paths), FlawedRecordSource(*paths)
    assert flawed.flaws == []
    assert list(strict.class_names) == flawed.class_names
    assert np.array_equal(strict.labels, flawed.labels)
    assert [strict.describe(i) for i in range(len(strict))] == [flawed.describe(i) for i in range(len(flawed))]
    assert fingerprint_of(strict) == fingerprint_of(flawed)


def test_labels_without_images_are_passed_over_and_told(tmp_path):
    path = write_labels(tmp_path, [12, 0, 3, 12, 0, 100, 2])
    with pytest.raises(ValueError, match="labels up to 100 but only 5 identities"):
        RecordSource(path)
    source = FlawedRecordSource(path)
    assert source.class_names == ["0", "100", "12", "2", "3"]
    assert source.labels.tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert [source.read(i) for i in range(7)] == [face(key) for key in (1, 4, 5, 0, 3, 6, 2)]
    assert [flaw.text for flaw in source.flaws] == [
        "no images of label 1 (1 of 101)",
        "no images of label 4 to 11 (8 of 101)",
        "no images of label 13 to 99 (87 of 101)",
    ]
    assert {flaw.kind for flaw in source.flaws} == {"label gap"}


def test_labels_that_are_no_number_of_an_identity_are_passed_over_and_told(tmp_path):
    source = FlawedRecordSource(write_labels(tmp_path, [0, float("nan"), 1, -3, 0.5, 2.0e9, 1]))
    assert source.labels.tolist() == [0, 1, 1]
    assert [flaw.kind for flaw in source.flaws] == ["damaged label"] * 4
    assert "key 1: its label is nan" in source.flaws[0].text


def test_a_set_with_more_declared_identities_says_so(tmp_path):
    path = write_labels(tmp_path, [0, 0, 1, 1])
    (tmp_path / "property").write_text("5,112,112")
    assert [flaw.text for flaw in FlawedRecordSource(path).flaws] == [
        f"labels 0 to 1, but {tmp_path / 'property'} declares 5 identities"
    ]


def test_what_holds_no_training_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no image has a label"):
        FlawedRecordSource(write_labels(tmp_path, [float("nan")]))
    with pytest.raises(ValueError, match="each file numbers its own identities"):
        FlawedRecordSource(*find_records(write_chunks(tmp_path / "sets", [[0, 0, 1], [0, 1, 1, 2]])))


def test_folders_without_images_are_passed_over_where_that_is_asked_for(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "faces" / name).mkdir(parents=True)
    (tmp_path / "faces" / "b" / "x.jpg").write_bytes(face(0))
    with pytest.raises(FileNotFoundError, match=r"2 of 3 class folders in .* hold no images: a, c"):
        open_training_source(tmp_path, "faces")
    source = open_training_source(tmp_path, "faces", flawed=True)
    assert (source.class_names, len(source)) == (["b"], 1)
    assert [(flaw.kind, flaw.identity) for flaw in source.flaws] == [("empty identity", "a"), ("empty identity", "c")]
    (tmp_path / "faces" / "b" / "x.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="3 of 3 class folders"):
        open_training_source(tmp_path, "faces", flawed=True)


def test_flaws_of_several_sets_are_told_with_their_names(tmp_path):
    for name in ("one/a", "one/b", "two/a"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one/a", "two/a"):
        (tmp_path / name / "x.jpg").write_bytes(face(0))
    source = open_training_source(tmp_path, "one,two", flawed=True)
    assert [flaw.identity for flaw in source.flaws] == ["one/b"]
    assert list(source.class_names) == ["one/a", "two/a"]
