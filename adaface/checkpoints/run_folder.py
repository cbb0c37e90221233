"""The folder of a run: its name, and the files that are needed to repeat the run.

The folder is ``experiments/<prefix>_<MM-DD>_<n>`` as in the official code, with ``config.yaml`` (the resolved options,
a recipe for ``--config``) and ``manifest.json`` (options, versions, commit, command, data).
Differs from the official code: the folder is created atomically, so that runs started at the same time get different
ones.
"""

import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from adaface import __version__
from adaface.system.command_line import invocation
from adaface.system.files import make_writable_folder, write_atomically
from adaface.system.json_file import read_object

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
LAST_CHECKPOINT = "last.ckpt"
# options of a single start, which have no effect on the results
_OF_ONE_START = {"run_folder": "", "resume_from_checkpoint": ""}
_LONGEST_PREFIX = 200
_GIT_TIMEOUT_SEC = 10.0
# name in the manifest: distributions that provide it, of which the first one installed is used
_PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "lightning": ("pytorch-lightning",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "scikit-learn": ("scikit-learn",),
}


def choose_run_folder(output_dir: str | os.PathLike[str], prefix: str, today: date | None = None) -> Path:
    """Create a new run folder, ``<output_dir>/<prefix>_<MM-DD>_<n>`` with the first free n from 0 on.

    Args:
        output_dir: created if necessary.
        prefix: first part of the name.
        today: the date in the name; the current one when None.

    Returns:
        The new, empty folder; no other process gets the same one.

    Raises:
        ValueError: the prefix is not a plain name, or ``output_dir`` is a file.
        OSError: the folder cannot be created (no permission, no space); the message names ``--output_dir``.
    """
    _check_prefix(prefix)
    output_dir = Path(output_dir)
    make_writable_folder(output_dir, "--output_dir")
    day = (today or datetime.now().astimezone().date()).strftime("%m-%d")
    for number in itertools.count():
        folder = output_dir / f"{prefix}_{day}_{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # of an older run, or of one that starts at the same time
            continue
        return folder
    raise AssertionError("unreachable: the numbers do not end")


def make_run_folder(folder: str | os.PathLike[str]) -> Path:
    """Create the folder of a run if necessary, and return its absolute path.

    Args:
        folder: path given by the user.

    Raises:
        ValueError: it is a file.
        OSError: the folder cannot be created (no permission, no space); the message names ``--run_folder``.
    """
    path = Path(folder).absolute()
    make_writable_folder(path, "--run_folder")
    return path


def write_config(folder: str | os.PathLike[str], config: dict[str, Any]) -> None:
    """Write the resolved options to ``config.yaml``, a recipe that repeats the run from its beginning.

    Args:
        folder: run folder.
        config: plain values by option.
    """
    header = f"# The resolved options of this run; run it again with: {invocation('train')} --config <this file>\n"
    recipe = {**config, **{name: value for name, value in _OF_ONE_START.items() if name in config}}
    write_atomically(Path(folder) / CONFIG, header + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def write_manifest(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    fingerprint: str,
    class_count: int,
    *,
    learning_rate: float | None = None,
) -> dict[str, Any]:
    """Write ``manifest.json``: the information needed to repeat the run.

    When a run is resumed, the manifests of its earlier starts are kept under ``earlier_starts``, oldest first.

    Args:
        folder: run folder.
        config: the resolved options, plain values.
        fingerprint: identifies the training data.
        class_count: number of identities.
        learning_rate: peak of the schedule, after linear scaling; None in evaluation.

    Returns:
        The manifest.
    """
    target = Path(folder) / MANIFEST
    manifest = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": _command(),
        "data": {"fingerprint": fingerprint, "classes": class_count},
        **describe_environment(),
        "learning_rate": learning_rate,
        "config": config,
        "earlier_starts": _earlier_starts(target),
    }
    write_atomically(target, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def describe_environment() -> dict[str, Any]:
    """Return the software and hardware that results may depend on, as plain values.

    Returns:
        ``versions`` of this package, Python, other packages and CUDA, ``platform``, ``cpu_cores``, ``commit`` of this
        checkout and whether its tracked files have ``changed`` since (both None if it is not a git checkout).
    """
    commit, changed = _git_state(Path(__file__).resolve().parents[2])
    packages = {name: _version(distributions) for name, distributions in _PACKAGES.items()}
    own = {"adaface": __version__, "python": platform.python_version()}
    return {
        "versions": {**own, **packages, "cuda": torch.version.cuda},
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "commit": commit,
        "changed": changed,
    }


def _command() -> str:
    """Return the command line of this process, ready to be run again."""
    program = Path(sys.argv[0])
    if program.name == "adaface" or (program.parent.name, program.name) == ("adaface", "__main__.py"):
        return f"{invocation('')} {shlex.join(sys.argv[1:])}"
    return shlex.join([Path(sys.executable).name, *sys.argv])


def _check_prefix(prefix: str) -> None:
    separators = {"/", "\\", os.sep}
    plain = prefix.isprintable() and not separators & set(prefix) and ".." not in prefix and prefix == prefix.strip()
    if not prefix or not plain or len(prefix.encode()) > _LONGEST_PREFIX:
        raise ValueError(
            f"--prefix is the first part of the run folder's name, got {prefix!r}: give a plain name without path "
            "separators, '..' or leading or trailing spaces (--output_dir sets the folder of the run folders)"
        )


def _earlier_starts(manifest: Path) -> list[dict[str, Any]]:
    """Return the manifests of the run's earlier starts, oldest first; empty if the file is missing or damaged."""
    try:
        previous = read_object(manifest)
    except (OSError, ValueError):
        return []
    earlier = previous.pop("earlier_starts", [])
    return [*(one for one in (earlier if isinstance(earlier, list) else []) if isinstance(one, dict)), previous]


def _version(distributions: tuple[str, ...]) -> str | None:
    """Return the version of the first of these distributions that is installed."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit and whether tracked files differ from it; (None, None) if ``folder`` is no checkout's root."""
    root, commit = _git(folder, "rev-parse", "--show-toplevel"), _git(folder, "rev-parse", "HEAD")
    if root is None or commit is None or Path(root).resolve() != folder:  # a copy inside somebody else's checkout
        return None, None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def _git(folder: Path, *words: str) -> str | None:
    """Return the output of a git command; None if git or the repository is missing, or after a timeout."""
    # variables such as GIT_DIR, set inside hooks, would point it at another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_SEC,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
