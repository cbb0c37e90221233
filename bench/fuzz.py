"""Damage small valid files at random and read them: does every reader answer with what is there, or with one line?

    python -m bench fuzz                                        # 2,000 cases of each target
    python -m bench fuzz --cases 100000 --target rec --processes 2
    python -m bench fuzz --target rec --seed 3 --case 1234      # one case again, with its traceback

A case is decided by target, seed and number. It is read in a process whose memory is limited, in at most 2 seconds of
processor time. What counts as a finding: the process dies, the time is over, the memory is not enough, an exception
that a command would not report in one line that names the file, or a wrong result. What is wrong is written with each
target, in `bench/_fuzz_data.py`, `_fuzz_text.py` and `_fuzz_models.py`.
"""

import argparse
import collections
import itertools
import json
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import cv2
import numpy as np

from adaface.system.command_line import EXPECTED_ERRORS, one_line
from adaface.system.text_table import aligned
from bench import timing
from bench._fuzz_mutations import mutate
from bench._fuzz_targets import TARGETS
from bench._fuzz_variants import HangError, Variant, WrongResultError

SECONDS = 2.0
MEMORY_BYTES = 1_000_000_000  # beyond what the process has once everything is imported
_WALL_SECONDS = 60.0  # for a case on a busy machine; a hang that no signal interrupts takes longer
_LONGEST_LINE = 2000
_AT_ONCE = 5000  # cases of a process
_SHOWN = 8  # findings of a kind
_CASE, _READ, _REFUSED = range(3)  # the numbers that a process shares
_MARK = "fuzz_"  # in the name of each file that is read


@dataclass
class Outcome:
    """What the cases of a target gave.

    Attributes:
        cases: how many.
        read: how many files were read.
        refused: how many were refused in one line.
        findings: numbers of cases by what happened.
        seconds: of processor time.
    """

    cases: int = 0
    read: int = 0
    refused: int = 0
    findings: dict[str, list[int]] = field(default_factory=lambda: collections.defaultdict(list))
    seconds: float = 0.0


def run_case(variants: list[Variant], target: str, seed: int, case: int) -> str:
    """Read one damaged file.

    Args:
        variants: of the target.
        target: its name.
        seed: of the run.
        case: number of the case.

    Returns:
        Empty if it was read; otherwise the line that a command would print.

    Raises:
        Exception: a finding.
    """
    rng = random.Random(f"{target} {seed} {case}")
    (variant,) = rng.choices(variants, [variant.weight for variant in variants])
    data = mutate(rng, variant.content, variant.mutations)
    try:
        variant.read(data)
    except EXPECTED_ERRORS as error:
        if short := _out_of_memory(error):
            raise MemoryError(short) from error
        line = one_line(error)
        if len(line) > _LONGEST_LINE or _MARK not in line:
            raise WrongResultError(f"not a short line that names the file: {line[:200]}") from error
        return line
    return ""


def _out_of_memory(error: BaseException | None) -> str:
    """Return the message of a MemoryError behind an error; without a limit, it would have been that much memory."""
    while error is not None:
        if isinstance(error, MemoryError):
            return str(error) or "a MemoryError"
        error = error.__cause__ or error.__context__
    return ""


class _Worker:
    """A process that runs some cases of a target.

    Args:
        folder: for its files.
        target: name of the target.
        seed: of the run.
        cases: their numbers.
    """

    def __init__(self, folder: Path, target: str, seed: int, cases: range) -> None:
        self.target, self.cases = target, cases
        self._log = folder / "findings.jsonl"
        self._shared = np.frombuffer(mmap.mmap(-1, 64), np.int64)
        self._shared[_CASE] = cases.start - 1
        self._seen = (cases.start - 1, time.monotonic())
        self._pid = os.fork()
        if self._pid == 0:
            self._run(folder, seed)

    def _run(self, folder: Path, seed: int) -> None:
        status = 1
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            variants = prepared(folder, self.target)
            signal.signal(signal.SIGPROF, _time_is_over)
            for case in self.cases:
                self._shared[_CASE] = case
                try:
                    signal.setitimer(signal.ITIMER_PROF, SECONDS)
                    line = run_case(variants, self.target, seed, case)
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    self._shared[_REFUSED if line else _READ] += 1
                except BaseException as error:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    with self._log.open("a") as log:
                        log.write(json.dumps([case, _described(error)]) + "\n")
            status = 0
        except BaseException as error:
            with self._log.open("a") as log:
                log.write(json.dumps([-1, f"the valid file: {_described(error)}"]) + "\n")
        finally:
            os._exit(status)

    def ended(self, outcome: Outcome) -> range | None:
        """Return the cases that are left when the process has ended, after adding to the outcome; None before."""
        case, since = self._seen
        if self._shared[_CASE] != case:
            self._seen = (int(self._shared[_CASE]), time.monotonic())
        elif time.monotonic() - since > _WALL_SECONDS:
            os.kill(self._pid, signal.SIGKILL)
        pid, status, usage = os.wait4(self._pid, os.WNOHANG)
        if pid == 0:
            return None
        last = int(self._shared[_CASE])
        if os.WIFSIGNALED(status):
            outcome.findings[f"the process died of signal {os.WTERMSIG(status)}"].append(last)
        for line in self._log.read_text().splitlines() if self._log.is_file() else ():
            number, what = json.loads(line)
            outcome.findings[what].append(number)
        left = range(last + 1, self.cases.stop) if os.WIFSIGNALED(status) else range(0)
        outcome.cases += max(0, last + 1 - self.cases.start)
        outcome.read += int(self._shared[_READ])
        outcome.refused += int(self._shared[_REFUSED])
        outcome.seconds += usage.ru_utime + usage.ru_stime
        return left


def prepared(folder: Path, target: str) -> list[Variant]:
    """Return the variants of a target after each valid file was read, and limit the memory of this process.

    Args:
        folder: for its files.
        target: its name.
    """
    cv2.setNumThreads(0)
    variants = TARGETS[target](folder)
    for variant in variants:
        variant.read(variant.content)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    return variants


def _time_is_over(number: int, frame: FrameType | None) -> None:
    raise HangError(f"more than {SECONDS:g} s")


def _described(error: BaseException) -> str:
    """Return type and place of an error, and its message without what differs from case to case."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "adaface" in Path(frame.filename).parts]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    message = " ".join(str(error).split()).partition(_MARK)[0][:80]
    return f"{type(error).__name__}{place}: {''.join(letter for letter in message if not letter.isdigit())}"


def run(targets: list[str], cases: int, seed: int, processes: int, first: int = 0) -> dict[str, Outcome]:
    """Run the cases of some targets.

    Args:
        targets: their names.
        cases: how many of each.
        seed: of the run.
        processes: how many at once.
        first: number of the first case.
    """
    outcomes = {target: Outcome() for target in targets}
    waiting = [
        (target, range(start, min(start + _AT_ONCE, first + cases)))
        for start in range(first, first + cases, _AT_ONCE)
        for target in targets
    ]
    numbers = itertools.count()
    working: list[tuple[_Worker, Path]] = []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix=_MARK, dir=memory if memory.is_dir() else None) as root:
        while waiting or working:
            while waiting and len(working) < processes:
                target, part = waiting.pop(0)
                folder = Path(root, f"{target}_{next(numbers)}")
                folder.mkdir()
                working.append((_Worker(folder, target, seed, part), folder))
            time.sleep(0.01)
            for worker, folder in list(working):
                left = worker.ended(outcomes[worker.target])
                if left is not None:
                    working.remove((worker, folder))
                    shutil.rmtree(folder)
                    if left:
                        waiting.insert(0, (worker.target, left))
    return outcomes


def table(outcomes: dict[str, Outcome]) -> str:
    """Return one line for each target, and the sums."""
    rows = [["target", "cases", "read", "refused", "findings", "seconds"]]
    every = list(outcomes.items())
    total = Outcome(
        sum(one.cases for _, one in every), sum(one.read for _, one in every), sum(one.refused for _, one in every)
    )
    total.seconds = sum(one.seconds for _, one in every)
    for name, one in [*every, ("all", total)]:
        count = sum(map(len, one.findings.values())) if one is not total else sum(_found(o) for _, o in every)
        rows.append([name, f"{one.cases:,}", f"{one.read:,}", f"{one.refused:,}", f"{count:,}", f"{one.seconds:.1f}"])
    return "\n".join(aligned(rows))


def _found(outcome: Outcome) -> int:
    return sum(map(len, outcome.findings.values()))


def _replay(target: str, seed: int, case: int) -> None:
    """Read one case in this process, and print what comes out."""
    with tempfile.TemporaryDirectory(prefix=_MARK) as folder:
        variants = prepared(Path(folder), target)
        signal.signal(signal.SIGPROF, _time_is_over)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        print(run_case(variants, target, seed, case) or "read")


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, action="append", help="a format; several times for several")
    parser.add_argument("--cases", type=int, default=2000, help="of each target (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default 0)")
    parser.add_argument("--processes", type=int, default=1, help="how many at once (default 1)")
    parser.add_argument("--case", type=int, help="read this case alone, here, and show its traceback")
    parser.add_argument("--output", type=Path, help="append a JSON line of each target to a file")
    parsed = parser.parse_args()
    targets = parsed.target or list(TARGETS)
    if parsed.case is not None:
        _replay(targets[0], parsed.seed, parsed.case)
        return 0
    outcomes = run(targets, parsed.cases, parsed.seed, parsed.processes, parsed.first)
    print(table(outcomes))
    for target, outcome in outcomes.items():
        for what, numbers in outcome.findings.items():
            print(f"{target}: {len(numbers)} x {what} (--case {', '.join(map(str, numbers[:_SHOWN]))})")
        if parsed.output:
            with parsed.output.open("a") as file:
                file.write(json.dumps(_line(target, outcome, parsed)) + "\n")
    return 1 if any(map(_found, outcomes.values())) else 0


def _line(target: str, outcome: Outcome, options: argparse.Namespace) -> dict[str, object]:
    counts = {"cases": outcome.cases, "read": outcome.read, "refused": outcome.refused, "findings": _found(outcome)}
    numbers = {"seed": options.seed, "first": options.first, "seconds": round(outcome.seconds, 1)}
    return {"target": target, **counts, **numbers, "machine": timing._machine()}


if __name__ == "__main__":
    sys.exit(main())
