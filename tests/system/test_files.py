import errno
import os
from pathlib import Path

import pytest

from adaface.system import files
from adaface.system.files import (
    atomic_file,
    atomic_path,
    check_output_folder,
    check_writable,
    make_writable_folder,
    part_path,
    with_home,
    write_atomically,
)


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "x.csv"
    with pytest.raises(KeyError), atomic_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    write_atomically(path, "whole")
    with pytest.raises(KeyError), atomic_file(path) as file:
        file.write(b"half")
        assert path.read_text() == "whole"
        raise KeyError
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_replaced_and_not_written_through(tmp_path):
    in_use = tmp_path / "in_use"
    in_use.write_text("in use")
    (tmp_path / ".x.csv.part").symlink_to(in_use)
    write_atomically(tmp_path / "x.csv", "new")
    (tmp_path / ".x.csv.part").hardlink_to(in_use)
    write_atomically(tmp_path / "x.csv", "newer")
    assert (in_use.read_text(), (tmp_path / "x.csv").read_text()) == ("in use", "newer")
    assert not (tmp_path / "x.csv").is_symlink()


@pytest.mark.parametrize("first_fails", [False, True])
def test_two_that_write_the_same_file_do_not_mix(tmp_path, first_fails):
    path = tmp_path / "x.csv"
    first, second = atomic_file(path), atomic_file(path)
    first.__enter__().write(b"first")
    with pytest.raises(FileExistsError, match=rf"process {os.getpid()} is writing it: wait for it, or stop it"):
        second.__enter__()
    if first_fails:
        assert not first.__exit__(KeyError, KeyError(), None)
        assert list(tmp_path.iterdir()) == []
        return
    first.__exit__(None, None, None)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_write_the_same_folder_do_not_mix(tmp_path):
    path = tmp_path / "x"
    first, second = atomic_path(path), atomic_path(path)
    part = first.__enter__()
    part.mkdir()
    with pytest.raises(FileExistsError, match=rf"process {os.getpid()} is writing it: wait for it, or stop it"):
        second.__enter__()
    assert part.is_dir()
    first.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == [path]


def test_where_there_are_no_locks_a_mixed_file_still_gets_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("adaface.system.files.lock_open_file", lambda file: True)
    path = tmp_path / "x.csv"
    first, second = atomic_file(path), atomic_file(path)
    first.__enter__().write(b"first")
    second.__enter__().write(b"second")
    with pytest.raises(FileExistsError, match="another process writes it at the same time"):
        first.__exit__(None, None, None)
    assert not path.exists()
    second.__exit__(None, None, None)
    assert path.read_bytes() == b"second"


def test_several_may_write_the_same_file_where_that_is_allowed(tmp_path):
    path = tmp_path / "x.csv"
    first = atomic_file(path, several_writers=True)
    first.__enter__().write(b"first")
    with atomic_file(path, several_writers=True) as file:
        file.write(b"second")
    assert path.read_bytes() == b"second"
    first.__exit__(None, None, None)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_to_be_replaced_is_kept(tmp_path):
    path = tmp_path / "x.csv"
    first, second = atomic_file(path, overwrite=False), atomic_file(path, overwrite=False)
    first.__enter__().write(b"first")  # the file did not exist when either of them began
    first.__exit__(None, None, None)
    with pytest.raises(FileExistsError, match=r"x\.csv exists; use --overwrite to replace it, or another --output$"):
        second.__enter__()
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_written_to_a_path_is_whole_or_absent(tmp_path, kind):
    path = tmp_path / "x"
    write = {"file": Path.touch, "folder": Path.mkdir, "link": lambda part: part.symlink_to("elsewhere")}[kind]
    for left in (Path.touch, Path.mkdir):  # by a kill
        left(part_path(path))
        with pytest.raises(KeyError), atomic_path(path) as part:
            write(part)
            raise KeyError
        assert list(tmp_path.iterdir()) == []
    for _ in range(2):  # the second one replaces the first
        with atomic_path(path) as part:
            write(part)
            assert part.name == ".x.part"
        assert list(tmp_path.iterdir()) == [path]
    assert (path.is_dir(), path.is_symlink()) == (kind == "folder", kind == "link")


def test_a_folder_is_tried_before_the_work(tmp_path):
    check_writable(tmp_path, "--output_dir x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r"--output_dir x is not writable \(No such file"):
        check_writable(tmp_path / "none", "--output_dir x")


@pytest.mark.parametrize("moment", ["before it is created", "before it is locked", "while it is locked by the other"])
def test_of_two_writers_that_begin_at_once_one_goes_on(tmp_path, monkeypatch, moment):
    """The other one comes between two steps of this one, and is not harmed."""
    path, part, others = tmp_path / "x.rec", tmp_path / ".x.rec.part", []
    lock, open_file = files.lock_open_file, os.open

    def other() -> None:
        part.unlink(missing_ok=True)
        others.append(part.open("xb"))
        lock(others[0].fileno())

    def open_after_the_other(*words, **options):
        try:
            return open_file(*words, **options)
        except FileNotFoundError:
            other()
            raise

    def lock_after_the_other(file: int) -> bool:
        if moment == "before it is locked":
            other()
        else:
            others.append(part.open("rb"))
            assert lock(others[0].fileno())
        return lock(file)

    if moment == "before it is created":
        monkeypatch.setattr(files.os, "open", open_after_the_other)
    else:
        monkeypatch.setattr(files, "lock_open_file", lock_after_the_other)
    with pytest.raises(FileExistsError, match="another process writes it at the same time"), atomic_file(path):
        pytest.fail("both go on")
    monkeypatch.undo()
    if moment != "while it is locked by the other":  # which has not yet deleted it
        with pytest.raises(FileExistsError, match="is writing it"), atomic_file(path):
            pytest.fail("both go on")
        assert part.samefile(others[0].name) and os.fstat(others[0].fileno()).st_nlink == 1
    others[0].close()
    write_atomically(path, "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["x.rec"]


def test_a_left_over_that_another_process_deletes_at_once(tmp_path, monkeypatch):
    path, part = tmp_path / "x.rec", tmp_path / ".x.rec.part"
    part.write_bytes(b"of a killed process")
    lock = files.lock_open_file

    def lock_after_the_other(file: int) -> bool:
        part.unlink()
        part.write_bytes(b"of the other")
        return lock(file)

    monkeypatch.setattr(files, "lock_open_file", lock_after_the_other)
    with pytest.raises(FileExistsError, match="another process writes it at the same time"), atomic_file(path):
        pytest.fail("both go on")
    assert part.read_bytes() == b"of the other"


def test_the_home_folder_where_no_shell_has_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir(tmp_path)
    assert [with_home(path) for path in ("~", "~/a", "~ben/a", "a/~", "")] == [
        "/home/ada", "/home/ada/a", "~ben/a", "a/~", ""
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"--cache ~/c: `~` is not a folder here: give /home/ada/c"):
        make_writable_folder(Path("~/c"), "--cache")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "~").mkdir()
    make_writable_folder(Path("~/c"), "--cache")
    assert (tmp_path / "~" / "c").is_dir()


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_cannot_grow_is_named(tmp_path, number):
    with pytest.raises(OSError) as error, atomic_file(tmp_path / "x.npz"):
        raise OSError(number, "of a write")
    assert (error.value.errno, error.value.filename) == (number, str(tmp_path / "x.npz"))
    with pytest.raises(OSError) as error, atomic_file(tmp_path / "x.npz"):
        raise OSError(errno.EIO, "of a read")
    assert error.value.filename is None


def test_an_output_folder_is_checked_without_creating_it(tmp_path):
    check_output_folder(tmp_path, "--cache")
    check_output_folder(tmp_path / "a" / "b", "--cache")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--cache .*/file is a file: give a folder"):
        check_output_folder(tmp_path / "file", "--cache")
    with pytest.raises(OSError, match=r"--cache .*/file/b cannot be created \(Not a directory\): give another"):
        check_output_folder(tmp_path / "file" / "b", "--cache")
