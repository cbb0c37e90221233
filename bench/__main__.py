"""Run every benchmark and print one table.

python -m bench             # all of them, results in bench/results/
python -m bench head open   # only those whose names contain one of these words
python -m bench --table     # the table of the newest results, nothing measured
python -m bench fuzz        # damaged files, see bench/fuzz.py; nothing measured
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench import timing
from bench.timing import RESULTS

_HERE = Path(__file__).parent
_NO_ROWS = ("__main__", "__init__", "timing", "interval_coverage", "finetune_gain", "fuzz", "kills")


def scripts(words: list[str]) -> list[str]:
    """Return the names of the benchmarks, those that contain one of ``words`` where there are any."""
    names = sorted(path.stem for path in _HERE.glob("*.py") if path.stem not in _NO_ROWS and path.stem[0] != "_")
    return [name for name in names if not words or any(word in name for word in words)]


def table(names: list[str]) -> str:
    """Return the newest result of each benchmark as a table in Markdown.

    Args:
        names: of the scripts.
    """
    newest: dict[tuple[str, str], dict] = {}
    for name in names:
        path = RESULTS / f"{name}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            result = json.loads(line)
            newest[name, result["row"]] = result
    lines = timing.table(newest.values())
    unmeasured = [name for name in names if not (RESULTS / f"{name}.jsonl").is_file()]
    if unmeasured:
        lines += ["", f"Not measured yet: {', '.join(unmeasured)}."]
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit status."""
    if sys.argv[1:2] == ["fuzz"]:
        return subprocess.run([sys.executable, "-m", "bench.fuzz", *sys.argv[2:]], cwd=_HERE.parent).returncode
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
