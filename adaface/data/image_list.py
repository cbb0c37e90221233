"""Lists of aligned face images for the evaluation protocols, read one by one as uint8 BGR."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from adaface.data.image_header import check_header
from adaface.data.images import IMAGE_SHAPE, decode_pixels
from adaface.data.pair_sets import PairSet


class NoFaceError(ValueError):
    """A photograph was read and shows no face: reading it again does not change that."""


class ImageList(Protocol):
    """N aligned face images of (112, 112, 3) uint8 BGR, read on access, by any thread or process."""

    @property
    def name(self) -> str:
        """Name of the images for progress bars and messages, such as ``lfw``."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Return one image, (112, 112, 3) uint8 BGR.

        Raises:
            NoFaceError: it is a photograph without a face; the message names it.
            ValueError: it cannot be read; the message names it.
        """

    def fingerprint(self) -> str:
        """Return a text that changes if the images change."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files.

    Attributes:
        name: name of the images.
        paths: (N,) files.
        prepare: takes a decoded image (H, W, 3) uint8 BGR and its index, returns it aligned, (112, 112, 3); None for
            files that are aligned already.
        prepared_as: describes ``prepare`` in the fingerprint; must change if its result changes.
    """

    name: str
    paths: Sequence[Path]
    prepare: Callable[[np.ndarray, int], np.ndarray] | None = None
    prepared_as: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Return one image, aligned.

        Raises:
            ValueError: the file is missing, not an image, or of another size than 112x112.
        """
        path = self.paths[index]
        image = read_color_image(path)
        if self.prepare is not None:
            image = self.prepare(image, index)
        if image.shape != IMAGE_SHAPE:
            height, width = image.shape[:2]
            raise ValueError(
                f"{path} is {width}x{height} px, expected an aligned face of 112x112: use adaface align, or "
                "--align of compare, embed, search and group"
            )
        return image

    def fingerprint(self) -> str:
        """Return a digest of names, sizes and modification times."""
        return fingerprint_of_files(self.paths, self.prepared_as)


@dataclass(frozen=True)
class PairSetImages:
    """The 2P images of a verification set; images 2k and 2k+1 are pair k.

    Attributes:
        pair_set: opened by ``data.pair_sets.open_pair_set``.
        path: of the file or folder that holds the images.
    """

    pair_set: PairSet
    path: Path

    @property
    def name(self) -> str:
        """The set's name."""
        return self.pair_set.name

    def __len__(self) -> int:
        return len(self.pair_set.images)

    def read(self, index: int) -> np.ndarray:
        """Return one image.

        Raises:
            ValueError: it is damaged.
        """
        return self.pair_set.images[index]

    def fingerprint(self) -> str:
        """Return a digest of the files' names, sizes and modification times."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        return fingerprint_of_files(files)


@dataclass(frozen=True)
class ChosenImages:
    """Some images of a list.

    Attributes:
        images: the list.
        chosen: (N,) integers, indices of the list.
    """

    images: ImageList
    chosen: np.ndarray

    @property
    def name(self) -> str:
        """Name of the whole list."""
        return self.images.name

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> np.ndarray:
        """Return one image.

        Raises:
            ValueError: it cannot be read.
        """
        return self.images.read(int(self.chosen[index]))

    def fingerprint(self) -> str:
        """Return a text that changes if the images or the selection change."""
        return f"{self.images.fingerprint()} {hashlib.sha256(self.chosen.astype('<i8').tobytes()).hexdigest()}"


def fingerprint_of_files(paths: Iterable[Path], prefix: str = "") -> str:
    """Return a digest of names, sizes and modification times; absent files are included as absent.

    Args:
        paths: of the files, in order.
        prefix: further text that the digest depends on.
    """
    digest = hashlib.sha256(prefix.encode())
    for path in paths:
        try:
            status = path.stat()
            state = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            state = f"{path}\0absent"
        digest.update(os.fsencode(state) + b"\n")
    return digest.hexdigest()


def read_color_image(path: Path) -> np.ndarray:
    """Return the pixels of an image file, (H, W, 3) uint8 BGR, upright; a gray image has three equal channels.

    Raises:
        ValueError: the file is missing or not an image.
    """
    try:
        if path.is_char_device() or path.is_block_device():  # a list of names may lead to one without an end
            raise ValueError(f"{path} is a device, not an image file")
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    header = check_header(encoded, str(path))
    image = decode_pixels(encoded, header.format, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is not a readable image ({len(encoded)} bytes)")
    return image
