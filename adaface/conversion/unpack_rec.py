"""Convert InsightFace's `.rec` to image files `<label>/<key>.jpg`, several `.rec` to `<label>/<shard>-<key>.jpg`.

Source: the layouts of InsightFace and of the official AdaFace converter (`imgs/<label>/<key>.jpg`).
Differences: encoded images are copied byte for byte, whereas the official converter decodes and encodes them again;
finished work is detected and not repeated. Images are written directly under their final names, because renaming takes
as long as writing. A journal records how many images are complete, a resumed conversion checks the files after that
point, and training refuses a folder whose journal is incomplete. A conversion resumes correctly after the program was
killed, but not necessarily after a power failure. Images that were deleted after they were converted are reported, not
written again.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from adaface.data.conversion_journal import JOURNAL, Journal, checksum, checksum_of_images, plan_conversion
from adaface.data.image_files import find_image_files, list_classes
from adaface.data.images import image_suffix, swap_red_blue
from adaface.records.shards import RecordShards
from adaface.system.command_line import counted, mark_incomplete
from adaface.system.progress_bar import progress_bar
from adaface.system.threads import in_order, usable_cores

logger = logging.getLogger(__name__)

_IMAGES_AT_ONCE = 250
_JOURNAL_EVERY = 2000  # images; a multiple of _IMAGES_AT_ONCE
_COPYING_THREADS = 2
_MOST_AHEAD = 64  # chunks of images
_UNSURE = _JOURNAL_EVERY + (_MOST_AHEAD + 1) * _IMAGES_AT_ONCE  # files that may be on disk, but not in the journal
_LISTED_KEYS = 10


def convert_images(
    recs: Sequence[Path], folder: Path, swap: bool = False, skip_bad: bool = False, overwrite: bool = False
) -> int:
    """Write the images of `.rec` files as `<folder>/<label>/<key>.jpg` (or `.png`), byte for byte.

    If there are several files, the names are `<shard>-<key>.jpg`, because the same key may occur in each of them.

    Args:
        recs: the `.rec` files of one set, each with its `.idx` in the same folder.
        folder: image folder to write; an interrupted conversion is resumed, a finished one is kept, with a
            message if images of it are gone.
        swap: swap red and blue, which decodes and encodes the images again.
        skip_bad: count records without a usable image instead of stopping at the first one.
        overwrite: delete the output of an earlier conversion in `folder` and start again.

    Returns:
        Number of records that were skipped, by an earlier call too. If images are missing that the header record
        announces, the running command ends with status 1.

    Raises:
        ValueError: a damaged `.rec`, a label that is not a class number, several files that each number their own
            identities, a record without an image, or a folder that was written by another program.
        OSError: for example no space left; the images written so far are kept, and a resumed conversion continues.
    """
    started = time.monotonic()
    stats = [rec.stat() for rec in recs]
    size_bytes, mtime_ns = sum(stat.st_size for stat in stats), sum(stat.st_mtime_ns for stat in stats)
    journal = None if overwrite else Journal.load(folder)
    now = (size_bytes, mtime_ns, swap)
    if journal and journal.complete and now == (journal.rec_bytes, journal.rec_mtime_ns, journal.swap_color_channel):
        if not _report_gone(journal, folder):
            logger.info(f"{folder}: already converted ({_counts(journal)}); nothing to do")
        _mark_missing(journal)
        return len(journal.skipped)
    records = RecordShards(recs)
    positions, labels = plan_conversion(records)
    if overwrite:  # only after the new .rec was checked
        _delete_images(folder)
    crc, identities = checksum(records, positions, labels), len(np.unique(labels))
    fresh = Journal(
        size_bytes,
        mtime_ns,
        swap,
        crc,
        len(positions),
        identities,
        images_crc=checksum_of_images(records, positions),
        missing=records.missing,
    )
    journal, unsure = _resume(journal, fresh, folder)
    already = journal.done
    folder.mkdir(exist_ok=True)
    journal.save(folder)
    _write_images(records, positions, labels, journal, folder, unsure, skip_bad)
    _report_images(journal, already, records, labels, folder, time.monotonic() - started)
    if already:
        _report_gone(journal, folder)
    _mark_missing(journal)
    return len(journal.skipped)


def _resume(journal: Journal | None, fresh: Journal, folder: Path) -> tuple[Journal, int]:
    """Return the journal of a new or resumed conversion.

    Returns:
        The journal, and the number of records after its `done` that may already be on disk.
    """
    if journal is None:
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ValueError(
                f"{folder} contains files that were not written by a conversion of this program; move it away to "
                f"convert train.rec, or give --make_validation_memfiles to convert only the validation sets"
            )
        return fresh, 0
    same = (journal.rec_bytes, journal.index_crc, journal.images) == (fresh.rec_bytes, fresh.index_crc, fresh.images)
    same = same and journal.images_crc in (-1, fresh.images_crc)
    if not same or journal.swap_color_channel != fresh.swap_color_channel:
        what = "with another --swap_color_channel" if same else "from another train.rec"
        raise ValueError(f"{folder} was converted {what}; use --overwrite to convert it again")
    journal.rec_mtime_ns, journal.images_crc = fresh.rec_mtime_ns, fresh.images_crc
    journal.missing = fresh.missing
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
    """Write the images from `journal.done` on, and update the journal, which stays valid if this is interrupted."""
    start, total = journal.done, len(positions)
    unknown = range(start, min(start + unsure, total))
    copy = partial(_copy_some, records, positions, labels, folder, unknown, journal.swap_color_channel, skip_bad)
    starts = range(start, total, _IMAGES_AT_ONCE)
    # encoding uses all cores; copying is limited by the file system and by Python's lock, so two threads are enough
    threads = usable_cores() if journal.swap_color_channel else min(usable_cores(), _COPYING_THREADS)
    done_parts = in_order(copy, starts, threads=threads, ahead=min(2 * threads, _MOST_AHEAD))
    with _saved(journal, folder), progress_bar(total=total, initial=start, unit=" images") as bar:
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
    """Write a chunk of images in file order, beginning at ``first``; return the names of unusable ones.

    Images at the positions `unknown` may have been written before.
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
                raise ValueError(f"{where} (label {label}): {error}; use --skip_bad_images to skip it") from None
            skipped.append(int(name) if name.isdecimal() else name)
            continue
        path = f"{folder}/{label}/{name}{suffix}"
        if place not in unknown or not _has_size(path, len(data)):
            _write(path, data)
    return skipped


@contextlib.contextmanager
def _saved(journal: Journal, folder: Path) -> Iterator[None]:
    """Save the journal at the end, even after an error or an interruption."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # on a full disk, the journal that was saved last is still valid
            journal.save(folder)
        raise
    journal.save(folder)


def _has_size(path: str, size_bytes: int) -> bool:
    """Return whether a file exists and has this size."""
    try:
        return os.stat(path).st_size == size_bytes  # noqa: PTH116
    except FileNotFoundError:
        return False


def _write(path: str, data: bytes) -> None:
    """Write a file; delete it if it cannot be written completely."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        written = os.write(handle, data)
        while written < len(data):  # on a nearly full disk, only a part is written before the error
            written += os.write(handle, memoryview(data)[written:])
    except OSError as error:
        os.unlink(path)  # noqa: PTH108
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(handle)


def _delete_images(folder: Path) -> None:
    """Delete an image folder that was written by this program."""
    if not folder.exists():
        return
    strangers = [entry.name for entry in folder.iterdir() if not (entry.name.startswith(".") or entry.name.isdigit())]
    if strangers or not (folder / JOURNAL).is_file():
        raise ValueError(f"--overwrite: {folder} was not written by this program; delete or move it yourself")
    # the journal is deleted last, so that an interrupted deletion can be repeated
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    shutil.rmtree(folder)


def _counts(journal: Journal) -> str:
    """Return the number of images and identities of a conversion as text."""
    announced = counted(journal.missing, "announced image", "announced images")
    missing = f", {announced} missing" if journal.missing else ""
    images = counted(journal.images_written, "image", "images")
    return f"{images}, {counted(journal.identities, 'identity', 'identities')}{missing}"


def _mark_missing(journal: Journal) -> None:
    """Let the command end with status 1 if images are missing that the header record announces."""
    if journal.missing:
        mark_incomplete()


def _report_gone(journal: Journal, folder: Path) -> bool:
    """Log if images of an earlier conversion are gone, and let the command end with status 1; return whether."""
    counts = [len(find_image_files(folder / name).names) for name in list_classes(folder)[0]]
    images, identities = sum(counts), sum(map(bool, counts))
    if not journal.lacks(images, identities):
        return False
    logger.warning(
        f"{folder}: only {images:,} of the {journal.images_written:,} converted images are there, of {identities:,} of "
        f"the {journal.identities:,} identities; --overwrite converts all again"
    )
    mark_incomplete()
    return True


def _report_images(
    journal: Journal, already: int, records: RecordShards, labels: np.ndarray, folder: Path, seconds: float
) -> None:
    """Log a summary, and notes on irregular labels."""
    logger.info(
        f"{folder}: {_counts(journal)}, {seconds:.1f} s, {len(journal.skipped)} skipped"
        + (f", {already:,} records were converted before" if already else "")
    )
    if journal.skipped:
        shown = ", ".join(map(str, journal.skipped[:_LISTED_KEYS]))
        more = f" and {len(journal.skipped) - _LISTED_KEYS} more" if len(journal.skipped) > _LISTED_KEYS else ""
        logger.info(f"skipped, no usable image: keys {shown}{more} (all are listed in {folder / JOURNAL})")
    expected, announced_by = records.files[0].num_identities(), "the .rec"
    if len(records.files) > 1:
        expected, announced_by = records.declared_identities() or (None, "")
    if expected is not None and expected != journal.identities:
        logger.info(f"note: {announced_by} announces {expected:,} identities, its images have {journal.identities:,}")
    if int(labels.max()) + 1 != journal.identities:
        logger.info(
            f"note: labels have gaps and go up to {labels.max():,}; the folders keep them, training renumbers the "
            f"classes in the order of the folder names"
        )
