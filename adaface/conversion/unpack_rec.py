"""From InsightFace's `.rec` to image files `<label>/<key>.jpg`; from several to `<label>/<shard>-<key>.jpg`.

Source: the layouts of InsightFace and of the official AdaFace converter (`imgs/<label>/<key>.jpg`).
Differences: encoded images are copied byte for byte, where the official converter decodes and encodes them
again; work that is done is known, and not done twice. Images are written under their own names, since renaming
takes as long as writing: the journal says up to where they are whole, a conversion that goes on looks at the
others, and training refuses a folder whose journal is not at its end. What is promised about stopping holds for
a killed program, not for a power cut.
"""

import contextlib
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adaface.data.conversion_journal import JOURNAL, Journal
from adaface.data.images import image_suffix, swap_red_blue
from adaface.records.shards import RecordShards
from adaface.system.threads import in_order, usable_cores

logger = logging.getLogger(__name__)

_IMAGES_AT_ONCE = 250
_JOURNAL_EVERY = 2000  # images; a multiple of those at once
_COPYING_THREADS = 2
_MOST_AHEAD = 64  # parts of images
_UNSURE = _JOURNAL_EVERY + (_MOST_AHEAD + 1) * _IMAGES_AT_ONCE  # that a killed conversion may have written unnoted
_LISTED_KEYS = 10
_MOST_CLASSES = 2**31  # a label from here on is damage, and none that training takes


def convert_images(
    recs: Sequence[Path], folder: Path, swap: bool = False, skip_bad: bool = False, overwrite: bool = False
) -> int:
    """Write the images of `.rec` files as `<folder>/<label>/<key>.jpg` (or `.png`), byte for byte.

    Keys may come again in the next file: of several files, the names are `<shard>-<key>.jpg`.

    Args:
        recs: the `.rec`, or the several that make up one set; each `.idx` lies beside it.
        folder: image folder to write; a conversion that was stopped goes on, a finished one is left alone.
        swap: swap red and blue (decodes and encodes again).
        skip_bad: count records without a usable image instead of stopping at the first.
        overwrite: delete what an earlier conversion left in `folder` and start again.

    Returns:
        Number of records that were skipped, by an earlier call too.

    Raises:
        ValueError: a damaged `.rec`, a label that is not a class number, several files that each number their own
            identities, a record without an image, or a folder that something else has written.
        OSError: such as no space left; what is written so far is kept, and known.
    """
    started = time.monotonic()
    stats = [rec.stat() for rec in recs]
    size_bytes, mtime_ns = sum(stat.st_size for stat in stats), sum(stat.st_mtime_ns for stat in stats)
    journal = None if overwrite else Journal.load(folder)
    now = (size_bytes, mtime_ns, swap)
    if journal and journal.complete and now == (journal.rec_bytes, journal.rec_mtime_ns, journal.swap_color_channel):
        logger.info(f"{folder}: already converted ({_counts(journal)}); nothing to do")
        return len(journal.skipped)
    records = RecordShards(recs)
    positions, labels = _plan(records)
    if overwrite:  # not before the new .rec is known to be good
        _delete_images(folder)
    crc, identities = _checksum(records, positions, labels), len(np.unique(labels))
    fresh = Journal(size_bytes, mtime_ns, swap, crc, len(positions), identities)
    journal, unsure = _resume(journal, fresh, folder)
    already = journal.done
    folder.mkdir(exist_ok=True)
    journal.save(folder)
    _write_images(records, positions, labels, journal, folder, unsure, skip_bad)
    _report_images(journal, already, records, labels, folder, time.monotonic() - started)
    return len(journal.skipped)


def _plan(records: RecordShards) -> tuple[np.ndarray, np.ndarray]:
    """Choose the image records in file order; check their labels.

    Returns:
        Positions and labels of the N images, int64 (N,) each.
    """
    positions, labels, in_order_of_keys = [], [], []
    for file, start, (first, past) in records.shards():
        stored = file.labels[first:past]
        bad = np.flatnonzero(~((stored >= 0) & (stored < _MOST_CLASSES) & (stored == np.floor(stored))))
        if len(bad):
            raise ValueError(
                f"{file.rec_path}, key {file.keys[first + bad[0]]}: label {stored[bad[0]]}, expected a class number "
                f"0, 1, 2, ... ({len(bad)} such records)"
            )
        in_order_of_keys.append(stored.astype(np.int64))
        # File order, not key order: a shuffled .rec is then still read front to back.
        order = np.argsort(file.offsets[first:past], kind="stable")
        positions.append(order + (start + first))
        labels.append(in_order_of_keys[-1][order])
    if not any(map(len, positions)):
        raise ValueError(f"{records.location} holds no images")
    records.refuse_separate_sets(in_order_of_keys)
    return np.concatenate(positions), np.concatenate(labels)


def _checksum(records: RecordShards, positions: np.ndarray, labels: np.ndarray) -> int:
    """Return a checksum over keys, offsets and labels of the images, file after file."""
    crc = 0
    for column in ("keys", "offsets"):
        done = 0
        for file, start, (first, past) in records.shards():
            chosen = positions[done : done + past - first] - start
            crc = zlib.crc32(getattr(file, column)[chosen].astype(np.int64).data, crc)
            done += past - first
    return zlib.crc32(labels.data, crc)


def _resume(journal: Journal | None, fresh: Journal, folder: Path) -> tuple[Journal, int]:
    """Decide where to start.

    Returns:
        The journal to go on with, and how many records after its `done` may be on disk already.
    """
    if journal is None:
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ValueError(
                f"{folder} holds files that no conversion of this program has written; move it away "
                f"to convert train.rec, or give --make_validation_memfiles for the validation sets alone"
            )
        return fresh, 0
    same = (journal.rec_bytes, journal.index_crc, journal.images) == (fresh.rec_bytes, fresh.index_crc, fresh.images)
    if not same or journal.swap_color_channel != fresh.swap_color_channel:
        what = "with another --swap_color_channel" if same else "from another train.rec"
        raise ValueError(f"{folder} was converted {what}; use --overwrite to convert it again")
    journal.rec_mtime_ns = fresh.rec_mtime_ns
    return journal, _UNSURE


def _write_images(
    records: RecordShards,
    positions: np.ndarray,
    labels: np.ndarray,
    journal: Journal,
    folder: Path,
    unsure: int,
    skip_bad: bool,
) -> None:
    """Write the images from `journal.done` on; the journal follows, and is right whatever stops this."""
    start, total = journal.done, len(positions)
    unknown = range(start, min(start + unsure, total))
    copy = partial(_copy_some, records, positions, labels, folder, unknown, journal.swap_color_channel, skip_bad)
    starts = range(start, total, _IMAGES_AT_ONCE)
    # encoding again is work for all cores; copying is the file system's, and Python's lock lets two threads do it
    threads = usable_cores() if journal.swap_color_channel else min(usable_cores(), _COPYING_THREADS)
    done_parts = in_order(copy, starts, threads=threads, ahead=min(2 * threads, _MOST_AHEAD))
    with _saved(journal, folder), tqdm(total=total, initial=start, unit=" images", disable=None) as bar:
        for first, skipped in zip(starts, done_parts, strict=True):
            journal.skipped += skipped
            journal.done = min(first + _IMAGES_AT_ONCE, total)
            bar.update(journal.done - bar.n)
            if (journal.done - start) % _JOURNAL_EVERY == 0:
                journal.save(folder)


def _copy_some(
    records: RecordShards,
    positions: np.ndarray,
    labels: np.ndarray,
    folder: Path,
    unknown: range,
    swap: bool,
    skip_bad: bool,
    first: int,
) -> list[int | str]:
    """Write some images, from one place in the file order on; return the names of those that cannot be used.

    Places in `unknown` may have been written before.
    """
    chosen = slice(first, first + _IMAGES_AT_ONCE)
    classes = labels[chosen].tolist()
    for label in set(classes):
        os.makedirs(f"{folder}/{label}", exist_ok=True)  # noqa: PTH103 - no Path objects here
    skipped: list[int | str] = []
    for place, (position, label) in enumerate(zip(positions[chosen].tolist(), classes, strict=True), first):
        name = records.name(position)
        try:
            data = records.read_image(position)
            suffix = image_suffix(data, "the record")
            if swap:
                data = swap_red_blue(data, suffix, "the record")
        except ValueError as error:
            if not skip_bad:
                where = records.describe(position)
                raise ValueError(f"{where} (label {label}): {error}; --skip_bad_images goes on") from None
            skipped.append(int(name) if name.isdecimal() else name)
            continue
        path = f"{folder}/{label}/{name}{suffix}"
        if place not in unknown or not _has_size(path, len(data)):
            _write(path, data)
    return skipped


@contextlib.contextmanager
def _saved(journal: Journal, folder: Path) -> Iterator[None]:
    """Save the journal at the end, also when something stops the work."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk: the last journal that was saved is still good
            journal.save(folder)
        raise
    journal.save(folder)


def _has_size(path: str, size_bytes: int) -> bool:
    """Return whether a file is there with this size."""
    try:
        return os.stat(path).st_size == size_bytes  # noqa: PTH116
    except FileNotFoundError:
        return False


def _write(path: str, data: bytes) -> None:
    """Write a file; remove it where it cannot be written whole."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        written = os.write(handle, data)
        while written < len(data):  # a nearly full disk takes a part, then refuses
            written += os.write(handle, memoryview(data)[written:])
    except OSError as error:
        os.unlink(path)  # noqa: PTH108
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(handle)


def _delete_images(folder: Path) -> None:
    """Delete an image folder, provided that this program has written it."""
    if not folder.exists():
        return
    strangers = [entry.name for entry in folder.iterdir() if not (entry.name.startswith(".") or entry.name.isdigit())]
    if strangers or not (folder / JOURNAL).is_file():
        raise ValueError(f"--overwrite: {folder} was not written by this program; delete or move it yourself")
    # The journal goes last: a deletion that is stopped can be taken up again.
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    shutil.rmtree(folder)


def _counts(journal: Journal) -> str:
    """Say how much a conversion has written."""
    return f"{journal.images - len(journal.skipped):,} images, {journal.identities:,} identities"


def _report_images(
    journal: Journal, already: int, records: RecordShards, labels: np.ndarray, folder: Path, seconds: float
) -> None:
    """Log the summary, and what is odd about the data."""
    logger.info(
        f"{folder}: {_counts(journal)}, {seconds:.1f} s, {len(journal.skipped)} skipped"
        + (f", {already:,} records were done before" if already else "")
    )
    if journal.skipped:
        shown = ", ".join(map(str, journal.skipped[:_LISTED_KEYS]))
        more = f" and {len(journal.skipped) - _LISTED_KEYS} more" if len(journal.skipped) > _LISTED_KEYS else ""
        logger.info(f"skipped, no usable image: keys {shown}{more} (all of them are listed in {folder / JOURNAL})")
    expected, announced_by = records.files[0].num_identities(), "the .rec"
    if len(records.files) > 1:
        expected, announced_by = records.declared_identities() or (None, "")
    if expected is not None and expected != journal.identities:
        logger.info(f"note: {announced_by} announces {expected:,} identities, its images have {journal.identities:,}")
    if int(labels.max()) + 1 != journal.identities:
        logger.info(
            f"note: labels go up to {labels.max():,} with gaps; folders keep them, training renumbers the classes "
            f"in the order of the folder names"
        )
