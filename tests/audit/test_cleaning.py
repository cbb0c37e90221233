"""From findings to a cleaned index: what is dropped, what is moved, and in which order."""

from types import SimpleNamespace

import numpy as np
import pytest

from adaface.audit.cleaning import cleaned_index
from adaface.audit.finding import KINDS, LEVELS, Finding

NAMES = ["a", "b", "c", "d"]
LABELS = np.repeat(np.arange(4), (4, 4, 3, 2)).astype(np.int32)  # samples 0-3, 4-7, 8-10, 11-12


def cleaned(*findings: Finding) -> tuple[list[int], dict[int, str]]:
    source = SimpleNamespace(class_names=NAMES, describe=lambda sample: f"image {sample}")
    index = cleaned_index(SimpleNamespace(labels=LABELS, source=source), findings)
    return index.classes.tolist(), dict(index.reasons)


def changed(*findings: Finding) -> dict[int, int]:
    """Samples whose class is another than in the data, and which; -1 for dropped."""
    classes, _ = cleaned(*findings)
    return {sample: found for sample, (found, label) in enumerate(zip(classes, LABELS, strict=True)) if found != label}


def test_nothing_found_changes_nothing():
    assert changed() == {}


@pytest.mark.parametrize(
    "kind",
    [
        "unreadable image", "wrong size", "grey image", "blank image", "leaked image", "leaked identity",
        "duplicate inside", "red and blue swapped", "split", "other label",
    ],
)  # fmt: skip
def test_images_that_are_wrong_are_dropped_with_the_reason(kind):
    classes, reasons = cleaned(Finding(kind, "a", "because", samples=(1, 2), other=0))
    assert classes[:4] == [0, -1, -1, 0]
    assert reasons == {1: f"{kind}: because", 2: f"{kind}: because"}


@pytest.mark.parametrize("kind", sorted(kind for kind in KINDS if KINDS[kind].level == "note"))
def test_notes_change_nothing(kind):
    assert changed(Finding(kind, "a", "", samples=(1,), other=0)) == {}


@pytest.mark.parametrize("kind", ["duplicate across", "near duplicate across"])
def test_of_copies_across_identities_both_go_or_the_doubted_one(kind):
    across = Finding(kind, "b", "", samples=(5,), other=1)
    assert changed(across) == {1: -1, 5: -1}
    doubt = Finding("mislabelled", "b", "", samples=(5,), target=0)
    assert changed(across, doubt) == {5: -1}
    both = Finding("mislabelled", "a", "", samples=(1,), target=1)
    assert changed(across, doubt, both) == {1: -1, 5: -1}


def test_mislabelled_images_are_trained_as_the_other_identity():
    classes, reasons = cleaned(Finding("mislabelled", "a", "like c", samples=(3,), target=2))
    assert classes[3] == 2
    assert reasons == {3: "mislabelled: like c"}
    assert changed(
        Finding("unreadable image", "a", "", samples=(3,)), Finding("mislabelled", "a", "", samples=(3,), target=2)
    ) == {3: -1}


def test_merged_identities_end_in_one_also_along_a_chain():
    a_to_b = Finding("merge", "a", "", samples=(0, 1), target=1)
    b_to_c = Finding("merge", "b", "", samples=(4,), target=2)
    assert changed(a_to_b) == dict.fromkeys(range(4), 1)
    assert changed(a_to_b, b_to_c) == dict.fromkeys(range(8), 2)


def test_a_moved_image_goes_along_when_its_new_identity_is_merged():
    moved = Finding("mislabelled", "d", "", samples=(11,), target=0)
    assert changed(moved, Finding("merge", "a", "", samples=(0,), target=1)) == {
        **dict.fromkeys(range(4), 1),
        11: 1,
        12: -1,  # the only one left of its identity
    }


def test_identities_of_which_one_image_is_left_are_dropped():
    classes, reasons = cleaned(Finding("unreadable image", "d", "", samples=(11,)))
    assert classes[11:] == [-1, -1]
    assert reasons[12] == "the only image left of its identity"


def test_every_kind_has_a_level_that_is_known():
    assert {kind.level for kind in KINDS.values()} == set(LEVELS)
