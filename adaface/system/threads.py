"""Process items in several threads with results in order, for work that releases Python's lock (files, OpenCV)."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # either decides how the threads of OpenMP wait
SPIN_COUNT = 20_000  # measured by bench/busy_machine.py


def usable_cores() -> int:
    """Return the number of CPU cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_spinning() -> None:
    """Let the threads of OpenMP sleep soon while they wait for work, unless the environment decides about it.

    Call it before PyTorch is imported: GNU's OpenMP library, which PyTorch's wheels for Linux bring, reads the number
    when it is loaded. Its own 300,000 turns keep a core busy for milliseconds, which other threads need once there are
    more of them than cores.

    Source: the manual of GNU libgomp, "GOMP_SPINCOUNT".
    """
    if not any(name in os.environ for name in SPINNING):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def in_main_thread() -> bool:
    """Return whether this is the main thread, the only one that may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def in_order(work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int) -> Iterator[Result]:
    """Yield ``work(item)`` for each item, in the order of the items.

    Args:
        work: called in a thread.
        items: consumed lazily, at most ``ahead`` items before their results.
        threads: number of threads, at least 1.
        ahead: maximum number of items in progress or finished before the caller takes their results.

    Raises:
        Exception: raised by ``work`` for the item whose turn it is; later items may have been processed already.
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
