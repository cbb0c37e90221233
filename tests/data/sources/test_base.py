"""What identifies training data: digests of some images."""

import numpy as np

from adaface.data.sources.base import first_images


class Source:
    """One image per sample, whose content is its number; those in ``damaged`` cannot be read."""

    location = "made up"

    def __init__(self, labels, damaged=()):
        self.labels, self.damaged, self.asked = np.array(labels), damaged, []
        self.class_names = [str(number) for number in range(self.labels.max() + 1)]

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        self.asked.append(index)
        if index in self.damaged:
            raise OSError(f"image {index}")
        return b"%d" % index


def test_the_first_image_of_each_class_is_taken_whatever_the_order_of_the_labels():
    source = Source([2, 0, 2, 1, 0])
    found = first_images(source)
    assert sorted(found) == [0, 1, 2]
    assert sorted(source.asked) == [0, 1, 3]
    assert found == first_images(Source([2, 0, 1, 1, 0])) | {1: found[1]}


def test_only_classes_at_both_ends_are_looked_at():
    source = Source(range(1000))
    assert list(first_images(source)) == [*range(200), *range(800, 1000)]
    assert len(source.asked) == 400


def test_images_that_cannot_be_read_are_left_out():
    assert list(first_images(Source([0, 1, 2], damaged=(1,)))) == [0, 2]
