"""What is changed in Lightning: its observer of child processes waits until the watch has reported a lost one."""

import os
import signal
import subprocess
import sys
import time

import torch

from adaface.distributed import watch
from adaface.system import lightning_internals
from adaface.system.lightning_setup import pl


def test_a_dead_child_does_not_kill_this_process_before_the_watch_had_its_time(monkeypatch):
    events: list[object] = []
    monkeypatch.setattr(lightning_internals.time, "sleep", lambda seconds: events.append(seconds))
    monkeypatch.setattr(os, "kill", lambda pid, number: events.append((pid, number)))
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    child.wait()
    observer = lightning_internals._PatientObserver(child_processes=[child], main_pid=12345)
    observer.run()
    period, grace, killed = events
    assert killed == (12345, signal.SIGKILL)
    assert period == observer._sleep_period
    assert grace > max(watch._TOGETHER_SEC, watch._OWN_ERROR_SEC) + watch._REPORT_SEC + watch._GRACE_SEC


def test_children_that_end_well_are_observed_in_silence(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    observer = lightning_internals._PatientObserver(child_processes=[child], main_pid=12345)
    observer.run()  # else it would wait for ever, or kill


def test_lightning_starts_the_patient_one(monkeypatch):
    launcher = pl.strategies.launchers.subprocess_script
    monkeypatch.setattr(launcher, "_launch_process_observer", None)
    started: list[object] = []
    monkeypatch.setattr(lightning_internals._PatientObserver, "start", lambda self: started.append(self))
    lightning_internals.let_the_watch_report_first()
    launcher._launch_process_observer([])
    assert [type(observer) for observer in started] == [lightning_internals._PatientObserver]


def test_the_module_is_wrapped_on_the_current_stream_with_what_is_asked_for(monkeypatch):
    made = []

    class Wrapped:
        def __init__(self, module, **options):
            made.append((module, options))

        def register_comm_hook(self, state, hook):
            made.append((state, hook))

    def no_stream(*_):
        raise AssertionError("a stream of its own")

    monkeypatch.setattr(lightning_internals, "DistributedDataParallel", Wrapped)
    monkeypatch.setattr(lightning_internals.torch.cuda, "Stream", no_stream)
    strategy = lightning_internals.DataParallelStrategy(
        parallel_devices=[torch.device("cuda", 0), torch.device("cuda", 1)],
        broadcast_buffers=False,
        ddp_comm_hook=print,
    )
    monkeypatch.setattr(type(strategy), "local_rank", 1)
    strategy.model = "module"
    strategy.configure_ddp()
    assert made == [("module", {"device_ids": [1], "broadcast_buffers": False}), (None, print)]


def test_a_process_that_sees_one_gpu_uses_it_whatever_its_rank(monkeypatch):
    strategy = lightning_internals.DataParallelStrategy(parallel_devices=[torch.device("cuda", 0)])
    monkeypatch.setattr(type(strategy), "local_rank", 3)
    assert strategy.root_device == torch.device("cuda", 0)


def test_what_is_left_out_of_the_synchronization_adds_up():
    module = torch.nn.Linear(1, 1)
    lightning_internals.leave_out_of_ddp(module, ["weight"])
    lightning_internals.leave_out_of_ddp(module, ["bias"])
    assert module._ddp_params_and_buffers_to_ignore == ["weight", "bias"]
