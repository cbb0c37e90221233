"""The file of embeddings: filled once, by one process at a time; damaged ones are refused."""

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from adaface.inference.embedding_table import load_or_fill, open_table

SHAPE = (6, 4)
WAIT_SEC = 250


def fill(part: Path) -> None:
    open_table(part, SHAPE)[:] = 7


def test_a_table_is_filled_once(tmp_path):
    for how in (fill, lambda _: pytest.fail("filled again")):
        table = load_or_fill(tmp_path / "a.npy", SHAPE, how, mapped=True)
        np.testing.assert_array_equal(table, np.full(SHAPE, 7))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("left", [0, 20, -4])
@pytest.mark.parametrize("mapped", [True, False])
def test_what_is_damaged_is_refused(tmp_path, left, mapped):
    file = tmp_path / "a.npy"
    load_or_fill(file, SHAPE, fill, mapped=False)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"a\.npy is damaged \(incomplete.*: delete it"):
        load_or_fill(file, SHAPE, fill, mapped=mapped)
    file.write_bytes(b"no table at all, but longer than a magic number")
    with pytest.raises(ValueError, match=r"a\.npy is damaged \(incomplete.*: delete it"):
        load_or_fill(file, SHAPE, fill, mapped=mapped)


@pytest.mark.usefixtures("screen")
def test_the_second_of_two_at_once_waits_and_takes_what_the_first_has_made(tmp_path, capsys):
    begun, go_on, second, filled = threading.Event(), threading.Event(), threading.Event(), []

    def slow(part: Path) -> None:
        filled.append(part)
        begun.set()
        assert go_on.wait(WAIT_SEC)
        fill(part)

    tables = []

    def want() -> None:
        tables.append(load_or_fill(tmp_path / "a.npy", SHAPE, slow, mapped=True))
        second.set()

    threads = [threading.Thread(target=want) for _ in range(2)]
    threads[0].start()
    assert begun.wait(WAIT_SEC)
    threads[1].start()
    told, deadline = "", time.monotonic() + WAIT_SEC
    while "another process is writing a.npy; waiting for it" not in told:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        told += capsys.readouterr().err
    assert not second.is_set()
    go_on.set()
    for thread in threads:
        thread.join(WAIT_SEC)
    assert len(filled) == 1
    assert len(tables) == 2
    np.testing.assert_array_equal(tables[0], tables[1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(
        OSError, match=r"no space for .* MB of embeddings in .*: free some space, or give another --cache"
    ):
        load_or_fill(tmp_path / "a.npy", SHAPE, fill, mapped=True)
    assert not list(tmp_path.iterdir())


def test_a_limit_of_the_file_size_is_told(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        (tmp_path / ".a.npy.part").touch()
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    with pytest.raises(OSError, match=r"\(ulimit -f\) is too low for 0\.0 MB of embeddings in .*: raise it, or give"):
        load_or_fill(tmp_path / "a.npy", SHAPE, fill, mapped=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("found", [b"", b"\x93NUM", b"junk" * 20])
def test_what_a_kill_left_is_begun_again(tmp_path, found):
    (tmp_path / ".a.npy.part").write_bytes(found)
    assert not open_table(tmp_path / ".a.npy.part", SHAPE).any()


def test_half_a_header_is_begun_anew(tmp_path):
    part = tmp_path / ".x.part"
    part.write_bytes(b"\x93NUMPY")
    assert not open_table(part, (2, 3)).any()
