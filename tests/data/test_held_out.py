"""Whom a validation split holds out, and the pairs that are made of them."""

from pathlib import Path

import numpy as np
import pytest

from adaface.commands import convert
from adaface.data.held_out import FEWEST_PEOPLE, HELD_OUT, MOST_PAIRS, choose_people, draw_pairs, hold_out
from adaface.data.sources.base import fingerprint_of
from adaface.data.sources.folder import FolderSource
from adaface.data.sources.records import RecordSource
from adaface.demo.dataset import write_demo_data


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Twelve people of three images, as train.rec and as imgs/."""
    folder = tmp_path_factory.mktemp("held_out") / "faces"
    write_demo_data(folder, identities=12, images_per_identity=3, pairs=10, seed=3)
    assert convert.main(["--rec_path", str(folder)]) == 0
    return folder


def test_a_share_of_those_with_one_image_and_of_those_with_more_is_held_out():
    counts = np.repeat([1, 5, 2], [40, 100, 100])
    held = choose_people(counts, 0.2, seed=7)
    assert held[:40].sum() == 8
    assert held[40:].sum() == 40
    assert (choose_people(counts, 0.2, seed=7) == held).all()
    assert (choose_people(counts, 0.2, seed=8) != held).any()


@pytest.mark.parametrize(("share", "expected"), [(0.01, FEWEST_PEOPLE), (0.5, 5), (0.99, 10 - FEWEST_PEOPLE)])
def test_enough_people_are_held_out_and_enough_stay(share, expected):
    assert choose_people(np.full(10, 3), share, seed=0).sum() == expected


@pytest.mark.parametrize("counts", [[9], [1] * 50, [4] * 7 + [1] * 9])
def test_too_few_people_are_refused(counts):
    with pytest.raises(ValueError, match=r"have two images or more: holding some out for validation needs 8 of these"):
        choose_people(np.array(counts), 0.1, seed=0)


def test_pairs_are_balanced_different_and_of_whom_they_say():
    labels = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 1, 9, 30, 2])
    places, issame = draw_pairs(labels, seed=4)
    assert issame.sum() * 2 == len(issame) == len(places)
    assert (issame == (labels[places[:, 0]] == labels[places[:, 1]])).all()
    assert (places[:, 0] != places[:, 1]).all()
    assert len({frozenset(pair) for pair in places.tolist()}) == len(places)
    assert issame[::2].all(), "both kinds in turn, so that every fold has both"
    genuine = labels[places[issame, 0]]
    # all pairs of those with few images, some of the one with many
    assert np.bincount(genuine, minlength=9).tolist() == [0, 1, 3, 6, 10, 0, 36, 45, 1]
    assert set(labels[places[~issame]].ravel().tolist()) == set(range(9)), "one image is enough for an impostor"
    again, _ = draw_pairs(labels, seed=4)
    assert (again == places).all()
    other, _ = draw_pairs(labels, seed=5)
    assert other.shape != places.shape or (other != places).any()


def test_many_people_share_the_pairs_evenly():
    labels = np.repeat(np.arange(500), 8)
    places, issame = draw_pairs(labels, seed=1)
    assert issame.sum() == MOST_PAIRS
    assert set(np.bincount(labels[places[issame, 0]], minlength=500)) == {MOST_PAIRS // 500}


def test_nobody_to_compare_with_gives_no_pairs():
    assert draw_pairs(np.zeros(5, np.int64), seed=0)[0].shape == (0, 2)
    assert draw_pairs(np.arange(5), seed=0)[0].shape == (0, 2)


def test_a_folder_and_its_records_hold_out_the_same_people(faces):
    rest, pairs = hold_out(FolderSource(faces / "imgs"), 0.4, seed=2)
    other_rest, other_pairs = hold_out(RecordSource(faces / "train.rec"), 0.4, seed=2)
    assert len(rest.class_names) == 7
    assert fingerprint_of(rest) == fingerprint_of(other_rest)
    assert (pairs.issame == other_pairs.issame).all()
    assert all((a == b).all() for a, b in zip(pairs.images, other_pairs.images, strict=True))
    assert pairs.name == HELD_OUT
    assert pairs.identities.shape == (len(pairs.issame), 2)
    assert (pairs.issame == (pairs.identities[:, 0] == pairs.identities[:, 1])).all()


def test_nobody_is_in_both_parts(faces):
    source = FolderSource(faces / "imgs")
    rest, pairs = hold_out(source, 0.4, seed=2)
    trained = {rest.read(index) for index in range(len(rest))}
    held = pairs.images
    assert not trained & {held.source.read(int(sample)) for sample in held.samples}
    assert set(rest.class_names) | set(held.source.class_names) == set(source.class_names)
    assert not set(rest.class_names) & set(held.source.class_names)
    assert sorted(set(rest.labels.tolist())) == list(range(7))


def test_red_stays_red_and_swapped_images_are_swapped_back(faces):
    source = FolderSource(faces / "imgs")
    plain, swapped = (hold_out(source, 0.4, 2, swap_color_channel=swap)[1].images[:1][0] for swap in (False, True))
    assert (plain[..., ::-1] == swapped).all()
    assert (plain != swapped).any()


def test_damaged_images_are_named_or_left_out(tmp_path):
    folder = write_demo_data(tmp_path / "faces", identities=8, images_per_identity=2, pairs=10, seed=3)
    assert convert.main(["--rec_path", str(folder)]) == 0
    for person in (folder / "imgs").glob("[0-9]*"):
        sorted(person.iterdir())[0].write_bytes(b"no image")
    source = FolderSource(folder / "imgs")
    _, pairs = hold_out(source, 0.1, seed=0)
    with pytest.raises(ValueError, match="not a readable image"):
        list(pairs.images)
    with pytest.raises(ValueError, match="no identity has two readable images"):
        hold_out(source, 0.1, seed=0, skip_bad_images=True)
