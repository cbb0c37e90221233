"""Whether all processes of a run have come, asked before they make a process group: one that cannot start says so.

Without it the others would wait for it as long as for a collective, where no launcher ends them.
"""

import time

import torch.distributed as dist

_CAME, _READ, _ANSWER = "roll_call/came", "roll_call/read", "roll_call/answer"
_LOOK_EVERY_SEC = 0.1


def answer(store: dist.Store, world_size: int) -> str:
    """Say that this process is there, and wait for the others.

    Args:
        store: of this start, seen by all processes.
        world_size: number of processes W.

    Returns:
        Why one of them cannot start; empty where all have come.

    Raises:
        RuntimeError: not all came in the store's time.
    """
    if store.add(_CAME, 1) == world_size:
        store.set(_ANSWER, "")
    text = store.get(_ANSWER).decode()  # waits
    store.add(_READ, 1)
    return text


def refuse(store: dist.Store, why: str) -> None:
    """Tell the others that this process cannot start.

    Args:
        store: of this start, seen by all processes.
        why: for the user.
    """
    store.set(_ANSWER, why)
    store.add(_READ, 1)


def wait_until_read(store: dist.Store, world_size: int, most_sec: float) -> None:
    """Wait until all have read the answer: for the process with which the store ends.

    Args:
        store: of this start, seen by all processes.
        world_size: number of processes W.
        most_sec: how long to wait, at most.
    """
    deadline = time.monotonic() + most_sec
    while time.monotonic() < deadline and store.add(_READ, 0) < world_size:
        time.sleep(_LOOK_EVERY_SEC)
