"""Runs of main.py with several processes, started as SLURM, torchrun or main.py itself start them; for other tests."""

import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from adaface.checkpoints.files import load_checkpoint
from adaface.demo.dataset import write_demo_data

ROOT = Path(__file__).resolve().parents[2]
WORDS = shlex.split(
    "--train_data_path faces --val_data_path faces --accelerator cpu --arch ir_mini --batch_size 8 --num_workers 0 "
    "--m 0.4 --h 0.333 --lr 0.01"
)
_OF_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "ADAFACE_", "MASTER_", "GLOO_")
_RANKS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK"}


def make_faces(folder: Path, images: int = 5) -> Path:
    """Folder `faces` with train.rec and one verification set; returns the folder above, the --data_root."""
    faces = write_demo_data(folder / "faces", identities=6, images_per_identity=images, pairs=20, seed=3)
    for name in ("cfp_fp", "agedb_30", "cplfw", "calfw"):
        (faces / f"{name}.bin").unlink()
    return folder


def words(data_root: Path, *more: object) -> list[str]:
    return ["--data_root", str(data_root), *WORDS, *map(str, more)]


def environment(**more: object) -> dict[str, str]:
    """This process's environment variables without those of any launcher."""
    kept = {k: v for k, v in os.environ.items() if k not in _RANKS and not k.startswith(_OF_LAUNCHERS)}
    return {**kept, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in more.items()}}


def free_port() -> int:
    """A port that nobody listens at; below those that the system gives to connections, so that none takes it."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):  # other tests set the seed
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("100 ports are taken")


def start(command: list[str], output: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start a command in a process group of its own; its output goes to a file."""
    with output.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment() if variables is None else dict(variables),
        )


def main_py(arguments: list[str]) -> list[str]:
    return [sys.executable, "main.py", *arguments]


def torchrun(arguments: list[str], *options: object) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *map(str, options), "--", "main.py", *arguments]


def slurm(rank: int, port: int, ranks_of_nodes: list[list[int]]) -> dict[str, str]:
    """The variables of one task of an srun."""
    node = next(number for number, ranks in enumerate(ranks_of_nodes) if rank in ranks)
    return environment(
        SLURM_JOB_ID=1,
        SLURM_JOB_NAME="adaface",
        SLURM_NTASKS=sum(map(len, ranks_of_nodes)),
        SLURM_PROCID=rank,
        SLURM_LOCALID=ranks_of_nodes[node].index(rank),
        SLURM_NODEID=node,
        SLURM_JOB_NODELIST="127.0.0.1",
        SLURM_TASKS_PER_NODE=",".join(str(len(ranks)) for ranks in ranks_of_nodes),
        MASTER_PORT=port,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen, output: Path, seconds: float = 250.0) -> None:
    """Wait until something has happened, while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, f"nothing happened: {output.read_text()}"
        time.sleep(0.05)


def ended(process: subprocess.Popen, output: Path, seconds: float) -> int:
    """Wait for the end of a process; return its exit status."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still running after {seconds:g} s: {output.read_text()}") from None


def children(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except OSError:  # has ended
            continue
        if int(rest[1]) == pid and rest[0] != "Z":
            found += [int(number), *children(int(number))]
    return found


def trainers(pid: int) -> list[int]:
    """Processes that train among a process and those that it has started, in the order in which they were started."""
    found = []
    for number in [pid, *sorted(children(pid), key=_started_at)]:
        try:
            command = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(command) > 1 and command[1].endswith((b"main.py", b"-u")) and b"torch.distributed.run" not in command:
            found.append(number)
    return found


def _started_at(number: int) -> int:
    """When a process was started; one that has ended was started first."""
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint of a run, by the project's own reader."""
    return load_checkpoint(checkpoint)["state_dict"]


def assert_same_weights(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert list(a) == list(b)
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def gone(numbers: list[int], seconds: float) -> None:
    """Wait until none of these processes is left."""
    deadline = time.monotonic() + seconds
    while left := [number for number in numbers if is_alive(number)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


def is_alive(number: int) -> bool:
    """Whether a process has not ended, with all of its threads; one that waits for its parent has."""
    process = Path(f"/proc/{number}")
    try:
        main_thread = process.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        return main_thread != "Z" or len(list(process.joinpath("task").iterdir())) > 1
    except OSError:
        return False


def kill(number: int) -> None:
    """SIGKILL a process that may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)
