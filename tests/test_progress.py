import io
from types import SimpleNamespace

import pytest
import torch

import progress
from progress import ProgressLine


def fake_trainer(batches=4, epochs=2):
    trainer = SimpleNamespace(
        current_epoch=0,
        max_epochs=epochs,
        num_training_batches=batches,
        num_val_batches=[2],
        accumulate_grad_batches=1,
        sanity_checking=False,
        callback_metrics={"val_acc": torch.tensor(81.5), "train_loss": torch.tensor(7.25)},
        state=SimpleNamespace(fn="fit"),
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
    )
    trainer.fit_loop = SimpleNamespace(
        restarting=False, epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0)))
    )
    return trainer


def train_one_epoch(line, trainer):
    line.on_train_start(trainer, None)
    line.on_train_epoch_start(trainer, None)
    for batch in range(trainer.num_training_batches):
        trainer.fit_loop.epoch_loop.batch_progress.current.ready = batch + 1
        # the module sets each step's own learning rate, after the callbacks' start of the batch
        line.on_train_batch_start(trainer, None, None, batch)
        trainer.optimizers[0].param_groups[0]["lr"] = 0.01 if batch + 1 == trainer.num_training_batches else 0.1
        line.on_train_batch_end(trainer, None, {"loss": torch.tensor(7.25)}, None, batch)
    line.on_validation_start(trainer, None)
    line.on_validation_batch_end()
    line.on_validation_end(trainer, SimpleNamespace(results=[SimpleNamespace(name="lfw", accuracy=81.5)]))
    line.on_train_epoch_end(trainer, None)


def test_a_log_file_gets_plain_lines(capsys):
    train_one_epoch(ProgressLine(8, log_every_sec=1000), fake_trainer())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 1/2 batch 4/4: loss 7.250, lr 0.01, ")
    assert "images/s, " in lines[0]
    assert lines[0].endswith("left")
    assert lines[1:] == ["epoch 1: loss 7.250, val_acc 81.50 (lfw 81.50)"]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    line = ProgressLine(8)
    assert line.terminal
    train_one_epoch(line, fake_trainer())
    assert "val_acc 81.50" in capsys.readouterr().out


def test_other_ranks_are_silent(capsys):
    line = ProgressLine(8)
    line.disable()
    train_one_epoch(line, fake_trainer())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61.4, "1:01"), (3599.6, "1:00:00"), (90_000, "25:00:00")])
def test_durations(seconds, shown):
    assert progress._duration(seconds) == shown
