import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaface.data.sources.class_order import (
    NumberedNames,
    PrefixedNames,
    lexicographic_order,
    order_by_class,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 1200), unique=True, max_size=60), st.data())
def test_lexicographic_order_is_that_of_text(numbers: list[int], data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(numbers), max_size=len(numbers)))
    array = np.array(numbers, np.int64)
    order = lexicographic_order(array)
    assert [numbers[i] for i in order] == sorted(numbers, key=lambda n: f"{n}.jpg") == sorted(numbers, key=str)
    order = lexicographic_order(array, np.array(groups, np.int32))
    expected = sorted(zip(groups, map("{}.jpg".format, numbers), strict=True))
    assert [(groups[i], f"{numbers[i]}.jpg") for i in order] == expected


def test_lexicographic_order_by_hand() -> None:
    numbers = np.array([0, 1, 2, 10, 11, 100, 20, 3])
    assert numbers[lexicographic_order(numbers)].tolist() == [0, 1, 10, 100, 11, 2, 20, 3]
    with pytest.raises(ValueError, match="negative key -4"):
        lexicographic_order(np.array([3, -4]))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 9_990), st.booleans(), st.randoms())
def test_order_by_class_is_that_of_text(sizes: list[int], first: int, together: bool, random) -> None:
    """Classes in one piece, in any order, and mixed ones."""
    numbers = list(range(len(sizes)))
    random.shuffle(numbers)
    classes = [number for number, size in zip(numbers, sizes, strict=True) for _ in range(size)]
    if not together:
        random.shuffle(classes)
    keys = [first + 2 * i for i in range(len(classes))]
    order = order_by_class(np.array(keys, np.uint32), np.array(classes, np.int32))
    expected = sorted(zip(classes, map(str, keys), strict=True))
    assert [(classes[i], str(keys[i])) for i in order] == expected


def test_order_of_nothing_is_nothing() -> None:
    assert len(order_by_class(np.empty(0, np.uint32), np.empty(0, np.int32))) == 0


# names that are made when somebody asks for one


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 101, 1234])
def test_numbers_come_in_the_order_of_text(count: int) -> None:
    names, expected = NumberedNames(count), sorted(map(str, range(count)))
    assert list(names) == expected and names == expected and expected == names and len(names) == count
    assert [names[i] for i in range(count)] == expected
    assert names[3:700:5] == expected[3:700:5]


def test_names_are_found_from_both_ends_and_nowhere_else() -> None:
    names = NumberedNames(12)
    assert (names[-1], names[0], names[2], names.index("11")) == ("9", "0", "10", 3)
    assert "5" in names and "12" not in names
    for index in (12, -13):
        with pytest.raises(IndexError, match=f"class {index} of 12"):
            names[index]


def test_other_names_are_not_equal() -> None:
    names = NumberedNames(3)
    assert names != ["0", "1"] and names != ["0", "1", "3"] and names != "012" and names != 3


def test_a_copy_is_a_number() -> None:
    names = NumberedNames(100_000)
    assert len(names.numbers()) == 100_000
    assert len(pickle.dumps(names)) < 200
    assert pickle.loads(pickle.dumps(names)) == names


def test_prefixes_say_whose_name_it_is() -> None:
    names = PrefixedNames([("a", NumberedNames(11)), ("x/b", ["1", "0"]), ("c", ["é"])])
    expected = [*(f"a/{i}" for i in sorted(map(str, range(11)))), "x/b/1", "x/b/0", "c/é"]
    assert list(names) == expected and names == expected and len(names) == 14
    assert [names[i] for i in range(14)] == expected and names[-2:] == expected[-2:]
    assert pickle.loads(pickle.dumps(names)) == expected
