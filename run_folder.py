"""The folder of a run: its name, its configuration, and the manifest that says how it came to be."""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from atomic_files import write_atomically
from lightning_setup import pl

_MOST_RUNS = 100_000


def choose_run_folder(output_dir: str | Path, prefix: str) -> Path:
    """Create the next free folder ``<output_dir>/<prefix>_<MM-DD>_<n>``.

    Two jobs started at once get two folders: creating is what decides.

    Args:
        output_dir: parent, created where it is missing.
        prefix: first part of the name; no path.

    Raises:
        ValueError: a prefix that is not a plain file name.
    """
    if not prefix or prefix in (".", "..") or "/" in prefix or "\\" in prefix or "\0" in prefix:
        raise ValueError(f"--prefix is the first part of a folder's name, without separators, got {prefix!r}")
    parent = Path(output_dir)
    parent.mkdir(parents=True, exist_ok=True)
    day = time.strftime("%m-%d")
    for number in range(_MOST_RUNS):
        folder = parent / f"{prefix}_{day}_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"{parent} holds {_MOST_RUNS} runs of {prefix} of today: choose another --prefix")


def describe_environment() -> dict[str, Any]:
    """Return the versions and the commit that a run depends on, as plain values."""
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "torch_build": str(torch.__version__),
            "pytorch_lightning": pl.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str:
    """Return what git says of the code's folder; nothing where it is no checkout or git is absent."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write ``config.yaml``, a recipe that ``--config`` takes.

    Args:
        folder: run folder.
        config: resolved options.
    """
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def write_manifest(folder: Path, config: dict[str, Any], fingerprint: str, class_count: int, device: str = "") -> None:
    """Write ``manifest.json``: command, options, versions, commit, machine and data.

    A resumed run keeps the earlier manifests in ``earlier``.

    Args:
        folder: run folder.
        config: resolved options.
        fingerprint: of the data.
        class_count: number of identities.
        device: name of the hardware.
    """
    path = folder / "manifest.json"
    earlier: list[Any] = []
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        earlier = [*before.pop("earlier", []), before]
    manifest = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "data_fingerprint": fingerprint,
        "identities": class_count,
        "platform": platform.platform(),
        "device": device,
        **describe_environment(),
        "config": config,
        "earlier": earlier,
    }
    write_atomically(path, json.dumps(manifest, indent=2) + "\n")
