"""Checkpoints that several processes write: a folder each, whole or absent, and links to them by name.

A sharded head is written by all processes at once, so that its checkpoint is a folder, ``checkpoints/step-0001200-0``.
It is written under another name and renamed when every file is in it. ``last.ckpt`` and ``best.ckpt`` are symbolic
links to such folders; a link is replaced in one step, so that a kill at any moment leaves a whole checkpoint behind
each name. Folders that no link names any more are deleted.
"""

import itertools
import os
import shutil
from pathlib import Path

FOLDER = "checkpoints"
_PART = ".part"


def begin(run_folder: Path) -> Path:
    """Make the empty folder that the next checkpoint is written to; called by one process.

    Args:
        run_folder: folder of the run.

    Returns:
        ``part_of(run_folder)``; what a killed process left there is deleted.
    """
    part = part_of(run_folder)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    return part


def part_of(run_folder: Path) -> Path:
    """Return the folder that a checkpoint is written to, the same in all processes.

    Args:
        run_folder: folder of the run.
    """
    return run_folder / FOLDER / _PART


def publish(run_folder: Path, step: int, names: list[str]) -> Path:
    """Give the written checkpoint its names; called by one process, when all have written.

    Args:
        run_folder: folder of the run.
        step: optimiser steps so far, for the folder's name.
        names: of the links in ``run_folder``, the first one first: a kill in between leaves the others as they were.

    Returns:
        The checkpoint's folder.
    """
    folder = run_folder / FOLDER
    final = next(p for n in itertools.count() if not (p := folder / f"step-{step:07d}-{n}").exists())
    part_of(run_folder).rename(final)
    for name in names:
        link(final, run_folder / name)
    _delete_unlinked(run_folder)
    return final


def link(target: Path, name: Path) -> None:
    """Let ``name`` be a symbolic link to ``target``, in one step.

    Args:
        target: a checkpoint's folder below the folder of ``name``.
        name: the link; what was there before is replaced, unless it is a real folder.
    """
    part = name.with_name(f".{name.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(target, name.parent), target_is_directory=True)
    part.replace(name)


def run_folder_of(checkpoint: Path) -> Path:
    """Return the folder of the run that wrote a checkpoint.

    Args:
        checkpoint: a file or a link in the run folder, or a folder below its ``checkpoints``.
    """
    parent = Path(os.path.abspath(checkpoint)).parent  # noqa: PTH100 - resolve() would follow the link
    return parent.parent if parent.name == FOLDER else parent


def _delete_unlinked(run_folder: Path) -> None:
    linked = {path.resolve() for path in run_folder.iterdir() if path.is_symlink()}
    for path in (run_folder / FOLDER).iterdir():
        if path.resolve() not in linked:
            shutil.rmtree(path)
