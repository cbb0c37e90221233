"""Checkpoints of a sharded head, with real processes over gloo (sharded_checkpoint_worker.py)."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adaface.checkpoints.files import KERNEL, REST, SHARDED_HEAD, load_checkpoint
from adaface.checkpoints.sharded import export_single_file, fill_in_head, name_save, strip_head, write_head
from adaface.checkpoints.weights import check_fits
from adaface.heads.margins import build_head
from tests.support import sharded_checkpoint_worker as worker
from tests.support.forked import run_processes
from tests.support.sharded_checkpoint_worker import D, checkpoint_of, trained

ODD, FEW = 11, 5  # not divisible by 2, 3 or 4; and so few that the last of four processes has none


def start(action: str, world: int, classes: int, folder: Path, store: Path, head: str = "adaface") -> None:
    errors = store.with_name(f"{store.name}_errors")
    errors.mkdir()
    run_processes(worker.main, [(action, rank, world, classes, folder, store, head) for rank in range(world)], errors)


@pytest.fixture(scope="module", params=[ODD, FEW])
def of_four(request, tmp_path_factory) -> tuple[int, Path]:
    """A checkpoint that four processes wrote."""
    folder = tmp_path_factory.mktemp("checkpoint")
    start("write", 4, request.param, folder, folder.parent / f"store{request.param}")
    return request.param, folder


@pytest.mark.parametrize("world", [2, 3])
def test_a_checkpoint_of_four_processes_is_read_by_fewer(of_four, world, tmp_path):
    classes, folder = of_four
    start("read", world, classes, folder, tmp_path / "store")


@pytest.mark.parametrize("head", ["curricularface", "subcenter_arcface"])
def test_statistics_and_all_centers_of_a_class_are_read_by_other_numbers_of_processes(head, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    start("write", 3, ODD, folder, tmp_path / "store3", head)
    start("read", 2, ODD, folder, tmp_path / "store2", head)
    export_single_file(folder, tmp_path / "single.ckpt")
    saved = {k.removeprefix("head."): v for k, v in load_checkpoint(tmp_path / "single.ckpt")["state_dict"].items()}
    dense = build_head(head, D, ODD)
    dense.load_state_dict(saved)
    of_one = trained(ODD, head_type=head)[0].state_dict()
    for key, value in dense.state_dict().items():
        torch.testing.assert_close(value, of_one[key], rtol=1e-3, atol=1e-4, msg=key)


def test_checkpoints_leave_no_process_groups_behind(tmp_path):
    start("groups", 2, ODD, tmp_path, tmp_path / "store")


def test_one_process_reads_it_sharded_or_not(of_four):
    classes, folder = of_four
    head, optimizer = trained(classes)
    expected = checkpoint_of(head, optimizer)
    for wanted in (head, None):
        read = load_checkpoint(folder)
        fill_in_head(read, wanted)
        tolerance = {"rtol": 1e-3, "atol": 1e-4}  # two trainings with other numbers of processes
        torch.testing.assert_close(read["state_dict"][KERNEL], expected["state_dict"][KERNEL], **tolerance)
        momentum = read["optimizer_states"][0]["state"][1]["momentum_buffer"]
        rows = expected["optimizer_states"][0]["state"][1]["momentum_buffer"]
        torch.testing.assert_close(momentum, rows if wanted is head else rows.t(), **tolerance)


def test_nothing_in_it_is_a_pickle_but_the_restricted_one(of_four):
    _, folder = of_four
    files = {path.name for path in folder.iterdir()}
    assert {name for name in files if not name.endswith((".safetensors", ".crc32"))} == {REST}
    torch.load(folder / REST, weights_only=True)


def test_the_single_file_is_that_of_a_dense_head(of_four, tmp_path):
    classes, folder = of_four
    export_single_file(folder, tmp_path / "single.ckpt")
    saved = torch.load(tmp_path / "single.ckpt", weights_only=True)
    assert "folder" not in saved
    dense = build_head("adaface", D, classes, 0.4, 0.01, 0.333, 64.0)
    dense.load_state_dict({key.removeprefix("head."): value for key, value in saved["state_dict"].items()})
    with pytest.raises(ValueError, match="is already a single file"):
        export_single_file(tmp_path / "single.ckpt", tmp_path / "other.ckpt")
    (tmp_path / "other.ckpt").write_bytes(b"another's")
    with pytest.raises(FileExistsError, match=r"other\.ckpt exists; use --overwrite to replace it"):
        export_single_file(folder, tmp_path / "other.ckpt", overwrite=False)
    assert (tmp_path / "other.ckpt").read_bytes() == b"another's"


def test_a_missing_file_of_the_head_is_told(of_four, tmp_path):
    _, folder = of_four
    shutil.copytree(folder, tmp_path / "copy")
    next((tmp_path / "copy").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"has \d of the \d files of its head"):
        fill_in_head(load_checkpoint(tmp_path / "copy"), None)


def test_a_damaged_file_of_the_head_is_told(of_four, tmp_path):
    _, folder = of_four
    shutil.copytree(folder, tmp_path / "copy")
    file = next((tmp_path / "copy").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        fill_in_head(load_checkpoint(tmp_path / "copy"), None)


def test_zeros_in_a_file_of_the_head_are_told(of_four, tmp_path):
    _, folder = of_four
    shutil.copytree(folder, tmp_path / "copy")
    assert len(list(folder.glob("*.crc32"))) == len(list(folder.glob("*.safetensors")))
    file = min((tmp_path / "copy").glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-24] + bytes(16) + content[-8:])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged: its checksum is not the one it was written with"):
        fill_in_head(load_checkpoint(tmp_path / "copy"), None)
    for checksum in (tmp_path / "copy").glob("*.crc32"):  # of an older version
        checksum.unlink()
    fill_in_head(load_checkpoint(tmp_path / "copy"), None)


@pytest.mark.parametrize("parts", ["*.safetensors*", REST])
def test_parts_of_another_checkpoint_are_told(parts, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        start("write", 1, ODD, tmp_path / name, tmp_path / f"store_{name}")
    for part in (tmp_path / "other").glob(parts):
        shutil.copy(part, tmp_path / "one")
    with pytest.raises(ValueError, match=rf"and {REST} beside it belong to different checkpoints; take another"):
        fill_in_head(load_checkpoint(tmp_path / "one"), None)


def test_checkpoints_of_older_versions_do_not_name_their_save(of_four, tmp_path):
    _, folder = of_four
    shutil.copytree(folder, tmp_path / "copy")
    rest = torch.load(folder / REST, weights_only=True)
    del rest["adaface"][SHARDED_HEAD]["save"]
    torch.save(rest, tmp_path / "copy" / REST)
    fill_in_head(load_checkpoint(tmp_path / "copy"), None)
    for checksum in (tmp_path / "copy").glob("*.crc32"):
        checksum.write_text(checksum.read_text().partition(" ")[0] + "\n")
    read, expected = load_checkpoint(tmp_path / "copy"), load_checkpoint(folder)
    fill_in_head(read, None)
    fill_in_head(expected, None)
    assert torch.equal(read["state_dict"][KERNEL], expected["state_dict"][KERNEL])


def test_a_damaged_file_is_told_in_all_processes(of_four, tmp_path):
    """One of the two checks the damaged file, and the other would wait for it."""
    classes, folder = of_four
    shutil.copytree(folder, tmp_path / "copy")
    file = sorted((tmp_path / "copy").glob("*.safetensors"))[1]
    content = file.read_bytes()
    file.write_bytes(content[:-24] + bytes(16) + content[-8:])
    start("refuse", 2, classes, tmp_path / "copy", tmp_path / "store")


def rewritten(file: Path, change) -> None:
    with safe_open(file, "pt") as opened:
        tensors, notes = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    save_file(*change(tensors, notes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file, other: shutil.copy(other, file),
        lambda file, other: rewritten(file, lambda tensors, notes: (tensors, file)),  # without its place
        lambda file, other: rewritten(
            file, lambda tensors, notes: ({name: v[:, :1].contiguous() for name, v in tensors.items()}, file, notes)
        ),
        lambda file, other: rewritten(file, lambda tensors, notes: ({"momentum_buffer": tensors[KERNEL]}, file, notes)),
        lambda file, other: rewritten(
            file,
            lambda tensors, notes: (tensors, file, {name: v.replace("[0, ", "[0, -") for name, v in notes.items()}),
        ),
    ],
    ids=["another process's", "no place", "fewer classes", "no weights", "a place outside"],
)
def test_classes_that_no_file_holds_are_not_made_up(of_four, tmp_path, damage):
    """PyTorch's reader leaves them as the memory was."""
    classes, folder = of_four
    shutil.copytree(folder, tmp_path / "copy")
    first, second, *_ = sorted((tmp_path / "copy").glob("*.safetensors"))
    damage(second, first)
    with pytest.raises(ValueError, match=f"do not hold each of the {classes} classes of .* once"):
        fill_in_head(load_checkpoint(tmp_path / "copy"), None)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, notes: (tensors, dict.fromkeys(notes, "{")),
        lambda tensors, notes: (tensors, dict.fromkeys(notes, "[1]")),
        lambda tensors, notes: ({name: v.flatten() for name, v in tensors.items()}, notes),
    ],
    ids=["cut", "list", "vectors"],
)
def test_made_up_headers_are_told_in_one_line(of_four, tmp_path, change, capfd):
    _, folder = of_four
    shutil.copytree(folder, tmp_path / "copy")
    file = next((tmp_path / "copy").glob("*.safetensors"))

    def changed(tensors, notes):
        tensors, notes = change(tensors, notes)
        return tensors, file, notes

    rewritten(file, changed)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        fill_in_head(load_checkpoint(tmp_path / "copy"), None)
    assert "Traceback" not in capfd.readouterr().err


def test_a_part_of_a_checkpoint_is_none(of_four):
    _, folder = of_four
    with pytest.raises(ValueError, match="a part of a checkpoint folder"):
        fill_in_head(load_checkpoint(folder / REST), None)


def test_a_matrix_of_the_backbone_may_have_the_shape_of_the_head():
    """With 25,088 classes the kernel has the shape of the ir networks' linear layer."""
    head, _ = trained(ODD)
    of_backbone, of_head = torch.rand(D, ODD), torch.rand(D, ODD)
    checkpoint = {
        "state_dict": {KERNEL: torch.zeros(D, ODD)},
        "optimizer_states": [{"state": {0: {"momentum_buffer": of_backbone}, 7: {"momentum_buffer": of_head}}}],
        "adaface": {},
    }
    fill_in_head(checkpoint, head)
    states = checkpoint["optimizer_states"][0]["state"]
    assert torch.equal(states[0]["momentum_buffer"], of_backbone)
    assert torch.equal(states[7]["momentum_buffer"], of_head.t())


def test_a_folder_that_is_no_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"without {REST}, .*: give best\.ckpt or last\.ckpt of a run folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=rf": give {tmp_path}/last\.ckpt$"):
        load_checkpoint(tmp_path)


def test_another_class_count_is_refused(of_four):
    classes, folder = of_four
    shapes = {KERNEL: (D, 99), "head.t": (1,), "head.batch_mean": (1,), "head.batch_std": (1,)}
    with pytest.raises(ValueError, match=f"has a head of {classes} classes, the training data has 99"):
        check_fits(load_checkpoint(folder), shapes, folder)
    check_fits(load_checkpoint(folder), {**shapes, KERNEL: (D, classes)}, folder)
    with pytest.raises(ValueError, match="has a head of 2 classes, the training data has 3"):
        state = {**load_checkpoint(folder)["state_dict"], KERNEL: torch.zeros(D, 6)}
        check_fits({"state_dict": state}, {**shapes, KERNEL: (D, 9)}, folder, sub_centers=3)


def test_all_that_adam_keeps_is_kept(tmp_path):
    head, optimizer = trained(ODD, "adamw")
    checkpoint = checkpoint_of(head, optimizer)
    strip_head(checkpoint, head, optimizer)
    name_save(checkpoint, tmp_path)
    torch.save(checkpoint, tmp_path / REST)
    write_head(tmp_path, head, optimizer)
    assert optimizer.state[head.kernel]["exp_avg"].shape == (ODD, D), "what runs on is not touched"
    read = load_checkpoint(tmp_path)
    fill_in_head(read, head)
    saved = read["optimizer_states"][0]["state"][1]
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(saved[name], optimizer.state[head.kernel][name])


def test_files_that_cannot_be_written_are_told(tmp_path):
    head, optimizer = trained(ODD)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RuntimeError, match=r"could not be written: process 0: .*free some space"):
        write_head(tmp_path / "file" / "folder", head, optimizer)
