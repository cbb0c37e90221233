"""Compare the accuracies of a run with a baseline without learning.

    python -m adaface.commands.demo_baseline demo/faces --runs experiments

The baseline is the cosine similarity of raw pixels with the same 10-fold protocol.
"""

import sys

from adaface.system.interrupt import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()


import os
from pathlib import Path

import numpy as np

from adaface.data.pair_sets import PAPER_SETS, open_pair_set
from adaface.metrics.verification import evaluate
from adaface.system.command_line import run_to_status
from adaface.system.json_file import read_object
from adaface.system.option_parser import Parser
from adaface.system.text_table import aligned


def raw_pixel_baseline(folder: str | os.PathLike[str]) -> tuple[dict[str, float], str]:
    """Verify pairs by the cosine similarity of their pixels, without any learning.

    Computed both with plain pixels and with each image's mean removed; the variant with the higher mean over the sets
    is the baseline.

    Args:
        folder: folder with one or more of the five verification sets, in any format.

    Returns:
        10-fold accuracy in percent by set, and the variant: "plain" or "mean-removed".

    Raises:
        FileNotFoundError: the folder contains none of the five sets.
    """
    results: dict[str, dict[str, float]] = {"plain": {}, "mean-removed": {}}
    for name in PAPER_SETS:
        try:
            pair_set = open_pair_set(folder, name)
        except FileNotFoundError:
            continue
        pixels = np.stack([pair_set.images[i] for i in range(2 * len(pair_set.issame))])
        vectors = pixels.reshape(len(pixels), -1).astype(np.float32)
        for kind, shift in (("plain", 0.0), ("mean-removed", vectors.mean(axis=1, keepdims=True))):
            shifted = vectors - shift
            lengths = np.maximum(np.linalg.norm(shifted, axis=1, keepdims=True), 1e-6)
            results[kind][name] = 100 * float(np.mean(evaluate(shifted / lengths, pair_set.issame)[2]))
    if not results["plain"]:
        raise FileNotFoundError(f"{folder}: none of {', '.join(PAPER_SETS)} found")
    kind = max(results, key=lambda kind: np.mean(list(results[kind].values())))
    return results[kind], kind


def newest_run(runs: str | os.PathLike[str], prefix: str) -> Path:
    """Return the folder of the run with the newest results.

    Args:
        runs: parent of the run folders.
        prefix: prefix of their names.

    Raises:
        FileNotFoundError: no run has results.
    """
    found = sorted(Path(runs).glob(f"{prefix}_*/results.json"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        raise FileNotFoundError(f"no finished run {prefix}_* in {runs}: train one first (make demo)")
    return found[-1].parent


def comparison_table(baseline: dict[str, float], kind: str, run: Path | None) -> str:
    """Return a table of the baseline and the accuracies of a run.

    Args:
        baseline: accuracies in percent, by set.
        kind: variant of the baseline.
        run: run folder with ``results.json``; None for the baseline alone.

    Returns:
        Lines of text without a newline at the end.
    """
    heads = ["10-fold accuracy, %", f"raw pixels ({kind})"]
    columns = [baseline]
    if run is not None:
        heads.append("trained network")
        columns.append(_accuracies(run / "results.json"))
    names = [name for name in baseline if all(name in column for column in columns)]
    rows = [[name, *(f"{column[name]:.2f}" for column in columns)] for name in names]
    means = ["mean", *(f"{np.mean([column[name] for name in names]):.2f}" for column in columns)]
    return "\n".join(aligned([heads, *rows, None, means]))


def _accuracies(results: Path) -> dict[str, float]:
    content = read_object(results)
    try:
        return {row["set"]: float(row["accuracy"]) for row in content["sets"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{results} does not hold the accuracies of a run ({error}): choose another run") from error


def main() -> int:
    """Run the command line and return the exit status."""
    parser = Parser(
        prog="python -m adaface.commands.demo_baseline",
        description="Print the accuracy of raw-pixel cosines on verification sets, and that of the newest run.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the verification sets")
    parser.add_argument("--runs", metavar="DIR", type=Path, help="parent of the run folders, such as experiments")
    parser.add_argument("--prefix", default="demo", help="prefix of the run folder's name (default: demo)")

    def job() -> int:
        options = parser.parse(sys.argv[1:])
        run = newest_run(options.runs, options.prefix) if options.runs else None
        print(comparison_table(*raw_pixel_baseline(options.folder), run))
        if run is not None:
            print(f"plots, tables and checkpoints: {run}")
        return 0

    return run_to_status("demo_baseline", job, stopped="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
