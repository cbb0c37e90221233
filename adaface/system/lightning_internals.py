"""Every use of what Lightning, PyTorch and Python do not document, for pytorch-lightning 2.6.6 and torch 2.13.0.

After an upgrade this is the one module to compare with theirs.
"""

import atexit
from collections.abc import Sequence
from typing import Any

from lightning_fabric.utilities import distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from adaface.system.lightning_setup import pl


def in_the_middle_of_an_epoch(trainer: "pl.Trainer") -> bool:
    """Whether batches of the current epoch are still to come."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed < trainer.num_training_batches


def position(trainer: "pl.Trainer") -> tuple[int, int]:
    """Return the epoch in which a training is, and how many of its batches are done.

    Args:
        trainer: in training, between two batches.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    if epochs.processed > epochs.completed:  # between two epochs
        return epochs.processed, 0
    # `processed`, not `completed`: a checkpoint written in on_train_batch_end would count its own batch twice
    return epochs.completed, trainer.fit_loop.epoch_loop.batch_progress.current.processed


def set_epoch_length(trainer: "pl.Trainer", batches: int) -> None:
    """Let the fit loop know how many batches this epoch has; it would go by those of the first epoch.

    Args:
        trainer: at the beginning of an epoch.
        batches: of this epoch.
    """
    loop = trainer.fit_loop
    if trainer.limit_train_batches == 1.0 and loop.max_batches != batches:
        if trainer.val_check_batch == loop.max_batches:
            trainer.val_check_batch = batches
        loop.max_batches = batches


def do_not_broadcast_sigterm(trainer: "pl.Trainer") -> None:
    """Keep Lightning from asking all processes at every step whether one of them got SIGTERM, and waiting for it.

    Args:
        trainer: at the start of the training.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def unscales_in_its_step(optimizer: Optimizer | Any) -> bool:
    """Whether an optimizer divides the gradients by the loss scale itself, as the fused ones do.

    Args:
        optimizer: that a trainer steps.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def leave_out_of_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Keep DistributedDataParallel from synchronizing some parameters, of which each process has another part.

    Args:
        module: that is wrapped later.
        names: last part of the parameters' names.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))


def unregister_end_of_process_group() -> None:
    """Keep Lightning from ending an NCCL process group when Python exits: that waits for processes that may be gone."""
    atexit.unregister(distributed._destroy_dist_connection)


def run_exit_functions() -> None:
    """Run what is registered with ``atexit`` now, for a process that then ends without Python's own exit."""
    atexit._run_exitfuncs()
