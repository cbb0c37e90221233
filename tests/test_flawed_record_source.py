"""Records that training refuses: gaps in the labels, damaged labels; and those that it takes."""

from pathlib import Path

import numpy as np
import pytest
from sharded_records import face, write_chunks, write_parts
from test_record_source import PLACES, SHUFFLED, SORTED, cut

from flawed_record_source import FlawedRecordSource
from record_shards import find_records
from record_source import RecordSource
from recordio import ImageHeader, RecordWriter, pack
from source_finder import open_training_source
from training_source import fingerprint_of


def write(folder: Path, labels: list[float]) -> Path:
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
    path = write(tmp_path, [12, 0, 3, 12, 0, 100, 2])
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
    source = FlawedRecordSource(write(tmp_path, [0, float("nan"), 1, -3, 0.5, 2.0e9, 1]))
    assert source.labels.tolist() == [0, 1, 1]
    assert [flaw.kind for flaw in source.flaws] == ["damaged label"] * 4
    assert "key 1: its label is nan" in source.flaws[0].text


def test_a_set_with_more_declared_identities_says_so(tmp_path):
    path = write(tmp_path, [0, 0, 1, 1])
    (tmp_path / "property").write_text("5,112,112")
    assert [flaw.text for flaw in FlawedRecordSource(path).flaws] == [
        f"labels 0 to 1, but {tmp_path / 'property'} declares 5 identities"
    ]


def test_what_holds_no_training_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no image has a label"):
        FlawedRecordSource(write(tmp_path, [float("nan")]))
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
