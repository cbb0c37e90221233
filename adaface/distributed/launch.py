"""How the processes of a run were started: launcher, rank, and the end of a process with its parent.

A run on one machine starts its other processes itself, through Lightning. On several machines they are started by
``torchrun``, SLURM's ``srun``, or anything that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

Source: the environment variables of PyTorch's torchrun and of SLURM's srun. Differs from Lightning: ranks are
determined in one place for all launchers, and a run in a batch job that was not started by srun is an ordinary one.
"""

import logging
import os
import platform
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaface.system.command_line import program_name
from adaface.system.lightning_setup import environments
from adaface.system.threads import usable_cores

logger = logging.getLogger(__name__)

ITSELF, TORCHRUN, SRUN, ENVIRONMENT = "this program", "torchrun", "srun", "the environment (RANK, WORLD_SIZE)"
_PARENT = "ADAFACE_PARENT"
_LOOK_SEC = 1.0
_WATCH_SEC = 10.0  # longer than ProcessWatch takes to report the loss of process 0, with more details, and to end
_INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs that are an interactive shell


@dataclass(frozen=True)
class Launch:
    """How the processes of a run were started, and the ranks of this one.

    Attributes:
        launcher: name of the launcher.
        rank: rank of this process.
        local_rank: its rank on this machine.
        node_rank: rank of this machine.
        world_size: number of processes; 0 if this program starts them itself.
        local_world_size: number of processes on this machine; 0 if unknown.
        restarts: how often torchrun may restart them.
        own_cores: whether each process has CPU cores of its own, as srun's binding of tasks to cores gives them.
    """

    launcher: str
    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 0
    local_world_size: int = 0
    restarts: int = 0
    own_cores: bool = False

    @property
    def external(self) -> bool:
        """Whether all processes were started by a launcher."""
        return self.launcher != ITSELF


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Determine from environment variables how the processes of this run were started.

    Args:
        environment: environment variables of this process.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment
    if by_torchrun or ("RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1):
        return _started_with_ranks(environment, TORCHRUN if by_torchrun else ENVIRONMENT)
    # in a step of srun, its own number of tasks; in the script of a batch job, that of the whole job
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1")))
    shell = "SLURM_STEP_NUM_TASKS" not in environment and environment.get("SLURM_JOB_NAME") in _INTERACTIVE
    if "SLURM_PROCID" in environment and tasks > 1 and not shell:
        return Launch(
            SRUN,
            rank=int(environment["SLURM_PROCID"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            node_rank=int(environment["SLURM_NODEID"]),
            world_size=tasks,
            local_world_size=_tasks_on_this_node(environment),
            own_cores=usable_cores() <= int(environment.get("SLURM_CPUS_PER_TASK", "0")),
        )
    # set by Lightning in the processes that it starts
    local_rank, node_rank = int(environment.get("LOCAL_RANK", "0")), int(environment.get("NODE_RANK", "0"))
    return Launch(ITSELF, rank=local_rank, local_rank=local_rank, node_rank=node_rank)


def _started_with_ranks(environment: Mapping[str, str], launcher: str) -> Launch:
    rank, local_rank = int(environment["RANK"]), int(environment.get("LOCAL_RANK", "0"))
    local_world_size = int(environment.get("LOCAL_WORLD_SIZE", "0"))
    node_rank = rank // local_world_size if local_world_size else rank
    return Launch(
        launcher,
        rank=rank,
        local_rank=local_rank,
        node_rank=int(environment.get("GROUP_RANK", node_rank)),
        world_size=int(environment["WORLD_SIZE"]),
        local_world_size=local_world_size,
        restarts=int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")),
    )


def _tasks_on_this_node(environment: Mapping[str, str]) -> int:
    """Return the number of processes of srun on this node, 0 if unknown; srun's format is ``2(x3),1``."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or "1")
    node = int(environment["SLURM_NODEID"])
    if node < len(counts):
        return counts[node]
    return int(environment.get("SLURM_NTASKS_PER_NODE", "0"))


def rank_zero_info(text: str) -> None:
    """Log for the user, in process 0 of the run only.

    Args:
        text: one or several lines.
    """
    if find_launch().rank == 0:
        logger.info(text)


def check_launch(launch: Launch, devices: int, num_nodes: int) -> None:
    """Raise ValueError if the options do not match the started processes.

    Args:
        launch: how the processes were started.
        devices: processes per machine, from the options.
        num_nodes: machines, from the options.
    """
    if not launch.external:
        if num_nodes > 1:
            raise ValueError(
                f"--num_nodes {num_nodes}, but this process was started alone: start the processes of several machines "
                "with torchrun or srun, see recipes/several_nodes.yaml"
            )
        return
    local = launch.local_world_size or devices
    if launch.world_size == devices * num_nodes and local == devices:
        return
    advice = (
        f"give --num_nodes {launch.world_size // local} --devices {local} (or --gpus {local})"
        if launch.world_size % local == 0
        else "start the same number on each machine"
    )
    raise ValueError(
        f"{launch.launcher} started {launch.world_size} processes, {local} of them on {platform.node()}; the options "
        f"ask for {devices} (--devices or --gpus) x {num_nodes} (--num_nodes): {advice}"
    )


def end_with_parent(launch: Launch) -> None:
    """End this process when its parent ends: process 0, or torchrun's agent.

    Otherwise it would wait for the others, or continue to train while a restarted run writes to the same folder.

    Args:
        launch: how the processes were started.
    """
    if launch.launcher == ITSELF and launch.rank == 0:
        os.environ[_PARENT] = str(os.getpid())  # a child reads it, because this process may be dead by then
        return
    if launch.launcher in (ITSELF, TORCHRUN):
        parent = int(os.environ.get(_PARENT, "0")) if launch.launcher == ITSELF else 0
        threading.Thread(target=_end_with, args=(parent or os.getppid(), launch), daemon=True).start()


def _end_with(parent: int, launch: Launch) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SEC)
    who = "torchrun"
    if launch.launcher == ITSELF:
        who = "process 0"
        time.sleep(_WATCH_SEC)
    try:
        logger.error(
            f"{program_name('train')}: error: {who} on {platform.node()} (pid {parent}), which started process "
            f"{launch.rank}, died, so this process ends too"
        )
    finally:  # even if printing fails
        os._exit(2)


class StartedProcesses(environments.LightningEnvironment):
    """Lightning's cluster environment for processes that were started by a launcher.

    Args:
        launch: how the processes were started.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """True: Lightning must not start processes."""
        return True

    def world_size(self) -> int:
        """Return the number of processes."""
        return self._launch.world_size

    def global_rank(self) -> int:
        """Return the rank of this process."""
        return self._launch.rank

    def local_rank(self) -> int:
        """Return the rank of this process on its machine."""
        return self._launch.local_rank

    def node_rank(self) -> int:
        """Return the rank of this machine."""
        return self._launch.node_rank

    def teardown(self) -> None:
        """Keep the environment variables, which Lightning would delete: a test follows the training."""


def lightning_environment(launch: Launch) -> Any:
    """Return Lightning's cluster environment for these processes.

    Args:
        launch: how the processes were started.
    """
    return StartedProcesses(launch) if launch.external else environments.LightningEnvironment()
