"""One timer for every benchmark: baseline and candidate in turns, medians, spread, peak memory, one JSON line.

A script describes its row by two ``Side``s and calls ``compare``; the ratio of the medians is what a claim rests on,
since both sides saw the same machine in the same minutes. The line goes to ``bench/results/<script>.jsonl``; the last
line of a file is its newest measurement.
"""

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaface.system.threads import usable_cores

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numpy", "opencv-python-headless")
_CLEAR_PEAK = "5"  # proc(5): resets the peak of the resident memory


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared.

    Attributes:
        name: a few words, for the table.
        run: the work; returns what ``compare`` hands to its ``check``.
        before: done before each run, outside the clock (deleting what the last run wrote).
        count: units of work in one run, where it is not that of the other side; the ratio stays one of times.
    """

    name: str
    run: Callable[[], Any]
    before: Callable[[], None] | None = None
    count: int | None = None


def options(description: str | None) -> argparse.Namespace:
    """Parse the command line that all scripts share, and exempt what they imported from garbage collections.

    Args:
        description: the script's docstring.

    Returns:
        ``repeats`` (int), ``quick`` (bool: a small problem, to see that the script works) and ``output`` (the folder
        of the results).
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default 5)")
    parser.add_argument("--quick", action="store_true", help="a small problem: does it run? no figure of it is a claim")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"folder of the JSON lines (default {RESULTS})")
    gc.freeze()  # one collection before each run of a side would walk a million objects that stay
    return parser.parse_args()


def compare(
    row: str,
    baseline: Side,
    candidate: Side,
    *,
    count: int,
    unit: str,
    target: float,
    check: Callable[[Any, Any], dict[str, Any]],
    repeats: int = 5,
) -> dict[str, Any]:
    """Time two sides in turns, after one run of each to warm up, whose results are compared.

    Args:
        row: the work, as in the table.
        baseline: what is compared with.
        candidate: what is claimed to be faster.
        count: units of work in one run, such as images.
        unit: their name.
        target: the ratio that the candidate should reach.
        check: takes the results of the baseline and of the candidate, raises where they are not the same work, and
            returns figures for the JSON line (such as the largest difference).
        repeats: timed runs of each side.

    Returns:
        Everything that the JSON line holds.
    """
    sides = (baseline, candidate)
    details = check(*(_once(side)[2] for side in sides))
    runs: dict[str, list[tuple[float, int | None]]] = {side.name: [] for side in sides}
    for number in range(repeats):
        for side in sides if number % 2 == 0 else sides[::-1]:
            runs[side.name].append(_once(side)[:2])
    described = [_describe(side.name, runs[side.name], side.count or count) for side in sides]
    ratios = [slow[0] / fast[0] for slow, fast in zip(runs[baseline.name], runs[candidate.name], strict=True)]
    return {
        "row": row,
        "unit": unit,
        "count": count,
        "baseline": described[0],
        "candidate": described[1],
        "ratio": described[0]["median_sec"] / described[1]["median_sec"],
        "ratio_range": [min(ratios), max(ratios)],
        "target": target,
        "repeats": repeats,
        "details": details,
        "machine": _machine(),
    }


def compare_memory(
    row: str,
    baseline: tuple[str, float],
    candidate: tuple[str, float],
    *,
    target: float,
    details: dict[str, Any],
) -> dict[str, Any]:
    """Compare the memory of two sides, measured elsewhere; the ratio is that of the bytes.

    Args:
        row: the work, as in the table.
        baseline: name and bytes of what is compared with.
        candidate: name and bytes of what is claimed.
        target: the ratio that the candidate should reach.
        details: figures for the JSON line.

    Returns:
        Everything that the JSON line holds; there are no times.
    """
    sides = [{"name": name, "median_sec": None, "peak_mb": size / 1e6} for name, size in (baseline, candidate)]
    ratio = baseline[1] / candidate[1]
    return {
        "row": row,
        "baseline": sides[0],
        "candidate": sides[1],
        "ratio": ratio,
        "ratio_range": [ratio, ratio],
        "target": target,
        "details": details,
        "machine": _machine(),
    }


def not_compared(row: str, baseline: dict[str, Any], candidate: dict[str, Any], *, target: float) -> dict[str, Any]:
    """Describe a row of which a side could not be measured.

    Args:
        row: the work, as in the table.
        baseline: its ``name``, and ``shown``, the reason; or what ``compare`` says of it.
        candidate: the same.
        target: the ratio that the candidate should reach.

    Returns:
        Everything that the JSON line holds; there is no ratio.
    """
    unknown = {"median_sec": None, "peak_mb": None}
    return {
        "row": row,
        "baseline": {**unknown, **baseline},
        "candidate": {**unknown, **candidate},
        "ratio": None,
        "ratio_range": None,
        "target": target,
        "details": {},
        "machine": _machine(),
    }


def table(results: Iterable[dict[str, Any]]) -> list[str]:
    """Return the lines of a table in Markdown.

    Args:
        results: what ``compare``, ``compare_memory`` and ``not_compared`` return.
    """
    lines = ["| work | baseline | here | ratio (range) | target |", "|---|---|---|---|---|"]
    for result in results:
        slow, fast = (_shown(result[side]) for side in ("baseline", "candidate"))
        ratio = "-"
        if result["ratio"] is not None:
            low, high = result["ratio_range"]
            ratio = f"**{result['ratio']:.2f}x** ({low:.2f} to {high:.2f})"
        lines.append(f"| {result['row']} | {slow} | {fast} | {ratio} | {result['target']:g}x |")
    return lines


def _shown(side: dict[str, Any]) -> str:
    """Return what the table says of a side: its own words, its time, or its memory where that was measured."""
    if "shown" in side:
        return side["shown"]
    return f"{side['peak_mb']:,.0f} MB" if side["median_sec"] is None else f"{side['median_sec']:.3g} s"


def report(result: dict[str, Any], script: str, output: Path | None) -> None:
    """Append the JSON line to the script's results and print what it says.

    Args:
        result: of ``compare``, ``compare_memory`` or ``not_compared``; ``details`` may have been added to.
        script: the script's ``__file__``.
        output: folder of the results; None: they are only printed.
    """
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        with (output / f"{Path(script).stem}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    for side in (result["baseline"], result["candidate"]):
        if "shown" in side:
            print(f"  {side['name']}: {side['shown']}")
            continue
        if side["median_sec"] is None:
            print(f"  {side['name']}: {side['peak_mb']:,.0f} MB")
            continue
        low, high = side["range_sec"]
        memory = "" if side["peak_mb"] is None else f", {side['peak_mb']:,.0f} MB more at the peak"
        print(
            f"  {side['name']}: {side['median_sec']:.4g} s ({low:.4g} to {high:.4g}), "
            f"{side['per_sec']:,.0f} {result['unit']}/s{memory}"
        )
    ratio = "not compared" if result["ratio"] is None else f"{result['ratio']:.2f}x"
    print(f"{result['row']}: {ratio} (target {result['target']:g}x)", flush=True)
    for name, value in result["details"].items():
        print(f"  {name}: {value}")


def _once(side: Side) -> tuple[float, int | None, Any]:
    """Run one side once; return its seconds, the bytes by which the resident memory rose at most, and its result."""
    if side.before is not None:
        side.before()
    at_start = _reset_peak()
    started = time.perf_counter()
    outcome = side.run()
    seconds = time.perf_counter() - started
    peak = None if at_start is None else max(0, _memory("VmHWM") - at_start)
    return seconds, peak, outcome


def _describe(name: str, runs: list[tuple[float, int | None]], count: int) -> dict[str, Any]:
    seconds = [second for second, _ in runs]
    peaks = [peak for _, peak in runs if peak is not None]
    median = statistics.median(seconds)
    return {
        "name": name,
        "median_sec": median,
        "range_sec": [min(seconds), max(seconds)],
        "per_sec": count / median,
        "peak_mb": statistics.median(peaks) / 1e6 if peaks else None,
    }


def _reset_peak() -> int | None:
    """Begin to measure this process's peak memory anew; return the memory now in bytes, None where Linux is not.

    What earlier work has left is given back to the system first. Otherwise cycles freed during the next run would be
    subtracted from its peak, and memory that the C library still holds would be used again without being counted.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        return _memory("VmRSS")
    except OSError:
        return None


def _memory(field: str) -> int:
    """Return a size in bytes that the kernel keeps of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def _machine() -> dict[str, Any]:
    """Say what was measured where: versions, command, commit, processor."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "command": " ".join([Path(sys.executable).name, "-m", _module(), *sys.argv[1:]]),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "processor": _processor(),
        "cores": usable_cores(),
    }


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).name


def _git(*words: str) -> str:
    try:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=RESULTS.parent, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    name = text.partition("model name")[2].partition("\n")[0].strip(" \t:")
    widths = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if flag in text]
    return f"{name} ({', '.join(widths)})"
