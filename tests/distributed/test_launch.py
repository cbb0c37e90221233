"""Who started the processes of a run, and whether they are those that the options ask for."""

import os

import pytest

from adaface.distributed import launch, watch
from adaface.distributed.launch import Launch, check_launch, find_launch

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "5", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_NTASKS": "6", "SLURM_JOB_NAME": "train",
    "SLURM_JOB_NODELIST": "node[07-09]", "SLURM_TASKS_PER_NODE": "2(x3)",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch("this program")),
        ({"LOCAL_RANK": "2", "NODE_RANK": "0", "WORLD_SIZE": "4"}, Launch("this program", rank=2, local_rank=2)),
        (TORCHRUN, Launch("torchrun", 3, 1, 1, 4, 2, restarts=5)),
        ({**SRUN, **TORCHRUN}, Launch("torchrun", 3, 1, 1, 4, 2, restarts=5)),  # started inside of an srun
        (
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            Launch("the environment (RANK, WORLD_SIZE)", rank=1, node_rank=1, world_size=2),
        ),
        (SRUN, Launch("srun", 5, 1, 2, 6, 2)),
        ({**SRUN, "SLURM_TASKS_PER_NODE": "1(x2),4"}, Launch("srun", 5, 1, 2, 6, 4)),
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, Launch("this program")),  # a shell in a job of six tasks
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Launch("this program")),  # a batch job's own script
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, Launch("this program")),
        ({**SRUN, "SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "6"}, Launch("srun", 5, 1, 2, 6, 2)),
    ],
)
def test_who_started_the_processes(variables, expected):
    assert find_launch(variables) == expected


@pytest.mark.parametrize(
    ("cores", "variables", "own"),
    [
        (8, {**SRUN, "SLURM_CPUS_PER_TASK": "8"}, True),
        (16, {**SRUN, "SLURM_CPUS_PER_TASK": "8"}, False),  # tasks that are not bound to cores
        (8, SRUN, False),
        (8, {**SRUN, "SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_NUM_TASKS": "1"}, False),  # it starts the others itself
        (8, {**SRUN, **TORCHRUN, "SLURM_CPUS_PER_TASK": "8"}, False),  # torchrun's processes share those of its task
    ],
)
def test_srun_may_give_each_process_cores_of_its_own(cores, variables, own, monkeypatch):
    monkeypatch.setattr(launch, "usable_cores", lambda: cores)
    assert find_launch(variables).own_cores is own


@pytest.mark.parametrize(
    ("launch", "devices", "num_nodes", "message"),
    [
        (Launch("this program"), 2, 2, "--num_nodes 2, but this process was started alone: .* torchrun or srun"),
        (Launch("torchrun", world_size=4, local_world_size=2), 4, 1, r"torchrun started 4 processes, 2 of them on"),
        (Launch("torchrun", world_size=4, local_world_size=2), 1, 1, r"give --num_nodes 2 --devices 2"),
        (Launch("srun", world_size=8, local_world_size=4), 8, 1, r"give --num_nodes 2 --devices 4 \(or --gpus 4\)"),
        (Launch("srun", world_size=3, local_world_size=2), 2, 2, "start the same number on each machine"),
        (Launch("srun", world_size=3), 2, 1, r"ask for 2 \(--devices or --gpus\) x 1 \(--num_nodes\)"),
    ],
)
def test_other_processes_than_the_options_ask_for_are_refused(launch, devices, num_nodes, message):
    with pytest.raises(ValueError, match=message):
        check_launch(launch, devices, num_nodes)


@pytest.mark.parametrize(
    ("launch", "devices", "num_nodes"),
    [
        (Launch("this program"), 8, 1),
        (Launch("torchrun", world_size=4, local_world_size=2), 2, 2),
        (Launch("srun", world_size=4), 4, 1),
    ],
)
def test_the_processes_that_the_options_ask_for(launch, devices, num_nodes):
    check_launch(launch, devices, num_nodes)


@pytest.mark.parametrize(
    ("launcher", "who", "waits"), [("this program", "process 0", True), ("torchrun", "torchrun", False)]
)
def test_an_orphan_ends_and_only_without_process_0_leaves_the_report_to_the_watch(
    launcher, who, waits, monkeypatch, caplog
):
    parents, slept, status = iter([7, 7, 1]), [], []
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(launch.time, "sleep", slept.append)
    monkeypatch.setattr(os, "_exit", status.append)
    launch._end_with(7, Launch(launcher, rank=1))
    assert status == [2]
    assert slept == [launch._LOOK_SEC] * 2 + [launch._WATCH_SEC] * waits
    assert launch._WATCH_SEC > watch._OWN_ERROR_SEC + watch._END_SEC + watch._GRACE_SEC
    assert f"error: {who} on " in caplog.text and "(pid 7), which started process 1, died" in caplog.text
