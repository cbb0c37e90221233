from pathlib import Path

import checkpoint_folders
from checkpoint_folders import begin, link, part_of, publish, run_folder_of


def write(run: Path, step: int, names: list[str]) -> Path:
    (begin(run) / "file").write_text(f"step {step}")
    return publish(run, step, names)


def test_names_follow_and_what_has_none_is_deleted(tmp_path):
    first = write(tmp_path, 3, ["best.ckpt", "last.ckpt"])
    assert (first.name, first.parent.name) == ("step-0000003-0", checkpoint_folders.FOLDER)
    second = write(tmp_path, 3, ["last.ckpt"])  # a stop right after a validation
    assert second.name == "step-0000003-1"
    third = write(tmp_path, 5, ["last.ckpt", "kept.ckpt"])
    assert (tmp_path / "last.ckpt" / "file").read_text() == "step 5"
    assert (tmp_path / "kept.ckpt").resolve() == third
    assert (tmp_path / "best.ckpt" / "file").read_text() == "step 3"
    assert set((tmp_path / "checkpoints").iterdir()) == {first, third}


def test_a_run_folder_can_be_moved(tmp_path):
    write(tmp_path / "run", 1, ["last.ckpt"])
    (tmp_path / "run").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "last.ckpt" / "file").read_text() == "step 1"


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    write(tmp_path, 1, ["last.ckpt"])
    part = begin(tmp_path)
    (part / "half").write_text("torn")
    (tmp_path / ".last.ckpt.part").symlink_to("nowhere")
    assert (tmp_path / "last.ckpt" / "file").read_text() == "step 1"
    assert begin(tmp_path) == part_of(tmp_path)
    assert not list(part.iterdir())
    (part / "file").write_text("step 2")
    publish(tmp_path, 2, ["last.ckpt"])
    assert (tmp_path / "last.ckpt" / "file").read_text() == "step 2"
    assert not (tmp_path / ".last.ckpt.part").is_symlink()


def test_a_link_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "last.ckpt").write_text("of a dense head")
    (tmp_path / "folder").mkdir()
    link(tmp_path / "folder", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").is_dir()


def test_the_run_folder_of_a_checkpoint(tmp_path, monkeypatch):
    folder = write(tmp_path, 1, ["last.ckpt"])
    assert run_folder_of(tmp_path / "last.ckpt") == tmp_path
    assert run_folder_of(folder) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert run_folder_of(Path("last.ckpt")) == tmp_path
