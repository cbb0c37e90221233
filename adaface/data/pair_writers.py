"""Write verification pairs: as memory-mapped `.npy`, or as the official bcolz folders.

Differs from the official converter: the default format is uint8, a quarter of the size of the official one, and needs
no decompression.
"""

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from adaface.data.bcolz_folder import bcolz_package
from adaface.data.images import IMAGE_SHAPE
from adaface.data.pair_pickle import check_counts
from adaface.data.pair_sets import IMAGES_SUFFIX, LIST_SUFFIX, OFFICIAL_FLOAT, check_name
from adaface.system.files import atomic_file, atomic_path

# Rows per bcolz chunk; even, because bcolz cannot append a single row and 2P images leave an even remainder.
_BCOLZ_CHUNK_IMAGES = 4


def write_memfile(
    folder: str | os.PathLike[str], name: str, images: Iterable[np.ndarray], issame: Iterable[bool]
) -> None:
    """Write a verification set as uint8 arrays that can be memory-mapped.

    The list is written last, and both files are written atomically, so a visible set is complete.

    Args:
        folder: where to write `<name>_images.npy`, uint8 (2P, 112, 112, 3) BGR, and `<name>_list.npy`, bool (P,).
        name: such as `lfw`.
        images: 2P images, each (112, 112, 3) uint8 BGR; consumed one at a time.
        issame: P booleans.

    Raises:
        ValueError: a wrong image, or counts that do not match; nothing is written.
        OSError: no space left; nothing is written.
    """
    check_name(name)
    pairs = np.array([bool(value) for value in issame])
    header = {"descr": "|u1", "fortran_order": False, "shape": (2 * len(pairs), *IMAGE_SHAPE)}
    # Plain writes, because writing through a memory map crashes when the disk is full.
    with atomic_file(Path(folder) / (name + IMAGES_SUFFIX)) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for image in _checked(images, len(pairs), name):
            file.write(image.tobytes())
        _forget_list(folder, name)
    _write_list(folder, name, pairs)


def write_bcolz(
    folder: str | os.PathLike[str], name: str, images: Iterable[np.ndarray], issame: Iterable[bool]
) -> None:
    """Write a verification set as the official converter does.

    Args:
        folder: where to write the bcolz folder `<name>`, float32 (2P, 3, 112, 112) BGR in [-1, 1], and
            `<name>_list.npy`, bool (P,).
        name: such as `lfw`.
        images: 2P images, each (112, 112, 3) uint8 BGR; consumed one at a time.
        issame: P booleans.

    Raises:
        ValueError: a wrong image, or counts that do not match; nothing is written.
        RuntimeError: bcolz is not installed.
        OSError: no space left; nothing is written.
    """
    check_name(name)
    pairs = np.array([bool(value) for value in issame])
    bcolz, final = bcolz_package(), Path(folder) / name
    with atomic_path(final) as part:
        array = bcolz.carray(
            np.empty((0, 3, 112, 112), np.float32),
            rootdir=str(part),
            mode="w",
            chunklen=_BCOLZ_CHUNK_IMAGES,
        )
        for chunk in _bcolz_chunks(_checked(images, len(pairs), name)):
            array.append(chunk)
        array.flush()
        _forget_list(folder, name)
        shutil.rmtree(final, ignore_errors=True)
    _write_list(folder, name, pairs)


def _bcolz_chunks(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Group images into chunks in the official format, (n, 3, 112, 112) float32."""
    stream = iter(images)
    while chunk := list(itertools.islice(stream, _BCOLZ_CHUNK_IMAGES)):
        yield OFFICIAL_FLOAT[np.stack(chunk).transpose(0, 3, 1, 2)]


def _checked(images: Iterable[np.ndarray], pair_count: int, name: str) -> Iterator[np.ndarray]:
    """Yield images, and check each one and their number."""
    count = 0
    for image in images:
        if image.shape != IMAGE_SHAPE or image.dtype != np.uint8:
            raise ValueError(f"{name}, image {count}: {image.dtype} {image.shape}, expected uint8 (112, 112, 3)")
        count += 1
        yield image
    check_counts(count, pair_count, name)


def _forget_list(folder: str | os.PathLike[str], name: str) -> None:
    """Remove the list of an older version of the set, so that new images are never combined with the old list."""
    with suppress(FileNotFoundError):
        (Path(folder) / (name + LIST_SUFFIX)).unlink()


def _write_list(folder: str | os.PathLike[str], name: str, pairs: np.ndarray) -> None:
    """Write `<name>_list.npy`."""
    with atomic_file(Path(folder) / (name + LIST_SUFFIX)) as file:
        np.save(file, pairs)
