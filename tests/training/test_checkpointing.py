"""The files of a checkpoint, and what a kill or a full disk makes of them; whole runs are in test_main.py."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from adaface.checkpoints import folders
from adaface.system.files import write_atomically
from adaface.training import checkpointing
from adaface.training.checkpointing import CheckpointKeeper


def trainer_of(head: object = None, step: int = 1) -> SimpleNamespace:
    """What the keeper asks a trainer for, in one process."""
    strategy = SimpleNamespace(
        barrier=lambda name: None,
        broadcast=lambda value: value,
        reduce_boolean_decision=lambda decision, all: decision,
    )
    return SimpleNamespace(
        current_epoch=0,
        global_step=step,
        world_size=2,
        is_global_zero=True,
        fast_dev_run=False,
        strategy=strategy,
        optimizers=[None],
        lightning_module=SimpleNamespace(sharded_head=head),
        save_checkpoint=lambda path: write_atomically(path, f"step {step}"),
    )


def test_a_name_that_a_kill_left_beside_the_best_does_not_overwrite_it(tmp_path):
    """Killed between the second name and its renaming, `.last.ckpt.part` is the file that best.ckpt is."""
    (tmp_path / "best.ckpt").write_text("the best")
    os.link(tmp_path / "best.ckpt", tmp_path / ".last.ckpt.part")
    CheckpointKeeper(tmp_path).save(trainer_of(step=2))
    assert (tmp_path / "last.ckpt").read_text() == "step 2"
    assert (tmp_path / "best.ckpt").read_text() == "the best"


def test_a_link_that_a_kill_left_is_in_no_files_way(tmp_path):
    (tmp_path / "checkpoints" / "step-0000001-0").mkdir(parents=True)
    (tmp_path / ".last.ckpt.part").symlink_to("checkpoints/step-0000001-0")
    CheckpointKeeper(tmp_path).save(trainer_of(step=2))
    assert (tmp_path / "last.ckpt").read_text() == "step 2"


def test_from_sharded_to_dense_and_back_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "write_head", lambda part, head, optimizer: None)
    keeper = CheckpointKeeper(tmp_path)
    keeper.save(trainer_of(head=object(), step=1))
    assert (tmp_path / "last.ckpt").is_symlink()
    keeper.save(trainer_of(step=2))
    assert (tmp_path / "last.ckpt").read_text() == "step 2"
    assert not list((tmp_path / "checkpoints").iterdir())
    keeper.save(trainer_of(head=object(), step=3))
    assert (tmp_path / "last.ckpt" / "rest.ckpt").read_text() == "step 3"


@pytest.mark.parametrize("head", [None, object()], ids=["dense", "sharded"])
def test_the_last_checkpoint_gets_its_name_when_all_others_have_theirs(tmp_path, monkeypatch, head):
    """Killed in between, a run goes on from the checkpoint before, and gives all names again."""
    monkeypatch.setattr(checkpointing, "write_head", lambda part, head, optimizer: None)
    there = []
    for module, name in ((checkpointing, "_link"), (folders, "link")):
        link = getattr(module, name)

        def recorded(source, target, link=link):
            if target.name == "last.ckpt":
                there.extend(sorted(path.name for path in tmp_path.glob("*.ckpt")))
            link(source, target)

        monkeypatch.setattr(module, name, recorded)
    keeper = CheckpointKeeper(tmp_path, save_all=True)
    keeper._newest = 0.5
    keeper.save(trainer_of(head))
    assert there == ["best.ckpt", "epoch=000-step=0000001-val_acc=0.50.ckpt"]


@pytest.mark.parametrize("head", [None, object()], ids=["dense", "sharded"])
def test_a_disk_that_is_full_when_names_are_given_is_told(tmp_path, monkeypatch, head):
    monkeypatch.setattr(checkpointing, "write_head", lambda part, head, optimizer: None)
    keeper = CheckpointKeeper(tmp_path, save_all=True)
    keeper.save(trainer_of(head, step=1))

    def full(*_words, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("link", "symlink"):
        monkeypatch.setattr(checkpointing.os, name, full)
    monkeypatch.setattr(Path, "symlink_to", full)
    monkeypatch.setattr(checkpointing.shutil, "copyfileobj", full)
    keeper._newest = 0.5
    with pytest.raises(RuntimeError, match=r"ckpt could not be written: .*No space left.*free some space"):
        keeper.save(trainer_of(head, step=2))
    last = tmp_path / "last.ckpt"
    assert (last / "rest.ckpt" if head else last).read_text() == "step 1"
    assert not [path for path in tmp_path.glob(".*") if path.is_file()]


def test_a_run_folder_that_not_all_machines_see_is_refused_at_the_start(tmp_path):
    """Else each machine keeps its part of the head for itself, and every checkpoint lacks the others'."""
    keeper, trainer = CheckpointKeeper(tmp_path / "elsewhere"), trainer_of(head=object())
    trainer.is_global_zero = False
    trainer.strategy.broadcast = lambda value: ".part-0123"
    with pytest.raises(RuntimeError, match=r"not all machines see the folder .*elsewhere.* give a --run_folder"):
        keeper.on_fit_start(trainer, None)
    with pytest.raises(RuntimeError, match="not all machines see"):
        keeper.save(trainer)


def test_looking_at_the_start_leaves_nothing(tmp_path):
    keeper = CheckpointKeeper(tmp_path)
    keeper.on_fit_start(trainer_of(head=object()), None)
    assert not list((tmp_path / "checkpoints").iterdir())
    keeper.on_fit_start(trainer_of(), None)
