import os

import numpy as np
import pytest

from adaface.alignment.detector import Face
from adaface.alignment.journal import (
    ALIGNED,
    COLUMNS,
    NO_FACE,
    SETTINGS,
    TABLE,
    UNREADABLE,
    FileState,
    Journal,
    Line,
    read_with_state,
)

FACE = Face((1, 2, 3, 4.5), np.arange(10.0).reshape(5, 2), 0.98765)
STATE = FileState(3, 17, "abc")
SETTING = {"faces": "all", "smallest_face_px": 20}


def is_done(journal, folder, name):
    """Look at a file of the recorded size and time, so that its content is not read."""
    path = folder / "photograph"
    path.write_bytes(b"xyz")
    os.utime(path, ns=(0, STATE.modified_ns))
    return journal.is_done(name, path)


def fill(folder):
    for crop in ("a_0.png", "a_1.png"):
        (folder / crop).write_bytes(b"crop")
    with Journal(folder, SETTING) as journal:
        journal.add("b.jpg", 0, [Line(NO_FACE)], STATE)
        journal.add("a.jpg", 2, [Line(ALIGNED, "a_0.png", FACE), Line(ALIGNED, "a_1.png", FACE)], STATE)
    return folder / TABLE


def test_a_line_of_the_table(tmp_path):
    caption, missed, face, _ = fill(tmp_path).read_text().splitlines()
    assert tuple(caption.split(",")) == COLUMNS
    assert missed == "b.jpg,no face,0,1" + "," * 17 + ",3,17,abc"
    assert face.split(",")[:10] == ["a.jpg", "aligned", "2", "2", "a_0.png", "0.9877", "1.00", "2.00", "3.00", "4.50"]
    assert face.split(",")[10:20] == [f"{number}.00" for number in range(10)]


def test_names_with_commas_line_ends_and_odd_bytes(tmp_path):
    names = ["a,b.jpg", 'say "x".jpg', "line\nend.jpg", "odd\udcff.jpg", "\u5f20.jpg"]
    for _ in range(2):
        with Journal(tmp_path, SETTING) as journal:
            for name in names:
                if not is_done(journal, tmp_path, name):
                    journal.add(name, 0, [Line(NO_FACE)], STATE)
            assert list(journal.finish(names)) == names
    assert (tmp_path / TABLE).read_bytes().count(b"no face") == 5


def test_what_a_kill_has_cut_off_is_done_again(tmp_path):
    path = fill(tmp_path)
    whole = path.read_bytes()
    start = whole.index(b"a.jpg")
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        with Journal(tmp_path, SETTING) as journal:
            assert is_done(journal, tmp_path, "b.jpg")
            assert not is_done(journal, tmp_path, "a.jpg")
        assert path.read_bytes() == whole[:start]
    path.write_bytes(whole)
    with Journal(tmp_path, SETTING) as journal:
        assert is_done(journal, tmp_path, "a.jpg")


def test_lost_crops_and_unreadable_photographs_are_done_again(tmp_path):
    fill(tmp_path)
    (tmp_path / "a_1.png").unlink()
    with Journal(tmp_path, SETTING) as journal:
        assert not is_done(journal, tmp_path, "a.jpg")
        journal.add("c.jpg", 0, [Line(UNREADABLE, reason="c.jpg is\ndamaged")], STATE)
    assert ",c.jpg is damaged,3,17,abc\n" in (tmp_path / TABLE).read_text()
    with Journal(tmp_path, SETTING) as journal:
        assert not is_done(journal, tmp_path, "c.jpg")


def test_the_end_puts_the_photographs_in_order_and_forgets_those_that_are_gone(tmp_path):
    path = fill(tmp_path)
    with Journal(tmp_path, SETTING) as journal:
        (tmp_path / "gone.png").write_bytes(b"crop")
        journal.add("gone.jpg", 1, [Line(ALIGNED, "gone.png", FACE)], STATE)
        rows = journal.finish(["a.jpg", "b.jpg"])
        assert journal.crops_deleted == 1
    assert not (tmp_path / "gone.png").exists()
    assert [row["file"] for some in rows.values() for row in some] == ["a.jpg", "a.jpg", "b.jpg"]
    assert [line.split(",")[0] for line in path.read_text().splitlines()[1:]] == ["a.jpg", "a.jpg", "b.jpg"]


def test_other_settings_are_refused(tmp_path):
    fill(tmp_path)
    with pytest.raises(ValueError, match=r"with faces all \(now largest\): choose another output folder"):
        Journal(tmp_path, SETTING | {"faces": "largest"})
    with pytest.raises(ValueError, match=r"with landmarks None \(now abc\)"):
        Journal(tmp_path, {"landmarks": "abc"})
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(ValueError, match="is damaged: delete it"):
        Journal(tmp_path, SETTING)


def test_another_table_is_not_overwritten(tmp_path):
    (tmp_path / TABLE).write_text("mine\n1\n")
    with pytest.raises(ValueError, match="was not written by this program"):
        Journal(tmp_path, SETTING)
    assert (tmp_path / TABLE).read_text() == "mine\n1\n"


def test_size_time_and_then_content_decide_whether_a_photograph_is_done(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"first")
    os.utime(path, ns=(0, 5))
    content, state = read_with_state(path)
    assert content == b"first"
    assert (state.size, state.modified_ns) == (5, 5)
    with Journal(tmp_path, SETTING) as journal:
        journal.add("a.jpg", 0, [Line(NO_FACE)], state)
        assert journal.is_done("a.jpg", path)
        os.utime(path, ns=(0, 6))
        assert journal.is_done("a.jpg", path)
        path.write_bytes(b"other")
        assert not journal.is_done("a.jpg", path)
        os.utime(path, ns=(0, 5))
        path.write_bytes(b"longer than before")
        os.utime(path, ns=(0, 5))
        assert not journal.is_done("a.jpg", path)


@pytest.mark.parametrize("crop", ["../mine.png", "link/mine.png", ".", "loop", "a\0.png"])
def test_a_table_that_was_edited_deletes_nothing_elsewhere(tmp_path, crop):
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    (tmp_path / "mine.png").write_bytes(b"mine")
    with Journal(folder, SETTING) as journal:
        journal.add("gone.jpg", 1, [Line(ALIGNED, crop, FACE)], STATE)
        journal.finish([])
    assert journal.crops_deleted == 0
    assert (tmp_path / "mine.png").exists()
