"""The progress line of a training."""

import logging
import math
import sys
import time
from typing import Any

from tqdm import tqdm

from adaface.system.devices import peak_memory
from adaface.system.lightning_internals import in_the_middle_of_an_epoch, position
from adaface.system.lightning_setup import pl

logger = logging.getLogger(__name__)

MUCH_WAITING = 0.2  # a warning is printed if steps wait for data for more than this share of the time
_JUDGED_AFTER_STEPS = 50


class ProgressLine(pl.callbacks.ProgressBar):
    """One line: epoch, loss, learning rate, images/s, waiting for data, peak memory and remaining time.

    Each validation adds a line, and so does, once, a data loading bottleneck. On a terminal the line is
    redrawn in place; in a log file a plain line appears every ``log_every_sec`` seconds.

    Args:
        batch_size: images per step over all processes.
        log_every_sec: seconds between two lines if the output is not a terminal.
    """

    def __init__(self, batch_size: int, *, log_every_sec: float = 30.0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.terminal = sys.stderr.isatty()
        self.every_sec = 0.5 if self.terminal else log_every_sec
        self._hidden = False
        self._name = ""
        self._shown = self._waited_before = 0.0
        self._steps_since = 0
        self._bar: tqdm[Any] | None = None
        self._validation: tqdm[Any] | None = None

    def disable(self) -> None:
        """Hide the bar; Lightning calls this on ranks other than 0."""
        self._hidden = True

    def enable(self) -> None:
        """Show the bar."""
        self._hidden = False

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Start measuring the time of the whole training, including validations."""
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._waited = self._worked = 0.0
        self._judged_steps = 0
        self._warned = False

    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Open the epoch's line."""
        if not self._hidden:
            self._open_line(trainer)

    def _open_line(self, trainer: "pl.Trainer") -> None:
        self._begin_interval(trainer)
        self._name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._bar = tqdm(
            total=trainer.num_training_batches,
            desc=self._name,
            leave=False,
            disable=not self.terminal,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Record the first position; open the line of an epoch resumed inside it, which Lightning does not announce."""
        if self._first_step is None:
            self._first_step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        if not self._hidden and self._bar is None:
            self._open_line(trainer)

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw at most every ``every_sec``, because reading the loss synchronizes a GPU."""
        if self._hidden or self._bar is None:
            return
        self._steps_since += 1
        now = time.monotonic()
        if now - self._shown < self.every_sec and batch_idx + 1 < trainer.num_training_batches:
            return
        rate = self._steps_since * self.batch_size / max(now - self._shown, 1e-9)
        waited = _waited_sec(trainer) - self._waited_before
        waiting = waited / max(now - self._shown, 1e-9)
        peak = peak_memory(trainer.strategy.root_device.type)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        line = (
            f"loss {float(outputs['loss']) * trainer.accumulate_grad_batches:.3f}, lr {lr:.4g}, "
            f"{rate:{'.3g' if rate < 10 else ',.0f'}} images/s, {waiting:.0%} waiting for data, {peak / 1e9:.1f} GB, "
            f"{duration(self._remaining_sec(trainer, batch_idx, now))} left"
        )
        if self.terminal:
            self._bar.n = batch_idx + 1
            self._bar.set_postfix_str(line)
        else:
            logger.info(f"{self._name} batch {batch_idx + 1}/{trainer.num_training_batches}: {line}")
        self._judge_input(waited, now)
        self._begin_interval(trainer)

    def _begin_interval(self, trainer: "pl.Trainer") -> None:
        """Reset the counters of the next line."""
        self._shown, self._steps_since = time.monotonic(), 0
        self._waited_before = _waited_sec(trainer)

    def _judge_input(self, waited_sec: float, now: float) -> None:
        """Warn once, after enough steps, if data loading is the bottleneck."""
        self._waited += waited_sec
        self._worked += now - self._shown
        self._judged_steps += self._steps_since
        waiting = self._waited / max(self._worked, 1e-9)
        if self._judged_steps >= _JUDGED_AFTER_STEPS and waiting > MUCH_WAITING and not self._warned:
            self._warned = True
            _log(logging.WARNING, f"warning: {input_bottleneck(waiting)}")

    def _remaining_sec(self, trainer: "pl.Trainer", batch_idx: int, now: float) -> float:
        batches, first = int(trainer.num_training_batches), self._first_step or 0
        done = trainer.current_epoch * batches + batch_idx + 1 - first
        return (now - self._started) * (trainer.max_epochs * batches - first - done) / done

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Close the epoch's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Open a line for the validation."""
        self._open_evaluation("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance by one batch."""
        self._step_evaluation()

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Log the accuracies."""
        self._close_evaluation()
        if self._hidden or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        sets = ", ".join(f"{r.name} {r.accuracy:.2f}" for r in pl_module.results)
        metric = trainer.callback_metrics.get("val_acc", math.nan)
        loss = trainer.callback_metrics.get("train_loss")
        shown = "" if loss is None else f"loss {float(loss):.3f}, "
        place = f"epoch {trainer.current_epoch + 1}"
        if in_the_middle_of_an_epoch(trainer):
            place += f", batch {position(trainer)[1]:,} of {int(trainer.num_training_batches):,}"
        _log(
            logging.INFO,
            f"{place}: {shown}val_acc {float(metric):.2f} ({sets or 'no complete pairs'})",
        )
        self._begin_interval(trainer)

    def on_test_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Open a line for the test."""
        self._open_evaluation("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance by one batch."""
        self._step_evaluation()

    def on_test_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Close the test's line."""
        self._close_evaluation()

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Close the line before the error message."""
        self._close_evaluation()
        if self._bar is not None:
            self._bar.close()

    def _open_evaluation(self, name: str, total: float) -> None:
        if not self._hidden:
            self._validation = tqdm(
                total=int(total), desc=self._name, leave=False, disable=not self.terminal, dynamic_ncols=True
            )

    def _step_evaluation(self) -> None:
        if self._validation is not None:
            self._validation.update()

    def _close_evaluation(self) -> None:
        if self._validation is not None:
            self._validation.close()
            self._validation = None


def _log(level: int, line: str) -> None:
    """Log a line; clear an open bar before and redraw it after."""
    with tqdm.external_write_mode():
        logger.log(level, line)


def _waited_sec(trainer: "pl.Trainer") -> float:
    """Return how long this process has waited for training batches so far."""
    return getattr(trainer.train_dataloader, "waited_sec", 0.0)


def input_bottleneck(waiting: float) -> str:
    """Return the warning that steps wait for data, with advice.

    Args:
        waiting: waiting share of the time, in [0, 1].
    """
    return (
        f"data loading is the bottleneck: {waiting:.0%} of the time is spent waiting for data. Use more --num_workers "
        "if there are free cores, a faster disk (or --use_mxrecord on a slow one), or lower augmentation probabilities"
    )


def duration(seconds: float) -> str:
    """Return a time as h:mm:ss, or m:ss below an hour.

    Args:
        seconds: duration, from 0.
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
