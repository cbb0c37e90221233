"""Who started the processes of a run, and how they come together: real processes with the variables of SLURM."""

import json
import os
import re

import launched
import pytest
import torch.distributed as dist

import processes
from agreement import ToldError
from processes import Launch, check_launch, decided_by_rank_0, find_launch

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "5", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_NTASKS": "6", "SLURM_JOB_NAME": "train",
    "SLURM_JOB_NODELIST": "node[07-09]", "SLURM_TASKS_PER_NODE": "2(x3)",
}  # fmt: skip


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return launched.make_faces(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch("main.py itself")),
        ({"LOCAL_RANK": "2", "NODE_RANK": "0", "WORLD_SIZE": "4"}, Launch("main.py itself", rank=2, local_rank=2)),
        (TORCHRUN, Launch("torchrun", 3, 1, 1, 4, 2, restarts=5)),
        ({**SRUN, **TORCHRUN}, Launch("torchrun", 3, 1, 1, 4, 2, restarts=5)),  # started inside of an srun
        (
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            Launch("the environment (RANK, WORLD_SIZE)", rank=1, node_rank=1, world_size=2),
        ),
        (SRUN, Launch("srun", 5, 1, 2, 6, 2)),
        ({**SRUN, "SLURM_TASKS_PER_NODE": "1(x2),4"}, Launch("srun", 5, 1, 2, 6, 4)),
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, Launch("main.py itself")),  # a shell in a job of six tasks
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Launch("main.py itself")),  # a batch job's own script
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, Launch("main.py itself")),
        ({**SRUN, "SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "6"}, Launch("srun", 5, 1, 2, 6, 2)),
    ],
)
def test_who_started_the_processes(variables, expected):
    assert find_launch(variables) == expected


@pytest.mark.parametrize(
    ("launch", "devices", "num_nodes", "message"),
    [
        (Launch("main.py itself"), 2, 2, "--num_nodes 2, but this process was started alone: .* torchrun or srun"),
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
        (Launch("main.py itself"), 8, 1),
        (Launch("torchrun", world_size=4, local_world_size=2), 2, 2),
        (Launch("srun", world_size=4), 4, 1),
    ],
)
def test_the_processes_that_the_options_ask_for(launch, devices, num_nodes):
    check_launch(launch, devices, num_nodes)


def test_an_srun_meets_at_its_first_host_at_a_port_of_its_own(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu-a[07-09,12],gpu-b3")
    monkeypatch.setenv("SLURM_JOB_ID", "1230042")
    processes._find_meeting_place()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu-a07", "15042")
    monkeypatch.setenv("MASTER_PORT", "5")
    processes._find_meeting_place()
    assert os.environ["MASTER_PORT"] == "5", "the user's choice stays"


def test_processes_that_main_py_starts_inherit_its_decision(monkeypatch):
    first, second = Launch("main.py itself"), Launch("main.py itself", rank=1, local_rank=1)
    monkeypatch.setenv("ADAFACE_DECISION_RUN_FOLDER", "stale")
    assert decided_by_rank_0("RUN_FOLDER", lambda: "a", first) == "a"
    assert os.environ["ADAFACE_DECISION_RUN_FOLDER"] == "a"
    assert decided_by_rank_0("RUN_FOLDER", lambda: "b", second) == "a"
    monkeypatch.delenv("ADAFACE_DECISION_FITS", raising=False)
    assert decided_by_rank_0("FITS", lambda: "True", first) == "True"


def test_a_decision_that_fails_keeps_nobody_waiting(monkeypatch):
    sent = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box: sent.append(list(box)))

    def fail() -> str:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        decided_by_rank_0("RUN_FOLDER", fail, Launch("srun", rank=0, world_size=2))
    assert sent == [[None]]
    with pytest.raises(ToldError):
        decided_by_rank_0("RUN_FOLDER", fail, Launch("srun", rank=1, world_size=2))


def srun(folder, arguments_of_ranks, ranks_of_nodes):
    """Run main.py in one process for each rank, as srun does; return exit statuses and outputs."""
    port = launched.free_port()
    files = [folder / f"output_{rank}.txt" for rank in range(len(arguments_of_ranks))]
    started = [
        launched.start(launched.main_py(arguments), file, launched.slurm(rank, port, ranks_of_nodes))
        for rank, (arguments, file) in enumerate(zip(arguments_of_ranks, files, strict=True))
    ]
    statuses = [launched.ended(process, file, 120) for process, file in zip(started, files, strict=True)]
    return statuses, [file.read_text() for file in files]


def test_two_nodes_of_an_srun_train_in_one_folder_and_rank_0_alone_prints(data_root, tmp_path):
    words = launched.words(data_root, "--output_dir", tmp_path / "runs", "--epochs", 1, "--num_nodes", 2)
    statuses, outputs = srun(tmp_path, [words, words], [[0], [1]])
    assert statuses == [0, 0], outputs
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"run folder: {folder}" in outputs[0]
    assert outputs[1].strip() == ""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"]["num_nodes"] == 2
    assert (folder / "results.csv").is_file()
    assert len(list((folder / "metrics").iterdir())) == 1
    # of the 30 images, a step takes 8 on each of the two machines
    assert launched.load_checkpoint(folder / "last.ckpt")["global_step"] == 2


def test_processes_started_with_something_else_are_named(data_root, tmp_path):
    words = launched.words(data_root, "--output_dir", tmp_path / "runs", "--devices", 3, "--batch_size", 9)
    other = [*words, "--lr", "0.5", "--num_workers", "1"]
    statuses, outputs = srun(tmp_path, [words, words, other], [[0, 1, 2]])
    assert statuses == [2, 2, 2], outputs
    expected = (
        r"main\.py: error: process 2 on \S+ was started with something else than process 0 on \S+: --lr is 0.5 there"
    )
    assert re.search(expected, outputs[0])
    assert outputs[1:] == ["", ""], "said once"
    assert "num_workers" not in outputs[0]
    assert not (tmp_path / "runs").exists()


def test_a_process_that_cannot_start_ends_all_with_its_reason(data_root, tmp_path):
    words = launched.words(data_root, "--output_dir", tmp_path / "runs", "--devices", 2)
    other = [*words, "--data_root", str(tmp_path / "nothing")]
    statuses, outputs = srun(tmp_path, [words, other], [[0, 1]])
    assert statuses == [2, 2], outputs
    assert re.search(r"main\.py: error: process 1 on \S+ cannot start: .*nothing", outputs[0])
    assert re.search(r"main\.py: error: .*nothing", outputs[1])


def test_processes_that_do_not_come_are_missed(data_root, tmp_path):
    words = launched.words(data_root, "--devices", 2, "--collective_timeout_sec", 2)
    file = tmp_path / "output.txt"
    process = launched.start(launched.main_py(words), file, launched.slurm(0, launched.free_port(), [[0, 1]]))
    assert launched.ended(process, file, 60) == 2
    assert "process 0 on" in file.read_text()
    assert "did not come together with the other processes of 2 at 127.0.0.1:" in file.read_text()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_process_that_fails_before_it_joins_keeps_nobody_waiting(data_root, tmp_path, bad):
    """Nobody else ends them: srun would with --kill-on-bad-exit, torchrun on its own machine alone."""
    words = launched.words(data_root, "--output_dir", tmp_path / "runs", "--devices", 3, "--batch_size", 9)
    arguments = [words, words, words]
    arguments[bad] = [*words, "--config", str(tmp_path / "nothing.yaml")]
    statuses, outputs = srun(tmp_path, arguments, [[0, 1, 2]])
    assert statuses == [2, 2, 2], outputs
    assert "main.py: error: --config: there is no recipe" in outputs[bad]
    if bad:
        assert re.search(r"main\.py: error: process 1 on \S+ cannot start: --config: there is no recipe", outputs[0])
    # PyTorch's store may say that process 0, which has it, is gone in the middle of a question
    assert "main.py" not in outputs[2], "said once"


def test_what_fails_in_process_0_before_the_training_keeps_nobody_waiting(data_root, tmp_path):
    """The run folder is chosen, but its first file cannot be written."""
    (tmp_path / "run" / "config.yaml").mkdir(parents=True)
    words = launched.words(data_root, "--run_folder", tmp_path / "run", "--devices", 2)
    statuses, outputs = srun(tmp_path, [words, words], [[0, 1]])
    assert statuses == [2, 2], outputs
    assert re.search(r"main\.py: error: .*Is a directory.*config\.yaml", outputs[0])
    assert outputs[1] == ""
