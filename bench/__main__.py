"""Run every benchmark and print one table.

python -m bench             # all of them, results in bench/results/
python -m bench head open   # only those whose names contain one of these words
python -m bench --table     # the table of the newest results, nothing measured
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench.timing import RESULTS

_HERE = Path(__file__).parent
_NO_ROWS = ("__main__", "__init__", "timing", "interval_coverage", "finetune_gain")


def scripts(words: list[str]) -> list[str]:
    """Return the names of the benchmarks, those that contain one of ``words`` where there are any."""
    names = sorted(path.stem for path in _HERE.glob("*.py") if path.stem not in _NO_ROWS and path.stem[0] != "_")
    return [name for name in names if not words or any(word in name for word in words)]


def table(names: list[str]) -> str:
    """Return the newest result of each benchmark as a table in Markdown.

    Args:
        names: of the scripts.
    """
    lines = ["| work | baseline | here | ratio (range) | target |", "|---|---|---|---|---|"]
    for name in names:
        path = RESULTS / f"{name}.jsonl"
        if not path.is_file():
            continue
        newest: dict[str, dict] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            newest[result["row"]] = result
        for result in newest.values():
            slow, fast = (_shown(result[side]) for side in ("baseline", "candidate"))
            low, high = result["ratio_range"]
            ratio = f"**{result['ratio']:.2f}x** ({low:.2f} to {high:.2f})"
            lines.append(f"| {result['row']} | {slow} | {fast} | {ratio} | {result['target']:g}x |")
    unmeasured = [name for name in names if not (RESULTS / f"{name}.jsonl").is_file()]
    return "\n".join([*lines, *([f"not measured yet: {', '.join(unmeasured)}"] if unmeasured else [])])


def _shown(side: dict) -> str:
    """Return a side's time, or its memory where that was measured."""
    return f"{side['peak_mb']:,.0f} MB" if side["median_sec"] is None else f"{side['median_sec']:.3g} s"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only benchmarks whose names contain one of these")
    parser.add_argument("--table", action="store_true", help="print the newest results, measure nothing")
    parsed = parser.parse_args()
    names = scripts(parsed.words)
    if not names:
        print(f"no benchmark contains {' or '.join(parsed.words)}; there are {', '.join(scripts([]))}", file=sys.stderr)
        return 2
    failed = []
    for name in [] if parsed.table else names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], cwd=_HERE.parent).returncode:
            failed.append(name)
    print(table(names))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
