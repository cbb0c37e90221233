"""What a model says of labels: centres against a slow computation, and faults planted among drawn embeddings."""

from types import SimpleNamespace

import numpy as np
import pytest

from adaface.audit.identities import (
    Embeddings,
    identity_findings,
    leaked_identities,
    levels_of,
    two_clusters,
    unit,
)

DIMENSIONS = 64


class Faces:
    """Drawn embeddings: people are directions, images are noisy ones."""

    def __init__(self, people: int, images: int, noise: float = 0.7, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise = noise
        self.people = unit(self.rng.normal(size=(people, DIMENSIONS)))
        self.labels = np.repeat(np.arange(people), images)
        self.vectors = self.of(self.labels)

    def of(self, people: np.ndarray) -> np.ndarray:
        noise = unit(self.rng.normal(size=(len(people), DIMENSIONS))) * self.noise
        return unit(self.people[people] + noise).astype(np.float32)

    def audited(self) -> tuple[SimpleNamespace, Embeddings]:
        order = np.argsort(self.labels, kind="stable")
        classes = int(self.labels.max()) + 1
        source = SimpleNamespace(class_names=[f"person {number}" for number in range(classes)])
        data = SimpleNamespace(source=source, labels=self.labels[order])
        return data, Embeddings(np.arange(len(order)), self.labels[order], self.vectors[order], classes)

    def findings(self) -> list:
        data, faces = self.audited()
        return identity_findings(data, faces, levels_of(faces))


def of_kind(findings: list, kind: str) -> list:
    return [finding for finding in findings if finding.kind == kind]


def slow_own(labels: np.ndarray, vectors: np.ndarray, place: int) -> float:
    """Cosine of an image to the centre of the better half of its class, itself left out."""
    same = np.flatnonzero(labels == labels[place])
    mean = vectors[same].astype(np.float64).mean(axis=0)
    cosines = vectors[same] @ (mean / np.linalg.norm(mean))
    least = np.sort(cosines)[len(same) // 2]
    core = [i for i, cosine in zip(same, cosines, strict=True) if cosine >= least - 1e-6 and i != place]
    centre = vectors[core].astype(np.float64).sum(axis=0)
    return float(vectors[place] @ centre / np.linalg.norm(centre)) if core else float("nan")


def test_cosines_to_the_own_centre_are_those_of_a_slow_computation(monkeypatch):
    faces = Faces(12, 1)
    faces.labels = faces.rng.choice(12, 60, p=np.r_[0.4, np.full(11, 0.6 / 11)])
    faces.labels[:12] = np.arange(12)
    faces.labels = np.r_[faces.labels, 12]  # a class of one image
    faces.people = np.vstack([faces.people, faces.people[:1]])
    faces.vectors = faces.of(faces.labels)
    _, embeddings = faces.audited()
    monkeypatch.setattr("adaface.audit.identities._AT_ONCE", 7)  # classes cross the parts
    expected = [slow_own(embeddings.labels, embeddings.vectors, i) for i in range(len(embeddings.labels))]
    np.testing.assert_allclose(embeddings.own, expected, atol=1e-5)
    assert np.isnan(embeddings.own[-1])


def test_good_labels_give_no_findings():
    assert Faces(40, 12).findings() == []


def test_images_of_another_identity_are_told_with_whose_they_are():
    faces = Faces(40, 12)
    right = faces.labels.copy()
    moved = faces.rng.choice(len(right), 25, replace=False)
    faces.labels[moved] = (right[moved] + faces.rng.integers(1, 40, 25)) % 40
    order = np.argsort(faces.labels, kind="stable")
    findings = of_kind(faces.findings(), "mislabelled")
    assert {order[finding.samples[0]] for finding in findings} == set(moved.tolist())
    assert all(finding.target == right[order[finding.samples[0]]] for finding in findings)


def test_images_of_nobody_are_outliers():
    faces = Faces(40, 12)
    faces.vectors[100] = unit(faces.rng.normal(size=DIMENSIONS))
    (finding,) = faces.findings()
    assert (finding.kind, finding.level, finding.samples) == ("outlier", "note", (100,))


def test_one_person_under_two_names_is_told_once_the_smaller_first():
    faces = Faces(40, 12)
    faces.people[7] = faces.people[3]
    faces.people[20] = faces.people[31]
    faces.vectors = faces.of(faces.labels)
    kept = np.r_[0:36, 40:480]  # of person 3 fewer images
    faces.labels, faces.vectors = faces.labels[kept], faces.vectors[kept]
    found = of_kind(faces.findings(), "merge")
    assert [(finding.identity, finding.target) for finding in found] == [("person 3", 7), ("person 31", 20)]


def test_two_people_under_one_name_are_told_and_the_fewer_images_named():
    faces = Faces(40, 12)
    faces.people = np.vstack([faces.people, unit(faces.rng.normal(size=(1, DIMENSIONS)))])
    faces.vectors[24:29] = faces.of(np.full(5, 40))
    (finding,) = faces.findings()
    assert (finding.kind, finding.identity, finding.samples) == ("split", "person 2", (24, 25, 26, 27, 28))


def test_people_of_a_test_set_are_told():
    faces = Faces(40, 12)
    data, embeddings = faces.audited()
    levels = levels_of(embeddings)
    strangers = Faces(30, 4, seed=9).vectors
    known = faces.of(np.array([5, 5, 5, 11, 11]))
    vectors = np.concatenate([strangers, known])
    numbers = np.arange(100, 100 + len(vectors))
    found = list(leaked_identities(data, embeddings, levels, [("lfw", numbers, vectors)]))
    assert [finding.identity for finding in found] == ["person 5", "person 11"]
    assert all(finding.samples[0] == 12 * person for finding, person in zip(found, (5, 11), strict=True))
    assert all(finding.test_image[0] == "lfw" and finding.test_image[1] >= 220 for finding in found)
    assert list(leaked_identities(data, embeddings, levels, [("none", numbers[:0], vectors[:0])])) == []


def test_a_model_that_knows_nothing_is_not_believed():
    faces = Faces(20, 6)
    faces.vectors = unit(faces.rng.normal(size=faces.vectors.shape)).astype(np.float32)
    assert not levels_of(faces.audited()[1]).useful
    assert levels_of(Faces(20, 6).audited()[1]).useful


@pytest.mark.parametrize("few", [0, 2, 5])
def test_two_clusters(few):
    faces = Faces(2, 12)
    vectors = np.concatenate([faces.vectors[:10], faces.vectors[12 : 12 + few]]).astype(np.float64)
    second, apart, tight = two_clusters(vectors)
    assert second.sum() * 2 <= len(vectors)
    if few:
        assert second.tolist() == [False] * 10 + [True] * few
        assert apart < 0.5 < tight
    assert two_clusters(np.repeat(vectors[:1], 4, axis=0))[1:] == (1.0, 1.0)
