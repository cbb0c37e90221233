"""The images of an audit: the training data, and the test sets that the training data must not contain."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from adaface.data.image_files import find_image_files, report_skipped
from adaface.data.image_list import PairSetImages, fingerprint_of_files
from adaface.data.images import decode_image
from adaface.data.pair_pickle import EncodedImage
from adaface.data.pair_sets import PairSet, find_pair_sets, open_pair_set
from adaface.data.sources.base import Flaw, TrainingSource
from adaface.data.sources.combined import CombinedSource
from adaface.data.sources.finder import folder_sources, open_training_source
from adaface.data.sources.folder import FolderSource, listing
from adaface.data.sources.records import FlawedRecordSource

logger = logging.getLogger(__name__)

_LONGEST_NAME = 60


@dataclass(frozen=True)
class AuditedData:
    """The training data.

    Attributes:
        source: encoded images and labels, without the parts that cannot be listed.
        swapped: the red and blue channels of all images on disk are swapped.
    """

    source: TrainingSource
    swapped: bool = False

    @property
    def name(self) -> str:
        """Label of the progress bar."""
        return "images"

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of each sample, int32 (N,), ascending."""
        return self.source.labels

    @property
    def flaws(self) -> Sequence[Flaw]:
        """Flaws that were skipped while listing the data."""
        return getattr(self.source, "flaws", [])

    def encoded(self, index: int) -> EncodedImage:
        """Return an image as it is stored.

        Raises:
            OSError: the file cannot be read.
            ValueError: the record is damaged.
        """
        return self.source.read(index)

    def other_label(self, index: int) -> float | None:
        """Return the label in a sample's record if it is not the one that is trained with; None for image files.

        Raises:
            OSError: the file cannot be read.
            ValueError: the record is damaged.
        """
        source = self.source
        if isinstance(source, CombinedSource):
            source, index = source.locate(index)
        return source.other_label(index) if isinstance(source, FlawedRecordSource) else None

    def read(self, index: int) -> np.ndarray:
        """Return an image, (112, 112, 3) uint8 BGR.

        Raises:
            ValueError: the image is damaged, or of another size or type.
        """
        try:
            image = decode_image(self.encoded(index), self.source.describe(index))
        except OSError as error:
            raise ValueError(f"{self.source.describe(index)} cannot be read: {error.strerror or error}") from error
        return np.ascontiguousarray(image[:, :, ::-1]) if self.swapped else image

    def identity(self, index: int) -> str:
        """Return the name of a sample's class."""
        return self.source.class_names[int(self.labels[index])]

    def fingerprint(self) -> str:
        """Return a digest of file names, sizes, modification times, and labels."""
        digest = hashlib.sha256(f"{self.swapped} {len(self)}\n".encode())
        for path in _files(self.source):
            status = os.stat(path)  # noqa: PTH116 - millions of times
            digest.update(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        digest.update(np.ascontiguousarray(self.labels, "<i4").data)
        return digest.hexdigest()


def _files(source: TrainingSource) -> Iterator[str | Path]:
    if isinstance(source, CombinedSource):
        for part in source.parts():
            yield from _files(part)
    elif isinstance(source, FolderSource):
        yield from map(source.path, range(len(source)))
    elif isinstance(source, FlawedRecordSource):
        yield from source.files
    else:
        raise TypeError(f"a {type(source).__name__} cannot be audited")


def image_folders(source: TrainingSource) -> list[Path]:
    """Return the image folders of a source, each with one subfolder per identity."""
    return [folder.root for folder in folder_sources(source)]


def open_audited_data(path: str, *, swapped: bool = False) -> AuditedData:
    """Open training data that may have flaws.

    Args:
        path: an image folder, a folder with `train.rec` or `train_0.rec`, ..., or a `.rec`; several paths are
            separated by commas.
        swapped: the red and blue channels of all images on disk are swapped.

    Raises:
        FileNotFoundError: there is no data.
        ValueError: the data cannot be listed.
    """
    try:
        return AuditedData(open_training_source(".", path, flawed=True), swapped)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace(". Check --data_root and --train_data_path", "")) from error


@dataclass(frozen=True)
class TestImages:
    """The images of a test set.

    Attributes:
        name: name of the set, for messages.
        count: number of images.
        get: returns an image, encoded or decoded; raises ValueError or OSError.
        where: returns the location of an image, for messages.
        state: a digest of the images' files.
        folder: folder of the image files; None if they are in one file, such as a `.bin`.
    """

    __test__ = False  # not a test class of pytest

    name: str
    count: int
    get: Callable[[int], EncodedImage]
    where: Callable[[int], str]
    state: str
    folder: Path | None = None

    def __len__(self) -> int:
        return self.count

    def encoded(self, index: int) -> EncodedImage:
        """Return an image, either encoded or decoded to (112, 112, 3) uint8 RGB."""
        return self.get(index)

    def other_label(self, index: int) -> None:
        """Return None: the images of a test set have no labels."""

    def read(self, index: int) -> np.ndarray:
        """Return an image, (112, 112, 3) uint8 BGR.

        Raises:
            ValueError: the image is damaged, or of another size or type.
        """
        try:
            return decode_image(self.get(index), self.where(index))
        except OSError as error:
            raise ValueError(f"{self.where(index)} cannot be read: {error.strerror or error}") from error

    def fingerprint(self) -> str:
        """Return a digest of the images' files."""
        return self.state


def open_test_sets(paths: str) -> list[TestImages]:
    """Open the test sets that the training data must not contain.

    Args:
        paths: `.bin` files, folders of verification sets, or folders of images at any depth, separated by commas.

    Raises:
        FileNotFoundError: a path does not exist, or a folder contains no images.
        ValueError: a set is damaged, or a path is empty.
    """
    words = [paths] if Path(paths).exists() else [word.strip() for word in paths.split(",")]
    test_sets: list[TestImages] = []
    for word in words:
        path = Path(word)
        if not word:
            raise ValueError(
                f"--test_sets {paths!r}: a path is empty; expected .bin files or folders, separated by commas"
            )
        if not path.exists():
            raise FileNotFoundError(f"--test_sets: {path} does not exist; expected a .bin file or a folder")
        if path.is_dir():
            sets = find_pair_sets(path)
            test_sets += [_pair_images(open_pair_set(path, name), file) for name, file in sets.items()]
            test_sets += [] if sets else [_folder_images(path)]
        elif path.suffix == ".bin":
            test_sets.append(_pair_images(open_pair_set(path.parent, path.stem), path))
        else:
            raise ValueError(f"--test_sets: {path} is neither a .bin file nor a folder")
    return test_sets


def _pair_images(pair_set: PairSet, path: Path) -> TestImages:
    if pair_set.note:
        logger.info(f"note: {pair_set.note}")

    def get(index: int) -> EncodedImage:
        return np.ascontiguousarray(pair_set.images[index][:, :, ::-1])

    state = PairSetImages(pair_set, path).fingerprint()
    return TestImages(
        pair_set.name, len(pair_set.images), get, lambda i: f"{path}, image {i} (of pair {i // 2})", state
    )


def _folder_images(folder: Path) -> TestImages:
    found = find_image_files(folder)
    report_skipped(found)
    names = [folder / name for name in sorted(found.names)]
    if not names:
        raise FileNotFoundError(
            f"--test_sets: {folder} contains neither verification sets nor images; found: {listing(folder)}"
        )
    name = folder.resolve().name[:_LONGEST_NAME]
    state = fingerprint_of_files(names)
    return TestImages(name, len(names), lambda i: names[i].read_bytes(), lambda i: str(names[i]), state, folder)
