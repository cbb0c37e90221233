"""The checkpoints of a run: when they are written, under which names, and how to resume from them."""

import os
import shutil
from pathlib import Path
from typing import Any

from adaface.checkpoints import folders
from adaface.checkpoints.files import REST, load_checkpoint, not_written, save_checkpoint
from adaface.checkpoints.sharded import name_save, write_head
from adaface.system.command_line import invocation
from adaface.system.files import atomic_file, atomic_path
from adaface.system.lightning_internals import in_the_middle_of_an_epoch
from adaface.system.lightning_setup import pl


def validation_is_due(trainer: "pl.Trainer", batch_idx: int) -> bool:
    """Return whether a validation follows this batch.

    Args:
        trainer: the trainer, during training.
        batch_idx: index of the batch in its epoch.
    """
    return bool(trainer.val_check_batch) and (batch_idx + 1) % trainer.val_check_batch == 0


def resume_hint(checkpoint: Path) -> str:
    """Return the command that resumes from a checkpoint, or a note if there is no checkpoint yet."""
    if checkpoint.exists():
        return f"resume with: {invocation('train')} --resume_from_checkpoint {checkpoint}"
    return "no checkpoint was saved yet: start the run again"


class CheckpointKeeper(pl.Callback):
    """Write ``best.ckpt`` (highest ``val_acc``) and ``last.ckpt``, and with ``save_all`` one file per validation.

    Differs from Lightning's ModelCheckpoint: nothing is saved between the last batch of an epoch and its end, so
    that a checkpoint is either inside an epoch or between two, and each resumes exactly.

    With a sharded head, each of them is a link to a folder (``checkpoints/folders.py``).

    Args:
        folder: run folder.
        save_all: keep every checkpoint.
        every_steps: also write ``last.ckpt`` every this many optimizer steps inside an epoch; 0: never.
    """

    def __init__(self, folder: Path, *, save_all: bool = False, every_steps: int = 0) -> None:
        self.folder = folder
        self.save_all = save_all
        self.every_steps = every_steps
        self.best_val_acc: float | None = None
        self._newest: float | None = None

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best mean validation accuracy."""
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this callback: the best accuracy so far."""
        return {"best_val_acc": self.best_val_acc}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best accuracy so far, if its checkpoint is in this folder."""
        self.best_val_acc = state_dict["best_val_acc"] if self.best.exists() else None

    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Check that all machines share the run folder, before the first checkpoint."""
        if trainer.world_size > 1 and trainer.lightning_module.sharded_head and not trainer.fast_dev_run:
            part = self._new_part(trainer)
            if trainer.is_global_zero:
                part.rmdir()

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every ``every_steps`` steps, unless a validation is due, which also saves."""
        every = self.every_steps * trainer.accumulate_grad_batches
        if not every or (batch_idx + 1) % every or trainer.fast_dev_run:
            return
        if not validation_is_due(trainer, batch_idx) and in_the_middle_of_an_epoch(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Record the accuracy; save inside an epoch (at its end, ``on_train_epoch_end`` saves)."""
        if trainer.sanity_checking or trainer.fast_dev_run or trainer.state.fn != "fit":
            return
        metric = trainer.callback_metrics.get("val_acc")
        self._newest = None if metric is None else float(metric)
        if in_the_middle_of_an_epoch(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Save between two epochs."""
        if not trainer.fast_dev_run:
            self.save(trainer)

    def save(self, trainer: "pl.Trainer") -> None:
        """Write ``last.ckpt``, and ``best.ckpt`` if the latest accuracy is the best.

        Called on all ranks; ``last.ckpt`` is written last, so that a run killed in between repeats the validation.
        """
        accuracy, self._newest = self._newest, None
        improved = accuracy is not None and (self.best_val_acc is None or accuracy > self.best_val_acc)
        if improved:
            self.best_val_acc = accuracy
        kept = f"epoch={trainer.current_epoch:03d}-step={trainer.global_step:07d}-val_acc={accuracy or 0:.2f}.ckpt"
        names = [
            *([self.best.name] if improved else []),
            *([kept] if self.save_all and accuracy is not None else []),
            self.last.name,
        ]
        write = self._write_folder if trainer.lightning_module.sharded_head else self._write_file
        try:
            write(trainer, names)
        except OSError as error:
            raise not_written(self.folder / names[0], error) from error
        trainer.strategy.barrier("checkpoint")

    def _write_file(self, trainer: "pl.Trainer", names: list[str]) -> None:
        """Write one file under several names, on rank 0."""
        written = self.folder / names[0]
        trainer.save_checkpoint(written)
        if trainer.is_global_zero:
            for name in names[1:]:
                _link(written, self.folder / name)
            folders.delete_unlinked(self.folder)  # from a run whose head was sharded before the resume

    def _write_folder(self, trainer: "pl.Trainer", names: list[str]) -> None:
        """Write this process's shard of the head, and on rank 0 the rest."""
        part = self._new_part(trainer)
        trainer.save_checkpoint(part / REST)
        write_head(part, trainer.lightning_module.sharded_head, trainer.optimizers[0])
        trainer.strategy.barrier("checkpoint parts")
        if trainer.is_global_zero:
            folders.publish(self.folder, part, trainer.global_step, names)

    def _new_part(self, trainer: "pl.Trainer") -> Path:
        """Return a new checkpoint folder, the same in all processes.

        Raises:
            RuntimeError: raised in all processes if one of them does not see it.
        """
        made = folders.begin(self.folder).name if trainer.is_global_zero else ""
        part = self.folder / folders.FOLDER / trainer.strategy.broadcast(made)
        if trainer.strategy.reduce_boolean_decision(not part.is_dir(), all=False):
            raise RuntimeError(
                f"not all machines see the folder {self.folder}, to which each process writes its shard of the "
                "head: give a --run_folder, or an --output_dir, that all of them share"
            )
        return part


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``; both files are only replaced, never modified."""
    try:
        with atomic_path(target) as part:
            os.link(source, part)
    except OSError:  # a file system without hard links
        with source.open("rb") as file, atomic_file(target) as copy:
            shutil.copyfileobj(file, copy)


class AtomicCheckpointIO(pl.plugins.io.TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically, read with ``weights_only`` only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` with ``checkpoints.files.save_checkpoint``."""
        name_save(checkpoint, Path(path).parent)
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read a checkpoint with ``checkpoints.files.load_checkpoint``, whatever the other arguments."""
        return load_checkpoint(path)
