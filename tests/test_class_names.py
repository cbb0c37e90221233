"""Names that are made when somebody asks for one."""

import pickle

import pytest

from class_names import NumberedNames, PrefixedNames


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
