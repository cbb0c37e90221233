"""Choose the accelerator, number of processes and numerical precision from the options and the hardware."""

import platform
from dataclasses import dataclass

import torch

from adaface.config.options import DeviceOptions
from adaface.system.command_line import counted
from adaface.system.threads import usable_cores

_MOST_PER_CORE = 16  # processes on a CPU; each takes more than 100 MB, and more than one per core gain nothing


@dataclass(frozen=True)
class DevicePlan:
    """Arguments of Lightning's Trainer, and notes for the user.

    Attributes:
        accelerator: ``cpu``, ``gpu`` or ``mps``.
        devices: processes of this machine.
        precision: of Lightning's Trainer.
        options: that it was made from.
        notes: for the user, one line each.
        visible: devices that this process sees; 0 if they are all those of its machine.
        own_cores: whether each process has CPU cores of its own.
    """

    accelerator: str
    devices: int
    precision: str
    options: DeviceOptions = DeviceOptions()
    notes: tuple[str, ...] = ()
    visible: int = 0
    own_cores: bool = False

    @property
    def sharing(self) -> int:
        """Number of processes that share the CPU cores which this process may use."""
        return 1 if self.own_cores else self.devices

    @property
    def device_name(self) -> str:
        """Name of the hardware, for messages."""
        return torch.cuda.get_device_name() if self.accelerator == "gpu" else self.accelerator

    @property
    def world_size(self) -> int:
        """Number of processes on all machines."""
        return self.devices * self.options.num_nodes


def plan_devices(options: DeviceOptions, *, launched: int = 0, own_cores: bool = False) -> DevicePlan:
    """Choose devices and precision.

    Args:
        options: requested devices and precision; without ``gpus`` and ``devices``, all GPUs are used, or the CPU if
            there are none.
        launched: processes that a launcher has started on this machine; 0 if there is none.
        own_cores: whether it has given each of them CPU cores of its own.

    Raises:
        ValueError: so many processes on a CPU that it is a mistake.
        RuntimeError: this machine does not have the requested devices.
    """
    notes: list[str] = []
    visible = 0
    accelerator, devices, available = options.accelerator, options.devices, torch.cuda.device_count()
    if accelerator == "auto":
        accelerator, note = _choose_accelerator(options.gpus, devices, available)
        notes += note
    if accelerator == "gpu":
        if not devices and options.gpus < 0 and available > 1:
            notes.append(f"running on {launched or 'all'} of {available} GPUs (--gpus N for another number)")
        devices = devices or (options.gpus if options.gpus > 0 else launched or available or 1)
        if available == 1 < launched == devices:
            visible = 1
            notes.append(f"each of the {devices} processes of this machine sees a GPU of its own")
        elif devices > available:
            raise RuntimeError(
                f"{devices} GPU(s) requested, but PyTorch finds {available} on this machine. "
                "Give --gpus N with the number of available GPUs, or --accelerator cpu --devices N to train on the CPU"
            )
    elif accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise RuntimeError("--accelerator mps: PyTorch finds no Apple GPU here; use --accelerator cpu")
        if devices > 1:
            raise RuntimeError(f"--accelerator mps supports only one device, got --devices {devices}")
        devices = 1
    else:
        devices = devices or 1
        cores = usable_cores()
        if devices > _MOST_PER_CORE * cores and not own_cores:
            raise ValueError(
                f"--devices {devices}: expected at most {_MOST_PER_CORE * cores} processes on a machine with "
                f"{counted(cores, 'CPU core', 'CPU cores')}, and more than {cores} are no faster"
            )
        if devices > cores and not own_cores:
            notes.append(f"{devices} CPU processes share {cores} cores: expect no speedup")
    precision, note = _choose_precision(accelerator, options.use_16bit, options.precision)
    return DevicePlan(accelerator, devices, precision, options, tuple(notes + note), visible, own_cores)


def _choose_accelerator(gpus: int, devices: int, available: int) -> tuple[str, list[str]]:
    if gpus >= 0:
        return ("gpu" if gpus else "cpu"), []
    if available:
        return "gpu", []
    if torch.backends.mps.is_available() and devices < 2:
        return "mps", ["no CUDA GPU found: running on the Apple GPU"]
    return "cpu", ["no GPU found: running on the CPU (--gpus 0 disables this note)"]


def _choose_precision(accelerator: str, use_16bit: bool, precision: str) -> tuple[str, list[str]]:
    if precision == "auto":
        precision = "16-mixed" if use_16bit else "32"
    notes = []
    if precision == "16-mixed" and accelerator == "cpu":
        precision = "bf16-mixed"
        notes.append("16-bit precision on a CPU is bfloat16: float16 has no fast kernels there")
    if precision == "bf16-mixed" and accelerator == "cpu" and not _has_avx512():
        notes.append("this CPU has no AVX-512: bfloat16 is several times slower than --precision 32")
    return {"32": "32-true", "64": "64-true"}.get(precision, precision), notes


def _has_avx512() -> bool:
    """Return whether the CPU has AVX-512, or is of another kind; without it, oneDNN has no bfloat16 kernels."""
    return platform.machine() not in ("x86_64", "AMD64") or torch.backends.cpu.get_cpu_capability() == "AVX512"
