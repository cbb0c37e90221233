import csv
import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from adaface.data.image_list import ImageFiles
from adaface.inference import grouping
from adaface.inference.gallery import NamedEmbeddings
from adaface.inference.grouping import NO_GROUP, draw_groups, group_faces, groups_csv, groups_text


def named(vectors) -> NamedEmbeddings:
    vectors = np.asarray(vectors, dtype=np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"{number}.png" for number in range(len(vectors))]
    return NamedEmbeddings(names, vectors, np.arange(len(vectors), dtype=np.float32), "ir_mini-1", "ir_mini")


def at_degrees(*degrees: float) -> NamedEmbeddings:
    return named([(np.cos(np.radians(angle)), np.sin(np.radians(angle))) for angle in degrees])


def partition(labels) -> set[frozenset[int]]:
    labels = np.asarray(labels)
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def test_by_hand():
    """Cosine of 60 degrees is 0.5: 200 and 230 are one person; 0, 10, 20 another; 120 is near nobody."""
    groups = group_faces(at_degrees(200, 0, 120, 10, 230, 20), 0.5)
    assert groups.person.tolist() == [2, 1, NO_GROUP, 1, 2, 1]
    ten, twenty, thirty = np.cos(np.radians([10, 20, 30]))
    expected = [thirty, (ten + twenty) / 2, np.nan, ten, thirty, (ten + twenty) / 2]
    np.testing.assert_allclose(groups.similarity, expected, atol=1e-6)
    assert groups.people == 2
    assert groups.order().tolist() == [3, 1, 5, 0, 4, 2]
    assert groups.members(1).tolist() == [3, 1, 5] and groups.members(NO_GROUP).tolist() == [2]


def test_a_chain_of_similar_faces_is_not_one_person():
    """Neighbors are 38 to 40 degrees apart, above the threshold; faces further apart are below it."""
    assert partition(group_faces(at_degrees(0, 38, 78, 116), 0.7).person) == {frozenset({0, 1}), frozenset({2, 3})}


@pytest.mark.parametrize("cosine", [-1.0, 0.0, 0.2, 0.35, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("rows", [7, 256])
def test_the_groups_are_those_of_scikit_learn(cosine, rows, monkeypatch):
    monkeypatch.setattr(grouping, "_ROWS", rows)
    rng = np.random.default_rng(0)
    people = rng.standard_normal((15, 16))
    vectors = named(people[rng.integers(15, size=120)] + 0.7 * rng.standard_normal((120, 16)))
    found = group_faces(vectors, cosine)
    exact = vectors.embeddings.astype(np.float64)
    oracle = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - cosine
    ).fit(1 - exact @ exact.T)
    labels = np.where(found.person == NO_GROUP, -1 - np.arange(120), found.person)
    # scikit-learn merges below the threshold only, which makes a difference where all is merged
    assert partition(labels) == (partition(oracle.labels_) if cosine > -1 else {frozenset(range(120))})
    sizes = np.bincount(found.person)[1:]
    assert (np.diff(sizes) <= 0).all() and (sizes > 1).all()


def test_copies_of_an_image_are_one_person():
    """The cosine of equal float32 vectors exceeds 1 for about half of them."""
    vectors = np.random.default_rng(0).standard_normal((20, 512))
    faces = named(vectors)
    assert (np.einsum("nd,nd->n", faces.embeddings, faces.embeddings) > 1).any()
    for number in range(20):
        copies = named(vectors[[number, number, (number + 1) % 20]])
        assert group_faces(copies, 0.5).person.tolist() == [1, 1, NO_GROUP]
    assert group_faces(named(np.concatenate([vectors, vectors, vectors])), 0.9).people == 20


def test_a_mean_that_equals_the_threshold_is_enough():
    faces = named([(1, 0, 0, 0), (0.5, 0.5, 0.5, 0.5)])
    assert group_faces(faces, 0.5).person.tolist() == [1, 1]
    assert group_faces(faces, 0.5 + 1e-6).person.tolist() == [NO_GROUP, NO_GROUP]
    assert group_faces(at_degrees(0), -1).person.tolist() == [NO_GROUP]


def test_too_many_connected_faces_are_told(monkeypatch):
    monkeypatch.setattr(grouping, "available_memory", lambda *_: 1000.0)
    assert group_faces(named(np.eye(100)), 0.5).people == 0, "faces that are not connected take no memory"
    with pytest.raises(ValueError, match=r"^100 faces are connected .* threshold 0\.5000; .* set a higher --threshold"):
        group_faces(named(np.ones((100, 4))), 0.5)


def test_text_and_table():
    groups = group_faces(at_degrees(200, 0, 120, 10, 230, 20), 0.5)
    lines = groups_text(groups).splitlines()
    assert lines == [
        "person 1: 3 faces, mean similarity 0.9698: 3.png, 1.png, 5.png",
        "person 2: 2 faces, mean similarity 0.8660: 0.png, 4.png",
        "in no group: 1 face: 2.png",
        "6 faces: 5 of 2 people, 1 in no group",
    ]
    rows = list(csv.DictReader(io.StringIO(groups_csv(groups))))
    assert [(row["face"], row["person"]) for row in rows] == [
        ("3.png", "1"), ("1.png", "1"), ("5.png", "1"), ("0.png", "2"), ("4.png", "2"), ("2.png", ""),
    ]  # fmt: skip
    assert (rows[0]["similarity"], rows[0]["quality"]) == ("0.984808", "3.0000")
    assert (rows[5]["similarity"], rows[5]["quality"]) == ("", "2.0000")
    formula = replace(groups.faces, names=["=cmd", *groups.faces.names[1:]])
    assert "\n'=cmd,2," in groups_csv(replace(groups, faces=formula))


def test_long_lists_are_cut_and_the_sums_add_up():
    groups = group_faces(named(np.concatenate([np.repeat(np.eye(90)[:30], 2, axis=0), np.eye(90)[30:60]])), 0.5)
    lines = groups_text(groups).splitlines()
    assert len(lines) == 20 + 3
    assert lines[20] == "... and 10 more people with 20 faces"
    assert lines[21].startswith("in no group: 30 faces: 60.png, ") and lines[21].endswith("79.png, ...")
    assert lines[22] == "90 faces: 60 of 30 people, 30 in no group"
    assert groups_text(group_faces(named(np.eye(1)), 0.5)).splitlines()[-1] == "1 face: 1 in no group"


def test_the_contact_sheet_shows_each_face_with_its_person(tmp_path, monkeypatch):
    colors = [(0, 0, 255), (0, 255, 0), (255, 0, 0)]  # BGR
    person = [0, 1, 0, 2, 1, 0]
    for number, who in enumerate(person):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((112, 112, 3), colors[who], np.uint8))
    groups = group_faces(named(np.eye(3)[person]), 0.5)
    images = ImageFiles("faces", [tmp_path / name for name in groups.faces.names])
    assert draw_groups(groups, images, tmp_path / "sheet.png") == 6
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    rows = [[tuple(sheet[24 + 90 * row + 32, 66 * column + 32].tolist()) for column in range(4)] for row in range(3)]
    white = (255, 255, 255)
    assert rows == [
        [colors[0]] * 3 + [white], [colors[1]] * 2 + [white] * 2, [colors[2]] + [white] * 3,
    ]  # fmt: skip
    monkeypatch.setattr(grouping, "_DRAWN_OF_PERSON", 1)
    monkeypatch.setattr(grouping, "_DRAWN_PEOPLE", 1)
    assert draw_groups(groups, images, tmp_path / "sheet.png") == 2
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[0] == 2 * 90
