import shutil
from pathlib import Path

from adaface.checkpoints import folders
from adaface.checkpoints.folders import begin, delete_unlinked, link, publish, run_folder_of


def write(run: Path, step: int, names: list[str]) -> Path:
    part = begin(run)
    (part / "file").write_text(f"step {step}")
    return publish(run, part, step, names)


def test_names_follow_and_what_has_none_is_deleted(tmp_path):
    first = write(tmp_path, 3, ["best.ckpt", "last.ckpt"])
    assert (first.name, first.parent.name) == ("step-0000003-0", folders.FOLDER)
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
    again = begin(tmp_path)
    assert not part.exists()
    assert not list(again.iterdir())
    assert again != part, "a machine that still knows the old name must not write there"
    (again / "file").write_text("step 2")
    publish(tmp_path, again, 2, ["last.ckpt"])
    assert (tmp_path / "last.ckpt" / "file").read_text() == "step 2"
    assert not (tmp_path / ".last.ckpt.part").is_symlink()


def test_what_is_not_ours_is_left_alone(tmp_path):
    write(tmp_path, 1, ["last.ckpt"])
    (tmp_path / "checkpoints" / "notes.txt").write_text("why")
    shutil.copytree(tmp_path / "last.ckpt", tmp_path / "checkpoints" / "the good one")
    write(tmp_path, 2, ["last.ckpt"])
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["notes.txt", "step-0000002-0", "the good one"]


def test_without_any_folder_there_is_nothing_to_delete(tmp_path):
    delete_unlinked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_folder_copied_by_a_program_that_follows_links_goes_on(tmp_path):
    write(tmp_path / "run", 3, ["best.ckpt", "last.ckpt"])
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    assert not (copy / "last.ckpt").is_symlink()
    write(copy, 4, ["last.ckpt"])
    assert (copy / "last.ckpt" / "file").read_text() == "step 4"
    assert (copy / "best.ckpt" / "file").read_text() == "step 3"
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["step-0000004-0"]


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
