from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaface.alignment.warp import ARCFACE_TEMPLATE, similarity_to_template, warp_face, warp_listed_face

GOLDEN_ALIGN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "align.npz"


def test_golden_crops():
    if not GOLDEN_ALIGN.is_file():
        pytest.skip(f"the reference crops are not on this machine (expected in {GOLDEN_ALIGN})")
    reference = np.load(GOLDEN_ALIGN)
    for image, landmarks, aligned in zip(
        *(reference[key] for key in ("images_bgr", "landmarks", "aligned_bgr")), strict=True
    ):
        warped = warp_face(image, landmarks)
        assert warped.shape == (112, 112, 3)
        assert warped.dtype == np.uint8
        assert np.abs(warped.astype(int) - aligned).mean() < 0.15


def test_a_face_that_lies_on_the_template_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    assert np.array_equal(warp_face(image, ARCFACE_TEMPLATE), image)


def test_shift_by_whole_pixels_with_a_black_border():
    image = np.random.default_rng(0).integers(1, 256, (100, 130, 3), dtype=np.uint8)
    warped = warp_face(image, ARCFACE_TEMPLATE + np.float32([10, -20]))  # the face lies right of and above the template
    assert np.array_equal(warped[20:], image[:92, 10:122])
    assert not warped[:20].any()


def test_rotation_and_scale_are_undone():
    turn = np.array([[0, -2.0], [2, 0]])  # a quarter turn, twice as large
    matrix = similarity_to_template(ARCFACE_TEMPLATE.astype(np.float64) @ turn.T + (30, 40))
    np.testing.assert_allclose(matrix[:, :2] @ turn, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(matrix @ (30, 40, 1), (0, 0), atol=1e-4)


def test_a_red_image_stays_red():
    red = np.zeros((200, 200, 3), dtype=np.uint8)
    red[..., 2] = 255
    assert warp_face(red, ARCFACE_TEMPLATE + 20)[56, 56].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.zeros((5, 2)), "do not determine a transform"),
        (np.full((5, 2), np.nan), "do not determine a transform"),
        (np.zeros((4, 2)), r"landmarks of shape \(4, 2\)"),
        (np.zeros(10), r"landmarks of shape \(10,\)"),
    ],
)
def test_landmarks_that_are_refused(landmarks, message):
    with pytest.raises(ValueError, match=message):
        warp_face(np.zeros((112, 112, 3), dtype=np.uint8), landmarks)


def on(image_side: int, scale: float = 2.0, shift: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """A square image, and a face on it."""
    return np.full((image_side, image_side, 3), 200, np.uint8), ARCFACE_TEMPLATE * scale + shift


def turned(landmarks: np.ndarray, degrees: float) -> np.ndarray:
    angle, middle = np.radians(degrees), landmarks.mean(axis=0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (landmarks - middle) @ rotation.T + middle


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, -120])
def test_listed_faces_in_any_rotation_are_aligned(degrees):
    image, landmarks = on(400)
    landmarks = turned(landmarks, degrees)
    np.testing.assert_array_equal(warp_listed_face(image, landmarks), warp_face(image, landmarks))
    np.testing.assert_array_equal(warp_listed_face(Image.fromarray(image), landmarks), warp_face(image, landmarks))


def test_a_listed_profile_and_a_face_that_is_cut_off_are_aligned():
    image, landmarks = on(400)
    profile = landmarks.copy()
    profile[:, 0] = (
        landmarks[2, 0] + 0.25 * (landmarks[:, 0] - landmarks[2, 0]) - [0, 0, -18, 0, 0]
    )  # the nose in front
    assert warp_listed_face(image, profile).shape == (112, 112, 3)
    at_the_edge = landmarks - [landmarks[:, 0].min() + 20, 0]
    assert (warp_listed_face(image, at_the_edge) == 0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda points: points[[1, 0, 2, 4, 3]], "left and right, or x and y, are exchanged"),
        (lambda points: points[[1, 0, 2, 3, 4]], "left and right, or x and y, are exchanged"),
        (lambda points: points[:, ::-1], "left and right, or x and y, are exchanged"),
        (lambda points: [400, 0] + points * [-1, 1], "left and right, or x and y, are exchanged"),
        (lambda points: points[[2, 0, 1, 3, 4]], "the points are in another order"),
        (lambda points: points[[0, 1, 2, 4, 3]], "left and right, or x and y, are exchanged"),
        (lambda points: points / 400, "lie within 0.2 px, too small for a face: expected px, not fractions"),
        (lambda points: points * 2, r"lies outside of the image, 400x400 px"),
        (lambda points: points - 300, r"lies outside of the image, 400x400 px"),
        (lambda points: points + np.array([229, 190]), r"\d+ % of the aligned face lie outside of the image"),
    ],
    ids=[
        "sides",
        "eyes",
        "x and y",
        "mirrored",
        "order",
        "mouth",
        "fractions",
        "twice the size",
        "left of it",
        "in a corner",
    ],
)
def test_listed_landmarks_that_are_not_of_this_image(change, message):
    image, landmarks = on(400)
    with pytest.raises(ValueError, match=message):
        warp_listed_face(image, np.asarray(change(landmarks), float))
