"""What `--train_data_path` may name: one set or several, folders, `.rec`, shards, names with commas."""

import re
from pathlib import Path

import pytest

from adaface.data.sources.finder import open_training_source, split_paths
from adaface.data.sources.folder import FolderSource
from adaface.data.sources.records import RecordSource
from tests.support.sharded_records import face, write_chunks


def write_images(root: Path, *classes: str) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        (root / name / "0.jpg").write_bytes(face(0))
    return root


# --- shards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["d", "d/imgs"])
def test_shards_without_image_folder_are_found(tmp_path: Path, path: str) -> None:
    write_chunks(tmp_path / "d", [[0, 0, 1], [1, 2]])
    (tmp_path / "d" / "lfw" / "data").mkdir(parents=True)  # a converted validation set is no class folder
    source = open_training_source(tmp_path, path)
    assert isinstance(source, RecordSource) and len(source) == 5
    assert len(open_training_source(tmp_path, "d/train_0.rec")) == 3  # one of them, by name


def test_an_image_folder_comes_first_unless_the_records_are_asked_for(tmp_path: Path) -> None:
    write_chunks(tmp_path / "d", [[0], [1]])
    write_images(tmp_path / "d" / "imgs", "0", "1")
    assert isinstance(open_training_source(tmp_path, "d"), FolderSource)
    for path in ("d", "d/imgs"):
        assert isinstance(open_training_source(tmp_path, path, use_mxrecord=True), RecordSource)


def test_shards_with_a_gap_or_beside_a_train_rec_are_refused(tmp_path: Path) -> None:
    write_chunks(tmp_path, [[0, 0, 1], [1, 2], [2, 3]])
    (tmp_path / "train_1.rec").unlink()
    with pytest.raises(ValueError, match=r"train_1\.rec is missing"):
        open_training_source(tmp_path, "")
    write_chunks(tmp_path, [[0, 0, 1], [1, 2], [2, 3]])
    (tmp_path / "train.rec").write_bytes((tmp_path / "train_0.rec").read_bytes())
    (tmp_path / "train.idx").write_bytes((tmp_path / "train_0.idx").read_bytes())
    with pytest.raises(ValueError, match=r"contains both train\.rec and train_0.rec"):
        open_training_source(tmp_path, "")
    assert len(open_training_source(tmp_path, "train.rec")) == 3


# --- several sets ---------------------------------------------------------------------------------------------


def test_each_path_may_be_of_another_kind(tmp_path: Path) -> None:
    write_images(tmp_path / "plain", "p", "q")
    write_images(tmp_path / "a" / "imgs", "r")
    write_chunks(tmp_path / "many", [[0, 0], [1, 1]])
    write_chunks(tmp_path / "one", [[0]])
    source = open_training_source(tmp_path, "plain, a/imgs, many,one/train_0.rec")
    assert list(source.class_names) == ["plain/p", "plain/q", "a/r", "many/0", "many/1", "train_0/0"]
    assert list(open_training_source(tmp_path, f"{tmp_path}/plain,a").class_names) == ["plain/p", "plain/q", "a/r"]


def test_use_mxrecord_is_for_all_of_them(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "imgs", "r")
    write_images(tmp_path / "b" / "imgs", "s")
    write_chunks(tmp_path / "a", [[0]])
    assert list(open_training_source(tmp_path, "a,b").class_names) == ["a/r", "b/s"]
    with pytest.raises(FileNotFoundError, match=r"data set 2 of 2 \(b\): no training data in .*--use_mxrecord"):
        open_training_source(tmp_path, "a,b", use_mxrecord=True)
    write_chunks(tmp_path / "b", [[0]])
    assert list(open_training_source(tmp_path, "a,b/imgs", use_mxrecord=True).class_names) == ["a/0", "b/0"]


def test_sets_of_one_name_are_told_apart_by_the_folders_above(tmp_path: Path) -> None:
    for path in ("x/faces", "y/faces", "x/z"):
        write_images(tmp_path / path / "imgs", "0")
    names = list(open_training_source(tmp_path, "x/faces,y/faces/imgs,x/z").class_names)
    assert names == ["x/faces/0", "y/faces/0", "x/z/0"]
    (tmp_path / "link").symlink_to(tmp_path / "x" / "faces")
    assert list(open_training_source(tmp_path, "y/faces,link").class_names) == ["faces/0", "link/0"]


@pytest.mark.parametrize("path", ["a,a", "a/imgs,b,a", "a,a/train_0.rec", "b,a,link", "a/imgs,a/train_0.rec"])
def test_a_set_named_twice_is_refused(tmp_path: Path, path: str) -> None:
    write_images(tmp_path / "b", "0")
    write_chunks(tmp_path / "a", [[0, 0], [1, 1]])
    if "imgs" in path:
        write_images(tmp_path / "a" / "imgs", "0")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match=r"data set \d of \d .*already given: give it once"):
        open_training_source(tmp_path, path)


def test_shards_can_be_named_as_sets_of_their_own(tmp_path: Path) -> None:
    write_chunks(tmp_path / "a", [[0, 0, 1], [0, 1, 2]])
    with pytest.raises(ValueError, match="each file numbers its own identities"):
        open_training_source(tmp_path, "a")
    source = open_training_source(tmp_path, "a/train_0.rec,a/train_1.rec")
    assert source.labels.tolist() == [0, 0, 1, 2, 3, 4]
    assert list(source.class_names) == ["train_0/0", "train_0/1", "train_1/0", "train_1/1", "train_1/2"]


def test_errors_name_the_set(tmp_path: Path) -> None:
    write_images(tmp_path / "a", "0")
    write_chunks(tmp_path / "b", [[0, 2]])
    with pytest.raises(
        ValueError, match=r"--train_data_path, data set 2 of 2 \(b\): .*labels up to 2 but only 2 ident"
    ):
        open_training_source(tmp_path, "a,b")
    with pytest.raises(FileNotFoundError, match=r"data set 1 of 2 \(wrong\): no training data in"):
        open_training_source(tmp_path, "wrong,a")


# --- commas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("d/0/0.jpg", "it is a file, not a folder; .*/d/0 holds 0.jpg"),
        ("d/0/0.jpg/faces/imgs", "/d/0/0.jpg is a file, not a folder; .*/d/0 holds 0.jpg"),
        ("d/x", "it does not exist; "),
    ],
)
def test_what_is_no_folder_is_told_from_what_is_not_there(tmp_path: Path, path: str, why: str) -> None:
    write_images(tmp_path / "d", "0")
    with pytest.raises(FileNotFoundError, match=why):
        open_training_source(tmp_path, path)


def test_a_misspelled_path_gets_the_nearest_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "faces" / "imgs", "0")
    for name in (".agedb_30.convert.json", "agedb_30.bin", "imgz.txt"):
        (tmp_path / "faces" / name).touch()
    faces = tmp_path / "faces"
    told = f"it does not exist; did you mean {faces}/imgs? {faces} holds imgs, agedb_30.bin, imgz.txt. Check"
    with pytest.raises(FileNotFoundError, match=re.escape(told)):
        open_training_source(tmp_path, "faces/imgz")
    with pytest.raises(FileNotFoundError, match=re.escape(f"did you mean {faces}/imgs? {tmp_path} holds faces. Check")):
        open_training_source(tmp_path, "facez/imgs")


def test_commas_separate_unless_they_belong_to_a_name(tmp_path: Path) -> None:
    for name in ("a", "b", "a,b", "c,d,e"):
        (tmp_path / name).mkdir()
    (tmp_path / "f,g.rec").touch()
    for text, expected in {
        "a": ["a"],
        "a,b": ["a,b"],  # an existing path with that name wins
        "b,a": ["b", "a"],
        "b, a": ["b", "a"],
        "./a,./b": ["./a", "./b"],  # so the two are named where one with a comma is in the way
        "x,y": ["x", "y"],
        "c,d,e": ["c,d,e"],
        "c,d": ["c", "d"],
        "b,c,d,e,f,g.rec,a,b": ["b", "c,d,e", "f,g.rec", "a,b"],
        "c,d,e/imgs,b": ["c,d,e/imgs", "b"],  # before the conversion
        "c,d,e/wrong,b": ["c", "d", "e/wrong", "b"],
        " a": [" a"],
    }.items():
        assert split_paths(tmp_path, text) == expected, text
    assert split_paths("", f"{tmp_path}/a,b,{tmp_path}/b") == [f"{tmp_path}/a,b", f"{tmp_path}/b"]


@pytest.mark.parametrize("text", ["a,", ",a", "a,,b", ","])
def test_empty_paths_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        ValueError, match=r"one of [23] paths is empty; expected paths of data sets separated by single commas"
    ):
        split_paths(tmp_path, text)


def test_a_set_whose_name_has_a_comma_is_trained_on(tmp_path: Path) -> None:
    write_images(tmp_path / "faces, aligned" / "imgs", "0", "1")
    write_images(tmp_path / "b", "0")
    assert len(open_training_source(tmp_path, "faces, aligned")) == 2
    names = open_training_source(tmp_path, "b,faces, aligned/imgs").class_names
    assert list(names) == ["b/0", "faces, aligned/0", "faces, aligned/1"]
