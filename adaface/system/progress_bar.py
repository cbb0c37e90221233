"""Progress of long work: a bar on a terminal; in a file or a pipe a line every ten seconds."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

_SEC_BETWEEN_LINES = 10.0


def progress_bar(
    iterable: Iterable[Any] = (), *, unit: str = "items", total: int | None = None, initial: int = 0, desc: str = "",
    leave: bool = True, disable: bool = False,
) -> Any:  # fmt: skip
    """Return a progress bar: to iterate over, or to ``update`` in a ``with`` block.

    Args:
        iterable: what to iterate over.
        unit: of what is counted.
        total: number of items; None for that of the iterable, if it has a length.
        initial: number of items that were done before.
        desc: what is done, in front of the numbers.
        leave: leave the full bar on the terminal.
        disable: show nothing.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr is None or sys.stderr.isatty() or disable:
        return tqdm(
            iterable, unit=unit, total=total, initial=initial, desc=desc or None, leave=leave, disable=disable or None
        )  # fmt: skip
    return ProgressLines(iterable, unit.strip(), total, initial, desc)


class ProgressLines:
    """Logs a line every ten seconds; none for work that takes less.

    Args:
        iterable: what to iterate over.
        unit: of what is counted.
        total: number of items, if known.
        initial: number of items that were done before.
        desc: what is done, in front of the numbers.

    Attributes:
        n: number of items that are done.
    """

    def __init__(self, iterable: Iterable[Any], unit: str, total: int | None, initial: int, desc: str) -> None:
        self.n = self._initial = initial
        self._iterable, self._unit, self._total, self._desc = iterable, unit, total, desc
        self._start = self._told = time.monotonic()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        """Count items, and log a line if ten seconds have passed since the last one.

        Args:
            count: number of items that were done since the last call.
        """
        self.n += count
        now = time.monotonic()
        if now - self._told < _SEC_BETWEEN_LINES:
            return
        self._told = now
        done, rate = self.n - self._initial, (self.n - self._initial) / (now - self._start)
        line = f"{self._desc}: " if self._desc else ""
        line += f"{self.n:,} of {self._total:,}" if self._total else f"{self.n:,}"
        line += f" {self._unit}, {rate:.3g} a second"
        if self._total and done:
            line += f", {tqdm.format_interval(max(0, self._total - self.n) / rate)} left"
        logger.info(line)
