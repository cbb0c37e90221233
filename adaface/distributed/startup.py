"""How the processes of a run come together, agree, and part: options, data, and that each of them can begin.

A process that fails at the start, or was started with something else, is named to all, and all end at once. At the end
of a command ``run_and_leave`` ends the process group: nothing else does where the group was there before Lightning.
"""

import contextlib
import gc
import os
import platform
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from adaface.distributed.launch import SRUN, Launch
from adaface.system.lightning_internals import run_exit_functions, unregister_end_of_process_group
from adaface.system.lightning_setup import environments

_DECISION = "ADAFACE_DECISION_"
_CAME, _READ, _ANSWER = "roll_call/came", "roll_call/read", "roll_call/answer"
_LOOK_EVERY_SEC = 0.1
_FIRST_PORT, _PORTS = 15000, 10000
_TELL_SEC = 30.0
_SHOWN_DIFFERENCES = 3
_FAILED = 1  # as Python's own, after a traceback


class NotTogetherError(RuntimeError):
    """The processes of a run did not come together."""


class ReportedElsewhereError(RuntimeError):
    """An error that is printed already, or by process 0."""


def join(launch: Launch, accelerator: str, timeout_sec: float) -> None:
    """Make the process group, where the processes were started by somebody else; Lightning then uses it.

    Args:
        launch: how the processes were started.
        accelerator: ``gpu`` or another; chooses the backend.
        timeout_sec: how long to wait for the others, here and in each collective.

    Raises:
        NotTogetherError: they did not come together, or one of them cannot start; the latter in process 0.
        ReportedElsewhereError: one of them cannot start, in the other processes.
    """
    if not launch.external or dist.is_initialized():
        return
    on_gpu = accelerator == "gpu"
    if on_gpu:
        torch.cuda.set_device(launch.local_rank)
    timeout = timedelta(seconds=timeout_sec)
    try:
        store = _meet(launch, timeout)
        why_not = _answer_roll_call(store, launch.world_size)
        if not why_not:
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=store,
                rank=launch.rank,
                world_size=launch.world_size,
                timeout=timeout,
                device_id=torch.device("cuda", launch.local_rank) if on_gpu else None,
            )
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise NotTogetherError(
            f"process {launch.rank} on {platform.node()} did not come together with the other processes of "
            f"{launch.world_size} at {place} ({str(error).splitlines()[0]}). Is each of them started (by srun python "
            "main.py ..., or torchrun on every machine), and can the machines reach each other there?"
        ) from error
    if why_not:
        _stay_for_the_others(store, launch)
        raise ReportedElsewhereError(why_not) if launch.rank else NotTogetherError(why_not)


def report_absence(launch: Launch, error: Exception) -> None:
    """Report to the processes that wait in ``join`` that this one cannot start; does nothing after it has joined them.

    Args:
        launch: how the processes were started.
        error: why it cannot.
    """
    if not launch.external or dist.is_initialized() or isinstance(error, NotTogetherError):
        return
    with contextlib.suppress(RuntimeError, ValueError):  # the others are not there either
        store = _meet(launch, timedelta(seconds=_TELL_SEC))
        why = f"process {launch.rank} on {platform.node()} cannot start: {error}"
        store.set(_ANSWER, why)
        store.add(_READ, 1)
        _stay_for_the_others(store, launch)


def _stay_for_the_others(store: dist.Store, launch: Launch) -> None:
    """Keep the store, where it is this process's, until the others have read why nobody starts."""
    if launch.rank or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    deadline = time.monotonic() + _TELL_SEC
    while time.monotonic() < deadline and store.add(_READ, 0) < launch.world_size:
        time.sleep(_LOOK_EVERY_SEC)


def _answer_roll_call(store: dist.Store, world_size: int) -> str:
    """Say that this process is there, and wait for the others; asked before a process group is made.

    Without it the others would wait for one that cannot start as long as for a collective.

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


def _meet(launch: Launch, timeout: timedelta) -> dist.Store:
    """Return the store in which all processes of this start find each other."""
    if launch.launcher == SRUN:
        _find_meeting_place()
    store, _, _ = next(iter(dist.rendezvous("env://", launch.rank, launch.world_size, timeout=timeout)))
    # torchrun's agent keeps one store through all restarts, with the addresses of the dead in it
    return dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _find_meeting_place() -> None:
    """Set where the processes of an srun meet: at its first host, at a port that follows from the job's number."""
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    resolve = environments.SLURMEnvironment.resolve_root_node_address
    os.environ.setdefault("MASTER_ADDR", resolve(nodes))
    port = _FIRST_PORT + int(os.environ.get("SLURM_JOB_ID", "0")) % _PORTS
    os.environ.setdefault("MASTER_PORT", str(port))


def decided_by_rank_0(name: str, decide: Callable[[], str], launch: Launch) -> str:
    """Return what rank 0 decides on, in every process of the run.

    Lightning starts the other processes of a machine from rank 0, so they inherit the decision in the environment;
    torchrun and srun start all at once, so there it is broadcast (``join`` comes first).

    Args:
        name: of the decision, in capital letters.
        decide: called on rank 0 alone, once.
        launch: how the processes were started.

    Raises:
        ReportedElsewhereError: rank 0 could not decide, and says why.
    """
    if launch.external:
        box: list[str | None] = [None]
        try:
            if launch.rank == 0:
                box[0] = decide()
        finally:  # an error is for rank 0 to raise, the others must not wait for it
            dist.broadcast_object_list(box)
        if box[0] is None:
            raise ReportedElsewhereError(f"process 0 could not decide on {name}")
        return box[0]
    variable = _DECISION + name
    if launch.rank == 0 or variable not in os.environ:
        os.environ[variable] = decide()
    return os.environ[variable]


@contextlib.contextmanager
def failures_reported() -> Iterator[None]:
    """Report to the others, which wait in ``check_agreement``, that this process cannot start.

    Raises:
        ReportedElsewhereError: process 0 has failed in the same way, and prints it.
    """
    try:
        yield
    except Exception as error:
        if in_company():
            reports = _gather(str(error))
            if dist.get_rank() and reports[0][1] == str(error):
                raise ReportedElsewhereError(str(error)) from error
        raise


def check_agreement(facts: dict[str, Any]) -> None:
    """Continue where all processes were started with the same options and data; called in all of them.

    Args:
        facts: what has to be the same everywhere, by name; plain values.

    Raises:
        RuntimeError: another process cannot start (``failures_reported``); raised in process 0.
        ValueError: another process was started with something else; raised in process 0.
        ReportedElsewhereError: one of these, in the other processes.
    """
    if not in_company():
        return
    gathered = _gather(facts)
    for rank, (host, stated) in enumerate(gathered):
        if isinstance(stated, str):
            raise _once(RuntimeError(f"process {rank} on {host} cannot start: {stated}"))
    first_host, expected = gathered[0]
    for rank, (host, stated) in enumerate(gathered):
        different = [name for name in expected | stated if expected.get(name) != stated.get(name)]
        if different:
            shown = "; ".join(
                f"{name} is {stated.get(name)!r} there and {expected.get(name)!r} in process 0"
                for name in different[:_SHOWN_DIFFERENCES]
            )
            more = f"; and {len(different) - _SHOWN_DIFFERENCES} more" if len(different) > _SHOWN_DIFFERENCES else ""
            error = (
                f"process {rank} on {host} was started with something else than process 0 on {first_host}: "
                f"{shown}{more}. Give all processes the same options and data, and keep the run folder where all "
                "machines see it"
            )
            raise _once(ValueError(error))


def in_company() -> bool:
    """Whether this process is one of several in a process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(statement: Any) -> list[Any]:
    """Return host and statement of each process."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (platform.node(), statement))
    return gathered


def _once(error: Exception) -> Exception:
    """Return an error that all processes have found, to be printed by process 0 alone."""
    return ReportedElsewhereError(str(error)) if dist.get_rank() else error


def run_and_leave(job: Callable[[], int]) -> int:
    """Run a whole command, then end this process's part in the run; around everything that may make a process group.

    After a success the process groups are ended. After anything else this process exits at once where there are others:
    they may never answer, and ending a group waits for the collectives in it.

    Args:
        job: returns the exit status, 0 for success; what it made has to be garbage when it returns.

    Returns:
        The status of ``job``, with no process group left.
    """
    try:
        status = job()
    except BaseException:
        if not in_company():
            leave()
            raise
        sys.excepthook(*sys.exc_info())
        _exit_now(_FAILED)
    if in_company() and status:
        _exit_now(status)
    if not leave():
        _exit_now(status)
    return status


def leave() -> bool:
    """End the process groups of this process; waits for collectives that are not done.

    Gloo's threads drop the tensors of a collective a moment after its end. Where that is after Python's, a tensor that
    Python has seen needs the interpreter lock, which then ends the thread inside of a destructor: "terminate called
    without an active exception", status -6. Only the destructor of a group joins its threads, so the group must have no
    other owner: DistributedDataParallel is one.

    Returns:
        Whether nothing is left; False where something still refers to the group, and its threads go on.
    """
    unregister_end_of_process_group()
    if not (dist.is_available() and dist.is_initialized()):
        return True
    gc.collect()  # first: DDP would end the group with the lock held that the group's threads wait for
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    return group() is None


def _exit_now(status: int) -> NoReturn:
    """End this process without waiting for another one, nor for threads that wait for one."""
    unregister_end_of_process_group()
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()
    os._exit(status)
