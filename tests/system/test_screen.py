"""What the library logs, on the screen of a command and without one."""

import io
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adaface.system.screen import log_to_screen

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = logging.getLogger("adaface.some.module")


def log_all() -> None:
    for level in ("debug", "info", "warning", "error"):
        getattr(LIBRARY, level)(f"a line of level {level}, 100 %")


def lines(*levels: str) -> str:
    return "".join(f"a line of level {level}, 100 %\n" for level in levels)


def test_information_goes_to_stdout_and_the_rest_to_stderr(capsys):
    with log_to_screen():
        log_all()
    assert capsys.readouterr() == (lines("info"), lines("warning", "error"))
    with log_to_screen(errors_from=logging.ERROR):
        log_all()
    assert capsys.readouterr() == (lines("info", "warning"), lines("error"))


def test_blocks_inside_and_after_each_other_show_a_line_once(capsys):
    for _ in range(2):
        with log_to_screen(errors_from=logging.ERROR):
            with log_to_screen():
                LIBRARY.warning("inner")
            LIBRARY.warning("outer")
        assert capsys.readouterr() == ("outer\n", "inner\n")


def test_after_a_block_everything_is_as_before(capsys, caplog):
    logger = logging.getLogger("adaface")
    before = logger.handlers[:], logger.level, logger.propagate
    with pytest.raises(KeyError), log_to_screen():
        LIBRARY.info("shown")
        raise KeyError
    assert (logger.handlers, logger.level, logger.propagate) == before
    assert not caplog.messages, "a handler of the root logger shows nothing again"
    LIBRARY.warning("kept")
    assert caplog.messages == ["kept"]
    assert capsys.readouterr() == ("shown\n", "")


@pytest.fixture
def root_logger(monkeypatch):
    """The root logger, without pytest's handlers, as a program configures it."""
    logger = logging.getLogger()
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    yield logger
    logger.manager._clear_cache()


def test_handlers_of_the_program_get_each_record_once_and_the_screen_shows_a_line_once(root_logger, tmp_path, capsys):
    for handler in (logging.FileHandler(tmp_path / "log"), logging.StreamHandler(sys.stdout), logging.StreamHandler()):
        root_logger.addHandler(handler)
    root_logger.handlers.append(quiet := logging.FileHandler(tmp_path / "errors"))
    quiet.setLevel(logging.ERROR)
    with log_to_screen():
        LIBRARY.debug("not asked for")
        LIBRARY.info("first")
        with log_to_screen(errors_from=logging.ERROR):
            LIBRARY.error("second")
        LIBRARY.warning("third")
    assert (tmp_path / "log").read_text() == "first\nsecond\nthird\n"
    assert (tmp_path / "errors").read_text() == "second\n"
    assert capsys.readouterr() == ("first\n", "second\nthird\n")
    for handler in root_logger.handlers:
        handler.close()


def test_the_level_that_a_program_set_applies_to_its_handlers(root_logger, tmp_path, capsys):
    root_logger.addHandler(file := logging.FileHandler(tmp_path / "log"))
    root_logger.setLevel(logging.WARNING)
    with log_to_screen():
        log_all()
    assert (tmp_path / "log").read_text() == lines("warning", "error")
    root_logger.setLevel(logging.DEBUG)
    with log_to_screen():
        log_all()
    assert (tmp_path / "log").read_text() == lines("warning", "error", "debug", "info", "warning", "error")
    assert capsys.readouterr() == (lines("info") * 2, lines("warning", "error") * 2)
    file.close()


def test_other_libraries_are_not_shown(capsys):
    with log_to_screen():
        logging.getLogger("adaface_of_somebody_else").info("not ours")
    assert capsys.readouterr() == ("", "")


def test_names_that_are_no_text_are_shown(monkeypatch):
    for encoding, shown in (("utf-8", b"n\\udcff \xc3\xab\n"), ("ascii", b"n\\udcff \\xeb\n")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", stream)
        with log_to_screen():
            LIBRARY.info(os.fsdecode(b"n\xff ") + "ë")
        assert stream.buffer.getvalue() == shown  # flushed
    monkeypatch.setattr(sys, "stdout", None)
    with log_to_screen():
        LIBRARY.info("no console")


def test_a_blocked_stdout_does_not_block_an_error(capsys, monkeypatch):
    blocked, free = threading.Event(), threading.Event()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            blocked.set()
            free.wait(60)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Full())
    with log_to_screen():
        thread = threading.Thread(target=LIBRARY.info, args=("waits",))
        thread.start()
        assert blocked.wait(60)
        LIBRARY.error("a process was lost")
        assert thread.is_alive()
        free.set()
        thread.join()
    assert capsys.readouterr().err == "a process was lost\n"


PROGRAM = """
import logging, sys
from adaface.system.command_line import run_to_status

def job():
    for number in range(int(sys.argv[1])):
        logging.getLogger("adaface.x").info(str(number))
    return 0

sys.exit(run_to_status("program", job, stopped=""))
"""


@pytest.mark.parametrize("lines", [1, 1000])
def test_an_output_that_cannot_be_written_ends_a_command(lines):
    command = [sys.executable, "-c", PROGRAM, str(lines)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60)
    assert done.returncode != 0
    assert done.stderr.startswith(b"program: error: no space left on the disk")


def test_without_a_command_warnings_alone_are_shown_and_a_program_can_choose():
    program = "import logging\n{}\nlogger = logging.getLogger('adaface.x')\nlogger.info('one')\nlogger.warning('two')"
    for setting, shown in (
        ("", "two\n"),
        ("logging.basicConfig(level='INFO', format='> %(message)s')", "> one\n> two\n"),
    ):
        command = [sys.executable, "-c", program.format(f"import adaface.system.locks\n{setting}")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
        assert (done.stdout, done.stderr) == ("", shown)
