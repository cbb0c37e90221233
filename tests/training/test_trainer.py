import pytest

from adaface.config.options import OptimizerOptions, RunOptions
from adaface.training.trainer import validation_interval, validation_note


@pytest.mark.parametrize(
    ("batches", "window", "epochs", "fraction", "expected"),
    [
        (1200, 1, 4, 0.0, 120),  # as in the official code
        (1205, 1, 4, 0.0, 120),
        (1200, 7, 4, 0.0, 119),  # a multiple of the accumulation window
        (1200, 1, 5, 0.0, 1.0),
        (1200, 1, 5, 0.1, 120),
        (1200, 1, 1, 1.0, 1.0),
        (1200, 1, 1, 0.5, 600),
        (100, 1, 1, 0.29, 29),
        (9, 1, 1, 0.0, 1.0),  # a tiny set is not validated after every step
        (9, 1, 9, 0.1, 2),  # even if asked to
        (4, 1, 9, 0.1, 2),
        (4, 1, 9, 0.75, 3),
        (1, 1, 9, 0.1, 1.0),
        (3, 2, 9, 0.1, 1.0),
        (8, 3, 9, 0.1, 6),
        (2, 3, 9, 0.1, 1.0),
        (19, 1, 1, 0.0, 1.0),
        (25, 1, 1, 0.0, 12),
        (99, 1, 1, 0.0, 11),
        (100, 1, 1, 0.0, 10),
        (99, 3, 1, 0.0, 33),
        (2, 3, 1, 0.0, 1.0),
    ],
)
def test_validations_are_a_fraction_of_an_epoch_apart(batches, window, epochs, fraction, expected):
    options = OptimizerOptions(epochs=epochs, accumulate_grad_batches=window, val_every_epochs=fraction)
    assert validation_interval(batches, RunOptions(), options) == expected


@pytest.mark.parametrize(
    ("batches", "window", "fraction", "apart"),
    [
        (9, 1, 0.1, "every 0.9 of the 9 batches of an epoch: validations are 2 batches apart"),
        (8, 3, 0.1, "every 0.8 of the 8 batches of an epoch: validations are 6 batches apart"),
        (1, 1, 0.1, "every 0.1 of the 1 batch of an epoch: validations are 1 batch apart"),
        (20, 1, 0.1, ""),
        (25, 1, 0.1, ""),
        (9, 1, 0.0, ""),
        (9, 1, 1.0, ""),
    ],
)
def test_fewer_validations_than_asked_for_are_noted(batches, window, fraction, apart):
    options = OptimizerOptions(epochs=9, accumulate_grad_batches=window, val_every_epochs=fraction)
    note = validation_note(batches, RunOptions(), options)
    assert apart in note and bool(note) == bool(apart)


def test_trial_runs_and_evaluations():
    options = OptimizerOptions(epochs=1)
    assert validation_interval(1200, RunOptions(fast_dev_run=True), options) == 1.0
    assert validation_interval(1200, RunOptions(evaluate=True), options) == 1.0
    assert validation_interval(1200, RunOptions(test_run=True), options) == 10  # of 50 batches, by steps
