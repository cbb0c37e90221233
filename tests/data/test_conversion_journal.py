"""Derived data are compared with what they were made from."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from adaface.commands import convert
from adaface.conversion.unpack_bin import convert_set
from adaface.data import pair_sets
from adaface.data.conversion_journal import JOURNAL, Journal
from adaface.data.pair_pickle import write_bin
from adaface.data.sources.finder import open_training_source
from adaface.records import reader

JPEGS = [
    cv2.imencode(".jpg", np.full((112, 112, 3), 20 * number, np.uint8))[1].tobytes() for number in range(1, 8)
]  # of different sizes


def write_rec(folder, images, name="train.rec"):
    folder.mkdir(parents=True, exist_ok=True)
    with reader.RecordWriter(folder / name) as writer:
        for key, image in enumerate(images, 1):
            writer.write(key, reader.pack(reader.ImageHeader(float(key % 2), key), image))


def write_header_and_images(folder, labels, identities):
    """A `train.rec` of InsightFace: header record, images, identity records."""
    past = len(labels) + 1
    with reader.RecordWriter(folder / "train.rec") as writer:
        writer.write(0, reader.pack(reader.ImageHeader(np.array([past, past + identities], np.float32)), b""))
        for key, label in enumerate(labels, 1):
            writer.write(key, reader.pack(reader.ImageHeader(float(label), key), JPEGS[key - 1]))
        for key in range(past, past + identities):
            writer.write(key, reader.pack(reader.ImageHeader(np.array([1, 2], np.float32), key), b""))


def write_images_alone(folder, labels):
    """A `train.rec` without header record."""
    with reader.RecordWriter(folder / "train.rec") as writer:
        for key, label in enumerate(labels, 1):
            writer.write(key, reader.pack(reader.ImageHeader(float(label), key), JPEGS[key - 1]))


def write_foreign_folder(folder, labels, name="imgs"):
    """Images as the official converter writes them, without a journal."""
    for key, label in enumerate(labels, 1):
        path = folder / name / str(label) / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEGS[key - 1])


def open_faces(folder):
    return open_training_source(str(folder), ".")


@pytest.fixture
def faces(tmp_path):
    write_rec(tmp_path / "faces", JPEGS[:4])
    assert convert.main(["--rec_path", str(tmp_path / "faces"), "--make_image_files"]) == 0
    return tmp_path / "faces"


def test_images_of_another_rec_are_refused(faces):
    assert len(open_faces(faces)) == 4
    write_rec(faces, JPEGS[:5])
    with pytest.raises(
        ValueError, match=r"imgs was converted from another train\.rec .*--overwrite; or move one of them"
    ):
        open_faces(faces)
    assert len(open_training_source(str(faces), "imgs", use_mxrecord=True)) == 5
    assert convert.main(["--rec_path", str(faces), "--make_image_files", "--overwrite"]) == 0
    assert len(open_faces(faces)) == 5


def test_a_rec_of_the_same_size_with_other_images_is_refused(faces, capsys):
    others = [image.replace(b"\xff\xd9", b"\xff\xd8") for image in JPEGS[:4]]  # as long, other bytes
    write_rec(faces, [*JPEGS[:3], others[3]])
    os.utime(faces / "train.rec", ns=(0, 0))
    with pytest.raises(ValueError, match="was converted from another"):
        open_faces(faces)
    assert convert.main(["--rec_path", str(faces), "--make_image_files"]) == 2
    assert "was converted from another train.rec; use --overwrite" in capsys.readouterr().err
    write_rec(faces, JPEGS[:4])  # a copy
    os.utime(faces / "train.rec", ns=(0, 0))
    assert len(open_faces(faces)) == 4


def test_a_rec_of_the_same_size_with_other_labels_is_refused(faces):
    size = (faces / "train.rec").stat().st_size
    with reader.RecordWriter(faces / "train.rec") as writer:
        for key, image in enumerate(JPEGS[:4], 1):
            writer.write(key, reader.pack(reader.ImageHeader(float(key % 3), key), image))
    assert (faces / "train.rec").stat().st_size == size
    os.utime(faces / "train.rec", ns=(0, 0))
    with pytest.raises(ValueError, match="was converted from another"):
        open_faces(faces)


def test_a_copy_has_another_time_but_the_same_images(faces, tmp_path):
    shutil.copytree(faces, tmp_path / "copy", copy_function=shutil.copyfile)
    assert (tmp_path / "copy" / "train.rec").stat().st_mtime_ns != (faces / "train.rec").stat().st_mtime_ns
    assert len(open_faces(tmp_path / "copy")) == 4


def test_images_without_their_rec_are_trained_on(faces):
    (faces / "train.rec").unlink()
    assert len(open_faces(faces)) == 4


def test_images_of_shards_of_which_some_are_gone_are_trained_on(tmp_path):
    folder = tmp_path / "faces"
    for number in range(2):
        write_rec(folder, JPEGS[:4], f"train_{number}.rec")
    (folder / "property").write_text("2,112,112")
    assert convert.main(["--rec_path", str(folder), "--make_image_files"]) == 0
    count = len(open_faces(folder))
    (folder / "train_0.rec").unlink()
    assert len(open_faces(folder)) == count


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '"x"', '{"done": 1}', '{"done": NaN}', "[" * 100_000, "1e999"],
    ids=["cut", "list", "text", "parts", "NaN", "nested", "infinite"],
)
def test_a_damaged_journal_is_named(faces, content):
    (faces / "imgs" / JOURNAL).write_text(content)
    with pytest.raises(ValueError, match=r"\.convert\.json is damaged"):
        open_faces(faces)


@pytest.mark.parametrize("value", [float("inf"), "4", None, [4], 4.0])
def test_a_journal_with_other_values_is_named(faces, value):
    journal = json.loads((faces / "imgs" / JOURNAL).read_text())
    (faces / "imgs" / JOURNAL).write_text(json.dumps({**journal, "done": value}))
    with pytest.raises(ValueError, match=r"\.convert\.json is damaged"):
        Journal.load(faces / "imgs")


@pytest.mark.parametrize("with_header", [True, False])
@pytest.mark.parametrize(
    ("labels", "counts"),
    [([0, 0, 1], "3 of 2"), ([0, 0, 1, 1, 1], "5 of 2"), ([0, 0, 1, 2], "4 of 3"), ([0, 0, 0, 0], "4 of 1")],
)
def test_images_of_another_program_and_of_another_rec_are_told(tmp_path, labels, counts, with_header):
    """Not refused: people add and delete images by hand."""
    write_foreign_folder(tmp_path, [0, 0, 1, 1])
    if with_header:
        write_header_and_images(tmp_path, labels, len(set(labels)))
    else:
        write_images_alone(tmp_path, labels)
    source = open_faces(tmp_path)
    assert len(source) == 4
    assert source.note == (
        f"{tmp_path / 'imgs'} contains 4 images of 2 identities, the train.rec beside it {counts}: the folder, which "
        "another program wrote, was made from another file, or was changed since. It is used as it is; --use_mxrecord "
        "reads the .rec"
    )
    assert len(open_training_source(str(tmp_path), ".", use_mxrecord=True)) == len(labels)


@pytest.mark.parametrize("identities", [0, 2, 3])
def test_images_of_another_program_beside_their_rec_are_trained_on(tmp_path, identities):
    """Without a header record, with one, and with one that announces an identity without images."""
    write_foreign_folder(tmp_path, [0, 0, 1, 1])
    if identities:
        write_header_and_images(tmp_path, [0, 0, 1, 1], identities)
    else:
        write_images_alone(tmp_path, [0, 0, 1, 1])
    source = open_faces(tmp_path)
    assert len(source) == 4
    assert source.note == (
        f"{tmp_path / 'imgs'} was written by another program; only its numbers of images and identities were compared "
        "with the train.rec beside it"
    )


def test_images_of_another_program_beside_shards_are_compared_too(tmp_path):
    for number in range(2):
        write_rec(tmp_path, JPEGS[:4], f"train_{number}.rec")
    (tmp_path / "property").write_text("2,112,112")
    write_foreign_folder(tmp_path, [0, 0, 1, 1])
    assert "4 images of 2 identities, the train_0.rec beside it 8 of 2: the folder" in open_faces(tmp_path).note
    for key in range(4):
        (tmp_path / "imgs" / str(key % 2) / f"more-{key}.jpg").write_bytes(JPEGS[key])
    assert "only its numbers" in open_faces(tmp_path).note


def test_without_an_index_only_the_header_record_is_compared(tmp_path):
    write_foreign_folder(tmp_path, [0, 0, 1, 1])
    write_header_and_images(tmp_path, [0, 0, 1, 1], identities=3)
    (tmp_path / "train.idx").unlink()
    source = open_faces(tmp_path)
    assert len(source) == 4
    assert source.note.endswith("was not compared with the train.rec beside it, which has no .idx")
    write_header_and_images(tmp_path, [0, 0, 1], identities=2)
    (tmp_path / "train.idx").unlink()
    assert "the train.rec beside it 3 of 2: " in open_faces(tmp_path).note


def test_images_of_another_program_beside_a_damaged_rec_are_trained_on(tmp_path):
    write_foreign_folder(tmp_path, [0, 0, 1, 1])
    (tmp_path / "train.rec").write_bytes(b"")
    source = open_faces(tmp_path)
    assert len(source) == 4
    assert "could not be compared with the train.rec beside it: " in source.note
    assert "train.rec is empty" in source.note


def test_folders_of_another_name_and_without_rec_are_not_compared(tmp_path):
    write_foreign_folder(tmp_path, [0, 0, 1, 1], "people")
    write_images_alone(tmp_path, [0, 0, 1])
    write_foreign_folder(tmp_path / "alone", [0, 0, 1, 1])
    for path in ("people", "alone"):
        source = open_training_source(str(tmp_path), path)
        assert (len(source), source.note) == (4, "")


def test_converted_images_have_no_note(faces):
    assert open_faces(faces).note == ""


def test_deleted_and_added_images_of_a_complete_conversion_are_told(faces, tmp_path, capsys):
    changed = "it was changed since, and is used as it is"
    (faces / "imgs" / "1" / "1.jpg").unlink()
    source = open_faces(faces)
    assert source.note == (
        f"{faces / 'imgs'} contains 3 images of 2 identities, its conversion wrote 4 of 2: {changed}"
    )
    assert convert.main(["--pack", str(faces / "imgs"), "--output", str(tmp_path / "packed")]) == 0
    assert f"note: {source.note}" in capsys.readouterr().out
    (faces / "imgs" / "1" / "3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 class folders in .* hold no images: 1"):
        open_faces(faces)
    told = open_training_source(str(faces), ".", flawed=True).note  # as the audit opens it
    assert f"contains 2 images of 1 identities, its conversion wrote 4 of 2: {changed}" in told
    shutil.rmtree(faces / "imgs" / "1")
    (faces / "train.rec").unlink()
    assert open_faces(faces).note == told
    for key in range(3):
        (faces / "imgs" / "0" / f"more-{key}.jpg").write_bytes(JPEGS[key])
    assert "contains 5 images of 1 identities, its conversion wrote 4 of 2: " in open_faces(faces).note


def test_skipped_images_and_their_identity_are_not_missed(tmp_path, capsys):
    faces = tmp_path / "faces"
    write_rec(faces, [JPEGS[0], b"damaged"])
    words = ["--rec_path", str(faces), "--make_image_files"]
    assert convert.main([*words, "--skip_bad_images"]) == 1
    (faces / "imgs" / "0").rmdir()
    assert open_faces(faces).note == ""
    capsys.readouterr()
    assert convert.main(words) == 1  # skipped by the earlier command
    assert "already converted (1 image, 2 identities); nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["memfile", "bcolz"])
def test_a_set_of_another_program_is_compared_with_the_bin_beside_it(tmp_path, form):
    write_bin(tmp_path / "mine.bin", JPEGS[:4], [True, False])
    convert_set(tmp_path / "mine.bin", form)
    assert pair_sets.open_pair_set(tmp_path, "mine").note == ""
    pair_sets.origin_file(tmp_path, "mine").unlink()
    pair_set = pair_sets.open_pair_set(tmp_path, "mine")
    assert len(pair_set.images) == 4
    assert pair_set.note == (
        f"the set {tmp_path / 'mine'} was written by another program; only the number of its pairs, and which of them "
        "are the same person, were compared with the mine.bin beside it"
    )
    write_bin(tmp_path / "mine.bin", JPEGS[:6], [True, False, True])
    assert pair_sets.open_pair_set(tmp_path, "mine").note.startswith(
        f"the set {tmp_path / 'mine'} was written by another program, and not made from the mine.bin beside it: it has "
        "2 pairs, mine.bin has 3. It is used as it is; "
    )
    write_bin(tmp_path / "mine.bin", JPEGS[:4], [True, True])
    told = pair_sets.open_pair_set(tmp_path, "mine").note
    assert "beside it: 1 of 2 pairs are the same person in one and different persons in the other. " in told
    (tmp_path / "mine.bin").write_bytes(b"damaged")
    assert "could not be compared with the mine.bin beside it: " in pair_sets.open_pair_set(tmp_path, "mine").note
    (tmp_path / "mine.bin").unlink()
    assert pair_sets.open_pair_set(tmp_path, "mine").note == ""


@pytest.mark.parametrize("form", ["memfile", "bcolz"])
def test_a_set_converted_from_another_bin_is_refused(tmp_path, form):
    write_bin(tmp_path / "mine.bin", JPEGS[:4], [True, False])
    convert_set(tmp_path / "mine.bin", form)
    first = np.array(pair_sets.open_pair_set(tmp_path, "mine").images[0])
    shutil.copyfile(tmp_path / "mine.bin", tmp_path / "same.bin")
    (tmp_path / "same.bin").replace(tmp_path / "mine.bin")  # another time, the same content
    pair_sets.open_pair_set(tmp_path, "mine")
    write_bin(tmp_path / "mine.bin", JPEGS[3:7], [True, False])
    with pytest.raises(ValueError, match=r"was not made from the mine\.bin beside it, which has changed"):
        pair_sets.open_pair_set(tmp_path, "mine")
    convert_set(tmp_path / "mine.bin", form, overwrite=True)
    assert not np.array_equal(pair_sets.open_pair_set(tmp_path, "mine").images[0], first)
    (tmp_path / "mine.bin").unlink()
    assert len(pair_sets.open_pair_set(tmp_path, "mine").issame) == 2


@pytest.mark.parametrize("with_its_bin", [True, False])
@pytest.mark.parametrize("name", ["mine_images.npy", "mine_list.npy"])
def test_a_damaged_part_of_a_converted_set_is_refused(tmp_path, name, with_its_bin):
    write_bin(tmp_path / "mine.bin", JPEGS[:4], [True, True])
    convert_set(tmp_path / "mine.bin")
    if not with_its_bin:
        (tmp_path / "mine.bin").unlink()
    pair_sets.open_pair_set(tmp_path, "mine")
    content = bytearray((tmp_path / name).read_bytes())
    content[-1:] = bytes(1)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: its checksum is not the one it was written with"):
        pair_sets.open_pair_set(tmp_path, "mine")


@pytest.mark.parametrize("content", ["{", "[]", '{"bytes": "x"}', "[" * 100_000])
def test_a_damaged_record_of_the_origin(tmp_path, content):
    write_bin(tmp_path / "mine.bin", JPEGS[:4], [True, False])
    convert_set(tmp_path / "mine.bin")
    (tmp_path / ".mine.convert.json").write_text(content)
    with pytest.raises(ValueError, match=r"was not made from the mine\.bin beside it"):
        pair_sets.open_pair_set(tmp_path, "mine")
    convert_set(tmp_path / "mine.bin", overwrite=True)
    pair_sets.open_pair_set(tmp_path, "mine")
