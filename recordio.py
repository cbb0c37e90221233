"""RecordIO: packed training sets (`train.rec` with `train.idx`), read and written without mxnet.

A record is magic number, cflag and length, bytes, padding to a multiple of 4. Where the magic number occurs in the
bytes at a multiple of 4, the writer leaves it out and splits the record there; the reader puts it back. The bytes are
an image header (flag, label, id, id2, then as many labels as the flag says) and an encoded image. The `.idx` gives
each record a key and an offset.

Sources: dmlc-core's RecordIO (`recordio.h`), mxnet's `recordio.pack`, the InsightFace layout of `train.rec`.
Differences: the index is four numpy arrays of 24 bytes a record in all, gathered from the memory-mapped file instead
of one read per record; an `.idx` that is missing or belongs to another file is rebuilt; damage is an error that says
where.
"""

import contextlib
import mmap
import os
import struct
import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

MAGIC = 0xCED7230A
_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
_PART = struct.Struct("<II")  # magic; cflag in the upper 3 bits, length in the lower 29
_HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
_LENGTH_BITS = 29
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
# Words of 4 bytes from a record's start: magic, length, flag, label, id (2), id2 (2), further labels.
_FLAG_WORD, _LABEL_WORD, _ID_WORD, _LABELS_WORD = 2, 3, 4, 8
_IDENTITY_BYTES = _HEADER.size + 8  # header and identity records: two labels, no image
_RECORDS_AT_ONCE = 1 << 20
_IDX_BYTES_AT_ONCE = 1 << 26
# The header record counts in float32, which holds every whole number only up to here.
_EXACT_FLOAT32 = 1 << 24

PathLike = str | os.PathLike[str]


# --- the image header -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """What a record says about its image.

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
    """Join image header and encoded image to the bytes of a record.

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
        fixed = _HEADER.pack(len(labels), 0.0 if several else header.label, header.id, header.id2)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{header} cannot be stored as float32 label and 64-bit ids: {error}") from None
    return b"".join((fixed, labels.tobytes(), payload))


def unpack(record: bytes) -> tuple[ImageHeader, bytes]:
    """Take the bytes of a record apart.

    Args:
        record: what `RecordFile.read` returns.

    Returns:
        The image header, several labels as a float32 array (L,), and the encoded image.

    Raises:
        ValueError: fewer bytes than the header needs.
    """
    start = _payload_start(record)
    flag, label, identity, identity2 = _HEADER.unpack_from(record)
    labels = np.frombuffer(record, "<f4", flag, _HEADER.size).astype(np.float32) if flag else label
    return ImageHeader(labels, identity, identity2), record[start:]


def _payload_start(record: bytes, skip: int = 0) -> int:
    """Return where the encoded image starts in the record that begins after `skip` bytes."""
    present = len(record) - skip
    if present < _HEADER.size:
        raise ValueError(f"the record has {present} bytes, expected at least {_HEADER.size} of an image header")
    flag = int.from_bytes(record[skip : skip + 4], "little")
    if present < _HEADER.size + 4 * flag:
        raise ValueError(
            f"the record has {present} bytes, but its image header announces {flag} labels, which takes "
            f"{_HEADER.size + 4 * flag}"
        )
    return skip + _HEADER.size + 4 * flag


# --- reading ----------------------------------------------------------------------------------------------------


class RecordFile:
    """Random access to the records of a `.rec`.

    Copies of this object share the index after a fork, and reopen the file after pickling. Reads keep no position in
    the file, so processes and threads do not disturb each other.

    Args:
        rec_path: the `.rec`.
        idx_path: its `.idx`; None: beside it, same name. Missing, or of another file: rebuilt in memory by a scan;
            keys are then the ids in the image headers where these can be keys, else the records' running numbers.

    Attributes:
        keys: int64 (N,), ascending.
        offsets: int64 (N,), bytes.
        lengths: uint32 (N,), bytes of the record, image header included.
        labels: float32 (N,), the first label; NaN for a record without a valid image header.

    Raises:
        FileNotFoundError: no such `.rec`.
        ValueError: an empty, truncated or damaged `.rec`; an `.idx` that is not one, or with a key twice.
    """

    def __init__(self, rec_path: PathLike, idx_path: PathLike | None = None) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = _idx_path(self.rec_path, idx_path)
        with _mapped(self.rec_path) as (data, words):
            index = _listed_index(data, words, self.rec_path, self.idx_path)
        self.keys, self.offsets, self.lengths, self.labels = index
        self._handle = -1
        self._size = len(data)
        self._open()

    def _open(self) -> None:
        self._handle = os.open(self.rec_path, os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(self._handle).st_size != self._size:
            raise ValueError(
                f"{self.rec_path} has {os.fstat(self._handle).st_size:,} bytes, but had {self._size:,} when its index "
                f"was read; start again, and do not change the file meanwhile"
            )

    def close(self) -> None:
        """Close the file; the index stays."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": -1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, position: int) -> bytes:
        """Return a whole record, image header included, split parts joined.

        Args:
            position: place in the index, 0 to N - 1.

        Raises:
            ValueError: the file is damaged there; names key and offset.
        """
        return self._raw(position)[_PART.size :]

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
            return raw[_payload_start(raw, _PART.size) :]
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

    def image_positions(self) -> np.ndarray:
        """Return the positions of the records that hold images, int64 (M,), ascending by key.

        With a header record these are the keys from 1 to the one it announces; otherwise all of them.
        """
        bound = self._first_identity_key()
        if bound is None:
            return np.arange(len(self.keys))
        return np.arange(*np.searchsorted(self.keys, (1, bound)))

    def num_identities(self) -> int | None:
        """Return the number of identities that the header record announces; None without one.

        Beyond 2^24 the header record's float32 numbers are not exact; the identity records are counted instead.
        """
        bound, announced = self._first_identity_key(), self._header_record()
        if bound is None or announced is None:
            return None
        if announced[1] <= _EXACT_FLOAT32:
            return int(announced[1]) - int(announced[0])
        return int(np.count_nonzero(self.lengths[np.searchsorted(self.keys, bound) :] == _IDENTITY_BYTES)) or None

    def _header_record(self) -> tuple[float, float] | None:
        """Return the two numbers of the header record; None where record 0 is not one."""
        if not len(self.keys) or self.keys[0] != 0:
            return None
        try:
            return _announced(self.read(0))
        except ValueError as error:
            raise ValueError(f"{self._where(0)}: {error}") from None

    def _first_identity_key(self) -> int | None:
        """Return the key after the last image, None without a header record."""
        announced = self._header_record()
        if announced is None:
            return None
        bound = int(announced[0])
        if bound <= _EXACT_FLOAT32:
            return bound
        # Float32 has rounded the number (42,474,558 is stored as 42,474,560): look at the records around it.
        slack = int(np.spacing(np.float32(bound)))
        low, high = np.searchsorted(self.keys, (bound - slack, bound + slack + 1))
        identities = np.flatnonzero(self.lengths[low:high] == _IDENTITY_BYTES)
        return int(self.keys[low + identities[0]]) if len(identities) else bound + slack + 1

    def _where(self, position: int) -> str:
        return f"{self.rec_path}, key {self.keys[position]}, offset {self.offsets[position]:,}"

    def _raw(self, position: int) -> bytes:
        """Return 8 bytes of any content, then the record."""
        offset, length = int(self.offsets[position]), int(self.lengths[position])
        raw = os.pread(self._handle, _PART.size + length, offset)
        # A split record, or damage, does not start with the length of the whole.
        if len(raw) == _PART.size + length and _PART.unpack_from(raw) == (MAGIC, length):
            return raw
        try:
            with _mapped(self.rec_path) as (data, _):
                return bytes(_PART.size) + _join(data, offset)[0]
        except ValueError as error:
            raise ValueError(f"{self._where(position)}: {error}") from None


def _announced(record: bytes) -> tuple[float, float] | None:
    """Return the numbers of a header record, images + 1 and images + 1 + identities; None where it is not one."""
    # With a payload it is an image that happens to have two labels.
    if len(record) != _IDENTITY_BYTES or int.from_bytes(record[:4], "little") != 2:
        return None
    first, past = map(float, np.frombuffer(record, "<f4", 2, _HEADER.size))
    if not (1 <= first <= past < 2**63 and first.is_integer() and past.is_integer()):
        raise ValueError(
            f"a header record with the numbers {first:g} and {past:g}; expected images + 1 and images + 1 + identities"
        )
    return first, past


def _idx_path(rec_path: Path, idx_path: PathLike | None) -> Path:
    return rec_path.with_suffix(".idx") if idx_path is None else Path(idx_path)


@contextlib.contextmanager
def _mapped(rec_path: Path) -> Iterator[tuple[mmap.mmap, np.ndarray]]:
    """Map a `.rec`; gives its bytes, and its whole words as uint32."""
    try:
        with rec_path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{rec_path} is empty; expected records. Copy it again")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise FileNotFoundError(f"no {rec_path}; expected a packed training set, such as train.rec") from None
    # Not closed here: arrays made of it may still look at it, it goes with the last of them.
    yield data, np.frombuffer(data, "<u4", len(data) // 4)


# --- records ----------------------------------------------------------------------------------------------------


def _part(data: mmap.mmap | bytes, offset: int) -> tuple[int, int, int]:
    """Read the head of a part.

    Returns:
        Its cflag, its length in bytes, and where the next part starts.

    Raises:
        ValueError: no magic number there, or fewer bytes than the part needs.
    """
    present = len(data) - offset
    if present < _PART.size:
        raise ValueError(f"truncated at offset {offset:,}: expected {_PART.size} bytes, present are {max(present, 0)}")
    magic, lrec = _PART.unpack_from(data, offset)
    if magic != MAGIC:
        raise ValueError(f"damaged at offset {offset:,}: expected the magic number {MAGIC:#x}, got {magic:#010x}")
    length = lrec & _LENGTH_MASK
    size = _PART.size + _padded(length)
    if present < size:
        raise ValueError(
            f"truncated: the record at offset {offset:,} expected {size:,} bytes, present are {present:,} (or its "
            f"length is damaged)"
        )
    return lrec >> _LENGTH_BITS, length, offset + size


def _padded(length: Any) -> Any:
    """Round up to a multiple of 4."""
    return (length + 3) & ~3


def _join(data: mmap.mmap | bytes, offset: int) -> tuple[bytes, int]:
    """Read a record of one or several parts.

    Returns:
        The bytes of the record, and where the next one starts.
    """
    cflag, length, end = _part(data, offset)
    parts = [data[offset + _PART.size : offset + _PART.size + length]]
    if cflag not in (_WHOLE, _FIRST):
        raise ValueError(f"damaged at offset {offset:,}: expected the start of a record, got a part with cflag {cflag}")
    while cflag in (_FIRST, _MIDDLE):
        start = end
        cflag, length, end = _part(data, start)
        if cflag not in (_MIDDLE, _LAST):
            raise ValueError(
                f"damaged at offset {start:,}: expected the next part of the record at {offset:,}, got cflag {cflag}"
            )
        parts.append(data[start + _PART.size : start + _PART.size + length])
    return _MAGIC_BYTES.join(parts), end


def scan(rec_path: PathLike) -> np.ndarray:
    """Walk through a `.rec` from the first record to the last.

    A plain loop: it touches one page of each record. Searching all bytes for the magic number with numpy is slower for
    records of images (their 5 KB take longer to compare than a step here), and trusts that no image contains it.

    Args:
        rec_path: the `.rec`.

    Returns:
        Where each record starts, int64 (N,), bytes, ascending.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty, truncated or damaged file; names the offset.
    """
    rec_path = Path(rec_path)
    with _mapped(rec_path) as (data, _):
        try:
            return _walk(data)
        except ValueError as error:
            raise ValueError(f"{rec_path}: {error}. Copy the file again, or pack it again") from None


def _walk(data: mmap.mmap | bytes) -> np.ndarray:
    """Return the offsets of all records, int64 (N,)."""
    offsets = array("q")
    offset, last_head = 0, len(data) - _PART.size
    read_head, append = _PART.unpack_from, offsets.append
    while offset <= last_head:
        magic, lrec = read_head(data, offset)
        if magic != MAGIC:
            break
        append(offset)
        if lrec <= _LENGTH_MASK:
            offset += (lrec + 11) & ~3  # 8 bytes of head, then the padded length
        else:
            offset = _join(data, offset)[1]
    if offset != len(data):
        # The error is that of the first bad part: this one, or the last one if it reaches beyond the end.
        _part(data, offsets[-1] if offsets and offset > len(data) else offset)
    return np.frombuffer(offsets, np.int64) if offsets else np.empty(0, np.int64)


# --- the index --------------------------------------------------------------------------------------------------


class _Index(NamedTuple):
    keys: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


class _StaleIndexError(Exception):
    """The `.idx` does not belong to the `.rec`; the message says why."""


def _listed_index(data: mmap.mmap, words: np.ndarray, rec_path: Path, idx_path: Path) -> _Index:
    """Make the index from the `.idx`, or from a scan where that is missing or stale."""
    if not idx_path.is_file():
        return _scanned_index(data, words, rec_path, f"{idx_path} is missing", quiet=True)
    keys, offsets = _read_idx(idx_path)
    try:
        return _by_key(_describe(data, words, keys, offsets), idx_path)
    except _StaleIndexError as stale:
        return _scanned_index(data, words, rec_path, f"{idx_path} does not belong to {rec_path}: {stale}", quiet=False)


def _scanned_index(data: mmap.mmap, words: np.ndarray, rec_path: Path, reason: str, quiet: bool) -> _Index:
    """Make the index by a scan.

    Args:
        data: the mapped `.rec`.
        words: the same as uint32.
        rec_path: its path, for messages.
        reason: why the `.idx` is not used.
        quiet: no warning where the keys are sure.
    """
    try:
        offsets = scan(rec_path)
    except ValueError as error:
        raise ValueError(f"{error} ({reason})") from None
    keys = _keys_by_id(data, words, offsets)
    numbered = keys is None
    if keys is None:
        keys = np.arange(len(offsets), dtype=np.int64)
    if numbered or not quiet:
        source = "running numbers (the ids in the image headers cannot be keys)" if numbered else "ids of image headers"
        warnings.warn(
            f"{reason}. An index of {len(offsets):,} records was made by reading {rec_path}, in memory only; its keys "
            f'are the {source}. To write it: python -c "import recordio; recordio.build_idx({str(rec_path)!r})"',
            stacklevel=4,
        )
    return _by_key(_describe(data, words, keys, offsets), rec_path)


def _by_key(index: _Index, path: Path) -> _Index:
    """Sort by key and refuse a key that comes twice."""
    if not np.all(index.keys[1:] > index.keys[:-1]):
        index = _Index(*(column[np.argsort(index.keys, kind="stable")] for column in index))
    twice = np.flatnonzero(index.keys[1:] == index.keys[:-1])
    if len(twice):
        raise ValueError(
            f"{path}: key {index.keys[twice[0]]} comes twice ({len(twice)} such keys); expected one record for each. "
            f"Delete the .idx to have it made again"
        )
    return index


def _describe(data: mmap.mmap, words: np.ndarray, keys: np.ndarray, offsets: np.ndarray) -> _Index:
    """Gather lengths and labels.

    Args:
        data: the mapped `.rec`.
        words: the same as uint32.
        keys: int64 (N,).
        offsets: int64 (N,), in any order.

    Returns:
        The index in the order of the file: the disk is read front to back.

    Raises:
        _StaleIndexError: an offset where no whole record lies, or the last record does not end the file.
    """
    if not np.all(offsets[1:] > offsets[:-1]):
        order = np.argsort(offsets, kind="stable")
        keys, offsets = keys[order], offsets[order]
    outside = (offsets < 0) | (offsets > len(data) - _PART.size) | (offsets % 4 != 0)
    if outside.any():
        first = int(np.argmax(outside))
        raise _StaleIndexError(f"offset {offsets[first]:,} of key {keys[first]} (the .rec has {len(data):,} bytes)")
    lengths, labels = np.empty(len(keys), np.uint32), np.empty(len(keys), np.float32)
    end = 0
    for start in range(0, len(keys), _RECORDS_AT_ONCE):
        chunk = slice(start, start + _RECORDS_AT_ONCE)
        starts = offsets[chunk]
        lengths[chunk], labels[chunk], ends, bad = _describe_chunk(data, words, starts)
        bad[0] |= starts[0] < end
        bad[1:] |= starts[1:] < ends[:-1]
        if bad.any():
            first = int(np.argmax(bad))
            raise _StaleIndexError(f"no record starts at offset {starts[first]:,}, key {keys[start + first]}")
        end = int(ends[-1])
    if end != len(data):
        raise _StaleIndexError(f"its last record ends at {end:,}, the .rec has {len(data):,} bytes")
    return _Index(keys, offsets, lengths, labels)


def _describe_chunk(
    data: mmap.mmap, words: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gather lengths (N,), first labels (N,), ends in the file (N,) and where no record starts, bool (N,)."""
    lrec = _word(words, offsets, 1)
    cflag = lrec >> _LENGTH_BITS
    bad = (_word(words, offsets, 0) != MAGIC) | (cflag > _FIRST)
    lengths = lrec & _LENGTH_MASK
    ends = offsets + _PART.size + _padded(lengths.astype(np.int64))
    flags = _word(words, offsets, _FLAG_WORD)
    labels = _word(words, offsets, _LABEL_WORD).view(np.float32)
    several = np.flatnonzero(flags)
    labels[several] = _word(words, offsets[several], _LABELS_WORD).view(np.float32)
    # These have read beyond the record.
    labels[lengths < _HEADER.size + 4 * flags.astype(np.int64)] = np.nan
    for i in np.flatnonzero((cflag == _FIRST) & ~bad).tolist():
        try:
            record, ends[i] = _join(data, int(offsets[i]))
        except ValueError:
            bad[i] = True
            continue
        lengths[i] = len(record)
        labels[i] = _first_label(record)
    return lengths, labels, ends, bad


def _word(words: np.ndarray, offsets: np.ndarray, index: int) -> np.ndarray:
    """Gather one word of each record; beyond the end of the file, any word."""
    return words[np.minimum((offsets >> 2) + index, len(words) - 1)]


def _first_label(record: bytes) -> float:
    """Return the first label of a record, NaN where it has no valid image header."""
    try:
        label = unpack(record)[0].label
    except ValueError:
        return float("nan")
    return float(label[0]) if isinstance(label, np.ndarray) else label


def _keys_by_id(data: mmap.mmap, words: np.ndarray, offsets: np.ndarray) -> np.ndarray | None:
    """Return the ids in the image headers as keys, int64 (N,).

    None where they cannot be the keys: some record has no image header, two ids are the same or one does not fit, or
    one lies beyond what a header record announces.
    """
    lrec = _word(words, offsets, 1)
    ids = _word(words, offsets, _ID_WORD + 1).astype(np.uint64) << np.uint64(32) | _word(words, offsets, _ID_WORD)
    short = lrec < _HEADER.size
    for i in np.flatnonzero(lrec > _LENGTH_MASK).tolist():
        record = _join(data, int(offsets[i]))[0]
        short[i] = len(record) < _HEADER.size
        ids[i] = 0 if short[i] else _HEADER.unpack_from(record)[2]
    if short.any() or (ids >= np.uint64(2**63 - 1)).any():
        return None
    keys = ids.view(np.int64)
    if len(np.unique(keys)) < len(keys) or keys.max(initial=0) > _largest_key(data, keys, offsets):
        return None
    return keys


def _largest_key(data: mmap.mmap, keys: np.ndarray, offsets: np.ndarray) -> int:
    """Return the largest key that the header record allows, or the largest at all without one."""
    first = int(np.argmin(keys)) if len(keys) else 0
    if not len(keys) or keys[first] != 0:
        return 2**63 - 1
    announced = _announced(_join(data, int(offsets[first]))[0])
    return 2**63 - 1 if announced is None else int(announced[1] + np.spacing(np.float32(announced[1])))


def _read_idx(idx_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the keys and offsets of an `.idx`, int64 (N,) each, in the order of the file."""
    rows = [np.empty((0, 2), np.int64)]
    line = 1
    with idx_path.open("rb") as file:
        while text := file.read(_IDX_BYTES_AT_ONCE):
            text += file.readline()
            rows.append(_parse_lines(text.replace(b"\r\n", b"\n"), line, idx_path))
            line += len(rows[-1])
    table = np.concatenate(rows) if len(rows) != 2 else rows[1]
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


def _parse_lines(text: bytes, first_line: int, idx_path: Path) -> np.ndarray:
    """Parse lines of key, tab, offset; int64 (N, 2)."""
    if not text.endswith(b"\n"):
        text += b"\n"
    separators = np.frombuffer(text.translate(None, b"0123456789"), np.uint8)
    alternate = np.array_equal(separators[0::2], np.full((len(separators) + 1) // 2, ord("\t"), np.uint8))
    alternate &= np.array_equal(separators[1::2], np.full(len(separators) // 2, ord("\n"), np.uint8))
    if alternate:
        # Two separators in a row count as one here, so that an empty field is noticed too.
        numbers = np.fromstring(text, np.int64, sep=" ")
        # A number that does not fit comes out as the largest one.
        if len(numbers) == len(separators) and not (numbers == np.iinfo(np.int64).max).any():
            return numbers.reshape(-1, 2)
    for number, line in enumerate(text.split(b"\n"), first_line):
        fields = line.split(b"\t")
        if len(fields) != 2 or not all(field.isdigit() and int(field) < 2**63 - 1 for field in fields):
            break
    raise ValueError(
        f"{idx_path}, line {number}: expected `key<TAB>offset`, two whole numbers from 0 on, got {line[:60]!r}. "
        f"Delete the file to have the index made again from the .rec"
    )


def build_idx(rec_path: PathLike, idx_path: PathLike | None = None) -> None:
    """Write the `.idx` of a `.rec`; an existing one is replaced, at once and at the end.

    Args:
        rec_path: the `.rec`; it is scanned.
        idx_path: where to write; None: beside it.

    Raises:
        FileNotFoundError: no such `.rec`.
        ValueError: an empty, truncated or damaged `.rec`.
        OSError: such as no space left.
    """
    rec_path = Path(rec_path)
    target = _idx_path(rec_path, idx_path)
    with _mapped(rec_path) as (data, words):
        offsets = scan(rec_path)
        keys = _keys_by_id(data, words, offsets)
    if keys is None:
        keys = np.arange(len(offsets), dtype=np.int64)
    part = _part_path(target)
    try:
        with part.open("wb") as file:
            for start in range(0, len(keys), _RECORDS_AT_ONCE):
                rows = np.stack((keys, offsets), 1)[start : start + _RECORDS_AT_ONCE]
                file.write(b"%d\t%d\n" * len(rows) % tuple(rows.ravel().tolist()))
            _to_disk(file)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# --- writing ----------------------------------------------------------------------------------------------------


class RecordWriter:
    """Write a `.rec` and its `.idx`, byte for byte as mxnet does.

    Both have temporary names (`.<name>.part`, same folder) until `close`; leaving a `with` block by an exception
    deletes them and keeps what was there before.

    Args:
        rec_path: the `.rec` to write; its folder must exist.
        idx_path: its `.idx`; None: beside it, same name.

    Raises:
        FileNotFoundError: no such folder.
    """

    def __init__(self, rec_path: PathLike, idx_path: PathLike | None = None) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = _idx_path(self.rec_path, idx_path)
        for path in (self.rec_path, self.idx_path):
            if not path.parent.is_dir():
                raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to; make it first")
        self._offset = 0
        self._keys = array("q")
        self._rec: BinaryIO = _part_path(self.rec_path).open("wb")
        self._idx: BinaryIO = _part_path(self.idx_path).open("wb")

    def write(self, key: int, record: bytes) -> None:
        """Append a record.

        Args:
            key: its name in the `.idx`, 0 to 2^63 - 2; each only once.
            record: image header and payload, see `pack`; below 2^29 bytes.

        Raises:
            ValueError: a key or a record out of range, or the writer is closed.
            OSError: such as no space left.
        """
        if self._rec.closed:
            raise ValueError(f"{self.rec_path}: the writer is closed")
        if not 0 <= key < 2**63 - 1:
            raise ValueError(f"{self.rec_path}: key {key}, expected 0 to 2^63 - 2")
        if len(record) > _LENGTH_MASK:
            raise ValueError(
                f"{self.rec_path}, key {key}: a record of {len(record):,} bytes; the format takes at most "
                f"{_LENGTH_MASK:,}"
            )
        framed = _frame(record)
        self._rec.write(framed)
        self._idx.write(b"%d\t%d\n" % (key, self._offset))
        self._keys.append(key)
        self._offset += len(framed)

    def close(self) -> None:
        """Finish both files and give them their names; a second call does nothing.

        Raises:
            ValueError: a key was written twice; nothing is kept.
            OSError: such as no space left; nothing is kept.
        """
        if self._rec.closed:
            return
        try:
            keys = np.sort(np.frombuffer(self._keys, np.int64)) if self._keys else np.empty(0, np.int64)
            twice = np.flatnonzero(keys[1:] == keys[:-1])
            if len(twice):
                raise ValueError(f"{self.rec_path}: key {keys[twice[0]]} was written twice; expected each key once")
            for file in (self._rec, self._idx):
                _to_disk(file)
                file.close()
        except BaseException:
            self.abort()
            raise
        # At no time an old index beside a new file: one that is missing is rebuilt.
        self.idx_path.unlink(missing_ok=True)
        _part_path(self.rec_path).replace(self.rec_path)
        _part_path(self.idx_path).replace(self.idx_path)

    def abort(self) -> None:
        """Delete what was written; files that were there before stay."""
        for file, path in ((self._rec, self.rec_path), (self._idx, self.idx_path)):
            with contextlib.suppress(OSError):  # what the buffer holds may not fit on the disk either
                file.close()
            _part_path(path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _frame(record: bytes) -> bytes:
    """Add heads and padding, and split where the magic number occurs at a multiple of 4 of the record's bytes."""
    if _MAGIC_BYTES not in record:
        return b"".join((_PART.pack(MAGIC, len(record)), record, bytes(-len(record) % 4)))
    cuts = [i for i in _occurrences(record) if i % 4 == 0]
    starts = [0, *(cut + 4 for cut in cuts)]
    framed = []
    for number, (start, end) in enumerate(zip(starts, [*cuts, len(record)], strict=True)):
        cflag = _WHOLE if not cuts else _FIRST if number == 0 else _LAST if number == len(cuts) else _MIDDLE
        framed += [_PART.pack(MAGIC, cflag << _LENGTH_BITS | (end - start)), record[start:end]]
    return b"".join((*framed, bytes(-len(record) % 4)))


def _occurrences(record: bytes) -> Iterator[int]:
    """Yield where the magic number occurs; its bytes differ, so that no two occurrences overlap."""
    found = record.find(_MAGIC_BYTES)
    while found >= 0:
        yield found
        found = record.find(_MAGIC_BYTES, found + 4)


def _part_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
