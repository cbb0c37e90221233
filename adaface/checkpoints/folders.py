"""Checkpoints that several processes write: one folder each, complete or absent, with links to them by name.

All processes write a sharded head at the same time, so its checkpoint is a folder, ``checkpoints/step-0001200-0``. It
is written under a temporary name and renamed once every file is in it. ``last.ckpt`` and ``best.ckpt`` are symbolic
links to such folders. A link is replaced atomically, so each name refers to a complete checkpoint even if the run is
killed. Folders without a link are deleted.
"""

import itertools
import os
import re
import secrets
import shutil
from pathlib import Path

from adaface.system.files import atomic_path

FOLDER = "checkpoints"
_PART = ".part"
_OURS = re.compile(r"step-\d{7,}-\d+|\.part.*")


def begin(run_folder: Path) -> Path:
    """Create an empty folder for the next checkpoint; called by one process.

    Args:
        run_folder: folder of the run.

    Returns:
        The folder. Its name is never reused, because a machine on a network file system may have cached an older folder
        of that name. Remains of killed processes are deleted.
    """
    folder = run_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{_PART}*"):
        shutil.rmtree(old, ignore_errors=True)
    part = folder / f"{_PART}-{secrets.token_hex(4)}"
    part.mkdir()
    return part


def publish(run_folder: Path, part: Path, step: int, names: list[str]) -> Path:
    """Rename the complete checkpoint and link it; called by one process, after all have written.

    Args:
        run_folder: folder of the run.
        part: the folder returned by ``begin``.
        step: optimizer steps so far, for the folder's name.
        names: of the links in ``run_folder``, replaced in this order: a kill in between leaves the later ones
            unchanged.

    Returns:
        The checkpoint's folder.
    """
    final = _unused(run_folder, step)
    part.rename(final)
    for name in names:
        link(final, run_folder / name)
    delete_unlinked(run_folder)
    return final


def link(target: Path, name: Path) -> None:
    """Make ``name`` a symbolic link to ``target``.

    Args:
        target: checkpoint folder below the folder of ``name``.
        name: the link. What was there before is replaced, atomically unless it is a real folder, as in a run folder
            that was copied by a program that follows links.
    """
    with atomic_path(name) as part:
        part.symlink_to(os.path.relpath(target, name.parent), target_is_directory=True)
        if name.is_dir() and not name.is_symlink():
            name.rename(_unused(name.parent, 0))  # deleted later, because no link refers to it


def delete_unlinked(run_folder: Path) -> None:
    """Delete the checkpoint folders that no link in the run folder refers to.

    Args:
        run_folder: folder of the run.
    """
    linked = {path.resolve() for path in run_folder.iterdir() if path.is_symlink()}
    for path in (run_folder / FOLDER).glob("*"):
        if _OURS.fullmatch(path.name) and path.resolve() not in linked:
            # on a network file system a file that is being read cannot be deleted: retried the next time
            shutil.rmtree(path, ignore_errors=True)


def run_folder_of(checkpoint: Path) -> Path:
    """Return the run folder of a checkpoint.

    Args:
        checkpoint: a file or a link in the run folder, or a folder below its ``checkpoints``.
    """
    parent = Path(os.path.abspath(checkpoint)).parent  # noqa: PTH100 - resolve() would follow the link
    return parent.parent if parent.name == FOLDER else parent


def _unused(run_folder: Path, step: int) -> Path:
    folder = run_folder / FOLDER
    return next(p for n in itertools.count() if not (p := folder / f"step-{step:07d}-{n}").exists())
