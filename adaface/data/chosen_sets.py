"""The choice of a run's verification sets, by ``--val_data_path`` and ``--val_sets``; without PyTorch."""

from dataclasses import dataclass
from pathlib import Path

from adaface.config.options import DataOptions
from adaface.data.pair_sets import PAPER_SETS, find_pair_sets
from adaface.system.command_line import nearest, nearest_path

HELD_OUT = "held_out"  # name of the verification set of held-out identities
NO_SETS = "none"  # in place of the folder of the verification sets


@dataclass(frozen=True)
class ChosenSets:
    """Verification sets of a run.

    Attributes:
        names: of the chosen sets on the disk, the paper's first.
        missing: the paper's sets that are missing, if no sets were chosen by name.
        held_out: whether identities must be held out of the training data.
        note: information for the user; may be empty.
    """

    names: list[str]
    missing: list[str]
    held_out: bool
    note: str = ""


def check_folder_of_sets(options: DataOptions) -> None:
    """Raise FileNotFoundError unless the folder of the verification sets exists, or is ``none``.

    Args:
        options: with a ``val_data_path`` that the user has given.
    """
    word, folder = options.val_data_path, Path(options.data_root, options.val_data_path)
    if word != NO_SETS and not folder.is_dir():
        why = "it is a file" if folder.exists() else "there is no such folder"
        advice = f"give the folder of the verification sets, or {NO_SETS}"
        hint = nearest_path(word, root=options.data_root, always=advice)
        raise FileNotFoundError(f"--val_data_path {word}: {why} ({folder.absolute()}); {hint}")


def choose_sets(folder: Path, val_sets: str, *, held_out_otherwise: bool, compulsory: bool) -> ChosenSets:
    """Choose verification sets.

    Args:
        folder: of the sets; may be absent.
        val_sets: comma-separated names, possibly with ``held_out``; all sets in the folder when empty.
        held_out_otherwise: hold identities out if ``val_sets`` is empty and the folder has no sets.
        compulsory: whether at least one set on disk is required.

    Raises:
        FileNotFoundError: a requested or required set is missing.
        ValueError: ``held_out`` although a set on disk is required.
    """
    present = list(find_pair_sets(folder)) if folder.is_dir() else []
    names = [name for word in val_sets.split(",") if (name := word.strip())]
    for name in names:
        if name not in (*present, HELD_OUT):
            known = nearest(name, [*present, HELD_OUT])
            raise FileNotFoundError(f"--val_sets {val_sets}: there is no set {name} in {folder.absolute()}; {known}")
    chosen = [name for name in present if not names or name in names]
    missing = [name for name in PAPER_SETS if name not in present] if present and not names else []
    held_out = HELD_OUT in names and HELD_OUT not in present if names else held_out_otherwise and not present
    if compulsory and held_out:
        raise ValueError(f"--val_sets {HELD_OUT} needs the training data, which --evaluate does not read: omit it")
    why = "it has no sets" if folder.is_dir() else "no such folder"
    none = f"no validation sets in {folder.absolute()} ({why}; looked for .bin files and converted sets)"
    if compulsory and not chosen:
        raise FileNotFoundError(f"{none}. Check --data_root and --val_data_path")
    if chosen or names:
        return ChosenSets(chosen, missing, held_out)
    instead = "identities of the training data are held out" if held_out else "training without validation"
    return ChosenSets(chosen, missing, held_out, f"{none}: {instead}")
