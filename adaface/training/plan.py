"""Plan of a training before it starts: memory, steps and time (``adaface train ... --plan``).

Memory is computed first (``training/memory_plan.py``). If it fits, a few real steps are measured, with the devices,
loader and precision of the run, and a few batches are embedded and loaded. Nothing is written. ``check_memory`` is the
part of it that every training begins with.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adaface.config.device_plan import DevicePlan
from adaface.config.options import OptimizerOptions, RunOptions
from adaface.data.module import FaceDataModule
from adaface.distributed.launch import Launch, rank_zero_info
from adaface.distributed.startup import decided_by_rank_0
from adaface.models.backbone import EMBEDDING_SIZE
from adaface.system.command_line import one_line
from adaface.system.devices import available_memory, device_memory, free_swap
from adaface.training.memory_plan import (
    FLOAT32_BYTES,
    StepMemory,
    count_activations,
    expected_activations,
    step_memory,
    what_takes_less,
)
from adaface.training.module import FaceRecognitionModule
from adaface.training.progress import MUCH_WAITING, duration, input_bottleneck
from adaface.training.step_timing import Measured, StepClock, build_trainer, measure
from adaface.training.trainer import batches_of_epoch, validation_interval

_TIGHT = 0.75  # share of the memory: measured peaks are 15 to 30 % above the estimate


@dataclass(frozen=True)
class Workload:
    """Amount of work of a training.

    Attributes:
        epochs: number of epochs.
        steps_per_epoch: batches of one process.
        evaluations: of all verification sets, the final test included.
        evaluation_batches: batches of one process in one evaluation.
        batch_size: images of the largest step, over all processes.
        world_size: number of processes.
        accumulate_grad_batches: batches whose gradients are accumulated per optimizer step.
    """

    epochs: int
    steps_per_epoch: int
    evaluations: int
    evaluation_batches: int
    batch_size: int
    world_size: int
    accumulate_grad_batches: int = 1


def count_work(data: FaceDataModule, devices: DevicePlan, run: RunOptions, optimizer: OptimizerOptions) -> Workload:
    """Return the amount of work of a training.

    Args:
        data: opened.
        devices: of this machine.
        run: may limit the steps of an epoch.
        optimizer: how long the training is.
    """
    epochs = 1 if run.fast_dev_run else optimizer.epochs
    batches, interval = (
        batches_of_epoch(data.steps_per_epoch, run),
        validation_interval(data.steps_per_epoch, run, optimizer),
    )
    per_epoch = 1 if isinstance(interval, float) else batches // interval
    images = sum(len(pair_set.images) for pair_set in data.pair_sets.values())
    return Workload(
        epochs=epochs,
        steps_per_epoch=batches,
        evaluations=epochs * per_epoch + 1 if data.pair_sets else 0,
        evaluation_batches=-(-images // (devices.world_size * data.batch_size_per_process)),
        batch_size=data.images_per_step,
        world_size=devices.world_size,
        accumulate_grad_batches=optimizer.accumulate_grad_batches,
    )


def lines(
    module: FaceRecognitionModule,
    data: FaceDataModule,
    devices: DevicePlan,
    launch: Launch,
    workload: Workload,
    arguments: dict[str, Any],
) -> Iterator[str]:
    """Yield the plan line by line, after a few steps if it fits in memory; every process of the run calls this.

    Args:
        module: the module to train.
        data: opened.
        devices: of this machine.
        launch: who started the processes.
        workload: amount of work.
        arguments: of ``training.trainer.device_arguments``.
    """
    available = available_memory(devices.accelerator, devices.devices)
    memory = step_memory(
        module,
        count_activations(module.model, devices.precision),
        processes=workload.world_size,
        batch_size=data.largest_batch,
        accumulated=workload.accumulate_grad_batches,
        precision=devices.precision,
    )
    measured = None
    # either all processes measure, or none
    if decided_by_rank_0("FITS", lambda: str(memory.total_bytes <= available), launch) == "True":
        if devices.options.num_nodes > 1 and not launch.external:
            yield "no step is measured: to measure, start all processes of all machines with torchrun or srun"
        else:
            yield "measuring a few steps ..."
            clock = StepClock()
            trainer = build_trainer(arguments, clock, workload.accumulate_grad_batches)
            measured = measure(trainer, module, data, clock)
    yield data.summary()
    yield describe(module, memory, available, workload, measured)
    yield from does_not_fit(memory, available, devices=devices.devices, tried="so no step was measured")


def check_head_memory(columns: int, devices: DevicePlan) -> None:
    """Check, before a head is built, that its weights fit into the memory of this machine.

    Args:
        columns: weight vectors of the head, which is not sharded: each process of this machine builds all of them.
        devices: of this machine.

    Raises:
        ValueError: the weights need more memory than there is.
    """
    needed = columns * EMBEDDING_SIZE * FLOAT32_BYTES
    most = available_memory("cpu", devices.devices) + free_swap(devices.devices)
    if devices.options.check_memory and needed > most:
        raise ValueError(
            f"the weights of the head, {columns:,} x {EMBEDDING_SIZE}, need {_gb(needed)} of memory per process, "
            f"{_gb(most)} are available: check the number of identities (--custom_num_class), or shard the head over "
            "several devices (--head_sharding on). --no-check_memory builds it all the same"
        )


def check_memory(module: FaceRecognitionModule, data: FaceDataModule, devices: DevicePlan, accumulated: int) -> None:
    """Warn if the steps of a training may not fit into memory.

    Nothing is computed, and neither the module nor the random numbers change.

    Args:
        module: the module to train, not yet on its device.
        data: opened.
        devices: of this machine; with their option ``check_memory``, a step that cannot fit is an error.
        accumulated: batches whose gradients are accumulated per optimizer step.

    Raises:
        ValueError: a step needs more memory than there is.
    """
    try:
        activations = expected_activations(module.model, devices.precision)
    except Exception as error:  # of a network of the user's own, which may train all the same
        rank_zero_info(f"note: the memory of a step is unknown ({type(error).__name__}: {one_line(error)})")
        return
    memory = step_memory(
        module,
        activations,
        processes=devices.world_size,
        batch_size=data.largest_batch,
        accumulated=accumulated,
        precision=devices.precision,
    )
    available = available_memory(devices.accelerator, devices.devices)
    # where a GPU is too small the step ends in an error, where a machine is, the system kills some program
    most = device_memory("gpu", 1) if devices.accelerator == "gpu" else available + free_swap(devices.devices)
    lines = does_not_fit(memory, available, devices=devices.devices, tried="the system may kill it")
    # a compiler decides itself what to keep
    if not devices.options.check_memory or devices.options.compile or memory.least_bytes <= most:
        for line in lines:
            rank_zero_info(line)
        return
    images = f"{memory.batch_size:,} images per process"
    images += ", which are all there are," if memory.batch_size < data.batch_size_per_process else ""
    options = "; ".join(line.strip() for line in lines[1:]) or "a smaller --batch_size or --arch"
    raise ValueError(
        f"a training step of {images} needs more than {_gb(memory.least_bytes)} of memory, {_gb(most)} are available. "
        f"Options that need less: {options}. --no-check_memory starts the training all the same"
    )


def describe(
    module: FaceRecognitionModule,
    memory: StepMemory,
    available_bytes: float,
    workload: Workload,
    measured: Measured | None,
) -> str:
    """Return the plan as text.

    Args:
        module: the module to train.
        memory: of one step of one process.
        available_bytes: memory available to a process on its device; infinite if unknown.
        workload: amount of work.
        measured: measurements of a few steps; None if there are none.
    """
    lines = [
        f"parameters: {memory.backbone_parameters / 1e6:,.1f} M in the backbone, "
        f"{memory.head_parameters / 1e6:,.1f} M in the head ({module.class_num:,} classes)",
        f"memory of a step, per process ({memory.batch_size} images):",
        _row("weights, gradients, optimizer", memory.weights_bytes),
        _row("activations of the backbone", memory.activations_bytes),
        _row("images x classes of the head", memory.head_bytes),
        _row("total", memory.total_bytes, f", {_gb(available_bytes)} available"),
    ]
    if measured is not None and measured.peak_bytes:
        lines.append(_row("measured peak, libraries included", measured.peak_bytes))
    lines.append(
        f"steps: {workload.steps_per_epoch:,} per epoch, {workload.epochs * workload.steps_per_epoch:,} in "
        f"{workload.epochs} epochs, {workload.batch_size:,} images each; {workload.evaluations} evaluations"
    )
    return "\n".join(lines + ([] if measured is None else _times(workload, measured)))


def _times(workload: Workload, measured: Measured) -> list[str]:
    """Return the estimated time, and a warning if steps wait for data."""
    steps = workload.epochs * workload.steps_per_epoch
    evaluation_sec = workload.evaluation_batches * measured.embed_sec
    total = steps * measured.batch_sec + workload.evaluations * evaluation_sec
    lines = [
        f"time: {measured.step_sec:.3g} s per step ({_rate(workload.batch_size / measured.step_sec)}), "
        f"{duration(workload.steps_per_epoch * measured.batch_sec)} per epoch, "
        + (f"{duration(evaluation_sec)} per evaluation, " if workload.evaluations else "")
        + f"{duration(total)} in total",
        f"data loading: {_rate(workload.batch_size / measured.load_sec)} without training",
    ]
    waiting = 1 - measured.step_sec / measured.batch_sec
    return [*lines, *([f"warning: {input_bottleneck(waiting)}"] if waiting > MUCH_WAITING else [])]


def _rate(per_sec: float) -> str:
    return f"{per_sec:{'.3g' if per_sec < 10 else ',.0f'}} images/s"


def does_not_fit(memory: StepMemory, available_bytes: float, *, devices: int, tried: str) -> list[str]:
    """Return a warning and options that need less memory; empty if the step fits with a margin.

    Args:
        memory: of one step of one process.
        available_bytes: memory available to a process on its device.
        devices: devices per node.
        tried: what follows if it does not fit at all.
    """
    if memory.total_bytes <= _TIGHT * available_bytes:
        return []
    fits = memory.total_bytes <= available_bytes
    head = f"warning: a step needs {_gb(memory.total_bytes)} of memory, {_gb(available_bytes)} are available: it "
    head += "may not fit, as libraries need some additional memory" if fits else f"does not fit, {tried}"
    options = what_takes_less(memory, _TIGHT * available_bytes, batch_size=memory.batch_size * devices, devices=devices)
    if not options:
        return [
            f"{head}, and no option reduces it much. Use more or larger devices "
            "(--head_sharding on shards the head over them), or a smaller --arch"
        ]
    return [
        f"{head}. Options that need less memory:",
        *(f"  {option}" for option in options),
    ]


def _row(name: str, size_bytes: float, more: str = "") -> str:
    return f"  {name:<34}{_gb(size_bytes):>10}{more}"


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.2f} GB"
