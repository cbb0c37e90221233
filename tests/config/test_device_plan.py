import platform

import pytest
import torch

from adaface.config.device_plan import plan_devices
from adaface.config.options import DeviceOptions


def plan(accelerator="auto", gpus=-1, processes=0, *, use_16bit=False, precision="auto", **launch):
    options = DeviceOptions(
        gpus=gpus, accelerator=accelerator, devices=processes, use_16bit=use_16bit, precision=precision
    )
    return plan_devices(options, **launch)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_gpus_that_do_not_exist_are_refused(no_gpu):
    with pytest.raises(RuntimeError, match=r"2 GPU\(s\) requested, but PyTorch finds 0.*--accelerator cpu --devices N"):
        plan(gpus=2)
    with pytest.raises(RuntimeError, match=r"1 GPU\(s\) requested"):
        plan("gpu", gpus=1)


def test_more_gpus_than_there_are(two_gpus):
    assert plan(gpus=2).devices == 2
    with pytest.raises(RuntimeError, match=r"3 GPU\(s\) requested, but PyTorch finds 2"):
        plan(gpus=3)


def test_the_default_is_all_gpus(two_gpus):
    for chosen in (plan(), plan("gpu")):
        assert (chosen.accelerator, chosen.devices) == ("gpu", 2)
        assert chosen.notes == ("running on all of 2 GPUs (--gpus N for another number)",)
    one = plan(gpus=1)
    assert (one.accelerator, one.devices, one.notes) == ("gpu", 1, ())
    assert plan("cpu").accelerator == "cpu"


def test_the_default_is_as_many_gpus_as_a_launcher_has_started_processes(two_gpus):
    chosen = plan(launched=1)
    assert (chosen.devices, chosen.notes) == (1, ("running on 1 of 2 GPUs (--gpus N for another number)",))
    assert plan(gpus=2, launched=1).devices == 2, "check_launch refuses it"
    with pytest.raises(RuntimeError, match=r"3 GPU\(s\) requested, but PyTorch finds 2"):
        plan(launched=3)


@pytest.mark.parametrize("gpus", [-1, 4])
def test_each_process_of_a_launcher_may_see_a_gpu_of_its_own(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    chosen = plan(gpus=gpus, launched=4)
    assert (chosen.accelerator, chosen.devices, chosen.visible) == ("gpu", 4, 1)
    assert chosen.notes == ("each of the 4 processes of this machine sees a GPU of its own",)
    assert plan(launched=1).visible == 0
    with pytest.raises(RuntimeError, match=r"4 GPU\(s\) requested, but PyTorch finds 1"):
        plan(gpus=4, launched=2)


def test_the_default_falls_back_to_the_cpu_and_says_so(no_gpu):
    chosen = plan()
    assert (chosen.accelerator, chosen.devices) == ("cpu", 1)
    assert chosen.notes == ("no GPU found: running on the CPU (--gpus 0 disables this note)",)
    asked = plan(gpus=0)
    assert (asked.accelerator, asked.notes) == ("cpu", ())


def test_cpu_processes(no_gpu, monkeypatch):
    monkeypatch.setattr("adaface.config.device_plan.usable_cores", lambda: 2)
    chosen = plan("cpu", processes=2)
    assert (chosen.accelerator, chosen.devices) == ("cpu", 2)
    crowded = plan("cpu", processes=32)
    assert crowded.notes == ("32 CPU processes share 2 cores: expect no speedup",)
    with pytest.raises(ValueError, match="--devices 33: expected at most 32 processes on a machine with 2 CPU cores"):
        plan("cpu", processes=33)


def test_cores_of_its_own_are_not_shared(no_gpu, monkeypatch):
    monkeypatch.setattr("adaface.config.device_plan.usable_cores", lambda: 2)
    shared, own = plan("cpu", processes=4), plan("cpu", processes=4, own_cores=True)
    assert (shared.sharing, own.sharing) == (4, 1)
    assert (len(shared.notes), own.notes) == (1, ())
    assert plan("cpu", processes=64, own_cores=True).devices == 64


def test_apple_gpu(no_gpu, monkeypatch):
    with pytest.raises(RuntimeError, match="no Apple GPU"):
        plan("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert plan("mps").accelerator == plan().accelerator == "mps"
    with pytest.raises(RuntimeError, match="supports only one device"):
        plan("mps", processes=2)


@pytest.mark.parametrize(
    ("accelerator", "use_16bit", "precision", "expected"),
    [
        ("cpu", False, "auto", "32-true"),
        ("cpu", True, "auto", "bf16-mixed"),
        ("cpu", False, "16-mixed", "bf16-mixed"),
        ("cpu", False, "64", "64-true"),
        ("gpu", True, "auto", "16-mixed"),
        ("gpu", False, "bf16-mixed", "bf16-mixed"),
    ],
)
def test_precision(two_gpus, accelerator, use_16bit, precision, expected):
    assert plan(accelerator, use_16bit=use_16bit, precision=precision).precision == expected


@pytest.mark.parametrize(
    ("machine", "capability", "precision", "slow"),
    [
        ("x86_64", "AVX2", "bf16-mixed", True),
        ("x86_64", "AVX2", "16-mixed", True),
        ("x86_64", "AVX512", "bf16-mixed", False),
        ("x86_64", "AVX2", "32", False),
        ("aarch64", "DEFAULT", "bf16-mixed", False),
    ],
)
def test_bfloat16_that_a_cpu_computes_slowly_is_told(no_gpu, monkeypatch, machine, capability, precision, slow):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    notes = plan("cpu", precision=precision).notes
    assert ("this CPU has no AVX-512: bfloat16 is several times slower than --precision 32" in notes) == slow
