import numpy as np
import pytest

from adaface.alignment.boxes import corrected, cut_out, keep_best, squared


def overlap(a, b, of_smaller):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (min(areas) if of_smaller else sum(areas) - width * height)


@pytest.mark.parametrize("of_smaller", [False, True])
def test_suppression_is_that_of_two_loops(of_smaller):
    rng = np.random.default_rng(3)
    start = rng.uniform(0, 60, (120, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 40, (120, 2))], axis=1)
    scores = rng.integers(0, 40, 120) / 40  # with equal ones
    kept = []
    for place in sorted(range(120), key=lambda place: (-scores[place], place)):
        if all(overlap(boxes[place], boxes[other], of_smaller) <= 0.3 for other in kept):
            kept.append(place)
    assert 5 < len(kept) < 100
    assert keep_best(boxes, scores, 0.3, of_smaller=of_smaller).tolist() == kept


def test_suppression_by_hand():
    boxes = np.array([(0, 0, 10, 10), (0, 0, 10, 8), (2, 2, 4, 4), (20, 0, 30, 10)], dtype=np.float64)
    scores = np.array([0.7, 0.9, 0.8, 0.1])
    assert keep_best(boxes, scores, 0.5).tolist() == [1, 2, 3]  # 80 of 100 px in common; 4 of 80
    assert keep_best(boxes, scores, 0.8).tolist() == [1, 2, 0, 3]
    assert keep_best(boxes, scores, 0.5, of_smaller=True).tolist() == [1, 3]
    assert keep_best(np.empty((0, 4)), np.empty(0), 0.5).tolist() == []


def test_corrections_are_in_widths_and_heights():
    boxes = np.array([(10.0, 20, 30, 60)])
    assert corrected(boxes, np.array([(0.1, -0.25, 0.5, 0)])).tolist() == [[12, 10, 40, 60]]
    assert boxes.tolist() == [[10, 20, 30, 60]]


def test_squares_keep_the_centre_and_the_longer_side():
    assert squared(np.array([(10.0, 20, 30, 60), (0, 0, 7, 3), (5, 5, 5, 5)])).tolist() == [
        [0, 20, 40, 60], [0, -2, 7, 5], [4, 4, 5, 5],
    ]  # fmt: skip


def test_cuts_outside_of_the_image_are_black():
    image = np.random.default_rng(0).integers(1, 256, (30, 20, 3), dtype=np.uint8)
    boxes = np.array([(0, 0, 8, 8), (-3, 5, 5, 13), (26, 16, 34, 24), (100, 100, 108, 108), (-50, 3, -42, 11)], float)
    inside, left, corner, *outside = cut_out(image, boxes, 8)
    assert np.array_equal(inside, image[:8, :8])
    assert np.array_equal(left[3:], image[:5, 5:13])
    assert not left[:3].any()
    assert np.array_equal(corner[:4, :4], image[26:, 16:])
    assert not corner[4:].any()
    assert not corner[:, 4:].any()
    assert not np.any(outside)


def test_cuts_are_resized():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[:20] = 200
    cut = cut_out(image, np.array([(0.0, 0, 40, 40)]), 4)[0]
    assert cut[..., 0].tolist() == [[200] * 4, [200] * 4, [0] * 4, [0] * 4]
