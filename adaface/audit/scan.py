"""The first pass of an audit: read and decode every image once, and store 74 bytes of features per image.

The features are rows of one file, from which an interrupted audit resumes. A row depends on its image and on the
reference frequencies of the data, not on the number of threads or on interruptions.

``counted_findings`` yields the findings that need only listing and decoding: flaws of folders and labels, images that
training cannot use, and identities with a single image.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from adaface.audit.colors import color_spread, warmth
from adaface.audit.finding import Finding
from adaface.audit.hashing import frequencies, picture_hash, usual_frequencies
from adaface.audit.images import AuditedData
from adaface.data.image_header import check_header
from adaface.data.images import IMAGE_SHAPE, decode_pixels, image_suffix
from adaface.data.pair_pickle import EncodedImage
from adaface.system.files import atomic_path
from adaface.system.numpy_file import read_array
from adaface.system.progress_bar import progress_bar
from adaface.system.threads import in_order

TO_DO, GOOD, UNREADABLE, WRONG_SIZE, GRAY = range(5)
# `state` is written last, so a row with another state than TO_DO is complete
ROW = np.dtype(
    [
        ("pixels", "<u8", (2,)),  # hash of the decoded pixels
        ("look", "<u8", (4,)),
        ("warmth", "<f4"),
        ("contrast", "<f4"),
        ("colour", "<f4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("relabeled", "u1"),  # whether the record has another label than the index
        ("state", "u1"),
    ]
)
_AT_ONCE = 128
_SAMPLED = 4096
_MOST_PIXELS = 1 << 26
_SEEN_AS_CUT_ROWS = 8
_FILLER = 128  # gray value with which libjpeg fills the missing part of a truncated image
_LEAST_CONTRAST = 4.0  # of 255; the flattest of 4,527 LFW faces has 13


class Images(Protocol):
    """Images that can be scanned."""

    @property
    def name(self) -> str:
        """Label of the progress bar."""

    def __len__(self) -> int: ...

    def encoded(self, index: int) -> EncodedImage:
        """Return an image as it is stored; raises OSError or ValueError."""

    def other_label(self, index: int) -> float | None:
        """Return the label in an image's record if it is not that of the index; raises OSError or ValueError."""


def scan(
    images: Images, usual: np.ndarray, *, threads: int, table: np.ndarray | None = None, swapped: bool = False
) -> np.ndarray:
    """Scan all images that have not been scanned yet.

    Args:
        images: images to scan.
        usual: (256,) reference frequencies from ``usual_of``.
        threads: number of threads; the result does not depend on it.
        table: (N,) array of ``ROW``, filled in place; None creates a new one.
        swapped: the red and blue channels of the images on disk are swapped.

    Returns:
        (N,) array of ``ROW``.
    """
    table = np.zeros(len(images), ROW) if table is None else table
    left = np.flatnonzero(table["state"] == TO_DO)
    parts = [left[start : start + _AT_ONCE] for start in range(0, len(left), _AT_ONCE)]
    rows = in_order(
        lambda part: [_look(images, int(index), usual, swapped) for index in part],
        parts,
        threads=threads,
        ahead=2 * threads,
    )
    begun = len(images) - len(left)
    with progress_bar(total=len(images), initial=begun, desc=images.name, unit=" images") as bar:
        for part, found in zip(parts, rows, strict=True):
            new = np.concatenate(found)
            for field in ROW.names or ():
                table[field][part] = new[field]
            bar.update(len(part))
    return table


def usual_of(images: Images, *, threads: int) -> np.ndarray:
    """Return the reference frequencies of a data set, from a sample spread evenly over it.

    Args:
        images: images, up to 4,096 of which are sampled.
        threads: number of threads.

    Returns:
        (256,) float32.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(_SAMPLED, len(images))).astype(np.int64))

    def look(index: int) -> np.ndarray | None:
        image = _decoded(images, index)[0]
        return None if image is None or image.shape != IMAGE_SHAPE else frequencies(image)

    found = in_order(look, chosen.tolist(), threads=threads, ahead=4 * threads)
    return usual_frequencies(np.array([some for some in found if some is not None], np.float32))


def open_table(path: Path, count: int) -> np.ndarray:
    """Open the rows of an interrupted audit, or create new ones.

    Args:
        path: file of the rows.
        count: number of images, N.

    Returns:
        (N,) array of ``ROW``, mapped to the file.

    Raises:
        OSError: the file cannot be written.
    """
    with contextlib.suppress(ValueError, FileNotFoundError):  # no file, or one with an incomplete header
        table = read_array(path, writable=True)
        if table.shape == (count,) and table.dtype == ROW:
            return table
    with atomic_path(path) as part:
        table = np.lib.format.open_memmap(part, mode="w+", dtype=ROW, shape=(count,))
        if hasattr(os, "posix_fallocate"):  # on a full disk, writing to the mapped file would kill the process
            with part.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    return table


def displayed(images: Images, index: int) -> np.ndarray | None:
    """Return an image of any size, (H, W, 3) BGR or (H, W) gray uint8; None if it is unreadable.

    Args:
        images: scanned images.
        index: index of the image.
    """
    return _decoded(images, index)[0]


def why_unreadable(images: Images, index: int) -> str:
    """Return why an image is unreadable.

    Args:
        images: scanned images.
        index: index of the image.
    """
    return _decoded(images, index)[1]


def _look(images: Images, index: int, usual: np.ndarray, swapped: bool) -> np.ndarray:
    """Return the row of one image, a (1,) array of ``ROW``."""
    row = np.zeros(1, ROW)
    image, _ = _decoded(images, index)
    if image is None:
        row["state"] = UNREADABLE
        return row
    row["height"], row["width"] = image.shape[:2]
    row["relabeled"] = images.other_label(index) is not None
    if image.shape[:2] != IMAGE_SHAPE[:2]:
        row["state"] = WRONG_SIZE
    elif image.shape != IMAGE_SHAPE:
        row["state"] = GRAY
    else:
        row["state"] = GOOD
        image = np.ascontiguousarray(image[:, :, ::-1]) if swapped else image
        row["pixels"] = np.frombuffer(hashlib.blake2b(image.data, digest_size=16).digest(), "<u8")
        row["look"] = picture_hash(frequencies(image), usual)
        row["warmth"], row["colour"] = warmth(image), color_spread(image)
        row["contrast"] = image.std()
    return row


def _decoded(images: Images, index: int) -> tuple[np.ndarray | None, str]:
    """Return the pixels of an image of any size, BGR or gray, and ""; or None and the reason."""
    try:
        encoded = images.encoded(index)
    except (OSError, ValueError) as error:
        return None, str(getattr(error, "strerror", None) or error)
    if isinstance(encoded, np.ndarray) and encoded.ndim == 3:
        return np.ascontiguousarray(encoded[:, :, ::-1]), ""
    data = encoded if isinstance(encoded, bytes) else encoded.tobytes()
    try:
        header = check_header(data, "it", _MOST_PIXELS)
        if header.format in ("JPEG", "PNG"):
            image_suffix(data, "it")
    except ValueError as error:
        return None, str(error)
    image = decode_pixels(data, header.format, cv2.IMREAD_ANYCOLOR)
    if image is None:
        return None, f"a damaged {header.format} image ({len(data):,} bytes)"
    if len(image) > _SEEN_AS_CUT_ROWS and (image[-_SEEN_AS_CUT_ROWS:] == _FILLER).all():
        return None, "its lower part is missing"
    return np.asarray(image, np.uint8), ""


def states(table: np.ndarray, *chosen: int) -> np.ndarray:
    """Return the samples with one of some states, ascending.

    Args:
        table: (N,) array of ``ROW``.
        chosen: states, such as ``GOOD``.
    """
    return np.flatnonzero(np.isin(table["state"], chosen))


def counted_findings(data: AuditedData, table: np.ndarray) -> Iterator[Finding]:
    """Find flaws of the listing, contradicting labels, unusable and blank images, and identities with a single image.

    Args:
        data: training data.
        table: (N,) array of ``scan.ROW``.
    """
    for flaw in data.flaws:
        yield Finding(flaw.kind, flaw.identity, flaw.text)
    for sample in states(table, UNREADABLE).tolist():
        yield Finding("unreadable image", data.identity(sample), why_unreadable(data, sample), samples=(sample,))
    for sample in np.flatnonzero(table["relabeled"]).tolist():
        text = f"the label in its record is {data.other_label(sample):g}"
        yield Finding("other label", data.identity(sample), text, samples=(sample,))
    side = IMAGE_SHAPE[0]
    for sample in states(table, WRONG_SIZE).tolist():
        text = f"{table['width'][sample]}x{table['height'][sample]} px, expected {side}x{side}"
        yield Finding("wrong size", data.identity(sample), text, samples=(sample,))
    for sample in states(table, GRAY).tolist():
        yield Finding("grey image", data.identity(sample), "not three channels", samples=(sample,))
    good = states(table, GOOD)
    for sample in good[table["contrast"][good] < _LEAST_CONTRAST].tolist():
        text = f"standard deviation {table['contrast'][sample]:.1f} of 255"
        yield Finding("blank image", data.identity(sample), text, samples=(sample,))
    counts = np.bincount(data.labels, minlength=len(data.source.class_names))
    usable = np.bincount(data.labels[good], minlength=len(counts))
    for sample in good[usable[data.labels[good]] == 1].tolist():
        among = int(counts[data.labels[sample]])
        text = "the only image" if among == 1 else f"the only usable one of {among} images"
        yield Finding("single image", data.identity(sample), text, samples=(sample,))
