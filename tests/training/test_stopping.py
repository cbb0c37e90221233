"""When a run that gets no better ends."""

from types import SimpleNamespace

import pytest
import torch

from adaface.training.stopping import EarlyStopping, NonFiniteLossError, NonFiniteLossGuard

pytestmark = pytest.mark.usefixtures("training_screen")


def epochs(callback: EarlyStopping, *accuracies: float | None, validations: int = 1) -> tuple[int, object]:
    """Run epochs with these accuracies until the callback stops; return how many there were."""
    trainer = SimpleNamespace(
        callback_metrics={}, state=SimpleNamespace(fn="fit"), sanity_checking=False, should_stop=False,
        is_global_zero=True,
    )  # fmt: skip
    callback.on_train_start(trainer, None)
    done = 0
    for accuracy in accuracies:
        if trainer.should_stop:
            break
        if accuracy is not None:
            trainer.callback_metrics["val_acc"] = torch.tensor(accuracy)
            for _ in range(validations):
                callback.on_validation_end(trainer, None)
        callback.on_train_epoch_end(trainer, None)
        done += 1
    return done, trainer


def test_it_stops_after_so_many_epochs_without_a_better_one(capsys):
    done, _ = epochs(EarlyStopping(2), 50, 60, 59, 60, 90)
    assert done == 4  # as good is not better
    assert capsys.readouterr().out == (
        "stopped early: the mean accuracy has not been above 60.00 for 2 epoch(s) (--early_stopping_patience 2)\n"
    )


def test_a_better_epoch_begins_the_count_anew(capsys):
    done, trainer = epochs(EarlyStopping(2), 50, 49, 51, 50, 52, 51)
    assert done == 6 and not trainer.should_stop and not capsys.readouterr().out


def test_epochs_without_a_validation_do_not_count():
    done, trainer = epochs(EarlyStopping(1), None, None, 50, 51)
    assert done == 4 and not trainer.should_stop


def test_of_several_validations_in_an_epoch_the_best_counts():
    callback = EarlyStopping(1)
    trainer = epochs(callback, 50)[1]
    for accuracy in (70.0, 40.0):
        trainer.callback_metrics["val_acc"] = torch.tensor(accuracy)
        callback.on_validation_end(trainer, None)
    callback.on_train_epoch_end(trainer, None)
    assert callback.best == 70 and not trainer.should_stop


def test_validations_before_a_resume_inside_an_epoch_count():
    stopped, resumed = EarlyStopping(1), EarlyStopping(1)
    trainer = epochs(stopped, 50)[1]
    trainer.callback_metrics["val_acc"] = torch.tensor(70.0)
    stopped.on_validation_end(trainer, None)
    resumed.load_state_dict(stopped.state_dict())
    trainer.callback_metrics["val_acc"] = torch.tensor(40.0)
    resumed.on_validation_end(trainer, None)
    resumed.on_train_epoch_end(trainer, None)
    assert resumed.best == 70 and not trainer.should_stop


@pytest.mark.parametrize("fn, checking", [("test", False), ("validate", False), ("fit", True)])
def test_other_evaluations_do_not_count(fn, checking):
    callback = EarlyStopping(1)
    trainer = SimpleNamespace(
        callback_metrics={"val_acc": torch.tensor(90.0)}, state=SimpleNamespace(fn=fn), sanity_checking=checking
    )
    callback.on_validation_end(trainer, None)
    callback.on_train_epoch_end(trainer, None)
    assert callback.best is None


def test_a_run_that_had_ended_ends_at_once_and_one_with_more_patience_goes_on():
    ended = EarlyStopping(1)
    assert epochs(ended, 50, 40, 60)[0] == 2
    for patience, expected in ((1, 0), (2, 1), (3, 2)):
        again = EarlyStopping(patience)
        again.load_state_dict(ended.state_dict())
        assert epochs(again, 45, 44, 43)[0] == expected


def test_weights_that_are_not_finite_are_told_before_a_validation_fails_on_them(tmp_path):
    """A bad update can follow a finite loss."""
    network = torch.nn.Linear(2, 2)
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, fit_loop=SimpleNamespace(total_batch_idx=7),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
    )  # fmt: skip
    guard = NonFiniteLossGuard(tmp_path)
    guard.on_validation_start(trainer, network)
    with torch.no_grad():
        network.weight[0, 1] = torch.inf
    with pytest.raises(
        NonFiniteLossError, match=r"not finite after step 7 \(weight is the first\).*--lr divided by 10"
    ):
        guard.on_validation_start(trainer, network)
    trainer.state.fn = "test"
    guard.on_validation_start(trainer, network)
