"""The killer of commands: what it counts, and what it finds in commands that do not withstand it."""

import os
import random
import time
from pathlib import Path

import pytest

from bench import kills
from bench.kills import Job, Trials
from tests.support.forked import run_program

OUTPUT = Path("output.txt")  # in the working directory of a command
PART_SEC = 0.05


def write_whole(words: list[str]) -> int:
    """As our commands write."""
    part = Path(f".{os.getpid()}.part")
    for old in Path().glob(".*.part"):
        old.unlink(missing_ok=True)
    write_slowly(part)
    part.replace(OUTPUT)
    return 0


def write_slowly(path: Path) -> None:
    with path.open("w") as file:
        for _ in range(4):
            file.write("part ")
            file.flush()
            time.sleep(PART_SEC)


def believe_what_is_there(words: list[str]) -> int:
    if not OUTPUT.exists():
        write_slowly(OUTPUT)
    return 0


def leave_parts(words: list[str]) -> int:
    part = Path(f".{os.getpid()}.part")
    write_slowly(part)
    part.replace(OUTPUT)
    return 0


def refuse_what_is_there(words: list[str]) -> int:
    if list(Path().iterdir()):
        print("program: error: the folder is not empty")
        return 2
    write_slowly(OUTPUT)
    return 0


def trials_of(main, monkeypatch, folder: Path) -> Trials:
    monkeypatch.setattr(kills.command_line, "main", main)
    (folder / "inputs").mkdir()
    return Trials("made up", Job(["made", "up"], ()), folder)


@pytest.mark.parametrize(
    ("main", "finding"),
    [
        (write_whole, ""),
        (believe_what_is_there, "output.txt differs"),
        (leave_parts, ".part is left"),
        (refuse_what_is_there, "status 2: program: error: the folder is not empty"),
    ],
)
def test_what_a_kill_leaves_is_found(main, finding, monkeypatch, tmp_path):
    trials = trials_of(main, monkeypatch, tmp_path)
    rng = random.Random(0)
    for _ in range(5):
        trials.kill(rng)
    outcome = trials.outcome
    assert outcome.trials == 5
    assert outcome.kills >= 5
    assert bool(outcome.findings) == bool(finding)
    assert all(what.startswith("trial ") for what in outcome.findings)
    assert finding in " ".join(outcome.findings)


def test_a_second_writer_may_refuse_in_one_line(monkeypatch, tmp_path):
    trials = trials_of(refuse_what_is_there, monkeypatch, tmp_path)
    monkeypatch.setattr(trials, "_expected", {})
    trials.outcome.by_name = ["output.txt"]
    trials.write_twice()
    assert (trials.outcome.pairs, trials.outcome.refused, trials.outcome.findings) in ((1, 1, []), (1, 0, []))


def test_commands_withstand_kills_and_second_writers(tmp_path):
    words = ["--kills", "1", "--pairs", "1", "--job", "convert", "--job", "compare", "--job", "convert --pairs"]
    done = run_program("bench.kills", words, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["command", "kills", "trials"]
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [("convert", "0"), ("compare", "0"), ("convert", "0")]
