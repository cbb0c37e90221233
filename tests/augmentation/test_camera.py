"""What cameras do to a face."""

import math

import cv2
import numpy as np
import pytest

from adaface.augmentation.camera import compress, defocus, motion_kernel, move


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)


def test_a_motion_kernel_worked_by_hand():
    kernel = motion_kernel(4.0, 0.0)  # along a row: the ends of the line lie on the centers of the outer pixels
    np.testing.assert_allclose(kernel.sum(axis=1), [0, 0, 0, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(kernel[3], [0, 0.125, 0.25, 0.25, 0.25, 0.125, 0], atol=2e-3)
    np.testing.assert_allclose(motion_kernel(4.0, math.pi / 2), kernel.T, atol=1e-6)
    still = motion_kernel(0.0, 1.0)
    assert (still[1, 1], still.sum()) == (1, 1)
    for angle in np.linspace(0, math.pi, 7):
        slanted = motion_kernel(9.3, angle)
        assert slanted.sum() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(slanted, slanted[::-1, ::-1], atol=1e-6)  # nothing is shifted


def test_an_edge_out_of_focus_is_the_gaussian_integral():
    edge = np.zeros((9, 41, 3), np.uint8)
    edge[:, 21:] = 200
    found = defocus(edge, 2.0)[4, :, 0]
    expected = [100 * (1 + math.erf((x - 20.5) / 2 / math.sqrt(2))) for x in range(41)]
    assert np.abs(found - np.array(expected)).max() < 2


def test_focus_without_a_fault_changes_nothing(image):
    assert defocus(image, 0) is image
    assert np.array_equal(move(image, 0, 1.0), image)


def test_a_movement_along_the_rows_leaves_rows_of_one_color(image):
    rows = np.repeat(image[:, :1], 112, axis=1)
    assert np.array_equal(move(rows, 9.0, 0.0), rows)
    assert not np.array_equal(move(rows, 9.0, math.pi / 2), rows)


def test_jpeg_loses_more_at_a_lower_quality(image):
    smooth = cv2.GaussianBlur(image, (0, 0), 3)
    ratios = [cv2.PSNR(smooth, compress(smooth, quality)) for quality in (95, 60, 20, 5)]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > 30
