"""The hardware of a process: memory, threads, and a torchvision that matches the installed PyTorch."""

import importlib
import math
import os
import sys
from pathlib import Path

import torch

from adaface.system.threads import usable_cores

try:
    import resource
except ImportError:  # not Unix
    resource = None  # type: ignore[assignment]

TORCH_PAIR = "torch==2.13.0 torchvision==0.28.0"  # as in the requirements files
_MEMORY_INFO = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")  # a container may have less than its host


def divide_threads(processes: int) -> None:
    """Set the number of PyTorch's threads to this process's share of the cores.

    Args:
        processes: number of processes that share them.
    """
    if processes > 1 or "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, usable_cores() // processes)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # unless it is set, Lightning divides the cores by its own rule


def set_matmul_precision(precision: str) -> None:
    """Set the precision of float32 matrix products and of convolutions on GPUs; 16-bit precision is not affected.

    Differs from PyTorch: its convolutions use TF32 whatever ``torch.set_float32_matmul_precision`` says.

    Args:
        precision: ``highest`` is float32; ``high`` and ``medium`` are TF32 on GPUs, where PyTorch 2.13 has no
            other kernels for ``medium``.
    """
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def available_memory(accelerator: str, processes: int) -> float:
    """Return the free memory of one training process on its device in bytes; infinite if unknown.

    Args:
        accelerator: ``cpu``, ``gpu`` or ``mps``.
        processes: training processes on this machine; those on the CPU share its memory.
    """
    if accelerator == "gpu":
        return torch.cuda.mem_get_info()[0]
    return min(_memory_field("MemAvailable"), _container_limit() - _container_use()) / processes


def free_swap(processes: int) -> float:
    """Return the free swap space of one training process in bytes; 0 if unknown.

    Args:
        processes: training processes on this machine.
    """
    return _memory_field("SwapFree", 0.0) / processes


def device_memory(accelerator: str, processes: int) -> float:
    """Return the total memory of one training process on its device in bytes; infinite if unknown.

    Args:
        accelerator: ``cpu``, ``gpu`` or ``mps``.
        processes: training processes on this machine; those on the CPU share its memory.
    """
    if accelerator == "gpu":
        return torch.cuda.mem_get_info()[1]
    return min(_memory_field("MemTotal"), _container_limit()) / processes


def _memory_field(name: str, otherwise: float = math.inf) -> float:
    """Return a field of /proc/meminfo in bytes; ``otherwise`` if there is none."""
    try:
        fields = dict(line.split(":") for line in _MEMORY_INFO.read_text(encoding="utf-8").splitlines())
        return int(fields[name].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return otherwise


def _container_limit() -> float:
    """Return the memory limit of this container in bytes; infinite without a limit."""
    return _number_in("memory.max", math.inf)


def _container_use() -> float:
    """Return the memory that this container uses in bytes, without cached files, which give way."""
    try:
        lines = (_CONTROL_GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    cached = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return _number_in("memory.current", 0.0) - cached


def _number_in(name: str, otherwise: float) -> float:
    """Return the number in a file of the control group (version 2); ``otherwise`` if it is absent or "max"."""
    try:
        return float(int((_CONTROL_GROUP / name).read_text(encoding="ascii")))
    except (OSError, ValueError):
        return otherwise


def peak_memory(device_type: str) -> float:
    """Return the peak memory of this process in bytes: of tensors on a GPU, else of the process; 0 if unknown.

    Args:
        device_type: type of the training device, such as ``cuda`` or ``cpu``.
    """
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    if resource is None:  # not Unix
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def import_torchvision() -> None:
    """Import torchvision if it is installed, before Lightning and timm do, and explain the usual failure.

    Raises:
        RuntimeError: torchvision does not match the installed torch.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return  # not installed: then nothing imports it either
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        raise RuntimeError(
            f"torch {torch.__version__} and the installed torchvision are of different builds (such as CPU and CUDA): "
            f"install a pair from one index, for a CPU pip install --force-reinstall {TORCH_PAIR} --index-url "
            "https://download.pytorch.org/whl/cpu"
        ) from error
