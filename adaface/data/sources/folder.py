"""Training images in a folder of class folders: listed, sorted and labeled.

Source: torchvision's `ImageFolder`.
Differences: `data/image_files.py` decides what an image is; a listing of N files costs their names and ten bytes each.
"""

import os
from pathlib import Path

import numpy as np

from adaface.data.conversion_journal import Journal, check_conversion
from adaface.data.image_files import FolderListing, find_image_files, list_classes
from adaface.data.sources.base import Flaw

_SHOWN = 6


class FolderSource:
    """Images of `<root>/<class>/<file>`, or deeper in a class.

    Args:
        root: folder of the class folders.
        flawed: skip classes without images instead of raising an error.

    Attributes:
        flaws: what was skipped.
        listing: names relative to ``root`` of the files that are not read, and why; its image names are empty.
        note: remark on the origin of the images, for the user; may be empty.

    Raises:
        FileNotFoundError: no such folder, no class folders in it, a class without images, or no images at all.
        ValueError: the conversion is not complete.
    """

    def __init__(self, root: str | os.PathLike[str], *, flawed: bool = False) -> None:
        self.root = Path(root)
        self.location = str(root)
        self.class_names, outside = find_classes(self.root)
        # File names in one buffer: a list of millions of strings would take ten times the memory, in every worker.
        names, lengths, counts = [], [], []
        skipped, litter = outside.skipped, outside.litter
        for class_name in self.class_names:
            found = find_image_files(self.root / class_name)
            files = [os.fsencode(name) for name in found.names]
            counts.append(len(files))
            names.append(b"".join(files))
            lengths.append(np.fromiter(map(len, files), np.uint16, len(files)))
            skipped += [entry._replace(name=f"{class_name}/{entry.name}") for entry in found.skipped]
            litter += found.litter
        self.listing = FolderListing([], skipped, litter)
        empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        if len(empty) == len(counts) or not flawed:
            _refuse_empty_classes(self.root, empty, len(counts))
        self.flaws = [Flaw("empty identity", name, f"no images in {self.root / name}") for name in empty]
        lost = [entry for entry in skipped if entry.photograph]
        self.flaws += [Flaw("skipped image", _class_of(e.name), f"{self.root / e.name}: {e.reason}") for e in lost]
        self.class_names = [name for name, count in zip(self.class_names, counts, strict=True) if count]
        counts = [count for count in counts if count]
        self._names = b"".join(names)
        self._ends = np.cumsum(np.concatenate(lengths), dtype=np.uint32 if len(self._names) < 2**32 else np.uint64)
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        # the finder sets it otherwise, because it prefers the folder to the `.rec` beside it
        journal = Journal.load(self.root)
        self.note = journal.compare(self.root, len(self), len(counts)) if journal else ""

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """Return the class of one sample."""
        return int(self.labels[index])

    def path(self, index: int) -> str:
        """Return the path of one sample."""
        start = int(self._ends[index - 1]) if index else 0
        name = os.fsdecode(self._names[start : int(self._ends[index])])
        return os.path.join(self.root, self.class_names[self.labels[index]], name)  # noqa: PTH118 (ten times faster)

    def read(self, index: int) -> bytes:
        """Return the encoded image of one sample."""
        with open(self.path(index), "rb") as file:  # noqa: PTH123
            return file.read()

    def describe(self, index: int) -> str:
        """Return the path of one sample, for messages."""
        return self.path(index)


def find_classes(root: Path) -> tuple[list[str], FolderListing]:
    """List the class folders of an image folder, as ``list_classes`` does, after a check.

    Args:
        root: the folder.

    Raises:
        FileNotFoundError: no such folder, or no class folders in it.
        ValueError: the conversion is not complete.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected <class>/<image> in it")
    check_conversion(root)
    class_names, outside = list_classes(root)
    if not class_names:
        raise FileNotFoundError(f"no class folders in {root}; it holds {listing(root)}")
    return class_names, outside


def _class_of(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def _refuse_empty_classes(root: Path, empty: list[str], count: int) -> None:
    if empty:
        names = ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
        raise FileNotFoundError(
            f"{len(empty)} of {count} class folders in {root} hold no images: {names}. Expected "
            "<class>/<image>; remove empty folders, or give the right folder"
        )


def listing(folder: Path) -> str:
    """List the first few entries of a folder, folders first and no hidden ones, for messages."""
    with os.scandir(folder) as entries:
        shown = [(entry.is_file(), entry.name) for entry in entries if not entry.name.startswith(".")]
    names = [name for _, name in sorted(shown)]
    return (", ".join(names[:_SHOWN]) + (f", ... ({len(names)} entries)" if len(names) > _SHOWN else "")) or "nothing"
