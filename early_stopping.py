"""End a training that no longer gets better.

Differs from Lightning's callback of this name: it decides between two epochs alone, where a checkpoint resumes exactly;
the patience is that of the command line, not of the checkpoint; a run that has ended by it ends at once when the same
command is given again.
"""

from typing import Any

from lightning_setup import pl


class EarlyStopping(pl.Callback):
    """Stop after so many epochs in a row whose validations brought no better mean accuracy.

    To be called before what writes the checkpoints, so that its count is in them.

    Args:
        patience: epochs, 1 or more.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.waited = 0
        self._newest: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know."""
        return {"best": self.best, "waited": self.waited, "newest": self._newest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        self._newest = state_dict.get("newest")  # of an epoch that was stopped inside; older checkpoints have none

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Train no further where the run that is resumed had ended."""
        self._decide(trainer)

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Note the best accuracy of the epoch."""
        accuracy = trainer.callback_metrics.get("val_acc")
        if accuracy is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._newest = max(float(accuracy), self._newest or 0.0)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Count; all processes have the same accuracies, and come to the same end."""
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
            print(
                f"stopped early: the mean accuracy has not been above {self.best:.2f} for {self.waited} epoch(s) "
                f"(--early_stopping_patience {self.patience})",
                flush=True,
            )
