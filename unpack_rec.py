"""From InsightFace's `.rec` to image files `<label>/<key>.jpg`.

Source: the layouts of InsightFace and of the official AdaFace converter (`imgs/<label>/<key>.jpg`).
Differences: encoded images are copied byte for byte, where the official converter decodes and encodes them
again; work that is done is known, and not done twice. Images are written under their own names, since renaming
takes as long as writing: the journal says up to where they are whole, a conversion that goes on looks at the
others, and training refuses a folder whose journal is not at its end. What is promised about stopping holds for
a killed program, not for a power cut.
"""

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import recordio
from pack import image_suffix, swap_red_blue
from threads import in_order, usable_cores

_JOURNAL = ".convert.json"
_IMAGES_AT_ONCE = 250
_JOURNAL_EVERY = 2000  # images; a multiple of those at once
_COPYING_THREADS = 2
_MOST_AHEAD = 64  # parts of images
_UNSURE = _JOURNAL_EVERY + (_MOST_AHEAD + 1) * _IMAGES_AT_ONCE  # that a killed conversion may have written unnoted
_LISTED_KEYS = 10


@dataclass
class _Journal:
    """How far the conversion of a `.rec` is; saved in the image folder.

    Attributes:
        rec_bytes: size of the .rec.
        rec_mtime_ns: its time of modification.
        index_crc: checksum over keys, offsets and labels (knows the .rec again after a copy changed its time).
        swap_color_channel: whether red and blue were swapped.
        images: image records in the .rec.
        identities: different labels.
        done: records done, in file order.
        skipped: keys of records without a usable image.
    """

    rec_bytes: int
    rec_mtime_ns: int
    swap_color_channel: bool
    index_crc: int = 0
    images: int = -1
    identities: int = 0
    done: int = 0
    skipped: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done == self.images

    @classmethod
    def load(cls, folder: Path) -> "_Journal | None":
        """Read the journal of an image folder, or None where there is none."""
        try:
            return cls(**json.loads((folder / _JOURNAL).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / _JOURNAL} is damaged ({error}); use --overwrite to convert again") from None

    def save(self, folder: Path) -> None:
        """Write the journal, all or nothing."""
        part = folder / (_JOURNAL + ".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(folder / _JOURNAL)


def convert_images(
    rec: Path, folder: Path, swap: bool = False, skip_bad: bool = False, overwrite: bool = False
) -> None:
    """Write the images of a `.rec` as `<folder>/<label>/<key>.jpg` (or `.png`), byte for byte.

    Args:
        rec: the `.rec`; its `.idx` lies beside it.
        folder: image folder to write; a conversion that was stopped goes on, a finished one is left alone.
        swap: swap red and blue (decodes and encodes again).
        skip_bad: count records without a usable image instead of stopping at the first.
        overwrite: delete what an earlier conversion left in `folder` and start again.

    Raises:
        ValueError: a damaged `.rec`, a label that is not a class number, a record without an image, or a folder
            that something else has written.
        OSError: such as no space left; what is written so far is kept, and known.
    """
    started = time.monotonic()
    stat = rec.stat()
    journal = None if overwrite else _Journal.load(folder)
    now = (stat.st_size, stat.st_mtime_ns, swap)
    if journal and journal.complete and now == (journal.rec_bytes, journal.rec_mtime_ns, journal.swap_color_channel):
        print(f"{folder}: already converted ({_counts(journal)}); nothing to do")
        return
    records = recordio.RecordFile(rec)
    positions, labels = _plan(records, rec)
    if overwrite:  # not before the new .rec is known to be good
        _delete_images(folder)
    crc = 0
    for part in (records.keys[positions].astype(np.int64), records.offsets[positions], labels):
        crc = zlib.crc32(np.ascontiguousarray(part).tobytes(), crc)
    fresh = _Journal(stat.st_size, stat.st_mtime_ns, swap, crc, len(positions), len(np.unique(labels)))
    journal, unsure = _resume(journal, fresh, folder)
    already = journal.done
    folder.mkdir(exist_ok=True)
    journal.save(folder)
    _write_images(records, positions, labels, journal, folder, unsure, skip_bad)
    _report_images(journal, already, records.num_identities(), labels, folder, time.monotonic() - started)


def _plan(records: recordio.RecordFile, rec: Path) -> tuple[np.ndarray, np.ndarray]:
    """Choose the image records in file order; check their labels.

    Returns:
        Positions in the index, int64 (N,), and labels, int64 (N,).
    """
    positions = records.image_positions()
    if not len(positions):
        raise ValueError(f"{rec} holds no images")
    # File order, not key order: a shuffled .rec is then still read front to back.
    positions = positions[np.argsort(records.offsets[positions], kind="stable")]
    stored = records.labels[positions]
    bad = np.flatnonzero(~((stored >= 0) & (stored == np.floor(stored)) & np.isfinite(stored)))
    if len(bad):
        key = records.keys[positions[bad[0]]]
        raise ValueError(
            f"{rec}, key {key}: label {stored[bad[0]]}, expected a class number 0, 1, 2, ... ({len(bad)} such records)"
        )
    return positions, stored.astype(np.int64)


def _resume(journal: _Journal | None, fresh: _Journal, folder: Path) -> tuple[_Journal, int]:
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
    records: recordio.RecordFile,
    positions: np.ndarray,
    labels: np.ndarray,
    journal: _Journal,
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
    records: recordio.RecordFile,
    positions: np.ndarray,
    labels: np.ndarray,
    folder: Path,
    unknown: range,
    swap: bool,
    skip_bad: bool,
    first: int,
) -> list[int]:
    """Write some images, from one place in the file order on; return the keys of those that cannot be used.

    Places in `unknown` may have been written before.
    """
    chosen = slice(first, first + _IMAGES_AT_ONCE)
    keys, names = records.keys[positions[chosen]].tolist(), labels[chosen].tolist()
    for label in set(names):
        os.makedirs(f"{folder}/{label}", exist_ok=True)  # noqa: PTH103 - no Path objects here
    skipped = []
    for place, (position, key, label) in enumerate(zip(positions[chosen].tolist(), keys, names, strict=True), first):
        try:
            data = records.read_image(position)
            suffix = image_suffix(data, "the record")
            if swap:
                data = swap_red_blue(data, suffix, "the record")
        except ValueError as error:
            if not skip_bad:
                raise ValueError(f"key {key} (label {label}): {error}; --skip_bad_images goes on") from None
            skipped.append(key)
            continue
        path = f"{folder}/{label}/{key}{suffix}"
        if place not in unknown or not _has_size(path, len(data)):
            _write(path, data)
    return skipped


@contextlib.contextmanager
def _saved(journal: _Journal, folder: Path) -> Iterator[None]:
    """Save the journal at the end, also when something stops the work."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk: the last journal that was saved is still good
            journal.save(folder)
        raise
    journal.save(folder)


def _has_size(path: str, size_bytes: int) -> bool:
    """Whether a file is there with this size."""
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
    if strangers or not (folder / _JOURNAL).is_file():
        raise ValueError(f"--overwrite: {folder} was not written by this program; delete or move it yourself")
    # The journal goes last: a deletion that is stopped can be taken up again.
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    shutil.rmtree(folder)


def _counts(journal: _Journal) -> str:
    """Say how much a conversion has written."""
    return f"{journal.images - len(journal.skipped):,} images, {journal.identities:,} identities"


def _report_images(
    journal: _Journal, already: int, expected: int | None, labels: np.ndarray, folder: Path, seconds: float
) -> None:
    """Print the summary, and what is odd about the data."""
    print(
        f"{folder}: {_counts(journal)}, {seconds:.1f} s, {len(journal.skipped)} skipped"
        + (f", {already:,} records were done before" if already else "")
    )
    if journal.skipped:
        shown = ", ".join(map(str, journal.skipped[:_LISTED_KEYS]))
        more = f" and {len(journal.skipped) - _LISTED_KEYS} more" if len(journal.skipped) > _LISTED_KEYS else ""
        print(f"skipped, no usable image: keys {shown}{more} (all of them are listed in {folder / _JOURNAL})")
    if expected is not None and expected != journal.identities:
        print(f"note: the .rec announces {expected:,} identities, its images have {journal.identities:,}")
    if int(labels.max()) + 1 != journal.identities:
        print(
            f"note: labels go up to {labels.max():,} with gaps; folders keep them, training renumbers the classes "
            f"in the order of the folder names"
        )
