"""Callbacks that end a training early: on a signal, on a non-finite loss, or if accuracy no longer improves.

None of these Lightning callbacks changes the results of a run.
"""

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from adaface.distributed.watch import InterruptedTrainingError
from adaface.system.lightning_internals import do_not_broadcast_sigterm, in_the_middle_of_an_epoch
from adaface.system.lightning_setup import pl
from adaface.system.threads import in_main_thread
from adaface.training.checkpointing import CheckpointKeeper, resume_hint, validation_is_due

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GUARD_EVERY_STEPS_GPU = 50
_STOP_EVERY_STEPS_GPU = 20


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


class StopOnSignal(pl.Callback):
    """On Ctrl-C or SIGTERM, finish the step, save ``last.ckpt``, and raise ``InterruptedTrainingError``.

    All processes stop at the same step, whichever of them got the signal. A second Ctrl-C stops at once. A running
    validation is finished first, and so is a window of accumulated gradients, because checkpoints do not contain the
    accumulated gradients.

    Args:
        keeper: writes the checkpoints.
    """

    def __init__(self, keeper: CheckpointKeeper) -> None:
        self.keeper = keeper
        self.requested = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Replace Lightning's signal handlers, which end the process group inside a collective."""
        self._children = list(getattr(trainer.strategy.launcher, "procs", []))
        do_not_broadcast_sigterm(trainer)
        for number in _SIGNALS if in_main_thread() else ():
            self._previous[number] = signal.signal(number, self._handle)

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Restore the signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # a batch system sends SIGTERM to every process, and rank 0 has forwarded its own
        self.requested = True
        if number == signal.SIGTERM:  # a terminal sends Ctrl-C to every process, `kill` to one
            for child in self._children:
                child.send_signal(number)

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps of an epoch, unless a validation is due."""
        whole_window = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = validation_is_due(trainer, batch_idx)
        if not whole_window or due or not in_the_middle_of_an_epoch(trainer):
            return
        if self._all_agree(trainer, batch_idx):
            self.keeper.save(trainer)
            raise InterruptedTrainingError(self.keeper.last)

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Stop after a validation inside an epoch; the keeper has already saved."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not in_the_middle_of_an_epoch(trainer):
            return
        if self._all_agree(trainer, None):
            raise InterruptedTrainingError(self.keeper.last)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Stop between two epochs; the keeper has already saved."""
        if trainer.current_epoch + 1 < trainer.max_epochs and self._all_agree(trainer, None):
            raise InterruptedTrainingError(self.keeper.last)

    def _all_agree(self, trainer: "pl.Trainer", batch_idx: int | None) -> bool:
        """Return whether any process was asked to stop; checked rarely on GPUs, because it synchronizes."""
        if trainer.world_size == 1:
            return self.requested
        on_gpu = trainer.strategy.root_device.type == "cuda"
        if batch_idx is not None and on_gpu and (batch_idx + 1) % _STOP_EVERY_STEPS_GPU:
            return False
        return trainer.strategy.reduce_boolean_decision(self.requested, all=False)


class NonFiniteLossGuard(pl.Callback):
    """Stop when the loss is infinite or not a number, and name the first such step.

    The first bad step is stored on the device and read from time to time, so that a GPU never waits for it; it is
    always read before anything is saved.

    Args:
        folder: run folder, for the message.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first_bad: Tensor | None = None

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record a bad loss; read the record from time to time."""
        loss = outputs["loss"].detach()
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, dtype=torch.long, device=loss.device)
        step = torch.full_like(self._first_bad, trainer.fit_loop.total_batch_idx)
        bad = ~torch.isfinite(loss) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, step, self._first_bad)
        if loss.device.type == "cpu" or (batch_idx + 1) % _GUARD_EVERY_STEPS_GPU == 0:
            self._check()

    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Check before a checkpoint can be written, and before non-finite weights fail in the validation."""
        self._check()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_weights(trainer, pl_module.state_dict())

    def on_save_checkpoint(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        """Raise an error before non-finite weights replace good ones: a bad update can follow a finite loss."""
        self._check()
        self._check_weights(trainer, checkpoint["state_dict"])

    def _check_weights(self, trainer: "pl.Trainer", weights: dict[str, Tensor]) -> None:
        bad = next((k for k, v in weights.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)
        # with a sharded head, one process may have the bad shard: all must stop, or the others wait for it
        if trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
            step, where = trainer.fit_loop.total_batch_idx, f"{bad} is the first" if bad else "in another process"
            raise self._error(f"the weights are not finite after step {step} ({where})")

    def _check(self) -> None:
        if self._first_bad is not None and int(self._first_bad) >= 0:
            raise self._error(f"the loss was not finite at step {int(self._first_bad)}")

    def _error(self, what: str) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"{what}; run folder {self.folder}, {resume_hint(self.folder / 'last.ckpt')}. Usual causes: a learning "
            "rate too high for the batch size (try --lr divided by 10), --precision 16-mixed where bf16-mixed or 32 "
            "would do, damaged images"
        )


class EarlyStopping(pl.Callback):
    """Stop after a number of consecutive epochs without a better mean accuracy.

    Differs from Lightning's callback of this name: it stops only between two epochs, where a checkpoint resumes
    exactly; the patience is that of the command line, not of the checkpoint; a run that it has ended ends at once when
    the same command is given again.

    It must be called before the callback that writes the checkpoints, so that they contain its count.

    Args:
        patience: epochs, 1 or more.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.waited = 0
        self._newest: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this callback."""
        return {"best": self.best, "waited": self.waited, "newest": self._newest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        self._newest = state_dict.get("newest")  # of an interrupted epoch; missing in older checkpoints

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Stop at once if the resumed run had ended."""
        self._decide(trainer)

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Record the best accuracy of the epoch."""
        accuracy = trainer.callback_metrics.get("val_acc")
        if accuracy is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._newest = max(float(accuracy), self._newest or 0.0)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Count; all processes have the same accuracies, so they make the same decision."""
        newest, self._newest = self._newest, None
        if newest is None:
            return
        if self.best is None or newest > self.best:
            self.best, self.waited = newest, 0
        else:
            self.waited += 1
        self._decide(trainer)

    def _decide(self, trainer: "pl.Trainer") -> None:
        if self.waited < self.patience:
            return
        trainer.should_stop = True
        if trainer.is_global_zero:
            logger.info(
                f"stopped early: the mean accuracy has not been above {self.best:.2f} for {self.waited} epoch(s) "
                f"(--early_stopping_patience {self.patience})"
            )
