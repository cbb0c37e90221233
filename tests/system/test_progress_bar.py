import io
import logging
import time

import pytest

from adaface.system import progress_bar as module
from adaface.system.progress_bar import progress_bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves: seconds in a list of one."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_a_line_every_ten_seconds(clock, caplog, capsys):
    caplog.set_level(logging.INFO, module.__name__)
    with progress_bar(total=5000, initial=1000, unit=" photographs", desc="a {folder}") as bar:
        for _ in range(100):
            clock[0] += 1
            bar.update(10)
    assert len(caplog.messages) == 10
    assert caplog.messages[0] == "a {folder}: 1,100 of 5,000 photographs, 10 a second, 06:30 left"
    assert caplog.messages[-1] == "a {folder}: 2,000 of 5,000 photographs, 10 a second, 05:00 left"
    assert bar.n == 2000
    assert capsys.readouterr() == ("", "")


def test_short_work_writes_nothing_and_lists_are_counted(clock, caplog):
    caplog.set_level(logging.INFO, module.__name__)
    assert list(progress_bar([1, 2, 3], unit="pair")) == [1, 2, 3]
    assert caplog.messages == []
    for _ in progress_bar(iter(range(3)), unit=" pairs"):
        clock[0] += 10
    assert caplog.messages[-1] == "3 pairs, 0.1 a second"


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    with progress_bar(total=3, unit="img", desc="x") as bar:
        bar.update(3)
    assert "100%" in screen.getvalue()
    assert list(progress_bar([1], unit="img", disable=True)) == [1]
