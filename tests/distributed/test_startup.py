"""How the processes of a run come together, agree and leave: pretended ones, and real ones with SLURM's variables."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from adaface.distributed import startup, watch
from adaface.distributed.launch import ITSELF, TORCHRUN, Launch
from adaface.distributed.startup import (
    ReportedElsewhereError,
    check_agreement,
    collective_timeout,
    decided_by_rank_0,
    failures_reported,
    join,
)
from tests.support import launched
from tests.support.forked import Program

TESTS = Path(__file__).parents[1]
FACTS = {"--lr": 0.1, "--epochs": 4, "the fingerprint of the training data": "ab"}


@pytest.fixture
def say(monkeypatch):
    """Let the processes of a run, of which this is one, say something."""

    def pretend(rank: int, said: list) -> None:
        monkeypatch.setattr(startup, "in_company", lambda: True)
        monkeypatch.setattr(startup.dist, "get_rank", lambda: rank)
        monkeypatch.setattr(startup, "_gather", lambda mine: [(f"host-{r}", what) for r, what in enumerate(said)])

    return pretend


def test_one_process_agrees_with_itself():
    check_agreement(FACTS)
    with pytest.raises(ValueError, match="own"), failures_reported():
        raise ValueError("own")


def test_the_same_everywhere_is_fine(say):
    say(0, [FACTS, dict(FACTS)])
    check_agreement(FACTS)


def test_the_process_that_differs_is_named_once(say):
    others = [FACTS, dict(FACTS), {**FACTS, "the fingerprint of the training data": "cd", "--epochs": 5}]
    say(0, others)
    expected = (
        "process 2 on host-2 was started with other options or data than process 0 on host-0: --epochs is 5 there and "
        "4 in process 0; the fingerprint of the training data is 'cd' there and 'ab' in process 0. Give"
    )
    with pytest.raises(ValueError, match=expected):
        check_agreement(FACTS)
    say(2, others)
    with pytest.raises(ReportedElsewhereError):
        check_agreement(others[2])


def test_many_differences_are_counted(say):
    say(0, [FACTS, {}])
    with pytest.raises(ValueError, match="--lr is None there"):
        check_agreement(FACTS)
    say(0, [{str(number): number for number in range(9)}, {}])
    with pytest.raises(ValueError, match="2 is None there and 2 in process 0; and 6 more"):
        check_agreement({})


def test_a_process_that_cannot_start_is_named(say):
    say(0, [FACTS, "there is no folder x"])
    with pytest.raises(RuntimeError, match="process 1 on host-1 cannot start: there is no folder x"):
        check_agreement(FACTS)


def test_what_fails_everywhere_is_said_by_process_0_alone(say):
    say(0, ["no data", "no data"])
    with pytest.raises(ValueError, match="no data"), failures_reported():
        raise ValueError("no data")
    say(1, ["no data", "no data"])
    with pytest.raises(ReportedElsewhereError), failures_reported():
        raise ValueError("no data")
    say(1, [FACTS, "no data"])
    with pytest.raises(ValueError, match="no data"), failures_reported():
        raise ValueError("no data")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return launched.make_faces(tmp_path_factory.mktemp("data"))


def test_an_srun_meets_at_its_first_host_at_a_port_of_its_own(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu-a[07-09,12],gpu-b3")
    monkeypatch.setenv("SLURM_JOB_ID", "1230042")
    startup._find_meeting_place()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu-a07", "15042")
    monkeypatch.setenv("MASTER_PORT", "5")
    startup._find_meeting_place()
    assert os.environ["MASTER_PORT"] == "5", "the user's choice stays"


def test_processes_that_main_py_starts_inherit_its_decision(monkeypatch):
    first, second = Launch("this program"), Launch("this program", rank=1, local_rank=1)
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
    with pytest.raises(ReportedElsewhereError):
        decided_by_rank_0("RUN_FOLDER", fail, Launch("srun", rank=1, world_size=2))


def start_forked(arguments, file, variables):
    """Start main.py without the seconds of its imports, where it ends before the training."""
    return Program("main.py", arguments, file, variables=variables)


def start_anew(arguments, file, variables):
    return launched.start(launched.main_py(arguments), file, variables)


def srun(folder, arguments_of_ranks, ranks_of_nodes, start=start_forked):
    """Run main.py in one process for each rank, as srun does; return exit statuses and outputs."""
    port = launched.free_port()
    files = [folder / f"output_{rank}.txt" for rank in range(len(arguments_of_ranks))]
    started = [
        start(arguments, file, launched.slurm(rank, port, ranks_of_nodes))
        for rank, (arguments, file) in enumerate(zip(arguments_of_ranks, files, strict=True))
    ]
    statuses = [launched.ended(process, file, 120) for process, file in zip(started, files, strict=True)]
    return statuses, [file.read_text() for file in files]


def test_two_nodes_of_an_srun_train_in_one_folder_and_rank_0_alone_prints(data_root, tmp_path):
    words = launched.words(data_root, "--output_dir", tmp_path / "runs", "--epochs", 1, "--num_nodes", 2)
    statuses, outputs = srun(tmp_path, [words, words], [[0], [1]], start_anew)
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
        r"main\.py: error: process 2 on \S+ was started with other options or data than process 0 on \S+: "
        r"--lr is 0.5 there"
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
    assert launched.ended(process, file, 250) == 2
    assert "process 0 on" in file.read_text()
    assert "could not connect to the other processes of 2 at 127.0.0.1:" in file.read_text()


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
    statuses, outputs = srun(tmp_path, [words, words], [[0, 1]], start_anew)
    assert statuses == [2, 2], outputs
    assert re.search(r"main\.py: error: .*config\.yaml: Is a directory", outputs[0])
    assert outputs[1] == ""


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """Exit statuses and outputs of the processes of each scenario of leaving_worker.py."""
    folder = tmp_path_factory.mktemp("left")
    variables = launched.environment(PYTHONPATH=os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    command = [sys.executable, str(TESTS / "support/leaving_worker.py"), str(folder)]
    # less than the 300 s for which a collective waits; the threads of gloo run only when nothing else does
    subprocess.run(command, env=variables, timeout=250, check=True)
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize("scenario", ["success", "wrapped model"])
def test_a_run_that_succeeds_leaves_no_group_and_no_thread_of_it(left, scenario):
    for outcome in left[scenario]:
        assert outcome["status"] == 0, outcome
        assert "left with threads []" in outcome["output"]


def test_a_group_that_something_still_refers_to_ends_with_the_process(left):
    """Its threads would need Python after its end; what is registered with atexit is run all the same."""
    for outcome in left["referred to"]:
        assert outcome["status"] == 0, outcome
        assert "exit function" in outcome["output"]
        assert "left with" not in outcome["output"]


@pytest.mark.parametrize(
    ("scenario", "status", "text"), [("status", 2, ""), ("exception", 1, "KeyError: 'unexpected'"), ("exit", 3, "")]
)
def test_a_process_that_fails_in_a_collective_leaves_without_waiting(left, scenario, status, text):
    """The other one answers nothing until it is killed, afterwards; Lightning's own end of an NCCL group is off."""
    outcome, other = left[scenario]
    assert outcome["status"] == status, outcome
    assert other["status"] == -signal.SIGKILL
    assert text in outcome["output"]
    assert ("Traceback" in outcome["output"]) == (scenario == "exception")
    assert "exit function" in outcome["output"]
    assert "Lightning waits" not in outcome["output"]


def test_what_lightning_registers_for_the_exit_is_taken_back(monkeypatch):
    taken_back = []
    monkeypatch.setattr(startup, "unregister_end_of_process_group", lambda: taken_back.append(True))
    assert startup.run_and_leave(lambda: 0) == 0
    with pytest.raises(KeyError):
        startup.run_and_leave(lambda: {}["unexpected"])
    assert taken_back == [True, True]
    assert startup.run_and_leave(lambda: 2) == 2, "one process has nobody to wait for"


def test_a_group_of_one_is_gone_after_a_failure_too(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    assert startup.run_and_leave(lambda: 2) == 2
    assert not dist.is_initialized()


@pytest.mark.parametrize(("local_rank", "visible", "chosen"), [(0, 2, 0), (1, 2, 1), (3, 1, 0)])
def test_a_process_chooses_its_gpu_before_it_asks_for_its_memory(local_rank, visible, chosen, monkeypatch):
    calls = []
    monkeypatch.setattr(startup.torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(startup.torch.cuda, "set_device", calls.append)
    join(Launch(ITSELF, rank=local_rank, local_rank=local_rank), "gpu", 600.0)
    join(Launch(ITSELF, rank=local_rank, local_rank=local_rank), "cpu", 600.0)
    assert calls == [chosen]


def test_process_0_waits_longer_than_those_that_nccl_ends():
    others, first = (collective_timeout(Launch(TORCHRUN, rank=rank), "gpu", 60.0) for rank in (1, 0))
    assert others.total_seconds() == 60.0
    assert first.total_seconds() > 60.0 + watch._TOGETHER_SEC + watch._GRACE_SEC
    assert collective_timeout(Launch(TORCHRUN), "cpu", 60.0).total_seconds() == 60.0


def test_processes_of_a_launcher_join_on_their_gpus_with_their_timeouts(monkeypatch):
    made = []
    monkeypatch.setattr(startup, "_meet", lambda launch, timeout: None)
    monkeypatch.setattr(startup, "_answer_roll_call", lambda store, world_size: "")
    monkeypatch.setattr(startup.torch.cuda, "device_count", lambda: 1)  # each sees its own
    monkeypatch.setattr(startup.torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(startup.dist, "init_process_group", lambda backend, **more: made.append((backend, more)))
    for rank in range(2):
        join(Launch(TORCHRUN, rank=rank, local_rank=rank, world_size=2), "gpu", 60.0)
    assert [(backend, more["device_id"].index) for backend, more in made] == [("nccl", 0)] * 2
    first, other = (more["timeout"].total_seconds() for _, more in made)
    assert first > other == 60.0
