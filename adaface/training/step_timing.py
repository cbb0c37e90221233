"""Time a few training steps for the plan of a run, with its devices, loader and precision."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from adaface.data.module import FaceDataModule
from adaface.system.devices import peak_memory
from adaface.system.lightning_setup import pl
from adaface.training.module import FaceRecognitionModule

_WARM_UP_STEPS = 2
_MOST_STEPS, _MOST_SEC = 12, 30.0
_EVALUATED_BATCHES = 3
_LOADING_SEC = 2.0


@dataclass(frozen=True)
class Measured:
    """Measurements of a few steps on this process.

    Attributes:
        step_sec: one training step, without waiting for data.
        load_sec: one batch from the loader, without training.
        loads_in_turn: whether there are no data workers, so that each step waits for its batch.
        embed_sec: one evaluation batch, both flips; 0 without verification sets.
        peak_bytes: peak memory.
    """

    step_sec: float
    load_sec: float
    loads_in_turn: bool
    embed_sec: float
    peak_bytes: float

    @property
    def batch_sec(self) -> float:
        """One step including waiting for data."""
        return self.step_sec + self.load_sec if self.loads_in_turn else max(self.step_sec, self.load_sec)


class StepClock(pl.Callback):
    """Time steps, including the device's work, and end the training after a few of them.

    Attributes:
        step_sec: duration of each training step after the first ones.
        embed_sec: duration of each evaluation batch after the first one.
    """

    def __init__(self) -> None:
        self.step_sec: list[float] = []
        self.embed_sec: list[float] = []
        self._began = self._first = 0.0

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Start the time limit of all steps."""
        self._first = time.monotonic()

    def on_train_batch_start(self, trainer: "pl.Trainer", *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = _now(trainer)

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; stop the training when all processes have measured enough."""
        ended = _now(trainer)
        self.step_sec.append(ended - self._began)
        enough = batch_idx + 1 >= _WARM_UP_STEPS + 1 and ended - self._first > _MOST_SEC
        enough = enough or len(self.step_sec) >= _MOST_STEPS
        if trainer.strategy.reduce_boolean_decision(enough, all=False):
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: "pl.Trainer", *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = _now(trainer)

    def on_validation_batch_end(self, trainer: "pl.Trainer", *args: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.embed_sec.append(_now(trainer) - self._began)


def _now(trainer: "pl.Trainer") -> float:
    """Return the time after the device has finished its work."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def measure(trainer: "pl.Trainer", module: FaceRecognitionModule, data: FaceDataModule, clock: StepClock) -> Measured:
    """Time a few steps, and embed and load a few batches; every process of the run calls this.

    Args:
        trainer: has ``clock`` among its callbacks, validates a few batches and logs nothing.
        module: trained for a few steps.
        data: opened.
        clock: callback of this trainer.
    """
    trainer.fit(module, data)
    if data.pair_sets:
        trainer.validate(module, datamodule=data, verbose=False)
    steps = clock.step_sec[min(_WARM_UP_STEPS, len(clock.step_sec) - 1) :]
    embedded = clock.embed_sec[min(1, len(clock.embed_sec) - 1) :]
    return Measured(
        step_sec=statistics.median(steps),
        load_sec=_loading_sec(data.train_dataloader()),
        loads_in_turn=data.num_workers == 0,
        embed_sec=statistics.median(embedded) if embedded else 0.0,
        peak_bytes=peak_memory(trainer.strategy.root_device.type),
    )


def _loading_sec(loader: DataLoader[Any]) -> float:
    """Return the seconds per batch of a loader while nothing is trained."""
    ahead = 1 + loader.num_workers * (loader.prefetch_factor or 0)
    batches = _endless(loader)
    # skip the batches loaded at the start; for a short epoch, measure all, including the start of the workers
    for _ in range(min(ahead, len(loader))):
        next(batches)
    started, loaded = time.monotonic(), 0
    while loaded < len(loader) and time.monotonic() - started < _LOADING_SEC:
        next(batches)
        loaded += 1
    return (time.monotonic() - started) / loaded


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def build_trainer(arguments: dict[str, Any], clock: StepClock, accumulate_grad_batches: int) -> "pl.Trainer":
    """Build the trainer for ``measure``.

    Args:
        arguments: of ``training.trainer.device_arguments``.
        clock: times the steps.
        accumulate_grad_batches: batches whose gradients are accumulated per optimizer step.
    """
    return pl.Trainer(
        **arguments,
        max_epochs=-1,
        accumulate_grad_batches=accumulate_grad_batches,
        limit_val_batches=_EVALUATED_BATCHES,
        check_val_every_n_epoch=None,
        val_check_interval=_MOST_STEPS * 10,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
