from pathlib import Path

import numpy as np
import pytest

from adaface.alignment.warp import ARCFACE_TEMPLATE, similarity_to_template, warp_face

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
