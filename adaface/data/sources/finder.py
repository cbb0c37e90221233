"""Find and open the training data of `--train_data_path`, one set or several separated by commas.

    faces_emore/imgs, faces_emore, faces_emore/train.rec    one set
    webface42m                                              one set in train_0.rec, train_1.rec, ...
    faces_emore,webface42m                                  two sets; the classes of the second follow

Source: the InsightFace data layout.
Differences: the official code takes one set, and derives its class count from the name of the path.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from adaface.data.conversion_journal import compare_unrecorded
from adaface.data.image_files import is_folder
from adaface.data.sources.base import TrainingSource
from adaface.data.sources.combined import CombinedSource
from adaface.data.sources.folder import FolderSource, listing
from adaface.data.sources.records import FlawedRecordSource, RecordSource
from adaface.records.shards import IMAGE_FOLDER, RECORD_FILE, find_records, holds_records
from adaface.system.command_line import nearest_path


class DataSet(NamedTuple):
    """The location of one data set.

    Attributes:
        home: what the set is named after: the folder with `imgs` or the `.rec`, the folder of the classes, or one of
            several `.rec` files in a folder, without suffix.
        paths: the image folder, or the `.rec` files.
        is_folder: whether it is an image folder.
    """

    home: Path
    paths: list[Path]
    is_folder: bool

    def folder(self) -> Path:
        """Return the folder with `imgs` or the `.rec`."""
        return (self.home if self.is_folder else self.paths[0].parent).resolve()

    def open(self, flawed: bool) -> TrainingSource:
        """Open the data set."""
        if self.is_folder:
            source = FolderSource(self.paths[0], flawed=flawed)
            source.note = source.note or compare_unrecorded(source.root, len(source), len(source.class_names))
            return source
        return FlawedRecordSource(*self.paths) if flawed else RecordSource(*self.paths)


def open_training_source(
    data_root: str | os.PathLike[str],
    train_data_path: str | os.PathLike[str],
    *,
    use_mxrecord: bool = False,
    flawed: bool = False,
) -> TrainingSource:
    """Find and open the training data.

    Args:
        data_root: folder that ``train_data_path`` is relative to.
        train_data_path: for each set the image folder, the folder above it, the folder with `train.rec` or
            `train_0.rec`, ..., or a `.rec`; several sets are separated by commas.
        use_mxrecord: prefer the `.rec` to an image folder, and also look for it in the folder above.
        flawed: skip identities without images and invalid labels instead of raising an error; they are listed in
            ``flaws`` of the source.

    Returns:
        The image folder if there is one, otherwise the `.rec`; several sets are combined.

    Raises:
        FileNotFoundError: there is no such data; the message lists what is there.
        ValueError: the data is damaged or ambiguous, or a set is given twice.
    """
    words = split_paths(data_root, train_data_path)
    data_sets = find_data_sets(data_root, train_data_path, use_mxrecord=use_mxrecord)
    if len(data_sets) == 1:
        return data_sets[0].open(flawed)
    sources = []
    for number, data_set in enumerate(data_sets):
        with _naming(number, words):
            sources.append(data_set.open(flawed))
    return CombinedSource(list(zip(_names([data_set.home for data_set in data_sets]), sources, strict=True)))


def find_data_sets(
    data_root: str | os.PathLike[str], train_data_path: str | os.PathLike[str], *, use_mxrecord: bool = False
) -> list[DataSet]:
    """Find the training data without opening it; for the arguments see ``open_training_source``.

    Raises:
        FileNotFoundError: there is no such data; the message lists what is there.
        ValueError: an empty path, or a set that is given twice.
    """
    words = split_paths(data_root, train_data_path)
    paths = [Path(data_root, word) for word in words]
    if len(paths) == 1:
        return [_find(paths[0], use_mxrecord)]
    data_sets: list[DataSet] = []
    for number, path in enumerate(paths):
        with _naming(number, words):
            data_sets.append(_find(path, use_mxrecord))
            _refuse_duplicate(data_sets)
    return data_sets


def folder_sources(source: TrainingSource) -> list[FolderSource]:
    """Return the image folders of which a source consists; none of `.rec` files.

    Args:
        source: from ``open_training_source``.
    """
    if isinstance(source, CombinedSource):
        return [folder for part in source.parts() for folder in folder_sources(part)]
    return [source] if isinstance(source, FolderSource) else []


@contextlib.contextmanager
def _naming(number: int, words: list[str]) -> Iterator[None]:
    """Add to an error which of several data sets it concerns."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        which = f"data set {number + 1} of {len(words)} ({words[number]})"
        raise kind(f"--train_data_path, {which}: {error}") from error


def split_paths(data_root: str | os.PathLike[str], train_data_path: str | os.PathLike[str]) -> list[str]:
    """Split the paths of several data sets at the commas.

    Commas in an existing path do not separate.

    Args:
        data_root: folder that the paths are relative to.
        train_data_path: one path, or several separated by commas.

    Returns:
        The paths, without surrounding blanks.

    Raises:
        ValueError: an empty path between two commas, or at an end.
    """
    pieces = os.fspath(train_data_path).split(",")
    words = []
    while pieces:
        taken = next((n for n in range(len(pieces), 1, -1) if _exists(Path(data_root, ",".join(pieces[:n])))), 1)
        words.append(",".join(pieces[:taken]))
        del pieces[:taken]
    if len(words) > 1:
        words = [word.strip() for word in words]
    if len(words) > 1 and not all(words):
        raise ValueError(
            f"--train_data_path {train_data_path}: one of {len(words)} paths is empty; expected paths of data sets "
            f"separated by single commas"
        )
    return words


def _exists(path: Path) -> bool:
    """Return whether a path exists, or will exist after the conversion of the data set."""
    return path.exists() or (path.name == IMAGE_FOLDER and path.parent.is_dir())


def _refuse_duplicate(data_sets: list[DataSet]) -> None:
    """Raise an error if the last set is given twice, because every identity would become two classes."""
    last = data_sets[-1]
    for earlier in data_sets[:-1]:
        common = {path.resolve() for path in last.paths} & {path.resolve() for path in earlier.paths}
        converted = last.is_folder != earlier.is_folder and last.folder() == earlier.folder()
        if common or converted or last.home.resolve() == earlier.home.resolve():
            raise ValueError(f"{last.paths[0]} is a data set that was already given: give it once")


def _names(homes: list[Path]) -> list[str]:
    """Name data sets after their folders, with as many parent folders as needed to distinguish them."""
    absolute = [Path(os.path.abspath(home)).parts for home in homes]  # noqa: PTH100 - links keep their names
    for depth in range(1, max(map(len, absolute)) + 1):
        names = ["/".join(parts[-depth:]).strip("/") for parts in absolute]
        if len(set(names)) == len(names):
            break
    return names


def _find(path: Path, use_mxrecord: bool) -> DataSet:
    """Find one data set."""
    if path.suffix == ".rec" and path.is_file():
        return DataSet(path.parent if path.name == RECORD_FILE else path.with_suffix(""), [path], is_folder=False)
    images = None if use_mxrecord else _image_folder(path)
    if images is not None:
        return DataSet(images.parent if images.name == IMAGE_FOLDER else images, [images], is_folder=True)
    # `faces_emore/imgs` before the conversion, but not the parent of any other folder, which could be another data set
    above = [path.parent] if use_mxrecord or path.name == IMAGE_FOLDER else []
    for folder in (path, *above):
        if records := find_records(folder):
            return DataSet(folder, records, is_folder=False)
    expected = f"{RECORD_FILE} in it or in the folder above (--use_mxrecord)"
    if not use_mxrecord:
        expected = f"{IMAGE_FOLDER}/<class>/<image>, <class>/<image> or {RECORD_FILE} in it"
    raise FileNotFoundError(
        f"no training data in {path.absolute()}: looked for {expected}; {_nearest_folder(path)}. "
        "Check --data_root and --train_data_path"
    )


def _image_folder(path: Path) -> Path | None:
    """Return the folder of class folders at ``path`` or in its `imgs`; None if there are none."""
    if (path / IMAGE_FOLDER).is_dir():
        return path / IMAGE_FOLDER
    if not path.is_dir() or holds_records(path):  # folders next to a `.rec` are validation sets, not classes
        return None
    with os.scandir(path) as entries:
        return path if any(is_folder(e) for e in entries if not e.name.startswith(".")) else None


def _nearest_folder(path: Path) -> str:
    """Describe the deepest existing folder of ``path``, and name the most similar one."""
    whole = path.absolute()
    folder = next(p for p in (whole, *whole.parents) if p.is_dir())
    if folder == whole:
        return f"it holds {listing(folder)}"
    wrong = folder / whole.relative_to(folder).parts[0]
    why = f"{'it' if wrong == whole else wrong} is a file, not a folder" if wrong.is_file() else "it does not exist"
    return f"{why}; {nearest_path(str(path), always=f'{folder} holds {listing(folder)}')}"
