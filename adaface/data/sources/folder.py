"""Training images in a folder of class folders: listed, sorted and labeled.

Source: torchvision's `ImageFolder`.
Differences: hidden files are skipped; class folders have no subfolders; a listing of N files takes the length of their
names and eight bytes each.
"""

import json
import os
from pathlib import Path

import numpy as np

from adaface.data.conversion_journal import JOURNAL
from adaface.data.sources.base import Flaw
from adaface.system.command_line import invocation

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_SHOWN = 6


class FolderSource:
    """Images of `<root>/<class>/<file>`.

    Args:
        root: folder of the class folders.
        flawed: skip classes without images instead of raising an error.

    Attributes:
        flaws: what was skipped.

    Raises:
        FileNotFoundError: no such folder, no class folders in it, a class without images, or no images at all.
        ValueError: the conversion is not complete.
    """

    def __init__(self, root: str | os.PathLike[str], *, flawed: bool = False) -> None:
        self.root = Path(root)
        self.location = str(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is not a folder; expected <class>/<image> in it")
        _refuse_unfinished(self.root)
        with os.scandir(self.root) as entries:
            self.class_names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
        if not self.class_names:
            raise FileNotFoundError(f"no class folders in {self.root}; it holds {listing(self.root)}")
        # File names in one buffer: a list of millions of strings would take ten times the memory, in every worker.
        names, lengths, counts = [], [], []
        for class_name in self.class_names:
            files = _image_files(self.root / class_name)
            counts.append(len(files))
            names.append(b"".join(files))
            lengths.append(np.fromiter(map(len, files), np.uint8, len(files)))
        empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        if len(empty) == len(counts) or not flawed:
            _refuse_empty_classes(self.root, empty, len(counts))
        self.flaws = [Flaw("empty identity", name, f"no images in {self.root / name}") for name in empty]
        self.class_names = [name for name, count in zip(self.class_names, counts, strict=True) if count]
        counts = [count for count in counts if count]
        self._names = b"".join(names)
        self._ends = np.cumsum(np.concatenate(lengths), dtype=np.uint32 if len(self._names) < 2**32 else np.uint64)
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

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


def _refuse_unfinished(root: Path) -> None:
    """Raise ValueError if a conversion to this folder is not complete."""
    path = root / JOURNAL
    try:
        journal = json.loads(path.read_text(encoding="utf-8"))
        done, total = int(journal["done"]), int(journal["images"])
    except (FileNotFoundError, NotADirectoryError):
        return
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); convert again with --overwrite") from None
    if done != total:
        raise ValueError(
            f"the conversion to {root} is not complete ({done} of {total} images). Continue it with: "
            f"{invocation('convert')} --rec_path {root.parent} --make_image_files"
        )


def _image_files(folder: Path) -> list[bytes]:
    """Return the sorted names of the image files of a class."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGE_EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
        ]
    return [os.fsencode(name) for name in sorted(names)]


def _refuse_empty_classes(root: Path, empty: list[str], count: int) -> None:
    if empty:
        names = ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
        raise FileNotFoundError(
            f"{len(empty)} of {count} class folders in {root} hold no images: {names}. Expected "
            f"<class>/<image> with one of {' '.join(IMAGE_EXTENSIONS)}; remove empty folders, or give the right folder"
        )


def listing(folder: Path) -> str:
    """List the first few entries of a folder, for messages."""
    names = sorted(entry.name for entry in folder.iterdir())
    return (", ".join(names[:_SHOWN]) + (f", ... ({len(names)} entries)" if len(names) > _SHOWN else "")) or "nothing"
