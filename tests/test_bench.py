import gc
import json

import pytest

import bench.__main__
from bench import timing
from bench.__main__ import scripts
from bench.timing import Side, compare
from tests.support.forked import run_program


@pytest.mark.parametrize("name", scripts([]))
def test_every_benchmark_runs_on_a_small_problem(name, tmp_path):
    words = ["--quick", "--repeats", "1", "--output", str(tmp_path)]
    done = run_program(f"bench.{name}", words, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
    for result in map(json.loads, lines):
        assert result["ratio"] > 0
        assert result["machine"]["command"].startswith("python")
        assert result["machine"]["command"].endswith(f"-m bench.{name} --quick --repeats 1 --output {tmp_path}")
        assert result["row"] in done.stdout


def test_sides_take_turns_after_one_warm_up_and_their_results_are_compared():
    calls = []
    sides = [
        Side(
            name, lambda name=name: calls.append(name) or name, before=lambda name=name: calls.append(f"before {name}")
        )
        for name in ("slow", "fast")
    ]
    compared = []
    result = compare(
        "work", *sides, count=3, unit="things", target=2, repeats=2,
        check=lambda a, b: compared.append((a, b)) or {"difference": 0},
    )  # fmt: skip
    order = [name for name in calls if not name.startswith("before")]
    assert order == ["slow", "fast", "slow", "fast", "fast", "slow"]
    assert calls[::2] == [f"before {name}" for name in order]
    assert compared == [("slow", "fast")]
    assert result["details"] == {"difference": 0}
    assert (result["unit"], result["target"], result["repeats"]) == ("things", 2, 2)


def test_medians_and_ratio_are_those_of_the_clock(monkeypatch):
    ticks = iter([0, 1, 0, 1, 0, 4, 0, 1, 0, 2, 0, 8, 0, 6, 0, 2])  # two to warm up, then three of each in turns
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    result = compare(
        "work", Side("slow", lambda: None), Side("fast", lambda: None), count=12, unit="things", target=1, repeats=3,
        check=lambda a, b: {},
    )  # fmt: skip
    assert result["baseline"]["range_sec"] == [4, 8]  # 4, 8, 6
    assert result["baseline"]["median_sec"] == 6
    assert result["candidate"]["median_sec"] == 2  # 1, 2, 2
    assert result["candidate"]["per_sec"] == 6
    assert result["ratio"] == 3
    assert result["ratio_range"] == [3, 4]


def test_the_peak_of_the_memory_is_that_of_one_run():
    if timing._reset_peak() is None:
        pytest.skip("this system does not tell a process its peak memory")
    big = Side("big", lambda: b"x" * 200_000_000 and None)
    result = compare(
        "work", big, Side("small", lambda: None), count=1, unit="x", target=1, repeats=1, check=lambda a, b: {}
    )
    assert result["baseline"]["peak_mb"] == pytest.approx(200, abs=30)
    assert result["candidate"]["peak_mb"] < 30


def test_garbage_of_earlier_work_does_not_lower_the_peak():
    if timing._reset_peak() is None:
        pytest.skip("this system does not tell a process its peak memory")
    cycle: list[object] = [b"y" * 300_000_000]
    cycle.append(cycle)
    del cycle  # 300 MB that only the garbage collector frees
    _, peak, _ = timing._once(Side("collecting", lambda: (gc.collect(), len(b"x" * 200_000_000))))
    assert peak == pytest.approx(200e6, abs=30e6)


def test_memory_that_the_allocator_kept_is_counted_when_it_is_used_again():
    if timing._reset_peak() is None:
        pytest.skip("this system does not tell a process its peak memory")
    largest = b"x" * 31_000_000
    del largest  # once freed, glibc takes blocks up to this size from its heap, where a hole stays resident
    blocks = [b"x" * 20_000_000 for _ in range(20)]
    above = [bytes(1000) for _ in range(2000)]
    del blocks
    _, peak, _ = timing._once(Side("in the hole", lambda: len(b"x" * 200_000_000)))
    assert len(above) == 2000
    assert peak == pytest.approx(200e6, abs=30e6)


def test_memory_is_compared_by_bytes(tmp_path, capsys):
    result = timing.compare_memory("room", ("large", 3e6), ("small", 2e6), target=1.4, details={"why": "less"})
    assert (result["ratio"], result["candidate"]["peak_mb"]) == (1.5, 2)
    timing.report(result, "room.py", tmp_path)
    printed = capsys.readouterr().out
    assert "large: 3 MB" in printed
    assert "room: 1.50x (target 1.4x)" in printed
    assert json.loads((tmp_path / "room.jsonl").read_text())["row"] == "room"


def test_the_table_has_times_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.__main__, "RESULTS", tmp_path)
    room = timing.compare_memory("room", ("large", 3e6), ("small", 2e6), target=1.4, details={})
    timed = {side: {"median_sec": 0.5, "peak_mb": 1.0} for side in ("baseline", "candidate")}
    (tmp_path / "both.jsonl").write_text(f"{json.dumps(room)}\n{json.dumps({**room, 'row': 'work', **timed})}\n")
    table = bench.__main__.table(["both"])
    assert "| room | 3 MB | 2 MB | **1.50x**" in table
    assert "| work | 0.5 s | 0.5 s |" in table


def test_work_that_is_not_the_same_is_not_timed():
    def differ(a, b):
        raise AssertionError("not the same work")

    with pytest.raises(AssertionError, match="not the same"):
        compare("work", Side("a", lambda: 1), Side("b", lambda: 2), count=1, unit="x", target=1, check=differ)
