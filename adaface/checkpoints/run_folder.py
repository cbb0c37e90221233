"""The folder of a run: choosing it, and writing what has to be known to repeat the run.

``experiments/<prefix>_<MM-DD>_<n>`` as in the official code, with ``config.yaml`` (the resolved options, a recipe for
``--config``) and ``manifest.json`` (options, versions, commit, command, data).
Differs from the official code: the folder is made in one step, so that runs started at once get different ones.
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

from adaface.system.command_line import invocation
from adaface.system.files import write_atomically

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
LAST_CHECKPOINT = "last.ckpt"
# of one start, not of what a run computes
_OF_ONE_START = {"run_folder": "", "resume_from_checkpoint": ""}
_LONGEST_PREFIX = 200
_GIT_TIMEOUT_SEC = 10.0
# the name in the manifest and the distributions that provide it, the first one installed counts
_PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "lightning": ("pytorch-lightning",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "scikit-learn": ("scikit-learn",),
}


def choose_run_folder(output_dir: str | os.PathLike[str], prefix: str, today: date | None = None) -> Path:
    """Make a new run folder, ``<output_dir>/<prefix>_<MM-DD>_<n>`` with the first free n from 0 on.

    Args:
        output_dir: made where it does not exist.
        prefix: first part of the name.
        today: the date in the name; the current one when None.

    Returns:
        The new, empty folder, as nobody else gets it.

    Raises:
        ValueError: a prefix that is no plain name, or ``output_dir`` is a file.
        OSError: the folder cannot be made (no permission, no space).
    """
    _check_prefix(prefix)
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"the run folders go to {output_dir}, which is a file: give another --output_dir")
    output_dir.mkdir(parents=True, exist_ok=True)
    day = (today or datetime.now().astimezone().date()).strftime("%m-%d")
    for number in itertools.count():
        folder = output_dir / f"{prefix}_{day}_{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # an older run, or one that was started at the same moment
            continue
        return folder
    raise AssertionError("unreachable: the numbers do not end")


def make_run_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder of a run where it does not exist yet, and return it as an absolute path.

    Args:
        folder: the user's choice.

    Raises:
        OSError: the folder cannot be made (no permission, no space).
    """
    path = Path(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_config(folder: str | os.PathLike[str], config: dict[str, Any]) -> None:
    """Write the resolved options to ``config.yaml``, a recipe that ``--config`` takes, of the run from its beginning.

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
    """Write ``manifest.json``: what has to be known to repeat the run.

    Of a run that is resumed the manifests of the earlier starts are kept, oldest first, under ``earlier_starts``.

    Args:
        folder: run folder.
        config: the resolved options, plain values.
        fingerprint: identifies the training data.
        class_count: number of identities.
        learning_rate: the highest of the schedule, after linear scaling; None in evaluation.

    Returns:
        What was written.
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
    """Return what the numbers of a run may depend on, as plain values.

    Returns:
        ``versions`` of Python, packages and CUDA, ``platform``, ``cpu_cores``, ``commit`` of this checkout and whether
        its tracked files were ``changed`` since (None and None where it is not a git checkout).
    """
    commit, changed = _git_state(Path(__file__).resolve().parents[2])
    versions = {name: _version(distributions) for name, distributions in _PACKAGES.items()}
    return {
        "versions": {"python": platform.python_version(), **versions, "cuda": torch.version.cuda},
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "commit": commit,
        "changed": changed,
    }


def _command() -> str:
    """Return the command line of this process, as it can be given again."""
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
            "separators, '..' or outer spaces (--output_dir says where the run folders go)"
        )


def _earlier_starts(manifest: Path) -> list[dict[str, Any]]:
    """Return the manifests of the run's earlier starts, oldest first; none where the file is missing or damaged."""
    try:
        previous = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [*previous.pop("earlier_starts", []), previous] if isinstance(previous, dict) else []


def _version(distributions: tuple[str, ...]) -> str | None:
    """Return the version of the first of these distributions that is installed."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return commit and whether tracked files differ from it, (None, None) unless ``folder`` is a checkout's root."""
    root, commit = _git(folder, "rev-parse", "--show-toplevel"), _git(folder, "rev-parse", "HEAD")
    if root is None or commit is None or Path(root).resolve() != folder:  # a copy inside somebody else's checkout
        return None, None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def _git(folder: Path, *words: str) -> str | None:
    """Return what a git command prints, None where there is no git, no repository or no answer in time."""
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
