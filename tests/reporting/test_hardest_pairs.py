import math

import cv2
import numpy as np
import pytest

from adaface.data.images import IMAGE_SHAPE
from adaface.reporting.hardest_pairs import hardest_pairs


class Images:
    """Grey images, the shade is the index; one can be broken; what is read is noted."""

    name = "lfw"

    def __init__(self, count: int, broken: int = -1) -> None:
        self.count, self.broken, self.was_read = count, broken, []

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> np.ndarray:
        self.was_read.append(index)
        if index == self.broken:
            raise ValueError("damaged")
        return np.full(IMAGE_SHAPE, index % 256, np.uint8)

    def fingerprint(self) -> str:
        return ""


# genuine pairs 0, 2, 4; impostors 1, 3, 5
SIMILARITY = np.array([0.9, 0.8, 0.2, 0.1, 0.5, 0.3])
ISSAME = np.array([1, 0, 1, 0, 1, 0], dtype=bool)


def shade(jpeg: bytes) -> int:
    return int(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean().round())


def test_the_least_alike_genuine_and_the_most_alike_impostors():
    images = Images(12)
    found = hardest_pairs(images, SIMILARITY, ISSAME, 2, norms=np.arange(12.0).reshape(6, 2), threshold=0.4)
    assert [(pair.index, pair.similarity) for pair in found.genuine] == [(2, 0.2), (4, 0.5)]
    assert [(pair.index, pair.similarity) for pair in found.impostors] == [(1, 0.8), (5, 0.3)]
    assert [shade(picture) for picture in found.genuine[0].pictures] == [4, 5]
    assert found.genuine[0].norms == (4.0, 5.0)
    assert (found.name, found.threshold) == ("lfw", 0.4)
    assert sorted(images.was_read) == [2, 3, 4, 5, 8, 9, 10, 11]  # no others


def test_pairs_of_images_that_lie_elsewhere():
    places = np.array([[5, 0], [1, 2], [3, 4], [0, 1], [2, 3], [4, 5]])
    found = hardest_pairs(Images(6), SIMILARITY, ISSAME, 1, places=places)
    assert [shade(picture) for picture in found.genuine[0].pictures] == [3, 4]
    assert found.genuine[0].norms is None
    assert math.isnan(found.threshold)


def test_an_image_that_cannot_be_read_is_absent():
    found = hardest_pairs(Images(12, broken=4), SIMILARITY, ISSAME, 1)
    assert found.genuine[0].pictures[0] is None
    assert found.genuine[0].pictures[1] is not None


def test_equal_similarities_keep_the_order_and_nan_is_passed_over():
    similarity = np.array([0.5, 0.5, 0.5, np.nan, 0.5, 0.5])
    found = hardest_pairs(Images(12), similarity, ISSAME, 9)
    assert [pair.index for pair in found.genuine] == [0, 2, 4]
    assert [pair.index for pair in found.impostors] == [1, 5]


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (10, {}, r"got similarity of shape \(6,\) for the pairs of lfw, expected 5 pairs, as there are 10 images"),
        (12, {"norms": np.zeros(12)}, r"got norms of shape \(12,\) for the pairs of lfw, expected 6 pairs"),
        (12, {"places": np.zeros((5, 2), int)}, r"got similarity of shape \(6,\) for the pairs of lfw"),
    ],
)
def test_counts_that_do_not_fit(images, more, message):
    with pytest.raises(ValueError, match=message):
        hardest_pairs(Images(images), SIMILARITY, ISSAME, 1, **more)
