"""Two hosts on one machine: network namespaces joined by a cable (a veth pair), one process each, gloo over it.

The run loses a host, or the cable, is restarted by the loop of the documentation, and ends with the bits of the run
that lost nothing. Needs root and `ip` (iproute2); what it makes has names of its own and is removed at the end.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import launched

pytestmark = pytest.mark.slow
EPOCHS = 30
PORT = 29517  # each host has all ports to itself


def ip(*words: object) -> str:
    return subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True).stdout


class Host:
    """A network namespace with one end of the cable and a host name of its own."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.namespace = f"adaface{os.getpid()}{'ab'[number]}"
        self.cable = f"af{os.getpid() % 10**6}{'ab'[number]}"  # at most 15 characters
        self.name, self.address = f"host-{'ab'[number]}", f"10.213.7.{number + 1}"

    def make(self) -> None:
        ip("netns", "add", self.namespace)

    def plug_in(self) -> None:
        ip("link", "set", self.cable, "netns", self.namespace)
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", self.cable)
        ip("-n", self.namespace, "link", "set", "lo", "up")
        self.set_cable("up")

    def set_cable(self, state: str) -> None:
        ip("-n", self.namespace, "link", "set", self.cable, state)

    def start(self, script: str, output: Path) -> subprocess.Popen:
        """Run a shell script on this host."""
        named = f"hostname {self.name}; {script}"
        command = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "bash", "-c", named]
        return launched.start(command, output, launched.environment(GLOO_SOCKET_IFNAME=self.cable))

    def processes(self) -> list[int]:
        return [int(number) for number in ip("netns", "pids", self.namespace).split()]

    def lose(self) -> None:
        """Kill everything that runs here at once, as a power cut does."""
        numbers = self.processes()
        for number in numbers:
            launched.kill(number)
        launched.gone(numbers, 10)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need `ip` (apt install iproute2) and `unshare`")
    made = [Host(0), Host(1)]
    try:
        try:
            for host in made:
                host.make()
            ip("link", "add", made[0].cable, "type", "veth", "peer", "name", made[1].cable)
            for host in made:
                host.plug_in()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine permits no network namespaces: {error.stderr.strip()}")
        yield made
    finally:
        for host in made:
            if host.namespace in ip("netns", "list"):
                host.lose()
                ip("netns", "del", host.namespace)  # the cable goes with it


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return launched.make_faces(tmp_path_factory.mktemp("data"), images=8)


def loop(host: Host, run_folder: Path, data_root: Path) -> str:
    """The restart loop of recipes/several_nodes.yaml, for one host."""
    options = [
        "--nnodes", 2, "--node-rank", host.number, "--nproc-per-node", 1, "--master-addr", "10.213.7.1",
        "--master-port", PORT, "--local-addr", host.address,
    ]  # fmt: skip
    arguments = launched.words(
        data_root, "--run_folder", run_folder, "--num_nodes", 2, "--devices", 1, "--epochs", EPOCHS,
        "--lr_milestones", "15,25", "--crop_augmentation_prob", 0.5,
    )  # fmt: skip
    return f"for attempt in $(seq 20); do {shlex.join(launched.torchrun(arguments, *options))} && break; sleep 3; done"


def start(hosts: list[Host], folder: Path, data_root: Path) -> tuple[list[subprocess.Popen], list[Path]]:
    files = [folder / f"{host.name}.txt" for host in hosts]
    scripts = [loop(host, folder / "run", data_root) for host in hosts]
    assert not any(host.processes() for host in hosts), "what a run before has left"
    return [host.start(script, file) for host, script, file in zip(hosts, scripts, files, strict=True)], files


def finish(started: list[subprocess.Popen], files: list[Path]) -> None:
    for process, file in zip(started, files, strict=True):
        launched.ended(process, file, 300)
        assert "results are in" in files[0].read_text(), file.read_text()


def trained(folder: Path) -> int:
    """Epochs that the newest checkpoint has behind it."""
    newest = folder / "run" / "last.ckpt"
    return launched.load_checkpoint(newest)["adaface"]["position"]["epoch"] if newest.exists() else 0


@pytest.fixture(scope="module")
def whole(hosts, data_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    started, files = start(hosts, folder, data_root)
    finish(started, files)
    assert files[0].read_text().count("run folder:") == 1
    assert "run folder:" not in files[1].read_text(), "rank 0 alone prints"
    return folder / "run" / "last.ckpt"


def test_the_loss_of_a_host_leaves_no_trace(hosts, whole, data_root, tmp_path):
    started, files = start(hosts, tmp_path, data_root)
    launched.wait_for(lambda: trained(tmp_path) >= 4, started[0], files[0])
    first = launched.trainers(started[0].pid)
    hosts[1].lose()
    lost = time.monotonic()
    launched.gone(first, 60)
    print(f"host-b lost: host-a's process is down after {time.monotonic() - lost:.1f} s")
    assert "main.py: error: process 1 on host-b (pid" in files[0].read_text(), files[0].read_text()
    started[1].wait(10)
    started[1] = hosts[1].start(loop(hosts[1], tmp_path / "run", data_root), files[1])  # it is switched on again
    finish(started, files)
    assert files[0].read_text().count("run folder:") >= 2
    launched.assert_same_weights(tmp_path / "run" / "last.ckpt", whole)


def test_the_loss_of_the_first_host_leaves_no_trace(hosts, whole, data_root, tmp_path):
    started, files = start(hosts, tmp_path, data_root)
    launched.wait_for(lambda: trained(tmp_path) >= 4, started[0], files[0])
    second = launched.trainers(started[1].pid)
    hosts[0].lose()
    lost = time.monotonic()
    launched.gone(second, 60)
    print(f"host-a lost: host-b's process is down after {time.monotonic() - lost:.1f} s")
    assert "main.py: error: process 0 on host-a (pid" in files[1].read_text(), files[1].read_text()
    started[0].wait(10)
    started[0] = hosts[0].start(loop(hosts[0], tmp_path / "run", data_root), files[0])
    finish(started, files)
    launched.assert_same_weights(tmp_path / "run" / "last.ckpt", whole)


def test_a_dead_cable_leaves_no_trace(hosts, whole, data_root, tmp_path):
    started, files = start(hosts, tmp_path, data_root)
    launched.wait_for(lambda: trained(tmp_path) >= 4, started[0], files[0])
    both = [launched.trainers(process.pid) for process in started]
    hosts[0].set_cable("down")
    try:
        cut = time.monotonic()
        for host, numbers in zip(hosts, both, strict=True):
            launched.gone(numbers, 60 - (time.monotonic() - cut))
            print(f"cable down: the process of {host.name} is down after {time.monotonic() - cut:.1f} s")
    finally:
        hosts[0].set_cable("up")
    assert "main.py: error: process 1 on host-b (pid" in files[0].read_text(), files[0].read_text()
    assert "main.py: error: process 0 on host-a (pid" in files[1].read_text(), files[1].read_text()
    finish(started, files)
    launched.assert_same_weights(tmp_path / "run" / "last.ckpt", whole)
