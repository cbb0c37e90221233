"""What the processes of a run have to agree on before they begin: options, data, and that each of them can begin.

A process that fails at the start, or was started with something else, is named to all, and all end at once.
"""

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

_SHOWN_DIFFERENCES = 3


class ToldError(RuntimeError):
    """An error that is printed already, or by process 0."""


@contextlib.contextmanager
def failure_told() -> Iterator[None]:
    """Tell the others, which wait in ``check_agreement``, where this process cannot start.

    Raises:
        ToldError: process 0 has failed in the same way, and prints it.
    """
    try:
        yield
    except Exception as error:
        if _several():
            told = _gather(str(error))
            if dist.get_rank() and told[0][1] == str(error):
                raise ToldError(str(error)) from error
        raise


def check_agreement(facts: dict[str, Any]) -> None:
    """Go on where all processes were started with the same options and data; called in all of them.

    Args:
        facts: what has to be the same everywhere, by name; plain values.

    Raises:
        RuntimeError: another process cannot start (``failure_told``); raised in process 0.
        ValueError: another process was started with something else; raised in process 0.
        ToldError: one of these, in the other processes.
    """
    if not _several():
        return
    gathered = _gather(facts)
    for rank, (host, found) in enumerate(gathered):
        if isinstance(found, str):
            raise _once(RuntimeError(f"process {rank} on {host} cannot start: {found}"))
    first_host, expected = gathered[0]
    for rank, (host, found) in enumerate(gathered):
        different = [name for name in expected | found if expected.get(name) != found.get(name)]
        if different:
            shown = "; ".join(
                f"{name} is {found.get(name)!r} there and {expected.get(name)!r} in process 0"
                for name in different[:_SHOWN_DIFFERENCES]
            )
            more = f"; and {len(different) - _SHOWN_DIFFERENCES} more" if len(different) > _SHOWN_DIFFERENCES else ""
            error = (
                f"process {rank} on {host} was started with something else than process 0 on {first_host}: "
                f"{shown}{more}. Give all processes the same options and data, and keep the run folder where all "
                "machines see it"
            )
            raise _once(ValueError(error))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(said: Any) -> list[Any]:
    """Return host and what it said, of each process."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (platform.node(), said))
    return gathered


def _once(error: Exception) -> Exception:
    """Return an error that all processes have found, to be printed by process 0 alone."""
    return ToldError(str(error)) if dist.get_rank() else error
