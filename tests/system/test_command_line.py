import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adaface.system.command_line import check_packages, one_line, printable, run_to_status
from adaface.system.files import write_atomically
from adaface.system.option_parser import Parser

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 张.png", "Zoë 张.png"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[2Jx", "\\x1b[2Jx"),
        (os.fsdecode(b"n\xff.png"), "n\\udcff.png"),
        ("gnp.\u202etxt", "gnp.\\u202etxt"),
    ],
)
def test_names_are_printed_in_one_line(text, shown):
    assert printable(text) == shown
    assert one_line(ValueError(f"{text} is wrong")) == f"{printable(' '.join(text.split()))} is wrong"


def test_a_misspelt_option_is_named_before_what_is_missing_for_it():
    parser = Parser(prog="python x.py")
    parser.add_argument("--checkpoint", required=True, help="a file")
    for words in (["--checkpoit", "x"], ["--checkpoit=x"], ["--checkpoint", "x", "--chekpoint"]):
        with pytest.raises(ValueError, match=r"unknown option --che.*; did you mean --checkpoint"):
            parser.parse(words)
    for words in ([], ["--"]):
        with pytest.raises(ValueError, match="required: --checkpoint"):
            parser.parse(words)


def test_errors_of_the_system_name_their_file(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        write_atomically(tmp_path / "none" / "x.csv", "")
    assert one_line(caught.value) == f"{tmp_path}/none/x.csv: No such file or directory"
    assert one_line(OSError(errno.ENOSPC, "full", "x.npz")).startswith("no space left on the disk for x.npz")
    assert one_line(FileNotFoundError(errno.ENOENT, "No such file", b"run/events.1")) == "run/events.1: No such file"
    too_large = one_line(OSError(errno.EFBIG, "File too large", "x.npz"))
    assert too_large.startswith("x.npz: the file would be larger than the limit of this shell (ulimit -f)")
    assert one_line(OSError(errno.EMFILE, "Too many open files")).startswith("too many open files: raise the limit")
    assert one_line(MemoryError()).startswith("out of memory: ")
    assert one_line(MemoryError("Unable to allocate\n8 GiB")).startswith("out of memory (Unable to allocate 8 GiB): ")
    assert one_line(RuntimeError("could not create a memory object")) == (
        "out of memory (could not create a memory object): give a smaller --batch_size if the command has one, close "
        "other programs, or raise the limit (ulimit -v)"
    )
    for told in (
        "DefaultCPUAllocator: can't allocate memory",
        "could not create a primitive",
        "can't start new thread",
    ):
        assert one_line(RuntimeError(told)).startswith(f"out of memory ({told}): give a smaller --batch_size")
    assert (
        one_line(RuntimeError("could not create a primitive descriptor")) == "could not create a primitive descriptor"
    )
    assert one_line(FileNotFoundError("there is no image x")) == "there is no image x"


@pytest.mark.parametrize("error", ["MemoryError", "ImportError('x.so: failed to map segment from shared object')"])
@pytest.mark.parametrize(("module", "words"), [("numpy", ["train", "--gpus", "0"]), ("cv2", ["audit", "docs"])])
def test_a_full_memory_at_an_import_is_one_line(tmp_path, module, words, error):
    (tmp_path / f"{module}.py").write_text(f"raise {error}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "adaface", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"adaface {words[0]}: error: out of memory"), done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


PROGRAM = """
import sys
from adaface.system.command_line import run_to_status

def job():
    for number in range(int(sys.argv[1])):
        print(number)
    return 0

sys.exit(run_to_status("program", job, stopped=""))
"""
TRAIN = """
import os, sys
from adaface.commands import train  # seconds, once for all outputs

def job(*_, **__):
    for number in range(100):
        train.rank_zero_info(number)
    return 0

train._run = job
train.program_name = lambda command: "program"
for output, errors in zip(sys.argv[1::2], sys.argv[2::2]):
    if os.fork() == 0:
        os.dup2(int(output), 1)
        os.dup2(int(errors), 2)
        sys.exit(train.main(["--gpus", "0"]))
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_a_message_that_quotes_a_damaged_file_is_shortened():
    line = one_line(ValueError("a.csv, line 3: got " + "\udcff" * 10_000 + "; expected 1: copy it again"))
    assert line.startswith("a.csv, line 3: got \\udcff")
    assert line.endswith("; expected 1: copy it again")
    assert " ... " in line
    assert len(line) < 1520


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader has gone, as `head` does when it has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def is_the_line_of_a_full_disk(errors: bytes) -> bool:
    return errors.startswith(b"program: error: no space left on the disk") and errors.count(b"\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_an_output_that_cannot_be_written(lines, unbuffered, unread):
    command = [sys.executable, "-c", PROGRAM, str(lines)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (141, b"")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=300)
    assert done.returncode == 2
    assert is_the_line_of_a_full_disk(done.stderr)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_a_training_cannot_write(unbuffered, unread, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    files = [tmp_path / "unread.txt", tmp_path / "full.txt"]
    with Path("/dev/full").open("w") as full, files[0].open("w") as first, files[1].open("w") as second:
        outputs = [unread, first.fileno(), full.fileno(), second.fileno()]
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, *map(str, outputs)], pass_fds=outputs, capture_output=True, text=True,
            env=environment, timeout=300,
        )  # fmt: skip
    assert done.stdout.split() == ["141", "2"], done.stderr
    assert files[0].read_bytes() == b""
    assert is_the_line_of_a_full_disk(files[1].read_bytes())


@pytest.mark.parametrize("command", ["train", "models"])
def test_help_that_cannot_be_written(command):
    words = [sys.executable, "-m", "adaface", command, "--help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith(f"adaface {command}: error: no space left on the disk".encode())
    assert done.stderr.count(b"\n") == 1


def test_commands_run_in_a_thread():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_to_status, "program", lambda: 7, stopped="").result() == 7
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_names_that_are_no_text_do_not_end_a_command(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    def job() -> int:
        print(os.fsdecode(b"n\xff.png"))
        raise ValueError(os.fsdecode(b"\xfe is wrong"))

    assert run_to_status("program", job, stopped="") == 2
    for stream, expected in zip(streams, (b"n\\udcff.png\n", b"program: error: \\udcfe is wrong\n"), strict=True):
        stream.flush()
        assert stream.buffer.getvalue() == expected


def test_missing_packages_are_named_with_the_command_that_installs_them():
    check_packages("the page", {"json": "json"})
    with pytest.raises(RuntimeError) as refused:
        check_packages("the export", {"json": "json", "no_such_package": "no-such-package"})
    assert str(refused.value) == ("the export needs packages that are not installed: pip install no-such-package")
