"""Checkpoint files: whole or not there, and nothing in them is run."""

import contextlib
import errno
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from adaface.checkpoints import files
from adaface.checkpoints.files import check_resumable, load_checkpoint
from adaface.system.files import atomic_file
from adaface.training.checkpointing import AtomicCheckpointIO
from tests.support.checkpoint_files import SMALL, Payload, official, write

ROOT = Path(__file__).resolve().parents[2]


def test_old_lightning_objects_are_read_as_plain_dictionaries(tmp_path):
    import pytorch_lightning.utilities.parsing as parsing

    values = parsing.AttributeDict(lr=0.1, arch="ir_101")
    file = write(tmp_path / "old.ckpt", {"state_dict": official(SMALL), "hyper_parameters": values})
    read = load_checkpoint(file)["hyper_parameters"]
    assert type(read) is dict
    assert read == {"lr": 0.1, "arch": "ir_101"}


def test_a_tampered_checkpoint_is_refused_and_nothing_runs(tmp_path):
    proof = tmp_path / "executed"
    file = write(tmp_path / "evil.ckpt", {"state_dict": {}, "callbacks": Payload(proof)})
    with pytest.raises(ValueError, match=r"evil\.ckpt is refused: it holds more than tensors") as caught:
        load_checkpoint(file)
    assert "it names posix.system" in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch's advice to load without protection is passed on"
    assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(proof)))  # the payload does work where nothing protects
    assert proof.exists()


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.ckpt"):
        load_checkpoint(tmp_path / "text.ckpt")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.ckpt is damaged or not a checkpoint \(it is empty\)"):
        load_checkpoint(tmp_path / "empty.ckpt")
    whole = write(tmp_path / "whole.ckpt", {"state_dict": official(SMALL)}).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.ckpt is damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "cut.ckpt")
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"zip\.ckpt"):
        load_checkpoint(tmp_path / "zip.ckpt")
    with pytest.raises(ValueError, match="has no `state_dict`"):
        load_checkpoint(write(tmp_path / "weights.ckpt", {"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="has no `state_dict`"):
        load_checkpoint(write(tmp_path / "tensor.ckpt", torch.zeros(1)))


def resumable() -> dict:
    progress = {"current": {"ready": 1, "completed": 1, "started": 1, "processed": 1}}
    return {
        "state_dict": {"head.kernel": torch.zeros(8, 3)},
        "epoch": 0,
        "global_step": 1,
        "loops": {"fit_loop": {"epoch_progress": progress, "epoch_loop.batch_progress": progress}},
        "optimizer_states": [{"state": {0: {}}, "param_groups": [{"params": [0]}]}],
        "adaface": {"config": {}, "given": ["lr"], "position": {"epoch": 0, "batch": 1, "samples": 8}},
    }


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("adaface",), [1]),
        (("adaface", "config"), "lr"),
        (("adaface", "given"), 5),
        (("adaface", "position"), {"epoch": 0}),
        (("adaface", "position"), {"epoch": 0, "batch": -1}),
        (("adaface", "position"), {"epoch": "0", "batch": 1}),
        (("adaface", "position"), {"epoch": 0, "batch": 1, "path": "/etc"}),
        (("adaface", "class_images"), {0: []}),
        (("adaface", "class_images"), {-1: ["a"]}),
        (("adaface", "class_images"), {0: [1]}),
        (("adaface", "sharded_head"), {"shape": [8, 3]}),
        (
            ("adaface", "sharded_head"),
            {"shape": [8, 3], "files": 2, "dtype": "float32", "states": [], "parameter": 0},  # in a single file
        ),
        (("epoch",), None),
        (("loops",), {}),
        (("optimizer_states",), []),
        (("optimizer_states",), [{"state": {0: 1}, "param_groups": []}]),
    ],
    ids=str,
)
def test_a_checkpoint_with_other_contents_is_refused_in_one_line(where, value):
    check_resumable(resumable(), "x.ckpt")
    checkpoint = resumable()
    inner = checkpoint
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    with pytest.raises(ValueError, match=rf"x\.ckpt cannot be resumed: its `.*{where[0]}.*Use another"):
        check_resumable(checkpoint, "x.ckpt")


def test_a_state_dict_of_other_things_is_refused(tmp_path):
    for state in ({"model.a": 1}, {1: torch.zeros(1)}):
        with pytest.raises(ValueError, match="has entries that are not tensors"):
            load_checkpoint(write(tmp_path / "a.ckpt", {"state_dict": state}))


def test_a_file_does_not_say_where_the_heads_files_are(tmp_path):
    file = write(tmp_path / "a.ckpt", {"state_dict": {}, "folder": "/etc"})
    assert "folder" not in load_checkpoint(file)


def test_every_damage_is_told_as_one(tmp_path):
    """Bytes set to 0: the unpickler fails in many ways."""
    whole = write(tmp_path / "whole.ckpt", {"state_dict": {"model.a": torch.zeros(2)}, "epoch": 1}).read_bytes()
    file = tmp_path / "damaged.ckpt"
    refused = 0
    for place in range(60, 700):
        file.write_bytes(whole[:place] + b"0" + whole[place + 1 :])
        try:
            load_checkpoint(file)
        except ValueError:
            refused += 1
    assert refused > 100


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    target = tmp_path / "run" / "last.ckpt"
    io.save_checkpoint({"state_dict": {"a": torch.ones(2)}}, target)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.torch, "save", full)
    with pytest.raises(
        RuntimeError, match=r"last\.ckpt could not be written.*No space left.* MB are free.*free some space"
    ):
        io.save_checkpoint({"state_dict": {}}, target)
    assert load_checkpoint(target)["state_dict"]["a"].tolist() == [1, 1]
    assert [file.name for file in target.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_a_signal_during_a_write_is_no_full_disk(tmp_path, monkeypatch, stop):
    """PyTorch's zip writer may make a RuntimeError of whatever the file raises."""

    class Interrupted(io.BytesIO):
        def write(self, content: object) -> int:
            if self.tell():
                raise stop
            return super().write(content)

    @contextlib.contextmanager
    def interrupted(*_args, **_kwargs):
        yield Interrupted()

    monkeypatch.setattr(files, "atomic_file", interrupted)
    with pytest.raises(type(stop)) as raised:
        files.save_checkpoint({"a": torch.zeros(1)}, tmp_path / "last.ckpt")
    assert raised.value is stop


def test_a_signal_while_a_full_disk_is_handled_is_a_signal(tmp_path, monkeypatch):
    def save(*_):
        try:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise KeyboardInterrupt from error
        except KeyboardInterrupt as error:
            raise RuntimeError("unexpected position") from error

    monkeypatch.setattr(files.torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        files.save_checkpoint({"a": torch.zeros(1)}, tmp_path / "last.ckpt")


def test_a_threshold_leaves_numpy_arrays_as_they_are(tmp_path):
    arrays = [np.arange(6.0).reshape(2, 3).T, np.array([True, False]), np.array([(1, "a"), None], object)]
    path = write(tmp_path / "a.ckpt", {"state_dict": official(SMALL), "arrays": arrays})
    files.store_threshold(path, {"cosine": 0.5})
    files.store_threshold(path, {"cosine": 0.25})
    stored = torch.load(path, weights_only=False)
    assert stored["adaface_threshold"] == {"cosine": 0.25}
    for before, after in zip(arrays, stored["arrays"], strict=True):
        assert after.dtype == before.dtype
        assert after.tolist() == before.tolist()


def test_no_threshold_is_stored_in_a_file_of_another_program(tmp_path):
    """Of such a file, only the weights are read."""
    path = write(tmp_path / "a.pth", {"model": official(SMALL), "ema": torch.zeros(1)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.pth is a file of another program, in which no threshold can be stored"):
        files.store_threshold(path, {"cosine": 0.5})
    assert path.read_bytes() == before


def test_a_name_that_is_no_text(tmp_path):
    name = tmp_path / os.fsdecode(b"caf\xe9.ckpt")
    files.save_checkpoint({"state_dict": {"a": torch.ones(2)}}, name)
    assert load_checkpoint(name)["state_dict"]["a"].tolist() == [1, 1]


def test_a_header_of_safetensors_that_is_too_long(tmp_path):
    """Of millions of empty tensors it would take gigabytes."""
    content = b"{" + b" " * 6_000_000 + b"}"
    (tmp_path / "x.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged .*its header of 6,000,002 bytes is too long"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_a_file_of_another_process_is_no_full_disk(tmp_path):
    target = tmp_path / "one.ckpt"
    files.save_checkpoint({"a": torch.zeros(1)}, target)
    whole = target.read_bytes()
    with pytest.raises(FileExistsError, match=r"one\.ckpt exists; use --overwrite to replace it"):
        files.save_checkpoint({"a": torch.ones(1)}, target, overwrite=False)
    with pytest.raises(KeyError), atomic_file(target):
        with pytest.raises(FileExistsError, match="is writing it: wait for it, or stop it"):
            files.save_checkpoint({"a": torch.ones(1)}, target)
        raise KeyError  # the other process fails
    assert target.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("limit", [100, 100_000, 400_700])  # in the pickle, in a tensor, at the end of the zip
def test_a_limit_of_the_file_size_is_no_full_disk(tmp_path, limit):
    program = f"""
import resource, torch
from pathlib import Path
from adaface.checkpoints.files import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    save_checkpoint({{"a": torch.zeros(100_000)}}, Path({str(tmp_path / "last.ckpt")!r}))
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "larger than the limit of this shell (ulimit -f)" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_lightning_cannot_talk_the_reader_into_unpickling(tmp_path):
    file = write(tmp_path / "evil.ckpt", {"state_dict": {}, "x": Payload(tmp_path / "executed")})
    with pytest.raises(ValueError, match="is refused"):
        AtomicCheckpointIO().load_checkpoint(file, weights_only=False)
    assert not (tmp_path / "executed").exists()
