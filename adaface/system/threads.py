"""Work on many items in a few threads, results in order: for work that leaves Python's lock (files, OpenCV)."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int) -> Iterator[Result]:
    """Yield ``work(item)`` of each item, in the order of the items.

    Args:
        work: called in a thread.
        items: taken one by one, at most ``ahead`` before their results are.
        threads: how many work at a time, at least 1.
        ahead: items that may be in work, or done, before the caller takes their results.

    Raises:
        Exception: what ``work`` raises, when its item's turn comes; items further on may have been worked on.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
