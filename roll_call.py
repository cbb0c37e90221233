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


def refuse(store: dist.Store, world_size: int, why: str, *, stay_sec: float) -> None:
    """Tell the others that this process cannot start.

    Args:
        store: of this start, seen by all processes.
        world_size: number of processes W.
        why: for the user.
        stay_sec: how long to wait for the others to read it, at most, where the store ends with this process.
    """
    store.set(_ANSWER, why)
    store.add(_READ, 1)
    deadline = time.monotonic() + stay_sec
    while time.monotonic() < deadline and store.add(_READ, 0) < world_size:
        time.sleep(_LOOK_EVERY_SEC)
