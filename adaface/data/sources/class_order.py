"""The order of torchvision's `ImageFolder` for classes named by numbers, and their names, created on access.

Classes are sorted by name, and files inside a class by name, both as text. The names of two million classes would take
130 MB per process as text, so these sequences store none of them.

Source: torchvision's `ImageFolder` on `<label>/<key>.jpg`.
Differences: the names stay numbers; no text is formatted, and nothing is sorted if the images of each class are
contiguous.
"""

import abc
import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

_MOST_DIGITS = 19
_SHOWN_NAMES = 3
_POWERS = np.uint64(10) ** np.arange(_MOST_DIGITS + 1, dtype=np.uint64)


def order_by_class(keys: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Sort by class, then by key as text.

    Args:
        keys: (N,) ascending, not negative.
        classes: int32 (N,), 0..C-1, not necessarily all of them.

    Returns:
        (N,) positions in sorted order.
    """
    starts = np.append(0, np.flatnonzero(classes[1:] != classes[:-1]) + 1)
    pieces_fit = 0 < len(starts) <= int(classes.max(initial=-1)) + 1
    if not pieces_fit or np.bincount(classes[starts]).max() > 1:  # some class is not contiguous
        return lexicographic_order(keys, classes)
    sizes = np.diff(starts, append=len(keys))
    pieces = np.argsort(classes[starts])
    begins = np.cumsum(sizes[pieces]) - sizes[pieces]  # in the new order
    small = np.int32 if len(keys) < 2**31 else np.int64  # allocating memory takes most of the time here
    order = np.repeat((starts[pieces] - begins).astype(small), sizes[pieces])
    order += np.arange(len(keys), dtype=small)
    # Keys with the same number of digits are also ascending as text.
    lasts = starts + sizes - 1
    for piece in np.flatnonzero((_digits(keys[starts]) != _digits(keys[lasts]))[pieces]).tolist():
        inside = slice(begins[piece], begins[piece] + sizes[pieces[piece]])
        order[inside] = order[inside][lexicographic_order(keys[order[inside]])]
    return order


def lexicographic_order(numbers: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Sort integers as text, without formatting them.

    Args:
        numbers: (N,) not negative; distinct within a group.
        groups: (N,) not negative; the primary sort key, as numbers. None: one group.

    Returns:
        (N,) positions in sorted order: 0, 1, 10, 100, 11, 2. An extension does not
        change the order, because "." is below "0".

    Raises:
        ValueError: a negative number.
    """
    numbers = np.asarray(numbers)
    if len(numbers) and int(numbers.min()) < 0:
        raise ValueError(f"negative key {int(numbers.min())}: expected keys from 0 on")
    digits = _digits(numbers)
    most = int(digits.max(initial=1))
    # Left-align the digits; shorter numbers come before the same digits followed by zeros.
    aligned = numbers.astype(np.uint64) * _POWERS[most - digits]
    group_count = 1 if groups is None or len(groups) == 0 else int(groups.max()) + 1
    if group_count * 10**most * most < 2**64:  # one combined key sorts many times faster
        combined = aligned * np.uint64(most) + (digits - 1)
        if groups is not None:
            combined += groups.astype(np.uint64) * np.uint64(10**most * most)
        return np.argsort(combined)
    return np.lexsort((digits, aligned) if groups is None else (digits, aligned, groups))


def _digits(numbers: np.ndarray) -> np.ndarray:
    """Count the decimal digits, uint8 (N,); 0 has one."""
    return np.maximum(np.searchsorted(_POWERS, numbers.astype(np.uint64), side="right"), 1).astype(np.uint8)


class LazyNames(Sequence[str], abc.ABC):
    """A sequence of names that are created on access; equal to any sequence of the same names."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return one name.

        Args:
            index: 0 to C - 1.
        """

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.name(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"class {index} of {len(self)}")
        return self.name(int(index) % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list


class NumberedNames(LazyNames):
    """The numbers 0..C-1 as names, in text order: "0", "1", "10", "11", ..., "2".

    Args:
        count: C.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._numbers: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_count": self._count, "_numbers": None}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return map(str, self.numbers().tolist())

    def name(self, index: int) -> str:
        """Return one name.

        Args:
            index: 0 to C - 1.
        """
        return str(self.numbers()[index])

    def numbers(self) -> np.ndarray:
        """Return the number of each name, int32 (C,)."""
        if self._numbers is None:
            self._numbers = lexicographic_order(np.arange(self._count)).astype(np.int32)
        return self._numbers


class PrefixedNames(LazyNames):
    """The concatenated names of several sequences, each as `<prefix>/<name>`.

    Args:
        parts: prefix and names; prefixes are distinct.
    """

    def __init__(self, parts: Sequence[tuple[str, Sequence[str]]]) -> None:
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(len(names) for _, names in self._parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[str]:
        return (f"{prefix}/{name}" for prefix, names in self._parts for name in names)

    def name(self, index: int) -> str:
        """Return one name.

        Args:
            index: 0 to C - 1.
        """
        number = bisect.bisect_right(self._ends, index)
        prefix, names = self._parts[number]
        return f"{prefix}/{names[index - self._ends[number] + len(names)]}"


def describe_change(before: Iterable[str], now: Iterable[str]) -> str:
    """Return which classes are gone and new, such as "1 gone (Ada), 2 new (Bob, Eve)"; empty if they are the same.

    Args:
        before: names of the classes, in any order.
        now: names of the classes today.
    """
    before, now = set(before), set(now)
    gone, new = sorted(before - now), sorted(now - before)
    return f"{_some('gone', gone)}, {_some('new', new)}" if gone or new else ""


def _some(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
