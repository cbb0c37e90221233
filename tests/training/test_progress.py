import io
import re
from types import SimpleNamespace

import pytest
import torch

from adaface.training import progress
from adaface.training.progress import ProgressLine

pytestmark = pytest.mark.usefixtures("training_screen")


def fake_trainer(batches=4, epochs=2):
    return SimpleNamespace(
        current_epoch=0,
        max_epochs=epochs,
        num_training_batches=batches,
        num_val_batches=[2],
        accumulate_grad_batches=1,
        sanity_checking=False,
        callback_metrics={"val_acc": torch.tensor(81.5), "train_loss": torch.tensor(7.25)},
        state=SimpleNamespace(fn="fit"),
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        train_dataloader=SimpleNamespace(waited_sec=0.0),
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0, completed=0)),
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=batches))),
        ),
    )


def train_one_epoch(line, trainer):
    line.on_train_start(trainer, None)
    line.on_train_epoch_start(trainer, None)
    for batch in range(trainer.num_training_batches):
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
    assert re.search(r" images/s, \d+% waiting for data, ", lines[0])
    assert " GB, " in lines[0]
    assert lines[0].endswith("left")
    assert lines[1:] == ["epoch 1: loss 7.250, val_acc 81.50 (lfw 81.50)"]


def test_a_validation_inside_an_epoch_names_the_batch(capsys):
    trainer = fake_trainer(batches=1200)
    trainer.fit_loop.epoch_loop.batch_progress.current.processed = 120
    ProgressLine(8).on_validation_end(trainer, SimpleNamespace(results=[SimpleNamespace(name="lfw", accuracy=81.5)]))
    assert capsys.readouterr().out == "epoch 1, batch 120 of 1,200: loss 7.250, val_acc 81.50 (lfw 81.50)\n"


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
    assert progress.duration(seconds) == shown


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def train_with_a_slow_input(monkeypatch, capsys, load_sec, step_sec, steps):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    line, trainer = ProgressLine(8, log_every_sec=30), fake_trainer(batches=steps)
    line.on_train_start(trainer, None)
    line.on_train_epoch_start(trainer, None)
    for batch in range(steps):
        clock.now += load_sec
        trainer.train_dataloader.waited_sec += load_sec
        line.on_train_batch_start(trainer, None, None, batch)
        clock.now += step_sec
        line.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)}, None, batch)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("epoch", "batch", "left"), [(0, 0, "0:07"), (1, 0, "0:03"), (1, 2, "0:01")])
def test_the_time_left_goes_by_the_steps_of_this_start(monkeypatch, capsys, epoch, batch, left):
    """Of a run that begins, that is resumed between two epochs, and inside one: a second a step, one of 2 x 4 done."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    line, trainer = ProgressLine(8, log_every_sec=0.5), fake_trainer()
    line.on_train_start(trainer, None)
    trainer.current_epoch = epoch
    line.on_train_batch_start(trainer, None, None, batch)
    clock.now += 1.0
    line.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)}, None, batch)
    assert capsys.readouterr().out.rstrip().endswith(f"{left} left")


def test_the_share_of_waiting_is_shown_and_warned_of_once(monkeypatch, capsys):
    lines = train_with_a_slow_input(monkeypatch, capsys, load_sec=0.3, step_sec=0.7, steps=200)
    warnings = [line for line in lines if line.startswith("warning")]
    assert warnings == [f"warning: {progress.input_bottleneck(0.3)}"]
    assert "30% of the time" in warnings[0]
    shown = [line for line in lines if "images/s" in line]
    assert len(shown) == 7
    assert all("8 images/s, 30% waiting for data" in line for line in shown)
    assert lines.index(warnings[0]) == 2  # after the 60th step: 50 are needed


def test_little_waiting_is_not_warned_of(monkeypatch, capsys):
    lines = train_with_a_slow_input(monkeypatch, capsys, load_sec=0.1, step_sec=0.9, steps=200)
    assert not [line for line in lines if line.startswith("warning")]
    assert all("10% waiting for data" in line for line in lines)


def test_a_run_that_is_resumed_inside_an_epoch_shows_its_line(capsys):
    line, trainer = ProgressLine(8), fake_trainer()
    line.on_train_start(trainer, None)
    line.on_train_batch_start(trainer, None, None, 3)  # Lightning does not start the epoch again
    line.on_train_batch_end(trainer, None, {"loss": torch.tensor(7.25)}, None, 3)
    assert capsys.readouterr().out.startswith("epoch 1/2 batch 4/4: loss 7.250")
