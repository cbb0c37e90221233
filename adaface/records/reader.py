"""RecordIO: packed training sets (`train.rec` with `train.idx`), read and written without mxnet.

Sources: dmlc-core's RecordIO (`recordio.h`), mxnet's `recordio.pack` and `MXIndexedRecordIO`, the InsightFace layout
of `train.rec` (record 0 announces the number of images; identity records without images follow them).
Differences: the index consists of numpy arrays (`records/index.py`); damage raises an error that names file, key and
offset (`records/format.py`).
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaface.records.format import (
    IDENTITY_BYTES,
    MAGIC,
    PART,
    ImageHeader,
    announced,
    join,
    map_file,
    pack,
    payload_start,
    scan,
    unpack,
)
from adaface.records.headers import read_heads
from adaface.records.index import PathLike, build_idx, default_idx_path, map_index, open_index
from adaface.records.writer import RecordWriter

__all__ = [
    "MAGIC", "ImageHeader", "RecordFile", "RecordWriter", "announced_counts", "build_idx", "pack", "scan", "unpack",
]  # fmt: skip

# the header record stores counts as float32; from here on they may have been rounded
_EXACT_FLOAT32 = 1 << 24
_USUAL_READ, _LARGE_READ = 1 << 15, 1 << 20  # bytes read if the size is unknown; largest plausible size


class AnnouncedCounts(NamedTuple):
    """What the header record of a `.rec` announces.

    Attributes:
        images: number of images.
        identities: number of identities, which need not all have images.
        slack: by how much either may be wrong, since the numbers are float32; 0 as long as these are exact.
    """

    images: int
    identities: int
    slack: int

    @classmethod
    def of(cls, totals: tuple[float, float]) -> "AnnouncedCounts":
        """Return the counts of the two numbers of a header record."""
        first, past = map(int, totals)
        slack = 0 if past < _EXACT_FLOAT32 else int(np.spacing(np.float32(past)))
        return cls(first - 1, past - first, slack)

    def fit(self, images: int, identities: int) -> bool:
        """Return whether these may be the numbers that the record announces."""
        return max(abs(self.images - images), abs(self.identities - identities)) <= self.slack


def announced_counts(rec_path: PathLike) -> AnnouncedCounts | None:
    """Read the header record of a `.rec`, and nothing else: no index is needed.

    Args:
        rec_path: the `.rec`.

    Returns:
        Its numbers; None if the file does not begin with a header record.

    Raises:
        FileNotFoundError: the `.rec` does not exist.
        ValueError: it is empty, or damaged at its beginning.
    """
    data = map_file(Path(rec_path))
    try:
        totals = announced(join(data, 0)[0])
    except ValueError as error:
        raise ValueError(f"{rec_path}: {error}") from None
    return None if totals is None else AnnouncedCounts.of(totals)


class RecordFile:
    """Random access to the records of a `.rec`.

    Processes share the index after a fork, and also after pickling if it is in a sidecar (`records/sidecar.py`), which
    the copy maps again. Reads do not use a file position, so processes and threads do not interfere with each other.
    The records are not memory-mapped, because a file that is truncated while it is mapped would kill the process
    without a message. If there are fewer images than the header record announces, a warning says so.

    Args:
        rec_path: the `.rec`.
        idx_path: its `.idx`; None: same folder and name as the `.rec`. If it is missing or belongs to another file, the
            index is rebuilt in memory by a scan; the keys are then the ids in the image headers if possible, otherwise
            consecutive numbers.
        part: it is one of the files of a set, whose images the caller compares with the header records.

    Attributes:
        keys: uint32 (N,), ascending; int64 where one is too large.
        offsets: int64 (N,), bytes.
        labels: float32 (N,), the first label; NaN for a record without a valid image header.
        stamp: stamp of the files if the index is in a sidecar that all processes map; otherwise None.

    Raises:
        FileNotFoundError: the `.rec` does not exist.
        ValueError: an empty, truncated or damaged `.rec`; a malformed `.idx`, or one with a duplicate key. In a large
            file with identity records, only a sample of the records is checked (`records/identity_labels.py`); damage
            to another record is reported when that record is read.
    """

    def __init__(self, rec_path: PathLike, idx_path: PathLike | None = None, *, part: bool = False) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = default_idx_path(self.rec_path, idx_path)
        (self.keys, self.offsets, self.labels), self._size, self.stamp = open_index(self.rec_path, self.idx_path)
        self._handle = -1
        self._open()
        if not part:
            warn_of_missing_images([self], str(rec_path))

    def _open(self) -> None:
        self._handle = os.open(self.rec_path, os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(self._handle).st_size != self._size:
            raise ValueError(
                f"{self.rec_path} has {os.fstat(self._handle).st_size:,} bytes, but had {self._size:,} when its index "
                f"was read; start again, and do not change the file while it is in use"
            )

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            os.close(self._handle)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_handle": -1}
        if self.stamp is not None:
            del state["keys"], state["offsets"], state["labels"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
        if self.stamp is not None:
            index = map_index(self.stamp, checked=True)
            if index is None:  # the sidecar was deleted
                index, _, self.stamp = open_index(self.rec_path, self.idx_path)
            self.keys, self.offsets, self.labels = index

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, position: int) -> bytes:
        """Return a whole record, including the image header, with split parts joined.

        Args:
            position: place in the index, 0 to N - 1.

        Raises:
            ValueError: the file is damaged there; names key and offset.
        """
        return self._raw(position)[PART.size :]

    def read_image(self, position: int) -> bytes:
        """Return the encoded image of a record; empty for header and identity records.

        Args:
            position: place in the index, 0 to N - 1.

        Raises:
            ValueError: the file is damaged there, or the record is too short for its image header; names key and
                offset.
        """
        raw = self._raw(position)
        try:
            return raw[payload_start(raw, PART.size) :]
        except ValueError as error:
            raise ValueError(f"{self._where(position)}: {error}") from None

    def header(self, position: int) -> ImageHeader:
        """Return the image header of a record.

        Args:
            position: place in the index, 0 to N - 1.

        Raises:
            ValueError: the file is damaged there, or the record is too short for its image header; names key and
                offset.
        """
        record = self.read(position)
        try:
            return unpack(record)[0]
        except ValueError as error:
            raise ValueError(f"{self._where(position)}: {error}") from None

    def image_range(self) -> tuple[int, int]:
        """Return the range of positions of the records with an image: the first, and the end.

        With a header record, these are the keys from 1 to the number that it announces; otherwise all records.
        """
        bound = self._first_identity_key()
        return (0, len(self.keys)) if bound is None else (self._position(1), self._position(bound))

    def announced_counts(self) -> AnnouncedCounts | None:
        """Return what the header record, that of key 0, announces; None without one."""
        totals = self._header_record()
        return None if totals is None else AnnouncedCounts.of(totals)

    def num_identities(self) -> int | None:
        """Return the number of identities that the header record announces; None without one.

        Beyond 2^24, the float32 numbers of the header record are not exact, so the identity records are counted.
        """
        bound, totals = self._first_identity_key(), self._header_record()
        if bound is None or totals is None:
            return None
        if totals[1] < _EXACT_FLOAT32:
            return int(totals[1]) - int(totals[0])
        return int(np.count_nonzero(self._without_image(bound, None))) or None

    def _header_record(self) -> tuple[float, float] | None:
        """Return the two numbers of the header record; None if record 0 is not a header record."""
        if not len(self.keys) or self.keys[0] != 0:
            return None
        try:
            return announced(self.read(0))
        except ValueError as error:
            raise ValueError(f"{self._where(0)}: {error}") from None

    def _first_identity_key(self) -> int | None:
        """Return the key after the last image; None without a header record."""
        totals = self._header_record()
        if totals is None:
            return None
        bound = int(totals[0])
        if bound < _EXACT_FLOAT32:
            self._check_bound(bound)
            return bound
        # float32 has rounded the number (42,474,558 is stored as 42,474,560): search the records around it
        slack = int(np.spacing(np.float32(bound)))
        identities = np.flatnonzero(self._without_image(bound - slack, bound + slack + 1))
        low = self._position(bound - slack)
        return int(self.keys[low + identities[0]]) if len(identities) else bound + slack + 1

    def _check_bound(self, bound: int) -> None:
        """Raise ValueError unless the last announced image is an image, and the next record is none."""
        is_identity = self._without_image(bound - 1, bound + 1)
        keys = self.keys[self._position(bound - 1) : self._position(bound + 1)]
        for key, identity in zip(keys.tolist(), is_identity.tolist(), strict=True):
            if identity != (key == bound) and key > 0:
                what = "no image" if identity else "an image"
                raise ValueError(
                    f"{self._where(0)}: the header record announces {bound - 1:,} images, but the record of key {key} "
                    f"holds {what}: the header record is damaged. Copy the file again, or pack it again"
                )

    def _without_image(self, first: int, past: int | None) -> np.ndarray:
        """Return whether the records of some keys are as long as identity records, bool (M,)."""
        places = slice(self._position(first), None if past is None else self._position(past))
        return read_heads(map_file(self.rec_path), self.offsets[places]).lengths == IDENTITY_BYTES

    def _position(self, key: int) -> int:
        """Return the position of a key, or of the next one."""
        kind = self.keys.dtype
        return len(self.keys) if key > np.iinfo(kind).max else int(np.searchsorted(self.keys, kind.type(key)))

    def _where(self, position: int) -> str:
        return f"{self.rec_path}, key {self.keys[position]}, offset {self.offsets[position]:,}"

    def _raw(self, position: int) -> bytes:
        """Return 8 bytes of any content, then the record."""
        offset = int(self.offsets[position])
        following = int(self.offsets[position + 1]) if 0 <= position < len(self.offsets) - 1 else self._size
        size = following - offset
        # not the record's size if records are in another order than their keys, or are left out
        raw = os.pread(self._handle, size if 0 < size <= _LARGE_READ else _USUAL_READ, offset) if offset >= 0 else b""
        if len(raw) >= PART.size:
            magic, length = PART.unpack_from(raw)
            # not so for a split or damaged record
            if magic == MAGIC and PART.size + length <= len(raw):
                return raw[: PART.size + length]
        try:
            record, end = join(map_file(self.rec_path), offset)
        except ValueError as error:
            raise ValueError(f"{self._where(position)}: {error}") from None
        if offset < following < end:
            raise ValueError(
                f"{self._where(position)}: damaged: the record ends at {end:,}, expected at most {following:,}, where "
                f"the next one starts. Copy the file again, or pack it again"
            )
        return bytes(PART.size) + record


def warn_of_missing_images(files: Sequence[RecordFile], location: str) -> int:
    """Warn if files have fewer images than their header records announce.

    This is certain only if every file of a set has a header record, and none of these is that of the whole set.

    Args:
        files: the files of one set.
        location: the files, for the warning.

    Returns:
        Number of missing images; 0 if it is uncertain, or if a header record is damaged, which `image_range` reports.
    """
    try:
        announced = [counts for file in files if (counts := file.announced_counts()) is not None]
        images = sum(past - first for first, past in (file.image_range() for file in files))
    except ValueError:
        return 0
    if len(announced) < len(files) or any(abs(counts.images - images) <= counts.slack for counts in announced):
        return 0
    total = sum(counts.images for counts in announced)
    if total - images <= sum(counts.slack for counts in announced):
        return 0
    # not the line of the caller: wherever the files are opened again, Python then shows the same warning only once
    warnings.warn(
        f"{location}: the header record announces {total:,} images, there are {images:,}. The others were removed, or "
        "the file was cut off; if nobody removed them, copy it again",
        stacklevel=1,
    )
    return total - images
