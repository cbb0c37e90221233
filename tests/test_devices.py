import importlib
from pathlib import Path

import pytest
import torch

import devices
from devices import TORCH_PAIR, divide_threads, import_torchvision, plan_devices


def plan(accelerator="auto", gpus=1, processes=0, *, given=False, use_16bit=False, precision="auto"):
    return plan_devices(accelerator, gpus, processes, gpus_given=given, use_16bit=use_16bit, precision=precision)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_gpus_that_do_not_exist_are_refused(no_gpu):
    with pytest.raises(RuntimeError, match=r"2 GPU\(s\) asked for, PyTorch finds 0.*--accelerator cpu --devices N"):
        plan(gpus=2, given=True)
    with pytest.raises(RuntimeError, match=r"1 GPU\(s\) asked for"):
        plan("gpu", gpus=1)


def test_more_gpus_than_there_are(two_gpus):
    assert plan(gpus=2, given=True).devices == 2
    with pytest.raises(RuntimeError, match=r"3 GPU\(s\) asked for, PyTorch finds 2"):
        plan(gpus=3, given=True)


def test_the_default_falls_back_to_the_cpu_and_says_so(no_gpu):
    chosen = plan()
    assert (chosen.accelerator, chosen.devices) == ("cpu", 1)
    assert "no GPU found" in chosen.notes[0]
    asked = plan(gpus=0, given=True)
    assert (asked.accelerator, asked.notes) == ("cpu", ())


def test_cpu_processes(no_gpu):
    chosen = plan("cpu", processes=2)
    assert (chosen.accelerator, chosen.devices) == ("cpu", 2)
    crowded = plan("cpu", processes=10_000)
    assert "expect no gain" in crowded.notes[0]


def test_apple_gpu(no_gpu, monkeypatch):
    with pytest.raises(RuntimeError, match="no Apple GPU"):
        plan("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert plan("mps").accelerator == plan().accelerator == "mps"
    with pytest.raises(RuntimeError, match="has one device"):
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


def test_threads_are_divided(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(devices, "usable_cores", lambda: 8)
        divide_threads(2)
        assert torch.get_num_threads() == 4
        divide_threads(100)
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        divide_threads(1)  # the user's choice stays
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_container_may_take_less_than_its_host_has(monkeypatch, tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n")
    monkeypatch.setattr(devices, "_MEMORY_INFO", info)
    monkeypatch.setattr(devices, "_CONTROL_GROUP", tmp_path)
    assert devices.device_memory("cpu", 2) == 8_000_000 * 1024 / 2
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.available_memory("cpu", 2) == 6_000_000 * 1024 / 2
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("500000000\n")
    assert devices.device_memory("cpu", 2) == 1e9
    assert devices.available_memory("cpu", 2) == 7.5e8


def test_a_torchvision_of_another_build_is_explained(monkeypatch):
    failure: list[Exception] = []

    def fail(name: str) -> None:
        assert name == "torchvision"
        raise failure[0]

    monkeypatch.setattr(importlib, "import_module", fail)
    failure[:] = [RuntimeError("operator torchvision::nms does not exist")]
    with pytest.raises(RuntimeError, match=r"are of different builds .* pip install --force-reinstall torch=="):
        import_torchvision()
    failure[:] = [RuntimeError("something else")]
    with pytest.raises(RuntimeError, match=r"^something else$"):
        import_torchvision()
    failure[:] = [ModuleNotFoundError("No module named 'torchvision'")]
    import_torchvision()


def test_the_pair_to_install_is_that_of_the_requirements():
    root = Path(__file__).resolve().parents[1]
    pins = [line for file in root.glob("requirements*.txt") for line in file.read_text(encoding="utf-8").split()]
    assert all(pin in pins for pin in TORCH_PAIR.split())
