import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adaface.system.threads import SPIN_COUNT, in_order, limit_spinning

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_items(threads):
    def work(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_order(work, range(20), threads=threads, ahead=6)) == [i * i for i in range(20)]


def test_no_more_items_are_taken_than_asked_for():
    taken = []
    items = (taken.append(i) or i for i in range(10))
    results = in_order(lambda item: item, items, threads=2, ahead=3)
    assert next(results) == 0
    assert len(taken) == 3
    assert list(results) == list(range(1, 10))


def test_an_error_comes_when_its_items_turn_comes_and_stops_the_rest():
    seen, gate = [], threading.Event()

    def work(item):
        if item == 0:
            gate.wait(10)
        else:
            gate.set()
        seen.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    results = in_order(work, range(100), threads=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert max(seen) < 10


def test_who_stops_asking_leaves_no_thread_behind():
    before = threading.active_count()
    results = in_order(lambda item: item, range(1000), threads=2, ahead=8)
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "given", "spin_count"),
    [
        (["-m", "adaface", "models", "ir_mini"], {}, SPIN_COUNT),
        (["main.py", "--print_config"], {}, SPIN_COUNT),
        (["inference.py", "models", "ir_mini"], {}, SPIN_COUNT),
        (["-m", "adaface", "models", "ir_mini"], {"GOMP_SPINCOUNT": "7000"}, 7000),
        (["-m", "adaface", "models", "ir_mini"], {"OMP_WAIT_POLICY": "passive"}, 0),
    ],
)
def test_the_openmp_library_reads_the_number_unless_another_is_given(words, given, spin_count):
    """It prints what it uses when it is loaded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {**given, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if not loaded:
        pytest.skip("PyTorch has no GNU OpenMP library here")
    assert set(loaded) == {str(spin_count)}


@pytest.mark.long
def test_a_program_that_imports_the_package_keeps_its_environment(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    program = "import os, adaface, adaface.system.threads, main; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
