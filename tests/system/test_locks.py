import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import main
from adaface.system import locks
from adaface.system.locks import LOCK, RunLock, locked, locked_when_free
from tests.support import launched

HOLDER = """
import os, sys, time
from pathlib import Path
from adaface.system.locks import RunLock
with RunLock() as lock:
    lock.take(Path(sys.argv[1]))
    if sys.argv[2] == "forks":
        begun, begins = os.pipe()
        if os.fork() == 0:
            os.write(begins, b"x")  # what is done after a fork is done
            time.sleep(300)
            os._exit(0)
        os.read(begun, 1)
    print("held", flush=True)
    if sys.argv[2] != "ends":
        time.sleep(300)
"""


def hold(folder: Path, how: str = "stays") -> subprocess.Popen:
    """Another process that takes the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), how],
        cwd=launched.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(locks, "_DYING_SEC", 0.1)
    monkeypatch.setattr(locks, "_POLL_INTERVAL_SEC", 0.05)


def test_a_second_start_is_told_who_has_the_folder(tmp_path, caplog):
    caplog.set_level(logging.INFO, "adaface")
    process = hold(tmp_path)
    try:
        expected = rf"in use by process {process.pid} on {re.escape(locks.platform.node())}: wait for its end"
        with pytest.raises(RuntimeError, match=expected), RunLock() as lock:
            lock.take(tmp_path)
        assert len(caplog.messages) == 1
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", ["stays", "forks"])
def test_the_lock_of_a_killed_process_is_gone_its_data_workers_or_not(tmp_path, caplog, how):
    caplog.set_level(logging.INFO, "adaface")
    process = hold(tmp_path, how)
    process.kill()
    process.wait()
    try:
        with RunLock() as lock:
            assert lock.take(tmp_path) == tmp_path
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
        assert not caplog.messages
    finally:
        os.killpg(process.pid, signal.SIGKILL) if how == "forks" else None
    assert not (tmp_path / LOCK).exists()


def test_a_run_that_has_ended_leaves_the_folder_free(tmp_path):
    process = hold(tmp_path, "ends")
    assert process.wait() == 0
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        with RunLock() as lock:
            lock.take(tmp_path)


def test_the_lock_of_a_host_that_is_gone_is_waited_for(tmp_path, monkeypatch):
    asked = []

    def held_for_a_while(file: int, how: int) -> None:
        asked.append(how)
        if len(asked) < 8:
            os.pwrite(file, b"process 5 on elsewhere\n", 0)
            raise OSError(errno.EWOULDBLOCK, "held")

    monkeypatch.setattr(locks.fcntl, "flock", held_for_a_while)
    with RunLock() as lock:
        began = time.monotonic()
        lock.take(tmp_path)
        assert time.monotonic() - began > 0.1, "longer than for a process of this host"
    assert len(asked) == 8


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, number):
    def refuse(file: int, how: int) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with RunLock() as lock:
        lock.take(tmp_path)


def test_a_lock_file_that_its_holder_deletes_meanwhile_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    flock, times = locks.fcntl.flock, []

    def deleted_just_then(file: int, how: int) -> None:
        flock(file, how)
        times.append(file)
        if len(times) == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(locks.fcntl, "flock", deleted_just_then)
    with RunLock() as lock:
        lock.take(tmp_path)
        assert (tmp_path / LOCK).exists()
    assert len(times) == 2


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_block_is_refused_until_the_first_has_ended(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "table"
    with locked(path, "busy"), pytest.raises(RuntimeError, match=r"^busy$"), locked(path, "busy"):
        pytest.fail("locked twice")
    with locked(path, "busy"):
        pass
    assert path.is_dir() if kind == "folder" else path.read_bytes() == b""


def test_a_read_only_folder_can_be_locked(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with locked(tmp_path, "busy"):
            assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o755)


def test_who_waits_for_a_lock_says_so_once_and_gets_it(tmp_path, caplog):
    order = []

    def second() -> None:
        with locked_when_free(tmp_path / "table", "waiting"):
            order.append("second")

    with locked_when_free(tmp_path / "table", "free at once"):
        thread = threading.Thread(target=second)
        thread.start()
        while not caplog.messages:
            time.sleep(0.01)
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert caplog.messages == ["waiting"]
    assert order == ["first", "second"]


def test_a_forked_child_does_not_keep_the_lock_of_a_block(tmp_path):
    with locked(tmp_path / "table", "busy"):
        begun, begins = os.pipe()
        if (child := os.fork()) == 0:
            os.write(begins, b"x")  # what is done after a fork is done
            time.sleep(300)
            os._exit(0)
        os.read(begun, 1)
    try:
        with locked(tmp_path / "table", "busy"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_two_live_starts_in_one_folder(tmp_path, capsys):
    data_root, folder = launched.make_faces(tmp_path / "data"), tmp_path / "run"
    folder.mkdir()
    process = hold(folder)
    try:
        assert main.main(launched.words(data_root, "--run_folder", folder, "--epochs", 1)) == 2
    finally:
        process.kill()
        process.wait()
    assert f"main.py: error: the run folder {folder} is in use by process {process.pid} on" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [LOCK], "the other run's files are as they were"
    assert main.main(launched.words(data_root, "--run_folder", folder, "--epochs", 1)) == 0
    assert not (folder / LOCK).exists()


def test_a_start_that_has_waited_does_not_begin_anew_over_what_the_other_has_trained(tmp_path, capsys, monkeypatch):
    data_root, folder = launched.make_faces(tmp_path / "data"), tmp_path / "run"
    take = RunLock.take

    def while_another_run_trains(self, place: Path) -> Path:
        (place / "last.ckpt").write_text("of another run")
        return take(self, place)

    monkeypatch.setattr(RunLock, "take", while_another_run_trains)
    assert main.main(launched.words(data_root, "--run_folder", folder, "--epochs", 1)) == 2
    assert "another run has written a checkpoint to" in capsys.readouterr().err
    assert (folder / "last.ckpt").read_text() == "of another run"
