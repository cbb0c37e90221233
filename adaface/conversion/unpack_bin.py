"""Convert InsightFace's `.bin` files to validation sets.

Source: the `.bin` files of InsightFace. Differences from the official converter: the images of a set are uint8 in one
memory-mapped file, and finished work is detected and not repeated.
"""

import json
import logging
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from adaface.data.images import decode_image
from adaface.data.pair_pickle import EncodedImage, read_bin
from adaface.data.pair_sets import content_checksums, origin_file, origin_of, was_made_from
from adaface.data.pair_writers import write_bcolz, write_memfile
from adaface.system.files import atomic_file
from adaface.system.json_file import read_object
from adaface.system.progress_bar import progress_bar
from adaface.system.threads import in_order, usable_cores

logger = logging.getLogger(__name__)

_IMAGES_AT_ONCE = 64


def convert_set(path: Path, form: str = "memfile", swap: bool = False, overwrite: bool = False) -> None:
    """Convert a `.bin` to a set in the same folder, unless this was done before and the `.bin` is unchanged.

    Args:
        path: the `.bin`.
        form: `memfile` or `bcolz`.
        swap: swap red and blue.
        overwrite: convert again, and replace a set written by another program.

    Raises:
        ValueError: not a verification set, or an image that is not a 112x112 color image.
        OSError: for example no space left; no incomplete set remains.
    """
    started = time.monotonic()
    name, folder = path.stem, path.parent
    sidecar = origin_file(folder, name)
    if not overwrite:
        reason = _why_done(path, sidecar, form, swap)
        if reason:
            logger.info(f"{path.name}: {reason}")
            return
    images, issame = read_bin(path)
    _save_sidecar(sidecar, {"form": "unfinished"})
    write = write_bcolz if form == "bcolz" else write_memfile
    write(folder, name, _decoded(images, path, swap), issame)
    if form == "bcolz":  # an older memory-mapped set would hide the new one
        (folder / f"{name}_images.npy").unlink(missing_ok=True)
    checksums = content_checksums(folder, name)
    _save_sidecar(sidecar, {**origin_of(path), "form": form, "swap_color_channel": swap, "checksums": checksums})
    same = int(issame.sum())
    seconds = time.monotonic() - started
    logger.info(
        f"{path.name}: {len(issame):,} pairs ({same:,} same) as {form}, {len(images):,} images, {seconds:.1f} s"
    )


def _save_sidecar(sidecar: Path, content: dict[str, Any]) -> None:
    """Record the source and the options of a set."""
    with atomic_file(sidecar) as file:
        file.write(json.dumps(content).encode())


def _why_done(path: Path, sidecar: Path, form: str, swap: bool) -> str | None:
    """Return why a set need not be converted; None if it must be converted."""
    folder, name = path.parent, path.stem
    target = folder / (name if form == "bcolz" else f"{name}_images.npy")
    if not target.exists() or not (folder / f"{name}_list.npy").is_file():
        return None
    try:
        known = read_object(sidecar)
    except FileNotFoundError:
        return f"{target.name} was written by another program and is kept; use --overwrite to replace it"
    except ValueError:
        return None
    if known.get("form") != form or known.get("swap_color_channel") != swap:
        return None
    if not was_made_from(known, path):
        return None
    return f"already converted ({target.name}); nothing to do"


def _decoded(images: list[EncodedImage], path: Path, swap: bool) -> Iterator[np.ndarray]:
    """Decode the images of a set in order, with one thread per core."""
    cores = usable_cores()
    decode = partial(_decode_some, images, path, swap)
    parts = in_order(decode, range(0, len(images), _IMAGES_AT_ONCE), threads=cores, ahead=2 * cores)
    return iter(progress_bar(chain.from_iterable(parts), total=len(images), desc=path.stem, unit=" images"))


def _decode_some(images: list[EncodedImage], path: Path, swap: bool, start: int) -> list[np.ndarray]:
    """Decode a chunk of the images, beginning at ``start``."""
    decoded = []
    for index, image in enumerate(images[start : start + _IMAGES_AT_ONCE], start):
        pixels = decode_image(image, f"{path}, image {index} (pair {index // 2})")
        decoded.append(np.ascontiguousarray(pixels[:, :, ::-1]) if swap else pixels)
    return decoded
