"""A few aligned faces to try a model on: from a folder, from a verification set, or synthetic ones."""

import logging
import os
from pathlib import Path

import numpy as np

from adaface.config.choices import EMBEDDINGS_SUFFIX
from adaface.data.image_files import find_image_files, report_skipped
from adaface.data.image_list import ImageFiles, ImageList, PairSetImages
from adaface.data.pair_sets import PairSet, open_pair_set
from adaface.data.sources.folder import listing
from adaface.demo.dataset import DemoSize, draw_picture, training_pictures

logger = logging.getLogger(__name__)

_DRAWN_PEOPLE = 8


def read_sample(path: str | Path, most: int) -> np.ndarray:
    """Read images evenly spread over a folder or a verification set.

    Args:
        path: a folder of aligned faces, at any depth, or a ``.bin``.
        most: maximum number of images.

    Returns:
        (N, 112, 112, 3) uint8 BGR, N at least 1.

    Raises:
        FileNotFoundError: there is no such file or folder, or no image in it.
        ValueError: a file is not an aligned face or not a verification set; the message names it.
    """
    images = _open(Path(path))
    if not len(images):
        raise FileNotFoundError(f"{path} contains no images; expected aligned faces of 112x112 px")
    chosen = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))
    return np.stack([images.read(int(index)) for index in chosen])


def read_pair_set(path: str | Path) -> PairSet:
    """Open a verification set by its file.

    Args:
        path: a ``.bin``; if a converted copy of the set is next to it, that is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, or not a ``.bin``.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the .bin file of a verification set")
    if not path.is_file():
        raise FileNotFoundError(f"there is no verification set {path}")
    if path.suffix != ".bin":
        raise ValueError(f"{path} is not a .bin file of a verification set")
    pair_set = open_pair_set(path.parent, path.stem)
    if pair_set.note:
        logger.info(f"note: {pair_set.note}")
    return pair_set


def drawn_faces(count: int) -> np.ndarray:
    """Draw synthetic faces of several people.

    Args:
        count: number of images.

    Returns:
        (count, 112, 112, 3) uint8 BGR.
    """
    size = DemoSize(identities=_DRAWN_PEOPLE, images_per_identity=-(-count // _DRAWN_PEOPLE))
    return np.stack([draw_picture(picture) for picture in training_pictures(size)[:count]])


def find_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, at any depth, sorted, and report the files that are skipped.

    Args:
        folder: folder to search.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: the path is a file.
    """
    check_image_folder(folder)
    found = find_image_files(folder)
    report_skipped(found)
    if not found.names:
        raise _no_images(folder)
    return sorted(folder / name for name in found.names)


def check_image_folder(folder: Path) -> None:
    """Raise the error of ``find_images`` for what is no folder, or a folder without any file; nothing is listed.

    Args:
        folder: folder to search.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: the path is a file.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{folder} is a file, expected a folder of images")
        raise FileNotFoundError(f"there is no folder {folder}")
    for place, folders, files in os.walk(folder):
        if files or any(Path(place, name).is_symlink() for name in folders):
            return
    raise _no_images(folder)


def check_image_file(path: Path) -> None:
    """Raise an error for what is no file.

    Args:
        path: of an image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected an image file (`embed` and `search` take folders)")
    if not path.exists():
        raise FileNotFoundError(f"there is no image {path}")


def check_gallery(path: Path) -> None:
    """Raise an error for what is neither a folder of images nor named as a file of embeddings.

    Args:
        path: of a gallery.

    Raises:
        FileNotFoundError: there is no such path, or no file in the folder.
        ValueError: another file.
    """
    if path.is_dir():
        check_image_folder(path)
    elif not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    elif path.suffix != EMBEDDINGS_SUFFIX:
        raise ValueError(f"{path} is not a gallery: expected a folder of images, or an .npz of `embed`")


def _no_images(folder: Path) -> FileNotFoundError:
    return FileNotFoundError(f"no images in {folder}; it contains {listing(folder)}: give a folder of images")


def _open(path: Path) -> ImageList:
    """Open the images of a folder or of a verification set."""
    if path.is_dir():
        return ImageFiles(path.name, find_images(path))
    return PairSetImages(read_pair_set(path), path)
