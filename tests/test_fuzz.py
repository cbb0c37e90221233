"""Damaged files of every format: 2,000 of each, and how the fuzzer tells what is wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from adaface.data.image_list import read_color_image
from bench import fuzz
from bench._fuzz_targets import TARGETS
from bench._fuzz_variants import HangError, Variant, WrongResultError

CASES = 2000
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    # a process of its own: the smaller it is, the faster it forks
    words = [sys.executable, "-m", "bench.fuzz", "--cases", str(CASES), "--output", str(folder / "lines.jsonl")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    return {one["target"]: one for one in found}, done


@pytest.mark.parametrize("target", TARGETS)
def test_every_damaged_file_is_read_right_or_refused_in_one_line(target, lines):
    found, done = lines
    one = found[target]
    assert (one["cases"], one["findings"]) == (CASES, 0), done.stdout
    assert one["read"] + one["refused"] == CASES
    assert min(one["read"], one["refused"]) > CASES / 200  # the damage is neither too small nor too large


def outcome_of(monkeypatch, read):
    monkeypatch.setitem(TARGETS, "made up", lambda folder: [Variant(b"content", lambda data: read(folder, data))])
    return fuzz.run(["made up"], 20, seed=0, processes=1)["made up"]


def unless_whole(action):
    def read(folder, data):
        if data != b"content":
            action(folder)

    return read


def refuse(folder):
    raise ValueError(f"{folder} is damaged")


def refuse_without_the_file(folder):
    raise ValueError("invalid literal")


def run_out_of_memory(folder):
    try:
        bytearray(50 * fuzz.MEMORY_BYTES)
    except MemoryError as error:
        raise ValueError(f"{folder} is damaged") from error


def raise_type_error(folder):
    raise TypeError("unsupported operand")


def loop(folder):
    while True:
        pass


def die(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def be_wrong(folder):
    raise WrongResultError("another image")


@pytest.mark.parametrize(
    ("action", "what"),
    [
        (refuse, None),
        (refuse_without_the_file, "not a short line that names the file"),
        (run_out_of_memory, "MemoryError"),
        (raise_type_error, "TypeError"),
        (loop, HangError.__name__),
        (die, "the process died of signal 9"),
        (be_wrong, "another image"),
    ],
)
def test_what_counts_as_a_finding(action, what, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    outcome = outcome_of(monkeypatch, unless_whole(action))
    count = sum(map(len, outcome.findings.values()))
    assert outcome.cases == 20
    assert outcome.read + outcome.refused + count == 20
    assert count == 0 if what is None else all(what in found for found in outcome.findings) and count > 10


def test_memory_that_a_decoder_of_images_lacks_is_a_finding(monkeypatch, tmp_path):
    def reserve_exabytes(*_):
        return cv2.copyMakeBorder(np.zeros((1, 1, 3), np.uint8), 0, 1 << 30, 0, 1 << 30, cv2.BORDER_CONSTANT)

    path = tmp_path / f"{fuzz._MARK}picture.png"
    cv2.imwrite(str(path), np.zeros((112, 112, 3), np.uint8))
    monkeypatch.setattr(cv2, "imdecode", reserve_exabytes)
    with pytest.raises(MemoryError, match="Insufficient memory"):
        fuzz.run_case([Variant(b"content", lambda _: read_color_image(path))], "image", seed=0, case=0)


def test_a_case_is_decided_by_target_seed_and_number(monkeypatch):
    seen = []
    variants = [Variant(bytes(range(200)), seen.append), Variant(b"another", seen.append)]
    for seed, case in ((1, 2), (1, 2), (1, 3), (2, 2)):
        assert fuzz.run_case(variants, "rec", seed, case) == ""
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


@pytest.mark.parametrize("target", TARGETS)
def test_the_valid_files_are_the_same_in_every_folder(target, tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        contents.append([variant.content for variant in TARGETS[target](tmp_path / name)])
    assert contents[0] == contents[1]


def test_the_table_has_the_sums():
    outcomes = {"rec": fuzz.Outcome(3, 1, 1, {"TypeError": [2]}, 0.5), "idx": fuzz.Outcome(1000, 0, 1000, {}, 1)}
    assert fuzz.table(outcomes).splitlines() == [
        "target  cases  read  refused  findings  seconds",
        "rec         3     1        1         1      0.5",
        "idx     1,000     0    1,000         0      1.0",
        "all     1,003     1    1,001         1      1.5",
    ]
