"""Names of classes that are made when somebody asks for one: two million of them as text would take 130 MB a process.

Source: the labels of a `.rec`, which are the names of the folders that `convert.py` makes of it.
"""

import abc
import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from class_order import lexicographic_order


class LazyNames(Sequence[str], abc.ABC):
    """A sequence of names that holds none of them; equal to any sequence of the same names."""

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
    """The numbers 0..C-1 as names, in the order of text: "0", "1", "10", "11", ..., "2".

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
    """The names of several sequences, one after the other, each as `<prefix>/<name>`.

    Args:
        parts: prefix and names; no prefix twice.
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
