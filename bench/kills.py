"""Kill commands that write files, start them again, and compare what they leave with an undisturbed run.

    python -m bench.kills                             # 30 kills of each command, 5 pairs of writers
    python -m bench.kills --kills 100 --job audit --seed 3

Each command is killed (SIGKILL, its whole process group) at random moments of its run and started again with the same
words, until it has ended by itself. Its files must be those of an undisturbed run, with the same names and contents;
those that differ between two undisturbed runs, such as reports with a date, are compared by name. Then the same command
is started twice at once: one must do the work, the other must do the same or say in one line why it does not.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch

import adaface.__main__ as command_line
from adaface.checkpoints.files import load_checkpoint
from adaface.commands import COMMANDS
from adaface.demo.dataset import write_demo_data
from adaface.models.registry import build_model
from adaface.system.command_line import FAILED
from adaface.system.progress_bar import progress_bar
from adaface.system.text_table import aligned
from bench.alignment import photographs

_AGAIN = 0.4  # chance that a command that was killed is killed once more
_LONGEST_SEC = 300.0
_ARCH = "ir_mini"


@dataclass(frozen=True)
class Job:
    """A command that writes files.

    Attributes:
        words: its words; it runs in the trial's folder.
        inputs: what that folder holds before, as paths relative to the folder of all inputs.
        contents: returns the files to compare and their digests; by default all files, byte by byte.
    """

    words: list[str]
    inputs: tuple[str, ...]
    contents: Callable[[Path], dict[str, str]] | None = None


@dataclass
class Outcome:
    """What the trials of a job gave: counts, and the findings in words.

    Attributes:
        kills: of all trials.
        trials: commands that were killed at least once.
        kept: trials whose last start found all files complete and refused to replace them.
        pairs: commands that were started twice at once.
        refused: those of the second that refused in one line.
        by_name: files of which only the names are compared.
        findings: in words.
    """

    kills: int = 0
    trials: int = 0
    kept: int = 0
    pairs: int = 0
    refused: int = 0
    by_name: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def files_in(folder: Path) -> dict[str, str]:
    """Return the digest of each file under a folder by its relative path; a link counts by where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"link to {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def checkpoints_in(folder: Path) -> dict[str, str]:
    """Return the digest of the weights and of the optimizer's state of each checkpoint of a run."""
    found = {}
    for path in sorted((folder / "run").glob("*.ckpt")):
        checkpoint = load_checkpoint(path)
        digest = hashlib.sha256()
        for key, value in checkpoint["state_dict"].items():
            digest.update(key.encode() + value.numpy().tobytes())
        for number, state in sorted(checkpoint["optimizer_states"][0]["state"].items()):
            for key, value in sorted(state.items()):
                digest.update(f"{number} {key}".encode() + (value.numpy().tobytes() if torch.is_tensor(value) else b""))
        digest.update(json.dumps(checkpoint["adaface"]["position"]).encode())
        found[path.name] = digest.hexdigest()
    return found


def evaluation_in(folder: Path) -> dict[str, str]:
    """Return the digests of the cached embeddings, and of the newest table of an evaluation."""
    tables = sorted((folder / "results").glob("*/*.csv"), key=lambda path: path.stat().st_mtime_ns)
    newest = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tables}
    return {**files_in(folder / "cache"), **newest}


def jobs() -> dict[str, Job]:
    """Return the commands that write files, by name."""
    model = ("--checkpoint", "model.ckpt", "--arch", _ARCH)

    def job(line: str, *inputs: str, model_of: bool = False) -> Job:
        words = [*line.split(), *(model if model_of else ())]
        return Job(words, (*inputs, *(["model.ckpt"] if model_of else ())))

    def evaluation(protocol: str, root: str) -> Job:
        words = f"evaluate {protocol} --root {root} --output_dir results --cache cache".split()
        return Job([*words, *model], (root, "model.ckpt"), evaluation_in)

    face = "people/0/1.jpg"
    train = (
        f"train --data_root . --train_data_path faces --val_data_path faces --val_sets lfw --gpus 0 --arch {_ARCH} "
        "--batch_size 8 --num_workers 2 --epochs 3 --lr_milestones 2 --lr 0.01 --m 0.4 --h 0.333 --run_folder run "
        "--save_all_models --checkpoint_every_steps 2"
    )
    return {
        "train": Job(train.split(), ("faces",), checkpoints_in),
        "convert": job("convert --rec_path faces", "faces"),
        "convert --pack": job("convert --pack people --output packed", "people"),
        "convert --pairs": job(
            "convert --pairs pairs.csv --images_root people --output pairs.bin", "people", "pairs.csv"
        ),
        "convert --checkpoint": job("convert --checkpoint sharded.ckpt --output single.ckpt", "sharded.ckpt"),
        "align": job("align photographs aligned", "photographs"),
        "audit": job("audit people --output audit --apply --test_sets faces/lfw.bin", "people", "faces"),
        "audit with a model": job("audit people --output audit --apply", "people", model_of=True),
        "evaluate pairs": evaluation("pairs", "faces"),
        "evaluate folder": evaluation("folder", "people"),
        "embed": job("embed people --out people.npz --cache cache", "people", model_of=True),
        "search": job(f"search people {face} --csv found.csv --cache cache", "people", model_of=True),
        "group": job(
            "group people --threshold 0.5 --csv groups.csv --save groups.png --folders groups --cache cache",
            "people",
            model_of=True,
        ),
        "compare": job(f"compare {face} people/1/11.jpg --save compared.png", "people", model_of=True),
        "export": job("export --output model.onnx --int8 --calibration_images faces/lfw.bin", "faces", model_of=True),
    }


def make_inputs(folder: Path) -> None:
    """Write the inputs of all jobs: records, images in folders, photographs, weights, and a sharded checkpoint."""
    faces = write_demo_data(folder / "faces", identities=12, images_per_identity=10, pairs=60, seed=3)
    for name in ("cfp_fp", "agedb_30", "cplfw", "calfw"):
        (faces / f"{name}.bin").unlink()
    work = folder / "unpacked"
    shutil.copytree(faces, work)
    _prepare(["convert", "--rec_path", str(work), "--make_image_files"], folder)
    people = (work / "imgs").rename(folder / "people")
    images = sorted(path.relative_to(people) for path in people.rglob("*.jpg"))
    pairs = [f"{first},{second},{int(first.parent == second.parent)}\n" for first, second in itertools.pairwise(images)]
    (folder / "pairs.csv").write_text("".join(pairs))
    (folder / "photographs").mkdir()
    for number, encoded in enumerate(photographs(10, 256)):
        (folder / "photographs" / f"{number}.jpg").write_bytes(encoded)
    torch.manual_seed(0)
    state = {f"model.{key}": value for key, value in build_model(_ARCH).state_dict().items()}
    torch.save({"state_dict": state}, folder / "model.ckpt")
    short = (
        f"--data_root . --train_data_path faces --gpus 0 --arch {_ARCH} --epochs 1 --sample_rate 0.5 --run_folder run"
    )
    _prepare(["train", *short.split(), "--batch_size", "8", "--num_workers", "0"], folder)
    (folder / "run" / "last.ckpt").resolve().rename(folder / "sharded.ckpt")


def _prepare(words: list[str], folder: Path) -> None:
    """Run a command in a folder, for the inputs of others."""
    process = _Run(words, folder, folder / "log.txt")
    if status := process.wait():
        raise RuntimeError(f"{' '.join(words)}: status {status}: {process.last_line()}")


class _Run:
    """A command in a process of its own, forked from this one, where everything is imported.

    Args:
        words: of the command.
        folder: its working directory.
        log: file for what it prints.
        gate: descriptor that it reads from before it begins, if any.
    """

    def __init__(self, words: list[str], folder: Path, log: Path, gate: int | None = None) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            status = FAILED
            try:
                os.setpgid(0, 0)
                os.chdir(folder)
                with log.open("wb") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
                if gate is not None:
                    os.read(gate, 1)
                sys.argv = ["adaface", *words]
                status = command_line.main(words)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else FAILED
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.setpgid(self.pid, self.pid)  # in both processes: whichever is first

    def wait(self, seconds: float = _LONGEST_SEC) -> int | None:
        """Return the exit status, negative after a signal; None if the process still runs after some seconds."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= until:
                return None
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill the process and those that it started."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def last_line(self) -> str:
        """Return the last line that it printed."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class Trials:
    """The trials of a job, all in a folder of the same name, since files may hold their own path.

    Args:
        name: of the job.
        job: the command.
        root: folder for all trials; ``inputs`` in it holds the inputs.
    """

    def __init__(self, name: str, job: Job, root: Path) -> None:
        self._job, self._root, self._folder = job, root, root / "work"
        self.outcome = Outcome()
        undisturbed = []
        for _ in range(2):
            began = time.monotonic()
            process = self._start(fresh=True)
            self._status = process.wait()
            self._seconds = time.monotonic() - began
            if self._status in (None, FAILED) or self._status < 0:
                raise RuntimeError(f"{name}, undisturbed: status {self._status}: {process.last_line()}")
            undisturbed.append(self._contents())
        first, second = undisturbed
        if first.keys() != second.keys():
            raise RuntimeError(f"{name}: two undisturbed runs leave different files: {first.keys() ^ second.keys()}")
        self._expected = {path: digest for path, digest in first.items() if second[path] == digest}
        self.outcome.by_name = [path for path in first if path not in self._expected]

    def _start(self, *, fresh: bool, gate: int | None = None, log: str = "log.txt") -> _Run:
        if fresh:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            for name in self._job.inputs:
                source = self._root / "inputs" / name
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, self._folder / name)
        return _Run(self._job.words, self._folder, self._root / log, gate)

    def _contents(self) -> dict[str, str]:
        return (self._job.contents or files_in)(self._folder)

    def _compare(self, what: str) -> bool:
        """Return whether the files are those of an undisturbed run, and add what differs to the findings."""
        found = self._contents()
        names = set(self._expected) | set(self.outcome.by_name)
        wrong = [f"{path} is left" for path in sorted(found.keys() - names)]
        wrong += [f"{path} is missing" for path in sorted(names - found.keys())]
        wrong += [f"{path} differs" for path, one in self._expected.items() if path in found and found[path] != one]
        if wrong:
            self.outcome.findings.append(f"{what}: {'; '.join(wrong[:5])}")
        return not wrong

    def kill(self, rng: random.Random) -> None:
        """Start the command in a fresh folder, kill it at random moments, and let it end."""
        moments: list[str] = []
        process = self._start(fresh=True)
        while True:
            moment = rng.uniform(0, self._seconds)
            status = process.wait(moment)
            if status is not None and moments:
                break  # it was nearly done
            if status is None:
                process.kill()
                moments.append(f"{moment:.3f} s")
            process = self._start(fresh=not moments)
            if moments and rng.random() >= _AGAIN:
                status = process.wait()
                break
        self.outcome.trials += 1
        self.outcome.kills += len(moments)
        what = f"trial {self.outcome.trials}, killed after {', '.join(moments)}"
        complete = self._compare(what)
        if complete and status == FAILED and "error: " in process.last_line():
            self.outcome.kept += 1  # all was there before the last start, which replaces nothing
        elif status != self._status:
            self.outcome.findings.append(f"{what}: status {status}: {process.last_line()}")

    def write_twice(self) -> None:
        """Start the command twice at once in a fresh folder."""
        reading, writing = os.pipe()
        processes = [
            self._start(fresh=True, gate=reading, log="first.txt"),
            self._start(fresh=False, gate=reading, log="second.txt"),
        ]
        os.write(writing, b"..")
        statuses = [process.wait() for process in processes]
        os.close(reading)
        os.close(writing)
        self.outcome.pairs += 1
        what = f"pair {self.outcome.pairs}"
        if self._status not in statuses:
            self.outcome.findings.append(f"{what}: status {statuses}: {[one.last_line() for one in processes]}")
        for process, status in zip(processes, statuses, strict=True):
            if status == FAILED and "error: " in process.last_line():
                self.outcome.refused += 1
            elif status != self._status:
                self.outcome.findings.append(f"{what}: status {status}: {process.last_line()}")
        self._compare(what)


def table(outcomes: dict[str, Outcome]) -> str:
    """Return one line for each job, and the findings."""
    rows = [["command", "kills", "trials", "kept", "pairs of writers", "refused", "by name", "findings"]]
    rows += [
        [name, *map(str, (o.kills, o.trials, o.kept, o.pairs, o.refused, len(o.by_name), len(o.findings)))]
        for name, o in outcomes.items()
    ]
    findings = [f"{name}, {what}" for name, one in outcomes.items() for what in one.findings]
    return "\n".join([*aligned(rows), *findings])


def main() -> int:
    """Run the command line; return 1 if there are findings."""
    every = jobs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="kills of each command (default 30)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of writers of each command (default 5)")
    parser.add_argument("--job", action="append", choices=every, help="only this command; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments of the kills (default 0)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # a fork does not copy threads
    cv2.setNumThreads(0)
    for command in COMMANDS.values():
        importlib.import_module(command.module)
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="kills_") as folder:
        root = Path(folder)
        (root / "inputs").mkdir()
        make_inputs(root / "inputs")
        for name in options.job or every:
            trials = Trials(name, every[name], root)
            outcomes[name] = trials.outcome
            rng = random.Random(f"{name} {options.seed}")
            with progress_bar(total=options.kills, desc=name) as bar:
                while trials.outcome.kills < options.kills:
                    before = trials.outcome.kills
                    trials.kill(rng)
                    bar.update(trials.outcome.kills - before)
            for _ in range(options.pairs):
                trials.write_twice()
    print(table(outcomes))
    return int(any(one.findings for one in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
