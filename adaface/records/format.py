"""The RecordIO format: image headers, parts of split records, and the scan of a `.rec`.

A record consists of the magic number, cflag and length, the bytes, and padding to a multiple of 4. If the magic number
occurs in the bytes at a multiple of 4, the writer omits it and splits the record there; the reader inserts it again.
The bytes are an image header (flag, label, id, id2, then as many labels as the flag says) and an encoded image.

Sources: dmlc-core's RecordIO (`recordio.h`), mxnet's `recordio.pack`, the InsightFace layout of `train.rec`.
Differences: damage raises a ValueError that names the position and what was expected.
"""

import mmap
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

Count = TypeVar("Count", int, np.ndarray)

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
PART = struct.Struct("<II")  # magic number; cflag in the upper 3 bits, length in the lower 29
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
IDENTITY_BYTES = HEADER.size + 8  # header and identity records: two labels, no image
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)  # cflag


# --- the image header -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """The image header of a record.

    Attributes:
        label: the class; or several labels, float32 (L,) with L > 0, the class first.
        id: number of the record, 0 to 2^64 - 1.
        id2: its upper bits, 0 to 2^64 - 1; 0 in practice.
    """

    label: float | np.ndarray
    id: int = 0
    id2: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageHeader):
            return NotImplemented
        same = np.ndim(self.label) == np.ndim(other.label) and np.array_equal(self.label, other.label, equal_nan=True)
        return bool(same and (self.id, self.id2) == (other.id, other.id2))

    def __hash__(self) -> int:
        return hash((self.id, self.id2))


def pack(header: ImageHeader, payload: bytes) -> bytes:
    """Serialize image header and encoded image to the bytes of a record.

    Args:
        header: label or labels, and ids; labels are stored as float32.
        payload: encoded image; empty for header and identity records.

    Returns:
        The record's bytes, for `RecordWriter.write`.

    Raises:
        ValueError: an id outside 0 to 2^64 - 1, a label beyond float32, no labels or labels not in one dimension.
    """
    several = np.ndim(header.label) > 0
    labels = np.asarray(header.label, "<f4") if several else np.empty(0, "<f4")
    if several and (labels.ndim != 1 or len(labels) == 0):
        raise ValueError(f"labels of shape {labels.shape}: expected one number, or at least one in one dimension")
    try:
        fixed = HEADER.pack(len(labels), 0.0 if several else header.label, header.id, header.id2)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{header} cannot be stored as float32 label and 64-bit ids: {error}") from None
    return b"".join((fixed, labels.tobytes(), payload))


def unpack(record: bytes) -> tuple[ImageHeader, bytes]:
    """Parse the bytes of a record.

    Args:
        record: what `RecordFile.read` returns.

    Returns:
        The image header, several labels as a float32 array (L,), and the encoded image.

    Raises:
        ValueError: fewer bytes than the header needs.
    """
    start = payload_start(record)
    flag, label, identity, identity2 = HEADER.unpack_from(record)
    labels = np.frombuffer(record, "<f4", flag, HEADER.size).astype(np.float32) if flag else label
    return ImageHeader(labels, identity, identity2), record[start:]


def payload_start(record: bytes, skip: int = 0) -> int:
    """Find where the encoded image starts.

    Args:
        record: the bytes of a record, after ``skip`` other bytes.
        skip: number of bytes before it.

    Returns:
        Position in ``record``, bytes, ``skip`` included.

    Raises:
        ValueError: fewer bytes than the image header needs.
    """
    present = len(record) - skip
    if present < HEADER.size:
        raise ValueError(f"the record has {present} bytes, expected at least {HEADER.size} of an image header")
    flag = int.from_bytes(record[skip : skip + 4], "little")
    if present < HEADER.size + 4 * flag:
        raise ValueError(
            f"the record has {present} bytes, but its image header announces {flag} labels, which takes "
            f"{HEADER.size + 4 * flag}"
        )
    return skip + HEADER.size + 4 * flag


def announced(record: bytes) -> tuple[float, float] | None:
    """Read a header record.

    Args:
        record: the bytes of a record, normally that of key 0.

    Returns:
        Images + 1 and images + 1 + identities, which the format rounds to float32; None for any other record.

    Raises:
        ValueError: the numbers are not valid counts.

    Source:
        InsightFace's `MXFaceDataset`.
    """
    # a record with a payload is an image that happens to have two labels
    if len(record) != IDENTITY_BYTES or int.from_bytes(record[:4], "little") != 2:
        return None
    first, past = map(float, np.frombuffer(record, "<f4", 2, HEADER.size))
    if not (1 <= first <= past < 2**63 and first.is_integer() and past.is_integer()):
        raise ValueError(
            f"a header record with the numbers {first:g} and {past:g}; expected images + 1 and images + 1 + identities"
        )
    return first, past


# --- parts ------------------------------------------------------------------------------------------------------


def read_part(data: mmap.mmap | bytes, offset: int) -> tuple[int, int, int]:
    """Read the head of a part.

    Args:
        data: the `.rec`.
        offset: where the part starts, bytes.

    Returns:
        Its cflag, its length in bytes, and where the next part starts.

    Raises:
        ValueError: no magic number there, or fewer bytes than the part needs.
    """
    present = len(data) - offset if offset >= 0 else 0
    if present < PART.size:
        raise ValueError(f"truncated at offset {offset:,}: expected {PART.size} bytes, got {max(present, 0)}")
    magic, lrec = PART.unpack_from(data, offset)
    if magic != MAGIC:
        raise ValueError(f"damaged at offset {offset:,}: expected the magic number {MAGIC:#x}, got {magic:#010x}")
    length = lrec & LENGTH_MASK
    size = PART.size + padded(length)
    if present < size:
        raise ValueError(
            f"truncated: the record at offset {offset:,} expected {size:,} bytes, got {present:,} (or its "
            f"length is damaged)"
        )
    return lrec >> LENGTH_BITS, length, offset + size


def padded(length: Count) -> Count:
    """Round a length in bytes, or an int64 array of them, up to a multiple of 4."""
    return (length + 3) & ~3


def join(data: mmap.mmap | bytes, offset: int) -> tuple[bytes, int]:
    """Read a record of one or several parts.

    Args:
        data: the `.rec`.
        offset: where the record starts, bytes.

    Returns:
        The bytes of the record, and where the next one starts.

    Raises:
        ValueError: truncated or damaged; names the offset.
    """
    cflag, length, end = read_part(data, offset)
    parts = [data[offset + PART.size : offset + PART.size + length]]
    if cflag not in (WHOLE, FIRST):
        raise ValueError(f"damaged at offset {offset:,}: expected the start of a record, got a part with cflag {cflag}")
    while cflag in (FIRST, MIDDLE):
        start = end
        cflag, length, end = read_part(data, start)
        if cflag not in (MIDDLE, LAST):
            raise ValueError(
                f"damaged at offset {start:,}: expected the next part of the record at {offset:,}, got cflag {cflag}"
            )
        parts.append(data[start + PART.size : start + PART.size + length])
    return MAGIC_BYTES.join(parts), end


def frame(record: bytes) -> bytes:
    """Add heads and padding, and split where the magic number occurs at a multiple of 4 of the record's bytes.

    Args:
        record: the bytes of a record, below 2^29.

    Returns:
        The bytes in the `.rec`; their number is a multiple of 4.

    Source:
        dmlc-core, `RecordIOWriter::WriteRecord`.
    """
    if MAGIC_BYTES not in record:
        return b"".join((PART.pack(MAGIC, len(record)), record, bytes(-len(record) % 4)))
    cuts = [i for i in _occurrences(record) if i % 4 == 0]
    starts = [0, *(cut + 4 for cut in cuts)]
    framed = []
    for number, (start, end) in enumerate(zip(starts, [*cuts, len(record)], strict=True)):
        cflag = WHOLE if not cuts else FIRST if number == 0 else LAST if number == len(cuts) else MIDDLE
        framed += [PART.pack(MAGIC, cflag << LENGTH_BITS | (end - start)), record[start:end]]
    return b"".join((*framed, bytes(-len(record) % 4)))


def _occurrences(record: bytes) -> Iterator[int]:
    """Yield the positions of the magic number; its bytes differ, so occurrences cannot overlap."""
    position = record.find(MAGIC_BYTES)
    while position >= 0:
        yield position
        position = record.find(MAGIC_BYTES, position + 4)


# --- the scan ---------------------------------------------------------------------------------------------------


def map_file(rec_path: Path) -> mmap.mmap:
    """Map a `.rec` into memory, read-only.

    Args:
        rec_path: the `.rec`.

    Returns:
        Its bytes; unmapped when the last array that refers to them is freed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty.
    """
    try:
        with rec_path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{rec_path} is empty; expected records. Copy the file again, or pack it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise FileNotFoundError(f"no {rec_path}; expected a packed training set, such as train.rec") from None


def scan(rec_path: str | os.PathLike[str]) -> np.ndarray:
    """Find all records of a `.rec`, from the first to the last.

    This is a plain loop, because it reads only one page per record: searching all bytes for the magic number with numpy
    is not faster for records of 5 KB, reads the whole file, and fails if an image contains it.

    Args:
        rec_path: the `.rec`.

    Returns:
        Where each record starts, int64 (N,), bytes, ascending.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty, truncated or damaged file; names the offset.
    """
    rec_path = Path(rec_path)
    data = map_file(rec_path)
    try:
        return _walk(data)
    except ValueError as error:
        raise ValueError(f"{rec_path}: {error}. Copy the file again, or pack it again") from None


def _walk(data: mmap.mmap | bytes) -> np.ndarray:
    """Return the offsets of all records, int64 (N,)."""
    offsets = array("q")
    offset, last_head = 0, len(data) - PART.size
    read_head, append = PART.unpack_from, offsets.append
    while offset <= last_head:
        magic, lrec = read_head(data, offset)
        if magic != MAGIC:
            break
        append(offset)
        if lrec <= LENGTH_MASK:
            offset += (lrec + 11) & ~3  # 8 bytes of head, then the padded length
        else:
            offset = join(data, offset)[1]
    if offset != len(data):
        # raise the error of the first bad part: this one, or the last one if it extends beyond the end
        read_part(data, offsets[-1] if offsets and offset > len(data) else offset)
    return np.frombuffer(offsets, np.int64) if offsets else np.empty(0, np.int64)
