"""Ctrl-C in real processes: during imports, twice, after the command, and where it is ignored."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adaface.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SEC = 60
SLEEP = "for _ in range(600): time.sleep(0.1)"  # Python sees a signal that comes just before a sleep at its end
COMMAND = """
import atexit, sys, time
from adaface.system.interrupt import end_on_interrupt
end_on_interrupt()
from adaface.system.command_line import run_to_status
def wait(word):
    print(word, flush=True)
    SLEEP
def job():
    try:
        WAIT
    finally:
        if CLEANING: wait("cleaning")
    return 0
if AT_EXIT: atexit.register(wait, "ending")
sys.exit(run_to_status("prog", job, stopped="all is kept"))
""".replace("SLEEP", SLEEP)


def start(*words: str, path: Path | None = None, ignored: bool = False) -> subprocess.Popen:
    """Start a program as a terminal does, or as a shell does in the background."""
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(path or "")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )  # fmt: skip


def ended(running: subprocess.Popen) -> tuple[int, str]:
    try:
        _, error = running.communicate(timeout=SEC)
    finally:
        running.kill()
    return running.returncode, error


def command(wait: str = "wait('running')", cleaning: bool = False, at_exit: bool = False) -> list[str]:
    program = COMMAND.replace("WAIT", wait).replace("CLEANING", str(cleaning)).replace("AT_EXIT", str(at_exit))
    return ["-c", program]


@pytest.fixture
def slow_imports(tmp_path) -> Path:
    """A folder with a module of the name of NumPy, whose import never ends."""
    (tmp_path / "model.onnx").touch()
    (tmp_path / "numpy.py").write_text(f"import time\nprint('importing', flush=True)\n{SLEEP}\n")
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "words",
    [
        ["main.py", "--arch", "ir_mini"],
        ["convert.py", "--rec_path", "x"],
        ["inference.py", "serve", "--checkpoint", "MODEL"],
        ["-m", "adaface.demo.dataset", "--output", "x"],
        ["-m", "adaface.commands.demo_baseline", "x"],
        ["-m", "adaface", "train", "--arch", "ir_mini"],
        ["-m", "adaface", "serve", "--checkpoint", "MODEL"],
        ["-m", "adaface", "evaluate", "pairs", "--checkpoint", "MODEL", "--root", "docs"],
        ["-c", "import sys; from adaface.__main__ import main; sys.argv[1:] = ['align', 'a', 'b']; sys.exit(main())"],
    ],
)
def test_during_imports(slow_imports, words, number):
    model = str(slow_imports / "model.onnx")  # read later
    running = start(*(model if word == "MODEL" else word for word in words), path=slow_imports)
    assert running.stdout.readline() == "importing\n"
    running.send_signal(number)
    assert ended(running) == (130, "\nadaface: stopped; nothing was done\n")


def test_every_module_that_the_documentation_starts_is_guarded():
    """Those of ``adaface <command>`` are started by ``adaface/__main__.py``."""
    of_commands = {ROOT / f"{command.module.replace('.', '/')}.py" for command in COMMANDS.values()}
    modules = {*ROOT.glob("*.py"), *ROOT.glob("adaface/**/*.py")} - of_commands
    commands = [module for module in modules if '__name__ == "__main__"' in module.read_text()]
    assert len(commands) > 4
    assert [module for module in commands if "    end_on_interrupt()\n" not in module.read_text()] == []


def test_once_and_twice():
    running = start(*command())
    assert running.stdout.readline() == "running\n"
    running.send_signal(signal.SIGINT)
    assert ended(running) == (130, "\nprog: stopped; all is kept\n")
    running = start(*command(cleaning=True))
    for word in ("running", "cleaning"):
        assert running.stdout.readline() == f"{word}\n"
        running.send_signal(signal.SIGINT)
    assert ended(running) == (130, "\nadaface: stopped at once; files that were already saved are complete\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_the_command(number):
    running = start(*command(wait="pass", at_exit=True))
    assert running.stdout.readline() == "ending\n"
    running.send_signal(number)
    assert ended(running) == (130, "")


def test_while_python_ends():
    """Without handlers, since Python has restored those of the system."""
    program = f"""
import os
from adaface.system.interrupt import end_on_interrupt
class Last:
    def __del__(self, kill=os.kill, process=os.getpid()):
        kill(process, {int(signal.SIGINT)})
last = Last()
end_on_interrupt()
raise SystemExit(3)
"""
    assert ended(start("-c", program)) == (3, "")


def test_a_server_in_the_background_is_stopped(slow_imports):
    words = ["-m", "adaface", "serve", "--checkpoint", str(slow_imports / "model.onnx")]
    running = start(*words, path=slow_imports, ignored=True)
    assert running.stdout.readline() == "importing\n"
    running.send_signal(signal.SIGINT)
    assert ended(running) == (130, "\nadaface: stopped; nothing was done\n")


def test_in_the_background_sigterm_stops():
    """Shells start jobs with Ctrl-C ignored, which is kept."""
    running = start(*command(), ignored=True)
    assert running.stdout.readline() == "running\n"
    running.send_signal(signal.SIGINT)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert ended(running) == (130, "\nprog: stopped; all is kept\n")


def test_a_forked_process_is_interrupted_as_by_python():
    fork = "import os; child = os.fork() or wait('running'); sys.exit(os.waitpid(child, 0)[1])"
    running = start(*command(wait=fork))
    assert running.stdout.readline() == "running\n"
    os.kill(int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()), signal.SIGINT)
    _, error = ended(running)
    assert "at once" not in error and "nothing was done" not in error
