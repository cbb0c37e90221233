"""Which verification sets a run uses."""

from pathlib import Path

import numpy as np
import pytest

from pairs import write_memfile
from validation_sets import open_sets


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("mine", "lfw"):
        write_memfile(tmp_path, name, [np.zeros((112, 112, 3), np.uint8)] * 2, [True])
    return tmp_path


def opened(folder: Path, wanted: str, *, otherwise: bool = False):
    return open_sets(folder, wanted, held_out_otherwise=otherwise, compulsory=False)


@pytest.mark.parametrize("otherwise", [False, True])
def test_all_that_are_there_are_used(folder, otherwise):
    sets = opened(folder, "", otherwise=otherwise)
    assert list(sets.opened) == ["lfw", "mine"]
    assert (sets.held_out, sets.note) == (False, "")
    assert sets.missing == ["agedb_30", "cfp_fp", "cplfw", "calfw"]


def test_those_that_are_named_are_used(folder):
    sets = opened(folder, "held_out, mine")
    assert (list(sets.opened), sets.held_out, sets.missing, sets.note) == (["mine"], True, [], "")
    sets = opened(folder, "held_out")
    assert (list(sets.opened), sets.held_out) == ([], True)


def test_an_unknown_name_is_refused_with_the_nearest(folder):
    with pytest.raises(FileNotFoundError, match=r"--val_sets mime: there is no set mime in .*; did you mean mine\?"):
        opened(folder, "mime")


@pytest.mark.parametrize(("otherwise", "told"), [(True, "are held out"), (False, "without validation")])
def test_where_there_are_none_people_are_held_out_or_not(tmp_path, otherwise, told):
    for place, why in ((tmp_path, "none there"), (tmp_path / "absent", "no such folder")):
        sets = opened(place, "", otherwise=otherwise)
        assert (sets.opened, sets.held_out) == ({}, otherwise)
        assert why in sets.note and told in sets.note


def test_an_evaluation_needs_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="Check --data_root and --val_data_path"):
        open_sets(tmp_path, "", held_out_otherwise=False, compulsory=True)
