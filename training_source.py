"""Where training images come from: a folder of class folders, or a `.rec`; found, listed, ordered and labelled.

Both give the same samples in the same order with the same labels: that of torchvision's `ImageFolder` on
`imgs/<label>/<key>.jpg`, as `convert.py` writes it. Class names are ordered as text, so are the files inside a class
(0, 1, 10, 100, ..., 2, ...), and labels count the classes from 0. Neither decodes an image.

Sources: torchvision's `ImageFolder`; the InsightFace data layout.
Differences: hidden files are left out; there are no folders inside class folders; a listing of N files costs their
names and eight bytes each, a `.rec` 24 bytes a record, index included, which all processes share where a sidecar of the
`.rec` can be written.
"""

import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import record_sidecar
from class_order import lexicographic_order, order_by_class
from recordio import RecordFile

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
RECORD_FILE = "train.rec"
_CONVERSION_JOURNAL = ".convert.json"
IMAGE_FOLDER = "imgs"
_SIDECAR = "order"
_SHOWN = 6


class TrainingSource(Protocol):
    """Encoded training images with labels.

    Attributes:
        labels: (N,) class of each sample, 0..C-1, integers.
        class_names: folder name, or label in the `.rec`, of each class.
        location: folder or file, for messages.
    """

    labels: np.ndarray
    class_names: list[str]
    location: str

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return the encoded image of one sample."""
        ...

    def describe(self, index: int) -> str:
        """Return where one sample lies, for messages."""
        ...


class FolderSource:
    """Images of `<root>/<class>/<file>`.

    Args:
        root: folder of the class folders.

    Raises:
        FileNotFoundError: no such folder, no class folders in it, or a class without images.
        ValueError: `convert.py` was stopped before it had written all images.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.location = str(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is not a folder; expected <class>/<image> in it")
        _refuse_unfinished(self.root)
        with os.scandir(self.root) as entries:
            self.class_names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
        if not self.class_names:
            raise FileNotFoundError(f"no class folders in {self.root}; it holds {_listing(self.root)}")
        # File names in one piece: a list of millions of strings would cost ten times as much, in every worker.
        names, lengths, counts = [], [], []
        for class_name in self.class_names:
            files = _image_files(self.root / class_name)
            counts.append(len(files))
            names.append(b"".join(files))
            lengths.append(np.fromiter(map(len, files), np.uint8, len(files)))
        _refuse_empty_classes(self.root, self.class_names, np.array(counts))
        self._names = b"".join(names)
        self._ends = np.cumsum(np.concatenate(lengths), dtype=np.uint32 if len(self._names) < 2**32 else np.uint64)
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def __len__(self) -> int:
        return len(self.labels)

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
    """Raise where `convert.py` has written a part of the images; its journal says how many."""
    path = root / _CONVERSION_JOURNAL
    try:
        journal = json.loads(path.read_text(encoding="utf-8"))
        done, total = int(journal["done"]), int(journal["images"])
    except (FileNotFoundError, NotADirectoryError):
        return
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); run convert.py with --overwrite") from None
    if done != total:
        raise ValueError(
            f"the conversion to {root} is not finished ({done} of {total} images); it goes on by: "
            f"python convert.py --rec_path {root.parent} --make_image_files"
        )


def _image_files(folder: Path) -> list[bytes]:
    """Return the sorted names of the image files of a class."""
    with os.scandir(folder) as entries:
        found = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGE_EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
        ]
    return [os.fsencode(name) for name in sorted(found)]


def _refuse_empty_classes(root: Path, class_names: list[str], counts: np.ndarray) -> None:
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        names = ", ".join(class_names[i] for i in empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
        raise FileNotFoundError(
            f"{len(empty)} of {len(class_names)} class folders in {root} hold no images: {names}. Expected "
            f"<class>/<image> with one of {' '.join(IMAGE_EXTENSIONS)}; remove empty folders, or name the right folder"
        )


class RecordSource:
    """Images of a `.rec`, in the order and with the labels of the folder that `convert.py` makes of it.

    Args:
        rec_path: the `.rec`; its `.idx` and, where present, `property` lie beside it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no images, or labels that are not whole numbers 0..C-1 within the declared number of identities.
    """

    def __init__(self, rec_path: str | os.PathLike[str]) -> None:
        self.rec_path = Path(rec_path)
        self.location = str(rec_path)
        self._file = RecordFile(self.rec_path)
        self._shared = False
        self.labels, self._positions = self._shared_order() or self._order()
        self.class_names = list(map(str, lexicographic_order(np.arange(self.labels.max() + 1)).tolist()))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self._shared:
            del state["labels"], state["_positions"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._shared:
            self._shared = False
            self.labels, self._positions = self._shared_order(checked=True) or self._order()

    def _shared_order(self, *, checked: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
        """Map classes and positions of the samples, (N,) each, as an earlier `_order` has left them; None without."""
        if self._file.stamp is None:
            return None
        columns = record_sidecar.load(self._file.stamp, _SIDECAR, checked=checked)
        if columns is None or set(columns) != {"labels", "positions"}:
            return None
        labels, positions = columns["labels"], columns["positions"]
        if not 0 < len(labels) == len(positions):
            return None
        declared = self._declared_identities()
        most = len(labels) if declared is None else min(len(labels), declared[0])
        if not (0 <= labels.min() <= labels.max() < most and 0 <= positions.min() <= positions.max() < len(self._file)):
            return None
        self._shared = True
        return labels, positions

    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Make classes and positions of the samples, (N,) each, and leave them to other processes."""
        first, past = self._file.image_range()
        if first == past:
            raise ValueError(f"{self.rec_path} holds no images; expected the training records of a data set")
        keys = self._file.keys[first:past]
        labels = _whole_labels(self._file.labels[first:past], keys, self.rec_path)
        class_count = _checked_class_count(labels, keys, self.rec_path, self._declared_identities())
        class_of_label = np.empty(class_count, np.int32)
        class_of_label[lexicographic_order(np.arange(class_count))] = np.arange(class_count, dtype=np.int32)
        labels = class_of_label[labels]
        order = order_by_class(keys, labels)
        positions = order.astype(np.uint32 if len(self._file) < 2**32 else np.int64) + first
        columns = {"labels": labels[order], "positions": positions}
        shared = None if self._file.stamp is None else record_sidecar.store(self._file.stamp, _SIDECAR, columns)
        self._shared = shared is not None
        columns = shared or columns
        return columns["labels"], columns["positions"]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """Return the encoded image of one sample."""
        return self._file.read_image(int(self._positions[index]))

    def describe(self, index: int) -> str:
        """Return file, key and class of one sample, for messages."""
        key = int(self._file.keys[self._positions[index]])
        return f"{self.rec_path}, key {key}, class {self.class_names[self.labels[index]]}"

    def _declared_identities(self) -> tuple[int, str] | None:
        """Return the number of identities that header record or `property` declare, and where; None without."""
        declared = self._file.num_identities()
        if declared is not None:
            return declared, "its header record"
        path = self.rec_path.with_name("property")
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        first = text.split(",")[0].strip()
        if not first.isdecimal():
            raise ValueError(f"{path}: expected `identities,height,width`, got {text[:40]!r}; correct or remove it")
        return int(first), str(path)


def _whole_labels(labels: np.ndarray, keys: np.ndarray, rec_path: Path) -> np.ndarray:
    """Return labels (N,) as int32, or refuse one that is no whole number from 0 on."""
    bad = ~((labels >= 0) & (labels < 2**31) & (np.floor(labels) == labels))  # written so that NaN is bad too
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"{rec_path}: the label of key {keys[first]} is {labels[first]:g}"
            f"{' (a damaged image header)' if np.isnan(labels[first]) else ''}, expected a whole number from 0 on "
            f"({int(bad.sum())} such labels); the file is damaged or is no training set: pack it again"
        )
    return labels.astype(np.int32)


def _checked_class_count(labels: np.ndarray, keys: np.ndarray, rec_path: Path, declared: tuple[int, str] | None) -> int:
    """Return the number of classes C, or refuse labels above the declared number or with gaps."""
    class_count = int(labels.max()) + 1
    if declared is not None and class_count > declared[0]:
        key = keys[np.argmax(labels)]
        raise ValueError(
            f"{rec_path}: the label of key {key} is {class_count - 1}, but {declared[1]} declares {declared[0]} "
            f"identities (labels 0..{declared[0] - 1}); correct the declaration, or pack the file again"
        )
    # Not bincount: one damaged label of two thousand millions would ask for 16 GB.
    if class_count <= len(labels):
        is_present = np.zeros(class_count, np.bool_)
        is_present[labels] = True
        present = np.flatnonzero(is_present)
    else:
        present = np.unique(labels)
    if len(present) < class_count:
        after = np.flatnonzero(np.diff(present, prepend=-1) > 1)[:_SHOWN]
        missing = [str(present[i - 1] + 1 if i else 0) for i in after]
        raise ValueError(
            f"{rec_path}: labels up to {class_count - 1} but only {len(present)} identities; without images are for "
            f"example {', '.join(missing)}. Convert it to a folder, which renumbers: python convert.py --rec_path "
            f"{rec_path.parent} --make_image_files, then train on {rec_path.parent / IMAGE_FOLDER}"
        )
    return class_count


# --- finding it -----------------------------------------------------------------------------------------------


def open_training_source(
    data_root: str | os.PathLike[str], train_data_path: str | os.PathLike[str], *, use_mxrecord: bool = False
) -> TrainingSource:
    """Find and open the training data.

    Args:
        data_root: folder that ``train_data_path`` is relative to.
        train_data_path: the image folder, the folder above it or with `train.rec`, or a `.rec`.
        use_mxrecord: take `train.rec` even where there is an image folder; look for it one folder above too.

    Returns:
        The image folder where there is one, else the `.rec`.

    Raises:
        FileNotFoundError: neither is there; the message says what is.
        ValueError: what is there is damaged.
    """
    path = Path(data_root, train_data_path)
    if path.suffix == ".rec" and path.is_file():
        return RecordSource(path)
    record = path / RECORD_FILE
    # `faces_emore/imgs` before the conversion; but not any folder's parent: that could be another data set.
    if not record.is_file() and (use_mxrecord or path.name == IMAGE_FOLDER):
        record = path.parent / RECORD_FILE
    images = _image_folder(path)
    if images is not None and not use_mxrecord:
        return FolderSource(images)
    if record.is_file():
        return RecordSource(record)
    wanted = f"{RECORD_FILE} in it or in the folder above (--use_mxrecord)"
    if not use_mxrecord:
        wanted = f"{IMAGE_FOLDER}/<class>/<image>, <class>/<image> or {RECORD_FILE} in it"
    raise FileNotFoundError(
        f"no training data in {path.absolute()}: looked for {wanted}; {_nearest_folder(path)}. "
        "Check --data_root and --train_data_path"
    )


def _image_folder(path: Path) -> Path | None:
    """Return the folder of class folders at ``path`` or in its `imgs`; None without."""
    if (path / IMAGE_FOLDER).is_dir():
        return path / IMAGE_FOLDER
    if not path.is_dir() or (path / RECORD_FILE).is_file():  # beside a `.rec` lie validation folders, no classes
        return None
    with os.scandir(path) as entries:
        return path if any(e.is_dir() for e in entries if not e.name.startswith(".")) else None


def _nearest_folder(path: Path) -> str:
    """Say what is in the deepest folder of ``path`` that exists."""
    path = path.absolute()
    folder = next(p for p in (path, *path.parents) if p.is_dir())
    return f"{'it' if folder == path else f'it does not exist; {folder}'} holds {_listing(folder)}"


def _listing(folder: Path) -> str:
    """Name the first few entries of a folder."""
    names = sorted(entry.name for entry in folder.iterdir())
    return (", ".join(names[:_SHOWN]) + (f", ... ({len(names)} entries)" if len(names) > _SHOWN else "")) or "nothing"
