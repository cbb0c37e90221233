"""A set in several `.rec`: found, numbered through, and refused where it is not whole."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from adaface.records.reader import ImageHeader, RecordWriter, pack
from adaface.records.shards import RecordShards, find_records, holds_records
from tests.support.sharded_records import face, write_chunks, write_parts


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def test_shards_are_found_in_the_order_of_text(tmp_path: Path) -> None:
    numbers = list(range(12))
    touch(
        tmp_path,
        *(f"train_{i}.rec" for i in numbers),
        *(f"train_{i}.idx" for i in numbers),
        "train_.rec",
        "train_x.rec",
    )
    touch(tmp_path, "train_1.rec.part", "xtrain_13.rec", "train_shards.rec", ".train_0.rec.index")
    assert [path.name for path in find_records(tmp_path)] == [f"train_{i}.rec" for i in sorted(numbers, key=str)]
    assert holds_records(tmp_path)


def test_one_file_or_none(tmp_path: Path) -> None:
    assert find_records(tmp_path) == find_records(tmp_path / "nowhere") == []
    assert not holds_records(tmp_path)
    touch(tmp_path, "train.rec")
    assert find_records(tmp_path) == [tmp_path / "train.rec"] and holds_records(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train.rec", "train_0.rec"],
            r"contains both train.rec and train_0.rec: give .*train.rec itself to train on it, or move it",
        ),
        (["train_0.rec", "train_2.rec"], r"contains train_0.rec, train_2.rec, but train_1.rec is missing; expected"),
        (["train_1.rec", "train_2.rec"], "but train_0.rec is missing; expected"),
        (["train_0.rec", "train_3.rec"], r"train_1.rec is missing \(2 shards are missing\)"),
        (["train_0.rec", "train_1.rec", "train_2.idx"], "but train_2.rec is missing"),
        (["train_0.rec", "train_0.idx", "train_1.idx", "train_2.rec"], "but train_1.rec is missing; expected"),
        (["train_0.rec", "train_00.rec"], "but a number occurs twice"),
        (["train_0.rec", "train_1.rec", "train_9999999999999.rec"], r"train_2.rec is missing \(9999999999997 shards"),
        (["train_0.rec", "train_0.idx", "train_1.idx", "train_2.idx"], r"train_1.rec is missing \(2 shards"),
        ([f"train_{i}.rec" for i in range(1, 9)], r"train_6.rec, \.\.\., but train_0.rec is missing"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        find_records(tmp_path)


@pytest.mark.parametrize("write", [write_chunks, write_parts])
def test_positions_go_on_from_file_to_file(tmp_path: Path, write) -> None:
    labels = [[0, 0, 1], [1, 2], [2, 3, 3, 3]]
    records = RecordShards(find_records(write(tmp_path, labels)))
    images = [start + i for _, start, (first, past) in records.shards() for i in range(first, past)]
    assert [records.read_image(i) for i in images] == list(map(face, range(9)))
    assert len(records) == sum(map(len, records.files)) == 9 + (0 if write is write_chunks else 3 + 6)
    names = list(map(records.name, images))
    assert len(set(names)) == 9 and names == sorted(names)
    keys = range(9) if write is write_chunks else [1, 2, 3, 1, 2, 1, 2, 3, 4]
    shards = [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert names == [f"{shard}-{key}" for shard, key in zip(shards, keys, strict=True)]
    assert [records.describe(i) for i in images] == [
        f"{tmp_path / f'train_{shard}.rec'}, key {key}" for shard, key in zip(shards, keys, strict=True)
    ]
    assert records.location == f"{tmp_path / 'train_0.rec'}, ..., train_2.rec (3 files)"


def test_images_that_the_header_records_announce_are_missing(tmp_path: Path) -> None:
    recs = find_records(write_parts(tmp_path, [[0, 0, 1], [1, 2], [2, 3, 3, 3]]))
    offset = int(RecordShards(recs).files[2].offsets[2])
    with recs[2].open("r+b") as file:
        file.truncate(offset)
    idx = recs[2].with_suffix(".idx")
    idx.write_text("".join(idx.read_text().splitlines(keepends=True)[:2]))
    with pytest.warns(UserWarning, match=r"train_2.rec \(3 files\): the header .* 9 images, there are 6\.") as said:
        assert RecordShards(recs).missing == 3
    assert len(said) == 1


@pytest.mark.parametrize("headers", [1, 2])
def test_a_header_record_of_the_whole_set_is_not_that_of_a_part(tmp_path: Path, headers: int) -> None:
    """A file that was split without its identity records."""
    totals = pack(ImageHeader(np.array([5, 7], np.float32), 0), b"")
    for part, keys in enumerate([(1, 2), (3, 4)]):
        with RecordWriter(tmp_path / f"train_{part}.rec") as writer:
            if part < headers:
                writer.write(0, totals)
            for key in keys:
                writer.write(key, pack(ImageHeader(float(part), key), face(key)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RecordShards(find_records(tmp_path)).missing == 0


def test_names_ascend_as_text_with_many_files(tmp_path: Path) -> None:
    records = RecordShards(find_records(write_chunks(tmp_path, [[0]] * 12)))
    names = [f"{records.name(i)}.jpg" for i in range(12)]
    assert names == sorted(names) and len(set(names)) == 12


def test_a_single_file_keeps_its_keys_as_names(tmp_path: Path) -> None:
    write_chunks(tmp_path, [[0, 0], [1]])
    assert [RecordShards([tmp_path / "train_1.rec"]).name(i) for i in range(1)] == ["2"]
