"""Which verification sets a run uses: those of ``--val_data_path``, and one of people held out of the training data."""

from dataclasses import dataclass
from pathlib import Path

from command_line import nearest
from option_rules import HELD_OUT
from pairs import PAPER_SETS, PairSet, find_pair_sets, open_pair_set


@dataclass(frozen=True)
class ChosenSets:
    """Verification sets of a run.

    Attributes:
        opened: name -> set, of those on the disk, the paper's first.
        missing: those of the paper that are not there, where nobody has chosen.
        held_out: people are to be held out of the training data for one more.
        note: what the user should know; empty where there is nothing.
    """

    opened: dict[str, PairSet]
    missing: list[str]
    held_out: bool
    note: str = ""


def open_sets(folder: Path, wanted: str, *, held_out_otherwise: bool, compulsory: bool) -> ChosenSets:
    """Choose and open verification sets.

    Args:
        folder: of the sets; may be absent.
        wanted: names with commas between them, ``held_out`` among them or not; all in the folder when empty.
        held_out_otherwise: hold people out where nothing is wanted and nothing found.
        compulsory: there is nothing to do without a set on the disk.

    Raises:
        FileNotFoundError: a set that is wanted, or compulsory, is not there.
        ValueError: a damaged set.
    """
    found = list(find_pair_sets(folder)) if folder.is_dir() else []
    names = [name for word in wanted.split(",") if (name := word.strip())]
    for name in names:
        if name not in (*found, HELD_OUT):
            known = nearest(name, [*found, HELD_OUT])
            raise FileNotFoundError(f"--val_sets {wanted}: there is no set {name} in {folder.absolute()}; {known}")
    opened = {name: open_pair_set(folder, name) for name in found if not names or name in names}
    missing = [name for name in PAPER_SETS if name not in found] if found and not names else []
    held_out = HELD_OUT in names and HELD_OUT not in found if names else held_out_otherwise and not found
    why = "none there" if folder.is_dir() else "no such folder"
    none = f"no validation sets in {folder.absolute()} ({why}; looked for .bin files and converted sets)"
    if compulsory and not opened:
        raise FileNotFoundError(f"{none}. Check --data_root and --val_data_path")
    if opened or names:
        return ChosenSets(opened, missing, held_out)
    instead = "people of the training data are held out" if held_out else "training goes on without validation"
    return ChosenSets(opened, missing, held_out, f"{none}: {instead}")
