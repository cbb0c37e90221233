"""The optimizers, and the learning rate of each step.

The learning rate is a function of the position in the training only, so checkpoints store no scheduler state: a run
resumed at any step continues bit for bit, and options given at a resume apply from its first step on. Steps are
optimizer steps: with accumulated gradients one per window, including the last, shorter window of an epoch.

Sources: multistep and SGD as in the official AdaFace code, bit for bit; cosine: Loshchilov and Hutter (ICLR 2017, arXiv
1608.03983), without restarts; poly with power 2: InsightFace's recipes for many identities; warm-up and the linear
scaling rule: Goyal et al. (arXiv 1706.02677); AdamW: Loshchilov and Hutter (ICLR 2019, arXiv 1711.05101).
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from adaface.config.options import OptimizerOptions

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
LR_SCALE = "lr_scale"  # key of a parameter group: factor of the schedule's learning rate
_FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each optimizer step t = 0, 1, ..., T - 1.

    With n steps per epoch, T = epochs * n total steps and W = warmup_epochs * n warm-up steps (rounded, at least one):

    * multistep: lr * gamma ** k, where k of the milestones are at or below the epoch t // n;
    * cosine: lr * (1 + cos(pi p)) / 2 with p = max(0, t - W) / (T - W);
    * poly: lr * (1 - p) ** power with the same p.

    Cosine and poly would reach 0 at step T, one step after the last. During the warm-up each is multiplied by (t + 1) /
    W, so that the first step has lr / W and step W - 1 the full lr.

    Args:
        options: options of learning rate and schedule; ``lr`` is the peak, after linear scaling.
    """

    options: OptimizerOptions

    def learning_rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Return the learning rate of one optimizer step.

        Args:
            step: t, counted from the beginning of the first epoch.
            steps_per_epoch: n, optimizer steps in each epoch.
            epochs: number of epochs of the whole training.
        """
        options = self.options
        warmup = max(1, round(options.warmup_epochs * steps_per_epoch)) if options.warmup_epochs else 0
        if options.lr_schedule == "multistep":
            rate = options.lr
            for _ in range(bisect_right(options.lr_milestones, step // steps_per_epoch)):
                rate *= options.lr_gamma  # one factor at a time, to round as PyTorch's scheduler does
        else:
            progress = min(1.0, max(0, step - warmup) / max(1, epochs * steps_per_epoch - warmup))
            cosine = options.lr_schedule == "cosine"
            rest = (1 + math.cos(math.pi * progress)) / 2 if cosine else (1 - progress) ** options.lr_power
            rate = options.lr * rest
        return rate * min(1.0, (step + 1) / warmup) if warmup else rate


def scaled_learning_rate(options: OptimizerOptions, images_per_update: int) -> float:
    """Return the learning rate by the linear scaling rule: lr * images_per_update / lr_base_batch_size.

    Args:
        options: ``lr`` is the learning rate for ``lr_base_batch_size``; with 0 there, it is not scaled.
        images_per_update: images of all machines per optimizer step.
    """
    base = options.lr_base_batch_size
    return options.lr * images_per_update / base if base else options.lr


def build_optimizer(
    module: nn.Module, options: OptimizerOptions, scales: Mapping[nn.Parameter, float] | None = None
) -> Optimizer:
    """Build the optimizer of a module's trainable parameters, with weight decay on all but batch norms.

    Args:
        module: backbone with or without a head; frozen parameters are skipped.
        options: AdamW has PyTorch's betas (0.9, 0.999) and decoupled weight decay; ``lr`` is that of the first step.
        scales: learning rate factors of some parameters; 1 for the others.

    Returns:
        The optimizer. Each of its groups has its factor under ``LR_SCALE``; that of the first group is the largest.
    """
    lr = options.lr
    of_scale: dict[float, list[dict[str, Any]]] = {}
    for parameters, decay in zip(split_for_weight_decay(module), (options.weight_decay, 0.0), strict=True):
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            parts.setdefault((scales or {}).get(parameter, 1.0), []).append(parameter)
        for scale, part in parts.items():
            group = {"params": part, "weight_decay": decay, "lr": lr * scale, LR_SCALE: scale}
            of_scale.setdefault(scale, []).append(group)
    groups = [group for scale in sorted(of_scale, reverse=True) for group in of_scale[scale]]
    # one pass over the weights; with 16 bits the only implementation that does not wait for the loss scaler
    fused = groups[0]["params"][0].device.type in _FUSED_DEVICES
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=fused)
    return torch.optim.SGD(groups, lr=lr, momentum=options.momentum, fused=fused)


def split_for_weight_decay(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into those with weight decay and those without (batch norms).

    PReLU slopes, the bias of the linear layer and the head's kernel have weight decay too, as in the official code.
    Other norm layers, as in networks of timm, are treated like batch norms.

    Args:
        module: backbone with or without a head.
    """
    norms = {p for m in module.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    trained = [p for p in module.parameters() if p.requires_grad]
    return [p for p in trained if p not in norms], [p for p in trained if p in norms]


def group_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of each parameter group, for ``settle_loaded_state``.

    Args:
        optimizer: as it was built, before any state is loaded.
    """
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def settle_loaded_state(optimizer: Optimizer, options: list[dict[str, Any]]) -> None:
    """Adapt a loaded state to this run: its options, and the memory layout of the weights.

    Loading a state replaces the options of this run by those of the run that saved it (weight decay, momentum, fused),
    and uses the saved memory layout, while fused optimizers need that of the weights.

    Args:
        optimizer: changed in place.
        options: what ``group_options`` returned before the loading.
    """
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
