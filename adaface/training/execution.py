"""Execution of a training step: memory layout, compilation, and what the backward pass stores.

These options do not change the result: gradient checkpointing and the head's memory give the same bits (on a GPU with
``--deterministic``), layout and compiler differ in rounding only. The defaults are the fastest ones measured
(``bench/training_step.py``).
"""

import importlib.util
import os
import shutil

import torch

from adaface.config.options import DeviceOptions
from adaface.distributed.launch import rank_zero_info
from adaface.heads.fused_softmax import kept_bytes
from adaface.models.backbone import IMAGE_SIZE
from adaface.system.devices import available_memory
from adaface.system.lightning_internals import leave_out_of_ddp
from adaface.training.module import FaceRecognitionModule

_COMPILERS = ("g++", "clang++", "c++")
_SHOWN = 5  # names
_MOST_OF_FREE_MEMORY = 0.25  # for the head's (B, C) numbers; activations, gradients and momentum need the rest


def configure_backbone(
    module: FaceRecognitionModule, options: DeviceOptions, *, accelerator: str, processes: int, batch_size: int
) -> list[str]:
    """Configure how a module computes its training steps.

    Args:
        module: changed in place; its state dict keeps its keys.
        options: ``channels_last`` auto is on for GPUs, because of their tensor cores, for CPUs, where narrow
            convolutions take up to 40 % less time, and for the compiler; it is off for Apple GPUs. ``head_memory`` auto
            keeps the (B, C) numbers if they take at most a quarter of the free memory.
        accelerator: ``cpu``, ``gpu`` or ``mps``.
        processes: training processes on this machine.
        batch_size: images per step of one process, B.

    Returns:
        Notes for the user, one line each.

    Raises:
        RuntimeError: there is no compiler for ``--compile``.
    """
    notes = []
    automatic = accelerator in ("cpu", "gpu") or options.compile
    module.channels_last = options.channels_last == "on" or (options.channels_last == "auto" and automatic)
    if module.channels_last:
        module.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module.model.gradient_checkpointing = options.gradient_checkpointing
    if options.compile:
        _check_compiler(accelerator)
        module.model.compile(dynamic=False)
        notes.append(
            "--compile: the first step takes a minute, or several for deep networks; an epoch ends with its last full "
            "batch, because the backbone would be compiled again for a smaller one"
        )
    if module.class_num:
        # a sharded head has the batch of all processes with a part of the classes: the same number
        size_bytes = batch_size * module.class_num * module.head_options.sample_rate * kept_bytes(module.sub_centers)
        keeps = options.head_memory == "fast"
        if options.head_memory == "auto":
            keeps = size_bytes <= _MOST_OF_FREE_MEMORY * available_memory(accelerator, processes)
        module.keep_exponentials = keeps
        if options.head_memory == "auto" and not keeps:
            notes.append(
                f"the head's {batch_size} x {module.class_num:,} numbers ({size_bytes / 1e9:.1f} GB) are recomputed "
                "in the backward pass instead of kept (--head_memory fast keeps them)"
            )
    return notes


def leave_out_unused(module: FaceRecognitionModule) -> None:
    """Exclude parameters that the backbone never uses from DistributedDataParallel, and tell the user.

    Some networks of timm have such parameters. DistributedDataParallel waits for their gradients, and fails at the
    second step.

    Args:
        module: on the CPU, before it is wrapped.
    """
    model = module.model
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    modes = {part: part.training for part in model.modules()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        # `forward`: the call would be compiled, for the CPU
        embeddings, norms = model.eval().forward(torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1)
        gradients = torch.autograd.grad(embeddings.sum() + norms.sum(), list(trained.values()), allow_unused=True)
    for part, training in modes.items():
        part.training = training
    unused = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if unused:
        leave_out_of_ddp(module, [f"model.{name}" for name in unused])
        shown = ", ".join(unused[:_SHOWN]) + (", ..." if len(unused) > _SHOWN else "")
        rank_zero_info(
            f"note: {len(unused)} parameter(s) of {module.arch} are never used, and stay as they are: {shown}"
        )


def _check_compiler(accelerator: str) -> None:
    """Raise RuntimeError if ``torch.compile`` would fail at the first step."""
    if accelerator == "mps":
        raise RuntimeError("--compile is for CPUs and CUDA GPUs: omit it on an Apple GPU")
    compiler = os.environ.get("CXX") or next((name for name in _COMPILERS if shutil.which(name)), None)
    if compiler is None or shutil.which(compiler) is None:
        raise RuntimeError(
            f"--compile needs a C++ compiler, found none of {', '.join(_COMPILERS)} (or named by CXX): "
            "install one (on Debian: apt install g++), or omit --compile"
        )
    if accelerator == "gpu" and importlib.util.find_spec("triton") is None:
        raise RuntimeError("--compile on a GPU needs the package triton: pip install triton, or omit --compile")
