"""Start and end of a run with several processes: rendezvous, agreement on options and data, and teardown.

If a process fails at the start, or was started with other options, it is reported and all processes end at once. At the
end of a command ``run_and_leave`` destroys the process group; Lightning does not if it has not created it.
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
from adaface.system.command_line import invocation
from adaface.system.lightning_internals import run_exit_functions, unregister_end_of_process_group
from adaface.system.lightning_setup import environments

_DECISION = "ADAFACE_DECISION_"
_CAME, _READ, _ANSWER = "roll_call/came", "roll_call/read", "roll_call/answer"
_LOOK_EVERY_SEC = 0.1
_FIRST_PORT, _PORTS = 15000, 10000
_REPORT_SEC = 30.0
_REPORTER_SEC = 15.0  # as long as Lightning waits for the report (``lightning_internals``)
_SHOWN_DIFFERENCES = 3
_FAILED = 1  # as Python's after a traceback


class NotTogetherError(RuntimeError):
    """The processes of a run could not connect to each other."""


class ReportedElsewhereError(RuntimeError):
    """An error that was already printed, or that process 0 prints."""


def join(launch: Launch, accelerator: str, timeout_sec: float) -> None:
    """Choose the GPU of this process, and create the process group if a launcher started it; Lightning then uses both.

    Before the choice, every question to CUDA would create a context on the first GPU, half a GB for each process.

    Args:
        launch: how the processes were started.
        accelerator: ``gpu`` or another; determines the backend.
        timeout_sec: how long to wait for the others, here and in each collective.

    Raises:
        NotTogetherError: they could not connect; in process 0 also: one of them cannot start.
        ReportedElsewhereError: one of them cannot start; in the other processes.
    """
    on_gpu = accelerator == "gpu"
    if on_gpu:
        torch.cuda.set_device(gpu := launch.local_rank % torch.cuda.device_count())
    if not launch.external or dist.is_initialized():
        return
    timeout = collective_timeout(launch, accelerator, timeout_sec)
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
                device_id=torch.device("cuda", gpu) if on_gpu else None,
            )
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise NotTogetherError(
            f"process {launch.rank} on {platform.node()} could not connect to the other processes of "
            f"{launch.world_size} at {place} ({str(error).splitlines()[0]}). Check that all of them are started (with "
            f"srun {invocation('train')} ..., or torchrun on every machine), and that the machines can reach "
            "this address"
        ) from error
    if why_not:
        _stay_for_the_others(store, launch)
        raise ReportedElsewhereError(why_not) if launch.rank else NotTogetherError(why_not)


def collective_timeout(launch: Launch, accelerator: str, timeout_sec: float) -> timedelta:
    """Return how long the collectives of a process wait for the others.

    NCCL ends a process that has waited too long, without a message. Process 0 waits a little longer, so that it is
    there to report it.

    Args:
        launch: how the processes were started.
        accelerator: ``gpu``, for NCCL, or another.
        timeout_sec: of the options.
    """
    reports = accelerator == "gpu" and launch.rank == 0
    return timedelta(seconds=timeout_sec + (_REPORTER_SEC if reports else 0.0))


def report_absence(launch: Launch, error: Exception) -> None:
    """Report to the processes that wait in ``join`` that this one cannot start; does nothing after ``join``.

    Args:
        launch: how the processes were started.
        error: the reason.
    """
    if not launch.external or dist.is_initialized() or isinstance(error, NotTogetherError):
        return
    with contextlib.suppress(RuntimeError, ValueError):  # the others have not started either
        store = _meet(launch, timedelta(seconds=_REPORT_SEC))
        why = f"process {launch.rank} on {platform.node()} cannot start: {error}"
        store.set(_ANSWER, why)
        store.add(_READ, 1)
        _stay_for_the_others(store, launch)


def _stay_for_the_others(store: dist.Store, launch: Launch) -> None:
    """Keep the store alive, if this process hosts it, until the others have read the reason."""
    if launch.rank or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    deadline = time.monotonic() + _REPORT_SEC
    while time.monotonic() < deadline and store.add(_READ, 0) < launch.world_size:
        time.sleep(_LOOK_EVERY_SEC)


def _answer_roll_call(store: dist.Store, world_size: int) -> str:
    """Report that this process is present and wait for the others, before the process group is created.

    Without it the others would wait for a process that cannot start until the timeout of a collective.

    Args:
        store: shared by all processes of this start.
        world_size: number of processes W.

    Returns:
        Why one of them cannot start; empty if all are present.

    Raises:
        RuntimeError: not all were present within the store's timeout.
    """
    if store.add(_CAME, 1) == world_size:
        store.set(_ANSWER, "")
    text = store.get(_ANSWER).decode()  # blocks until it is set
    store.add(_READ, 1)
    return text


def _meet(launch: Launch, timeout: timedelta) -> dist.Store:
    """Return the key-value store shared by all processes of this start."""
    if launch.launcher == SRUN:
        _find_meeting_place()
    store, _, _ = next(iter(dist.rendezvous("env://", launch.rank, launch.world_size, timeout=timeout)))
    # torchrun's agent keeps one store for all restarts, which contains the addresses of the ended processes
    return dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _find_meeting_place() -> None:
    """Set MASTER_ADDR to the first host of an srun and MASTER_PORT to a port derived from the job ID."""
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    resolve = environments.SLURMEnvironment.resolve_root_node_address
    os.environ.setdefault("MASTER_ADDR", resolve(nodes))
    port = _FIRST_PORT + int(os.environ.get("SLURM_JOB_ID", "0")) % _PORTS
    os.environ.setdefault("MASTER_PORT", str(port))


def decided_by_rank_0(name: str, decide: Callable[[], str], launch: Launch) -> str:
    """Return the decision of rank 0 in every process of the run.

    Processes started by Lightning inherit it from rank 0 as an environment variable; with torchrun and srun it is
    broadcast (call ``join`` first).

    Args:
        name: of the decision, in capital letters.
        decide: called once, on rank 0 only.
        launch: how the processes were started.

    Raises:
        ReportedElsewhereError: rank 0 failed to decide and reports the error.
    """
    if launch.external:
        box: list[str | None] = [None]
        try:
            if launch.rank == 0:
                box[0] = decide()
        finally:  # rank 0 raises the error; the others must not wait for it
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
    """Report an error in the block to the other processes, which wait in ``check_agreement``.

    Raises:
        ReportedElsewhereError: process 0 failed with the same error and prints it.
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
    """Check that all processes were started with the same options and data; call it in all of them.

    Args:
        facts: values by name that must be the same in all processes; plain values.

    Raises:
        RuntimeError: another process cannot start (``failures_reported``); raised in process 0.
        ValueError: another process was started with other options or data; raised in process 0.
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
                f"process {rank} on {host} was started with other options or data than process 0 on {first_host}: "
                f"{shown}{more}. Give all processes the same options and data, and put the run folder on a file "
                "system that all machines share"
            )
            raise _once(ValueError(error))


def in_company() -> bool:
    """Return whether this process is one of several in a process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(statement: Any) -> list[Any]:
    """Gather host and statement of each process."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (platform.node(), statement))
    return gathered


def _once(error: Exception) -> Exception:
    """Return the error that this process must raise so that only process 0 prints it."""
    return ReportedElsewhereError(str(error)) if dist.get_rank() else error


def run_and_leave(job: Callable[[], int]) -> int:
    """Run a command that may create a process group, then leave the group.

    After success the process group is destroyed. After a failure, a process with others exits at once: the others may
    never answer, and destroying the group waits for its pending collectives.

    Args:
        job: returns the exit status, 0 for success; no object that it created may survive it.

    Returns:
        The status of ``job``; no process group is left.
    """
    try:
        status = job()
    except BaseException:
        if not in_company():
            leave()
            raise
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit):
            _exit_now(error.code if isinstance(error.code, int) else int(error.code is not None))
        sys.excepthook(*sys.exc_info())
        _exit_now(_FAILED)
    if in_company() and status:
        _exit_now(status)
    if not leave():
        _exit_now(status)
    return status


def leave() -> bool:
    """Destroy the process group of this process, after waiting for pending collectives.

    Gloo's threads release the tensors of a collective shortly after its end. If Python has exited by then, releasing a
    tensor that Python has seen needs the interpreter lock, which ends the thread inside a destructor: "terminate called
    without an active exception", status -6. Only the destructor of a group joins its threads, so nothing else, such as
    DistributedDataParallel, may refer to the group.

    Returns:
        True if nothing is left; False if something still refers to the group, so that its threads keep running.
    """
    unregister_end_of_process_group()
    if not (dist.is_available() and dist.is_initialized()):
        return True
    gc.collect()  # first: DDP's destructor would hold the lock that the group's threads wait for
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    return group() is None


def _exit_now(status: int) -> NoReturn:
    """Exit without waiting for other processes, or for threads that wait for them."""
    unregister_end_of_process_group()
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed or missing
            stream.flush()
    os._exit(status)
