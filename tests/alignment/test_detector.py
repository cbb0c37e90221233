from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from adaface.alignment import detector
from adaface.alignment.detector import MTCNN, Face, choose_faces
from adaface.alignment.warp import ARCFACE_TEMPLATE, warp_face
from adaface.data.pair_sets import open_pair_set
from tests.support.photographs import ASTRONAUT_LANDMARKS, astronaut, head, turned, two_heads

LFW = Path(__file__).resolve().parents[3] / "shared" / "data" / "lfw112"
EYES_PX = 43  # between the eyes of the photograph


@pytest.fixture(scope="module")
def mtcnn():
    return MTCNN()


def only_face(faces):
    assert len(faces) == 1
    return faces[0]


def test_a_face_is_found_where_it_is(mtcnn):
    face = only_face(mtcnn.detect(astronaut()))
    assert np.linalg.norm(face.landmarks - ASTRONAUT_LANDMARKS, axis=1).max() < 3
    left, top, right, bottom = face.box
    assert (np.array([left, top]) < face.landmarks).all()
    assert (face.landmarks < np.array([right, bottom])).all()
    assert 0.99 < face.score <= 1


@pytest.mark.parametrize(("degrees", "scale"), [(0, 0.5), (0, 1.5), (15, 1), (-15, 1), (25, 1), (10, 0.5)])
def test_landmarks_turn_and_grow_with_the_face_and_the_crop_stays(mtcnn, degrees, scale):
    image, matrix = turned(astronaut(), degrees, scale)
    face = only_face(mtcnn.detect(image))
    expected = ASTRONAUT_LANDMARKS @ matrix[:, :2].T + matrix[:, 2]
    assert np.linalg.norm(face.landmarks - expected, axis=1).mean() < 0.06 * EYES_PX * scale
    difference = warp_face(image, face.landmarks).astype(float) - warp_face(astronaut(), ASTRONAUT_LANDMARKS)
    assert np.abs(difference).mean() < 16


def test_several_faces_the_surest_first(mtcnn):
    faces = mtcnn.detect(two_heads())
    assert len(faces) == 2
    assert faces[0].score >= faces[1].score
    centres = sorted(face.landmarks.mean(axis=0).tolist() for face in faces)
    in_head = ASTRONAUT_LANDMARKS.mean(axis=0) - (120, 20)
    np.testing.assert_allclose(centres, [in_head / 2 + (250, 100), in_head + np.array([390, 50])], atol=3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((100, 100, 3), np.uint8),
        np.full((300, 200, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((5, 4000, 3), np.uint8),
    ],
    ids=["black", "white", "noise", "one pixel", "a line"],
)
def test_no_face(mtcnn, image):
    assert mtcnn.detect(image) == []


def test_a_tiny_face_is_found_only_where_it_is_asked_for():
    image = np.full((120, 160, 3), 110, np.uint8)
    image[40:90, 50:100] = cv2.resize(head(), (50, 50), interpolation=cv2.INTER_AREA)  # a face of about 25 px
    assert len(MTCNN(20).detect(image)) == 1
    assert MTCNN(60).detect(image) == []


def test_a_face_that_leaves_the_photograph(mtcnn):
    face = only_face(mtcnn.detect(np.ascontiguousarray(astronaut()[75:])))
    assert face.box[1] < 0
    assert np.linalg.norm(face.landmarks - (ASTRONAUT_LANDMARKS - (0, 75)), axis=1).mean() < 4


def test_the_same_in_threads_and_again(mtcnn):
    images = [astronaut(), two_heads()] * 3
    alone = [mtcnn.detect(image) for image in images[:2]] * 3
    with ThreadPoolExecutor(3) as pool:
        for found, expected in zip(pool.map(mtcnn.detect, images), alone, strict=True):
            assert [face.box for face in found] == [face.box for face in expected]
            assert all(np.array_equal(a.landmarks, b.landmarks) for a, b in zip(found, expected, strict=True))


def test_opencv_runs_the_networks_to_the_same_faces(mtcnn):
    def open_in_opencv(path):
        network = cv2.dnn.readNetFromONNX(str(path))
        names = network.getUnconnectedOutLayersNames()

        def run(images):
            network.setInput(images)
            return dict(zip(names, network.forward(names), strict=True))

        return run

    other = only_face(MTCNN(open_with=open_in_opencv).detect(astronaut()))
    face = only_face(mtcnn.detect(astronaut()))
    np.testing.assert_allclose(other.landmarks, face.landmarks, atol=0.01)
    np.testing.assert_allclose(other.box, face.box, atol=0.01)


def test_copies_of_a_large_photograph_are_bounded(mtcnn, monkeypatch):
    seen = []
    monkeypatch.setattr(detector, "_MOST_PIXELS", 10_000)
    inner = mtcnn._propose
    monkeypatch.setattr(mtcnn, "_propose", lambda images: seen.append(images.shape) or inner(images))
    face = only_face(mtcnn.detect(astronaut()))
    assert max(shape[1] * shape[2] for shape in seen) <= 101**2  # rounded up
    assert np.linalg.norm(face.landmarks - ASTRONAUT_LANDMARKS, axis=1).mean() < 3


def test_candidates_of_a_batch_and_of_several_are_the_same(mtcnn, monkeypatch):
    expected = mtcnn.detect(two_heads())
    monkeypatch.setattr(detector, "_BATCH", 3)
    for found, other in zip(mtcnn.detect(two_heads()), expected, strict=True):
        np.testing.assert_allclose(found.landmarks, other.landmarks, atol=1e-3)


def test_real_faces_whose_place_is_known(mtcnn):
    if not (LFW / "lfw.bin").is_file():
        pytest.skip(f"the faces are not on this machine (expected in {LFW})")
    images = open_pair_set(LFW, "lfw").images
    distances = []
    for index in range(0, 1200, 40):
        photograph = np.full((300, 400, 3), 90, np.uint8)
        photograph[100:268, 150:318] = cv2.resize(images[index], (168, 168))
        face = mtcnn.detect(photograph)[0]
        expected = ARCFACE_TEMPLATE * 1.5 + (150, 100)
        distances.append(np.linalg.norm(face.landmarks - expected, axis=1).mean() / 1.5)
    assert len(distances) == 30
    assert np.median(distances) < 4  # no face is exactly the template
    assert max(distances) < 12


def test_choice_among_faces():
    boxes = {"small, central": (45, 45, 55, 55), "large": (0, 0, 40, 40), "wide": (0, 60, 100, 70)}
    faces = [Face(box, np.zeros((5, 2)), 0.9) for box in boxes.values()]
    names = dict(zip(map(id, faces), boxes, strict=True))

    def chosen(which):
        return [names[id(face)] for face in choose_faces(faces, which, (100, 100, 3))]

    assert chosen("largest") == ["large"]
    assert chosen("central") == ["small, central"]
    assert chosen("all") == ["large", "wide", "small, central"]
    assert choose_faces([], "largest", (100, 100, 3)) == []
    with pytest.raises(ValueError, match="got the face selection 'any', expected one of largest, central, all"):
        chosen("any")


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_images_that_are_refused(mtcnn, image):
    with pytest.raises(ValueError, match=r"expected uint8 of \(H, W, 3\)"):
        mtcnn.detect(image)


def test_a_smallest_face_that_is_too_small():
    with pytest.raises(ValueError, match="smallest face of 8 px, the detector needs at least 12"):
        MTCNN(8)
