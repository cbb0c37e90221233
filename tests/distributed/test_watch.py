"""A process that is lost brings the others down, with its rank and host: real processes, killed."""

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adaface.distributed import watch
from tests.support import launched
from tests.support.watch_worker import SCENARIOS

TESTS = Path(__file__).parents[1]
HOST = re.escape(platform.node())


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Exit statuses and outputs of the processes of each scenario of watch_worker.py."""
    folder = tmp_path_factory.mktemp("watched")
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, str(TESTS / "support/watch_worker.py"), str(folder)]
    # less than the 300 s for which a process waits that nobody ends
    subprocess.run(command, env=launched.environment(PYTHONPATH=path), timeout=250, check=True)
    return {
        name: (
            [int((folder / f"{name}_{rank}.status").read_text()) for rank in range(len(ends))],
            [(folder / f"{name}_{rank}.txt").read_text() for rank in range(len(ends))],
        )
        for name, ends in SCENARIOS.items()
    }


def lost(rank: int, how: str) -> str:
    return rf"main\.py: error: process {rank} on {HOST} \(pid \d+\) {how}: the run ends; go on so\n"


def test_a_killed_process_ends_those_that_wait_for_it(watched):
    statuses, outputs = watched["killed"]
    assert statuses == [2, 2, -signal.SIGKILL]
    assert re.fullmatch(lost(2, "died"), outputs[0])
    assert outputs[1] == "", "on one host it is said once"


def test_the_loss_of_process_0_is_told_by_another(watched):
    statuses, outputs = watched["first killed"]
    assert statuses == [-signal.SIGKILL, 2, 2]
    assert re.fullmatch(lost(0, "died"), outputs[1])
    assert outputs[2] == ""


def test_a_data_worker_that_lives_on_does_not_hide_the_death(watched):
    statuses, outputs = watched["data worker"]
    assert statuses == [2, -signal.SIGKILL]
    assert re.fullmatch(lost(1, "died"), outputs[0])


def test_an_error_of_one_process_ends_the_others(watched):
    statuses, outputs = watched["error"]
    assert statuses == [2, 1]
    assert re.fullmatch(lost(1, "stopped by an error, which it has printed"), outputs[0])
    assert outputs[1] == "ValueError: its own error\n"


def test_the_broken_connection_of_a_collective_is_explained(watched):
    statuses, outputs = watched["gloo"]
    assert statuses == [12, -signal.SIGKILL], "the main thread ends by itself, quietly"
    assert re.fullmatch(lost(1, "died"), outputs[0])


def test_a_signal_that_follows_the_death_of_another_does_not_hide_it(watched):
    statuses, outputs = watched["terminated"]
    assert statuses == [12, -signal.SIGKILL]
    assert re.fullmatch(lost(1, "died"), outputs[0])


def test_a_signal_that_follows_the_error_of_another_does_not_hide_it(watched):
    statuses, outputs = watched["terminated after an error"]
    assert statuses == [12, 1]
    assert re.fullmatch(lost(1, "stopped by an error, which it has printed"), outputs[0])


def test_an_answer_that_does_not_come_in_time_is_explained(watched):
    statuses, outputs = watched["timeout"]
    assert statuses == [1, 1]
    assert "did not answer for 7 s (--collective_timeout_sec), though none is known to be lost" in outputs[0]


def test_processes_that_end_as_they_should_are_not_missed(watched):
    assert watched["done"] == ([0, 0, 0], ["", "", ""])
    assert watched["welcomed late"] == ([0, 0, 0], ["", "", ""])
    statuses, outputs = watched["interrupted"]
    assert statuses == [1, 1, 1]
    assert not any("main.py: error" in output for output in outputs)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return launched.make_faces(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_that_loses_a_process_ends_and_says_how_to_go_on(data_root, tmp_path, victim):
    words = launched.words(data_root, "--run_folder", tmp_path / "run", "--devices", 2, "--epochs", 500)
    file = tmp_path / "output.txt"
    process = launched.start(launched.main_py(words), file)
    checkpoint = tmp_path / "run" / "last.ckpt"
    launched.wait_for(checkpoint.exists, process, file)
    first, second = launched.trainers(process.pid)
    os.kill((first, second)[victim], signal.SIGKILL)
    launched.ended(process, file, 60)
    launched.gone([first, second], 60)
    how = r"died by signal 9" if victim == 1 else "died"
    expected = rf"main\.py: error: process {victim} on {HOST} \(pid \d+\) {how}: the run ends; run the same command"
    assert len(re.findall(expected, file.read_text())) == 1, file.read_text()
    assert "Traceback" not in file.read_text()


@pytest.mark.slow
def test_a_process_that_hangs_is_waited_for_as_long_as_is_asked_for(data_root, tmp_path):
    words = launched.words(data_root, "--run_folder", tmp_path / "run", "--devices", 2, "--epochs", 500)
    words += ["--collective_timeout_sec", "10"]
    port = launched.free_port()
    files = [tmp_path / f"output_{rank}.txt" for rank in range(2)]
    started = [
        launched.start(launched.main_py(words), file, launched.slurm(rank, port, [[0, 1]]))
        for rank, file in enumerate(files)
    ]
    launched.wait_for((tmp_path / "run" / "last.ckpt").exists, started[0], files[0])
    started[1].send_signal(signal.SIGSTOP)
    try:
        assert launched.ended(started[0], files[0], 60) == 2
    finally:
        started[1].send_signal(signal.SIGCONT)
    assert launched.ended(started[1], files[1], 60) == 2
    assert "another process did not answer for 10 s (--collective_timeout_sec)" in files[0].read_text()


@pytest.mark.parametrize(
    ("backend", "status", "expected"),
    [
        ("nccl", -signal.SIGABRT, "another one has no answer for 60 s (--collective_timeout_sec)"),
        ("nccl", None, "another one has no answer for 60 s (--collective_timeout_sec)"),
        ("nccl", -signal.SIGKILL, "died by signal 9"),
        ("gloo", -signal.SIGABRT, "died by signal 6"),
        ("gloo", None, "(pid 7) died"),
    ],
)
def test_the_end_that_nccl_makes_is_explained(backend, status, expected, monkeypatch):
    monkeypatch.setattr(watch.dist, "get_backend", lambda: backend)
    watching = watch.ProcessWatch({}, lambda: "", 60.0)
    if status is not None:
        watching._children = [SimpleNamespace(wait=lambda timeout: status)]
    text = watching._describe(watch._Peer(1, "node", 7), "died")
    assert text.startswith("process 1 on node (pid 7) died")
    assert expected in text
