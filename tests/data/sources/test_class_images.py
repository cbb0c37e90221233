"""Classes that have the images of others are noticed, corrected labels and edited classes are not."""

import numpy as np
import pytest

from adaface.data.sources.class_images import describe_moved, sample_classes

NAMES = ["Ada", "Bob", "Cem", "Dan", "Eve"]


class Source:
    """Images given by a word for each class, a letter for each image; of "!" none can be read."""

    location = "made up"

    def __init__(self, classes, names=None):
        self.class_names = names or [str(number) for number in range(len(classes))]
        self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(images) for images in classes])
        self._images = [image for images in classes for image in images]
        self.asked = []

    def __len__(self):
        return len(self._images)

    def label(self, index):
        return int(self.labels[index])

    def describe(self, index):
        return str(index)

    def read(self, index):
        self.asked.append(index)
        if self._images[index] == "!":
            raise OSError(f"image {index}")
        return str(self._images[index]).encode()


def shuffled(source, order):
    source.labels, source._images = source.labels[order], [source._images[place] for place in order]
    return source


def change(before, now):
    names = NAMES if len(before) == len(NAMES) else None
    return describe_moved(sample_classes(Source(before, names)), Source(now, names))


def people(numbers, images=6):
    """The images of some people, who are numbered."""
    return [[f"{person}-{image}" for image in range(images)] for person in numbers]


def test_the_first_middle_and_last_image_of_each_class_is_taken_whatever_the_order_of_the_labels():
    classes = ["abcd", "ef", "g", "hijkl"]
    source = Source(classes)
    found = sample_classes(source)
    assert {number: len(digests) for number, digests in found.items()} == {0: 3, 1: 2, 2: 1, 3: 3}
    assert sorted(source.asked) == [0, 2, 3, 4, 5, 6, 7, 9, 11]
    assert sample_classes(shuffled(Source(classes), [4, 7, 0, 1, 8, 6, 2, 9, 3, 5, 10, 11])) == found


def test_the_sample_of_many_classes_is_spread_over_all():
    source = Source(people(range(3000), 1))
    found = list(sample_classes(source))
    assert len(found) == len(source.asked) == 1000
    assert (found[0], found[-1]) == (0, 2999) and max(np.diff(found)) == 4
    assert len(sample_classes(Source(people(range(999), 1)))) == 999


def test_the_digest_of_an_image_that_cannot_be_read_is_empty():
    found = sample_classes(Source(["a", "!", "c"]))
    assert found[1] == [""] and all(len(found[number][0]) == 16 for number in (0, 2))
    assert change(["a", "!", "c", "!"], ["!", "b", "!", "d"]) == ""


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("abcde", ""),
        ("bacde", "Ada has those of Bob, Bob has those of Ada"),
        ("bcdae", "Ada has those of Bob, Bob has those of Cem, Cem has those of Dan, and 1 more"),
        # each has moved on by one
        ("bcdex", "Ada has those of Bob, Bob has those of Cem, Cem has those of Dan, and 1 more"),
        ("abdex", "Cem has those of Dan, Dan has those of Eve"),  # those after a removed one have
        ("xbcde", ""),  # a new image
        ("aacde", ""),  # one image at another person: a label was corrected
        ("aaccx", ""),  # two labels
        ("bccde", ""),  # a chain of two that does not close
        ("vwxyz", ""),  # all images were made again
    ],
)
def test_identities_that_have_the_images_of_others_are_named(now, expected):
    assert change("abcde", now) == expected


def test_images_of_two_identities_tell_nothing():
    assert change("aabb", "bbaa") == ""


def test_two_that_kept_only_their_first_image_have_exchanged_the_others():
    assert change(["abcd", "efgh", "ijk"], ["afgh", "ebcd", "ijk"]) == "0 has those of 1, 1 has those of 0"


@pytest.mark.parametrize(
    "now",
    [
        ["aBcd", "ebgh", "ijkl"],  # two images exchanged
        ["bcd", "efgha", "ijkl"],  # the first one at another person
        ["wxyz", "efgh", "abcd"],  # two people as one, and a new one: only one has moved
        ["xaybcdz", "xefyghz", "ijkl"],  # added
        ["bc", "fg", "jk"],  # removed
        ["abcd", "stuv", "wxyz"],  # replaced
        ["hbcd", "efga", "ijkl"],  # the first of one and the last of another exchanged
    ],
)
def test_edited_classes_may_be_resumed(now):
    assert change(["abcd", "efgh", "ijkl"], now) == ""


@pytest.mark.parametrize(("count", "removed"), [(11, 6), (1000, 500), (4001, 2000)])
def test_one_identity_removed_and_a_new_one_at_the_end(count, removed):
    """In larger data, the class before a compared one is none of them, and is found among all."""
    kept = [*range(removed), *range(removed + 1, count)]
    told = change(people(range(count)), people([*kept, count]))
    assert " has those of " in told and told.count(", ") >= 2
    for part in told.split(", "):
        if " has those of " in part:
            new, old = map(int, part.split(" has those of "))
            assert removed <= new == old - 1


def test_all_classes_are_read_only_if_several_begin_and_end_with_other_images():
    before, source = people(range(3000)), Source(people(range(3000)))
    saved = sample_classes(source)
    number = sorted(saved)[500]
    before[number] = people([-1])[0]
    source = Source(before)
    assert describe_moved(saved, source) == "" and len(source.asked) == 3000
    before[sorted(saved)[501]] = people([-2])[0]
    source = Source(before)
    assert describe_moved(saved, source) == "" and len(source.asked) == 6000


def test_copies_of_a_class_that_kept_its_images_are_not_taken_for_it():
    """Two sets of which one contains the other, to whose classes images were added."""
    twins = people(range(2000)) + people(range(2000))
    grown = [["new", *images, "more"] for images in twins]
    assert change(twins, [*grown[:2000], *twins[2000:]]) == ""


def test_without_digests_nothing_is_compared():
    """As in a checkpoint of an earlier version."""
    source = Source("ab")
    assert describe_moved({}, source) == "" and not source.asked
