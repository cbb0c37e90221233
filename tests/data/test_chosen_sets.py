"""Which verification sets a run uses."""

from pathlib import Path

import numpy as np
import pytest

from adaface.config.options import DataOptions
from adaface.data.chosen_sets import check_folder_of_sets, choose_sets
from adaface.data.pair_writers import write_memfile


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("mine", "lfw"):
        write_memfile(tmp_path, name, [np.zeros((112, 112, 3), np.uint8)] * 2, [True])
    return tmp_path


def chosen(folder: Path, wanted: str, *, otherwise: bool = False):
    return choose_sets(folder, wanted, held_out_otherwise=otherwise, compulsory=False)


@pytest.mark.parametrize("otherwise", [False, True])
def test_all_that_are_there_are_used(folder, otherwise):
    sets = chosen(folder, "", otherwise=otherwise)
    assert sets.names == ["lfw", "mine"]
    assert (sets.held_out, sets.note) == (False, "")
    assert sets.missing == ["agedb_30", "cfp_fp", "cplfw", "calfw"]


def test_those_that_are_named_are_used(folder):
    sets = chosen(folder, "held_out, mine")
    assert (sets.names, sets.held_out, sets.missing, sets.note) == (["mine"], True, [], "")
    sets = chosen(folder, "held_out")
    assert (sets.names, sets.held_out) == ([], True)


def test_an_unknown_name_is_refused_with_the_nearest(folder):
    with pytest.raises(FileNotFoundError, match=r"--val_sets mime: there is no set mime in .*; did you mean mine\?"):
        chosen(folder, "mime")


@pytest.mark.parametrize(("otherwise", "told"), [(True, "are held out"), (False, "without validation")])
def test_where_there_are_none_people_are_held_out_or_not(tmp_path, otherwise, told):
    for place, why in ((tmp_path, "it has no sets"), (tmp_path / "absent", "no such folder")):
        sets = chosen(place, "", otherwise=otherwise)
        assert (sets.names, sets.held_out) == ([], otherwise)
        assert why in sets.note and told in sets.note


def test_an_evaluation_needs_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="Check --data_root and --val_data_path"):
        choose_sets(tmp_path, "", held_out_otherwise=False, compulsory=True)


@pytest.mark.parametrize("place", ["faces", "none", ""])
def test_a_folder_of_sets_that_exists_or_none_is_taken(folder, place):
    (folder / "faces").mkdir()
    check_folder_of_sets(DataOptions(str(folder), val_data_path=place))


@pytest.mark.parametrize(
    ("word", "why", "hint"),
    [
        ("facez", "there is no such folder ", "did you mean faces? give the folder of the"),
        ("facez/sets", "there is no such folder ", "did you mean faces/sets? give the"),
        ("quite/another", "there is no such folder ", "; give the folder of the verification sets, or none"),
        ("lfw_list.npy", "it is a file ", "give the folder of the verification sets, or none"),
    ],
)
def test_another_is_refused_with_the_nearest(folder, word, why, hint):
    (folder / "faces" / "sets").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as refused:
        check_folder_of_sets(DataOptions(str(folder), val_data_path=word))
    assert str(refused.value).startswith(f"--val_data_path {word}: {why}({folder / word}); ")
    assert hint in str(refused.value)
