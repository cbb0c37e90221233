import importlib
import os
from pathlib import Path

import pytest
import torch

from adaface.system import devices
from adaface.system.devices import TORCH_PAIR, divide_threads, import_torchvision, set_matmul_precision


def test_threads_are_divided(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(devices, "usable_cores", lambda: 8)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun does
        divide_threads(2)
        assert torch.get_num_threads() == 4
        assert os.environ["OMP_NUM_THREADS"] == "4", "Lightning would set other numbers of threads"
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
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000000\nactive_file 200000000\nfile 7\n")
    assert devices.available_memory("cpu", 2) == 9e8, "cached files give way"
    assert devices.free_swap(2) == 0
    info.write_text("SwapFree: 1000 kB\n")
    assert devices.free_swap(2) == 512_000


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
    root = Path(__file__).resolve().parents[2]
    pins = [line for file in root.glob("requirements*.txt") for line in file.read_text(encoding="utf-8").split()]
    assert all(pin in pins for pin in TORCH_PAIR.split())


@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_convolutions_have_the_precision_of_matrix_products(precision, tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    was = torch.get_float32_matmul_precision()
    set_matmul_precision(precision)
    try:
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 is tf32
    finally:
        torch.set_float32_matmul_precision(was)
