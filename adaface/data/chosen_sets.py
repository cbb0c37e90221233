"""Which verification sets a run uses, and which an evaluation finds; without PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adaface.config.options import DataOptions
from adaface.data.pair_sets import PAPER_SETS, find_pair_sets, fingerprint_of_pairs, open_pair_set
from adaface.data.sources.folder import listing
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
    """Raise FileNotFoundError unless the folder of the verification sets exists, is ``none``, or the default.

    Args:
        options: with a ``val_data_path`` that the user has given. The default stands in many recipes; without this
            folder, training has no sets.
    """
    word, folder = options.val_data_path, Path(options.data_root, options.val_data_path)
    if word not in (NO_SETS, DataOptions().val_data_path) and not folder.is_dir():
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


def find_sets(root: str | Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """Find verification sets: a ``.bin``, a folder of sets in any format, or a folder of such folders.

    Args:
        root: file or folder to search.
        names: names of the sets; empty for all.

    Returns:
        Folder of each set by name, the paper's sets first. A set directly in ``root`` comes before those of the same
        name in its subfolders.

    Raises:
        FileNotFoundError: there are no sets, or not all of the named ones.
        ValueError: several subfolders have different sets of one name.
    """
    root = Path(root)
    folders = folders_of_sets(root, names)
    order = {name: rank for rank, name in enumerate(PAPER_SETS)}
    chosen = sorted(names or folders, key=lambda name: (order.get(name, len(order)), name))
    return {name: _only_folder(name, folders[name], root) for name in chosen}


def folders_of_sets(root: Path, names: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Return the folders with a verification set of each name, without opening them.

    Args:
        root: as in ``find_sets``.
        names: as in ``find_sets``.

    Raises:
        FileNotFoundError: there are no sets, or not all of the named ones.
    """
    folders: dict[str, list[Path]]
    if root.is_file() and root.suffix == ".bin":
        folders = {root.stem: [root.parent]}
    elif root.is_dir():
        folders = {}
        for folder in (root, *sorted(entry for entry in root.iterdir() if entry.is_dir())):
            for name in find_pair_sets(folder):
                folders.setdefault(name, []).append(folder)
    else:
        raise FileNotFoundError(f"--root {root} is neither a folder nor a .bin file")
    missing = [name for name in names if name not in folders]
    if missing or not folders:
        absent = f"set {', '.join(missing)}" if missing else "verification sets (lfw.bin, ... or converted ones)"
        present = ", ".join(folders) or (listing(root) if root.is_dir() else root.name)
        raise FileNotFoundError(f"no {absent} in {root}; found: {present}")
    return folders


def _only_folder(name: str, folders: list[Path], root: Path) -> Path:
    """Return the folder of a set; raise ValueError if others have a different set of that name.

    Several data sets of InsightFace come with the same ``lfw.bin``.
    """
    first, *others = folders
    if not others or first == root:
        return first
    advice = "give one of these folders as --root, or move one set away"
    for other in others:
        try:
            prints = {fingerprint_of_pairs(open_pair_set(folder, name)) for folder in (first, other)}
        except (OSError, RuntimeError, ValueError) as error:  # damaged, or bcolz is not installed
            raise ValueError(
                f"--root {root} has two sets {name}, in {first} and in {other}, and whether they are the same cannot "
                f"be told ({error}): {advice}"
            ) from error
        if len(prints) > 1:
            raise ValueError(f"--root {root} has different sets {name}, in {first} and in {other}: {advice}")
    return first
