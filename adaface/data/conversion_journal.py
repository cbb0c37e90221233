"""Progress of a conversion of `.rec` files to an image folder, stored in a small file in that folder.

Training refuses a folder whose conversion is not complete, or that was made from other files than those beside it. A
note says if it no longer holds as many images and identities as were converted. Of a folder that another program has
converted, only these numbers can be compared.
"""

import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from adaface.records.reader import announced_counts
from adaface.records.shards import IMAGE_FOLDER, RecordShards, find_records
from adaface.system.command_line import invocation
from adaface.system.files import write_atomically
from adaface.system.json_file import parse_object

JOURNAL = ".convert.json"
_COMPARED_IMAGES = 256
_MOST_CLASSES = 2**31  # labels must be below: a larger one is a sign of damage, and training does not support it


@dataclass
class Journal:
    """Progress of a conversion.

    Attributes:
        rec_bytes: size of the `.rec`; the sum if there are several.
        rec_mtime_ns: its modification time; the sum if there are several.
        swap_color_channel: whether red and blue were swapped.
        index_crc: checksum over keys, offsets and labels; identifies the `.rec` after a copy changed its time.
        images_crc: checksum over up to 256 encoded images, spread over the `.rec`; -1 in an older journal.
        missing: images that the header record announces, but the `.rec` does not contain; 0 in an older journal.
        images: image records in the `.rec`.
        identities: number of distinct labels.
        done: records processed, in file order.
        skipped: names of records without a usable image: the key, or "<shard>-<key>" if there are several files.
    """

    rec_bytes: int
    rec_mtime_ns: int
    swap_color_channel: bool
    index_crc: int = 0
    images: int = -1
    identities: int = 0
    done: int = 0
    skipped: list[int | str] = field(default_factory=list)
    images_crc: int = -1
    missing: int = 0

    @property
    def complete(self) -> bool:
        """Whether all records are processed."""
        return self.done == self.images

    @property
    def images_written(self) -> int:
        """Number of images in the folder after a complete conversion."""
        return self.images - len(self.skipped)

    def lacks(self, images: int, identities: int) -> bool:
        """Return whether a folder holds less than was converted.

        Args:
            images: number of its images.
            identities: number of its identities that have images.
        """
        # perhaps all images of an identity were skipped
        return images < self.images_written or identities < self.identities - len(self.skipped)

    def compare(self, folder: Path, images: int, identities: int) -> str:
        """Compare an image folder with its complete conversion.

        Args:
            folder: the image folder.
            images: number of its images.
            identities: number of its identities that have images.

        Returns:
            A note for the user; empty if the numbers are those of the conversion.
        """
        if images == self.images_written and identities <= self.identities and not self.lacks(images, identities):
            return ""
        return (  # not refused: people add and delete images by hand
            f"{folder} contains {images:,} images of {identities:,} identities, its conversion wrote "
            f"{self.images_written:,} of {self.identities:,}: it was changed since, and is used as it is"
        )

    @classmethod
    def load(cls, folder: Path) -> "Journal | None":
        """Read the journal of an image folder, or None if there is none.

        Args:
            folder: the image folder.

        Raises:
            ValueError: the journal is damaged.
        """
        try:
            journal = cls(**parse_object((folder / JOURNAL).read_bytes()))
            numbers = [
                value for name, value in asdict(journal).items() if name not in ("swap_color_channel", "skipped")
            ]
            if not all(type(number) is int for number in numbers) or not isinstance(journal.skipped, list):
                raise ValueError("its values are not whole numbers")
            return journal
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / JOURNAL} is damaged ({error}); use --overwrite to convert again") from None

    def save(self, folder: Path) -> None:
        """Write the journal atomically.

        Args:
            folder: the image folder.
        """
        # Not synced to disk, like the images: there is no guarantee after a power failure.
        write_atomically(folder / JOURNAL, json.dumps(asdict(self)), to_disk=False)


def plan_conversion(records: RecordShards) -> tuple[np.ndarray, np.ndarray]:
    """List the image records in file order, and check their labels.

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
        # file order, not key order, so that a shuffled .rec is read sequentially
        order = np.argsort(file.offsets[first:past], kind="stable")
        positions.append(order + (start + first))
        labels.append(in_order_of_keys[-1][order])
    if not any(map(len, positions)):
        raise ValueError(f"{records.location} contains no images")
    records.refuse_separate_sets(in_order_of_keys)
    return np.concatenate(positions), np.concatenate(labels)


def checksum(records: RecordShards, positions: np.ndarray, labels: np.ndarray) -> int:
    """Return a checksum over the keys, offsets and labels of the images of all files."""
    crc = 0
    for column in ("keys", "offsets"):
        done = 0
        for file, start, (first, past) in records.shards():
            chosen = positions[done : done + past - first] - start
            crc = zlib.crc32(getattr(file, column)[chosen].astype(np.int64).data, crc)
            done += past - first
    return zlib.crc32(labels.data, crc)


def checksum_of_images(records: RecordShards, positions: np.ndarray) -> int:
    """Return a checksum over up to 256 images, spread over all files; damaged ones count as empty."""
    crc = 0
    for place in np.unique(np.linspace(0, len(positions) - 1, _COMPARED_IMAGES).astype(int)).tolist():
        try:
            image = records.read_image(int(positions[place]))
        except ValueError:
            image = b""
        crc = zlib.crc32(image, crc)
    return crc


def check_conversion(folder: Path) -> None:
    """Check that an image folder, if it was converted, is complete and made from the `.rec` beside it.

    Args:
        folder: image folder.

    Raises:
        ValueError: it is not complete, the `.rec` has changed since, or the journal is damaged.
    """
    journal = Journal.load(folder)
    if journal is None:
        return
    again = _again(folder)
    if not journal.complete:
        raise ValueError(
            f"the conversion to {folder} is not complete ({journal.done} of {journal.images} images). Continue it "
            f"with: {again}"
        )
    try:
        recs = find_records(folder.parent)
    except ValueError:  # some shards are gone: there is nothing to compare with
        return
    if recs and not _is_made_from(journal, recs):
        raise ValueError(
            f"{folder} was converted from another {recs[0].name} than the one in {folder.parent} now. Convert again "
            f"with: {again} --overwrite; or move one of them away; training reads the .rec itself with --use_mxrecord"
        )


def _again(folder: Path) -> str:
    return f"{invocation('convert')} --rec_path {folder.parent} --make_image_files"


def _is_made_from(journal: Journal, recs: list[Path]) -> bool:
    stats = [rec.stat() for rec in recs]
    if sum(stat.st_size for stat in stats) != journal.rec_bytes:
        return False
    if sum(stat.st_mtime_ns for stat in stats) == journal.rec_mtime_ns:
        return True
    records = RecordShards(recs)  # a copy has another time; its keys, offsets, labels and images are the same
    positions, labels = plan_conversion(records)
    if checksum(records, positions, labels) != journal.index_crc:
        return False
    return journal.images_crc in (-1, checksum_of_images(records, positions))


def compare_unrecorded(folder: Path, images: int, identities: int) -> str:
    """Compare an image folder that another program has converted with the `.rec` beside it, as far as that is cheap.

    Args:
        folder: image folder.
        images: number of its images.
        identities: number of its identities that have images.

    Returns:
        A note for the user; empty if the conversion has a journal, or there is no `.rec` of which it is the folder.
    """
    if folder.name != IMAGE_FOLDER or (folder / JOURNAL).exists():
        return ""
    try:
        recs = find_records(folder.parent)
    except ValueError:  # some shards are gone: there is nothing to compare with
        return ""
    if not recs:
        return ""
    name, foreign = recs[0].name, f"{folder} was written by another program"
    try:
        expected = _counts_of(recs, images, identities)
    except (OSError, ValueError) as error:  # the images can be used without it
        return f"{foreign}, and could not be compared with the {name} beside it: {error}"
    if expected is None:
        return f"{foreign}, and was not compared with the {name} beside it, which has no .idx"
    counts = (
        f"{folder} contains {images:,} images of {identities:,} identities, the {name} beside it {expected[0]:,} "
        f"of {expected[1]:,}"
    )
    if expected != (images, identities):  # not refused: people add and delete images by hand
        return (
            f"{counts}: the folder, which another program wrote, was made from another file, or was changed since. It "
            "is used as it is; --use_mxrecord reads the .rec"
        )
    return f"{foreign}; only its numbers of images and identities were compared with the {name} beside it"


def _counts_of(recs: list[Path], images: int, identities: int) -> tuple[int, int] | None:
    """Return the numbers of images and identities of `.rec` files; None if only a scan could tell.

    Args:
        recs: the files of one set.
        images: expected number; the index is not read if a header record announces it.
        identities: the same.
    """
    stated = announced_counts(recs[0]) if len(recs) == 1 else None
    if stated is not None and stated.fit(images, identities):
        return images, identities
    if all(rec.with_suffix(".idx").is_file() for rec in recs):
        records = RecordShards(recs)
        labels = np.concatenate([file.labels[first:past] for file, _, (first, past) in records.shards()])
        return len(labels), len(np.unique(labels))
    if stated is not None and abs(stated.images - images) > stated.slack:
        return stated.images, stated.identities
    return None  # the announced identities need not all have images
