import importlib.metadata
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from pathlib import Path

import pytest
import torch
import yaml

import adaface
from adaface.checkpoints import run_folder
from adaface.checkpoints.run_folder import (
    choose_run_folder,
    describe_environment,
    make_run_folder,
    write_config,
    write_manifest,
)
from adaface.system.files import write_atomically

DAY = date(2022, 6, 9)


def test_names_count_up_and_fill_gaps(tmp_path):
    folders = [choose_run_folder(tmp_path / "a" / "experiments", "ir18", DAY) for _ in range(3)]
    assert [folder.name for folder in folders] == ["ir18_06-09_0", "ir18_06-09_1", "ir18_06-09_2"]
    assert all(folder.is_dir() for folder in folders)
    folders[1].rmdir()
    assert choose_run_folder(folders[0].parent, "ir18", DAY) == folders[1]
    assert choose_run_folder(folders[0].parent, "other", DAY).name == "other_06-09_0"


def test_a_file_of_that_name_is_passed_over(tmp_path):
    (tmp_path / "x_06-09_0").write_text("")
    assert choose_run_folder(tmp_path, "x", DAY).name == "x_06-09_1"


def test_the_date_is_todays(tmp_path):
    before = datetime.now().astimezone().strftime("%m-%d")
    name = choose_run_folder(tmp_path, "x").name
    assert name[2:7] in {before, datetime.now().astimezone().strftime("%m-%d")}


def test_runs_started_at_once_get_different_folders(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: choose_run_folder(tmp_path / "new", "x", DAY), range(48)))
    assert len(set(folders)) == 48
    assert {folder.name for folder in folders} == {f"x_06-09_{number}" for number in range(48)}


@pytest.mark.parametrize("prefix", ["", "a/b", "../a", "a..b", "..", "a\\b", "/a", "a\nb", "a\0", " a", "x" * 201])
def test_prefixes_that_are_refused(tmp_path, prefix):
    with pytest.raises(ValueError, match="--prefix is the first part") as error:
        choose_run_folder(tmp_path / "new", prefix)
    assert repr(prefix) in str(error.value)
    assert not (tmp_path / "new").exists()


def test_unusual_prefixes_that_are_fine(tmp_path):
    for prefix in ("run_ir18_ms1mv2", "v1.2", "lr=0.1", "đêm", "two words"):
        assert choose_run_folder(tmp_path, prefix, DAY).name == f"{prefix}_06-09_0"


def test_an_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"is a file: give a folder"):
        choose_run_folder(tmp_path / "file", "x")


def test_folders_that_cannot_be_created_name_their_option():
    with pytest.raises(OSError, match=r"^--output_dir /proc/none cannot be created \(No such file.*: give another$"):
        choose_run_folder("/proc/none", "x")
    with pytest.raises(OSError, match=r"^--output_dir /proc is not writable"):
        choose_run_folder("/proc", "x")
    with pytest.raises(OSError, match=r"^--run_folder /proc/none cannot be created"):
        make_run_folder("/proc/none")


def test_config_reads_back_as_it_was(tmp_path):
    config = {"lr": 5e-4, "lr_milestones": [12, 20], "prefix": "đêm", "use_16bit": True, "data_root": "", "tiny": 1e-8}
    write_config(tmp_path, config)
    read = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert read == config
    assert list(read) == list(config)
    assert [type(value) for value in read.values()] == [type(value) for value in config.values()]


def test_config_is_a_recipe_of_the_run_from_its_beginning_in_a_new_folder(tmp_path):
    write_config(tmp_path, {"lr": 0.1, "run_folder": "a", "resume_from_checkpoint": "a/last.ckpt"})
    read = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert read == {"lr": 0.1, "run_folder": "", "resume_from_checkpoint": ""}


def test_a_named_run_folder_is_made_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert make_run_folder("a/b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--prefix", "two words"])
    written = write_manifest(tmp_path, {"lr": 0.1, "prefix": "đêm"}, "abc123", 70722)
    read = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert read == written
    assert read["config"] == {"lr": 0.1, "prefix": "đêm"}
    assert read["data"] == {"fingerprint": "abc123", "classes": 70722}
    assert read["command"].endswith("main.py --prefix 'two words'")
    assert read["versions"]["adaface"] == adaface.__version__
    assert read["versions"]["torch"] == importlib.metadata.version("torch")  # without +cu130
    assert read["versions"]["python"] == sys.version.split()[0]
    assert datetime.fromisoformat(read["started"]).tzinfo is not None
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_manifests_of_earlier_starts_are_kept(tmp_path):
    for lr in (0.1, 0.2, 0.3):
        write_manifest(tmp_path, {"lr": lr}, "abc", 3)
    read = json.loads((tmp_path / "manifest.json").read_text())
    assert read["config"] == {"lr": 0.3}
    assert [earlier["config"]["lr"] for earlier in read["earlier_starts"]] == [0.1, 0.2]
    assert not any("earlier_starts" in earlier for earlier in read["earlier_starts"])


@pytest.mark.parametrize("damaged", ["", "{", "[]", '"text"', "[" * 100_000])
def test_a_damaged_manifest_does_not_stop_a_run(tmp_path, damaged):
    (tmp_path / "manifest.json").write_text(damaged)
    assert write_manifest(tmp_path, {}, "abc", 3)["earlier_starts"] == []


@pytest.mark.parametrize("earlier", ["7", "[1, null]"])
def test_earlier_starts_that_are_no_list_of_objects_are_left_out(tmp_path, earlier):
    (tmp_path / "manifest.json").write_text(f'{{"started": "2026", "earlier_starts": {earlier}}}')
    assert write_manifest(tmp_path, {}, "abc", 3)["earlier_starts"] == [{"started": "2026"}]


def test_environment_is_plain_values_that_a_checkpoint_can_hold(tmp_path):
    environment = describe_environment()
    torch.save(environment, tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True) == environment
    packages = ("python", "torch", "torchvision", "lightning", "numpy", "opencv", "scikit-learn")
    assert all(environment["versions"][name] for name in packages)


def git(folder: Path, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *author, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A git checkout of one commit, whatever repository a surrounding hook points git at."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path.resolve() / "checkout"
    folder.mkdir()
    (folder / "main.py").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", "main.py")
    git(folder, "commit", "-qm", "first")
    return folder


def test_commit_and_changes(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert run_folder._git_state(checkout) == (head, False)
    (checkout / "notes.txt").write_text("")
    assert run_folder._git_state(checkout) == (head, False)  # not tracked
    (checkout / "main.py").write_text("changed")
    assert run_folder._git_state(checkout) == (head, True)


def test_the_commit_is_not_that_of_a_hooks_or_a_surrounding_repository(checkout, monkeypatch, tmp_path):
    (checkout / "inside").mkdir()
    assert run_folder._git_state(checkout / "inside") == (None, None)
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert run_folder._git_state(checkout) == (head, False)


def test_no_git_no_commit(tmp_path, checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_folder._git_state(checkout) == (None, None)
    assert write_manifest(tmp_path, {}, "abc", 3)["commit"] is None


def test_atomic_write_replaces_or_leaves_the_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_bytes() == "é".encode()
    write_atomically(str(tmp_path / "a.txt"), b"\x00\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\x00\r\n"

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a.txt", "newer")
    assert (tmp_path / "a.txt").read_bytes() == b"\x00\r\n"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/env/bin/adaface", "train", "--epochs", "2"], "adaface train --epochs 2"),
        (["/site/adaface/__main__.py", "train", "--prefix", "a b"], "python -m adaface train --prefix 'a b'"),
    ],
)
def test_the_command_of_an_installed_package_can_be_given_again(monkeypatch, argv, command):
    monkeypatch.setattr(sys, "argv", argv)
    assert run_folder._command() == command
