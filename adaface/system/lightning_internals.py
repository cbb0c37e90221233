"""Every use of undocumented parts of Lightning, PyTorch and Python; for pytorch-lightning 2.6.6 and torch 2.13.0.

After an upgrade, check this module against their source code.
"""

import atexit
import multiprocessing.queues
import os
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning_fabric.utilities import distributed
from torch import nn
from torch._utils import ExceptionWrapper
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from adaface.system.lightning_setup import pl

_OBSERVER_GRACE_SEC = 15.0  # longer than ``distributed/watch.py`` takes to report a lost process and to end this one


class DataParallelStrategy(pl.strategies.DDPStrategy):
    """Lightning's DistributedDataParallel strategy, on the current stream and the visible GPUs.

    Differs from Lightning's: the module is wrapped on the current stream. Lightning wraps it on a side stream, and
    PyTorch 2.10 and later then warns in every run that the streams of AccumulateGrad nodes do not match. And where each
    process of a machine sees only its own GPU (SLURM's ``--gpus-per-task``), it uses that one.
    """

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        devices = self.parallel_devices
        return devices[self.local_rank % len(devices)]

    def configure_ddp(self) -> None:
        """Wrap the module, and register the hook that compresses gradients; it works on every device."""
        model = DistributedDataParallel(
            self.model,  # type: ignore[has-type]
            device_ids=self.determine_ddp_device_ids(),
            **self._ddp_kwargs,
        )
        if self._ddp_comm_hook is not None:
            model.register_comm_hook(None, self._ddp_comm_hook)
        self.model = model


class _PatientObserver(_ChildProcessObserver):
    """Lightning's observer of the processes that it started, which kills this process when one of them has died.

    It looks every five seconds. If it looks between the death of a process and the report of our watch, it kills this
    process before the report is printed. This one gives the watch the time to report and to end the run by itself.
    """

    def _terminate_all(self) -> None:
        time.sleep(_OBSERVER_GRACE_SEC)
        super()._terminate_all()


def let_the_watch_report_first() -> None:
    """Make Lightning wait, before it kills all processes because one has died, until the watch has reported it."""

    def observe(child_processes: list[subprocess.Popen[bytes]]) -> None:
        _PatientObserver(child_processes=child_processes, main_pid=os.getpid()).start()

    pl.strategies.launchers.subprocess_script._launch_process_observer = observe


def in_the_middle_of_an_epoch(trainer: "pl.Trainer") -> bool:
    """Return whether the current epoch has batches left."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed < trainer.num_training_batches


def position(trainer: "pl.Trainer") -> tuple[int, int]:
    """Return the current epoch and the number of its processed batches.

    Args:
        trainer: while fitting, between two batches.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    if epochs.processed > epochs.completed:  # between two epochs
        return epochs.processed, 0
    # `processed`, not `completed`: a checkpoint written in on_train_batch_end would count its own batch twice
    return epochs.completed, trainer.fit_loop.epoch_loop.batch_progress.current.processed


def set_epoch_length(trainer: "pl.Trainer", batches: int) -> None:
    """Set the number of batches of this epoch; the fit loop would use that of the first epoch.

    Args:
        trainer: at the beginning of an epoch.
        batches: number of batches of this epoch.
    """
    loop = trainer.fit_loop
    if trainer.limit_train_batches == 1.0 and loop.max_batches != batches:
        if trainer.val_check_batch == loop.max_batches:
            trainer.val_check_batch = batches
        loop.max_batches = batches


def do_not_broadcast_sigterm(trainer: "pl.Trainer") -> None:
    """Disable Lightning's check in every step whether any process got SIGTERM, which synchronizes all processes.

    Args:
        trainer: at the start of the training.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def unscales_in_its_step(optimizer: Optimizer | Any) -> bool:
    """Return whether an optimizer unscales the gradients itself, as fused ones do.

    Args:
        optimizer: PyTorch's, or Lightning's wrapper of it.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def leave_out_of_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Exclude parameters from the synchronization of DistributedDataParallel, besides those that already are.

    Args:
        module: the module, before it is wrapped.
        names: names of the parameters.
    """
    excluded = getattr(module, "_ddp_params_and_buffers_to_ignore", [])
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, [*excluded, *names])


def send_errors_of_queues() -> None:
    """Send an error in place of a batch that a data worker cannot send, for lack of memory or of open files.

    Call it in a worker. Python's queues print the error and drop the batch, for which the program would wait forever.
    """

    def send(queue: Any, error: Exception, batch: tuple[int, Any]) -> None:
        queue.put((batch[0], ExceptionWrapper((type(error), error, None), "in DataLoader worker process")))

    multiprocessing.queues.Queue._on_queue_feeder_error = send  # type: ignore[attr-defined]


def unregister_end_of_process_group() -> None:
    """Keep Lightning from destroying an NCCL process group at exit, which waits for processes that may be gone."""
    atexit.unregister(distributed._destroy_dist_connection)


def run_exit_functions() -> None:
    """Run the functions registered with ``atexit`` now, for a process that ends by ``os._exit``."""
    atexit._run_exitfuncs()
