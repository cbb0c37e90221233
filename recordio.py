"""The `.rec` / `.idx` codec: MXNet's RecordIO files, read and written without mxnet.

Source: dmlc-core's RecordIO (the framing and its splitting of records) and MXNet's ``recordio`` module (the image
header, the text index). Format: a record is one or more parts; a part is little-endian uint32 magic, uint32 ``lrec``
(upper 3 bits cflag, lower 29 bits length), the bytes, zeros up to a multiple of 4. cflag 0 is a whole record; 1, 2, 3
are the first, a middle and the last part of a record that holds the magic at a 4-byte-aligned place, where it is cut
and the magic left out. So every aligned magic of a file begins a part, which makes a scan a vectorised comparison.

Differs from mxnet: the index is numpy arrays, 24 bytes a record, built without a Python loop; a missing or stale
``.idx`` is rebuilt; damage is found and named.
"""

import mmap
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_LENGTH_BITS = 29
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PART_HEADER = struct.Struct("<II")
_IMAGE_HEADER = struct.Struct("<IfQQ")
_SCAN_WORDS = 1 << 24  # 64 MB at a time

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ImageHeader:
    """What precedes the image in a record.

    Attributes:
        label: one number, or a float32 array of any length (stored as ``flag`` = its length).
        id: first identifier, an unsigned 64-bit integer; InsightFace stores the key.
        id2: second identifier.
    """

    label: "float | np.ndarray[Any, np.dtype[np.float32]]"
    id: int = 0
    id2: int = 0

    @property
    def flag(self) -> int:
        """Number of labels stored after the header; 0 when the one label is in it."""
        return len(self.label) if isinstance(self.label, np.ndarray) else 0


def pack(header: ImageHeader, payload: bytes) -> bytes:
    """Return the bytes of a record: image header, labels, payload.

    Args:
        header: its image header.
        payload: encoded image, or nothing for a header record.
    """
    if isinstance(header.label, np.ndarray):
        labels = header.label.astype("<f4")
        return _IMAGE_HEADER.pack(len(labels), 0.0, header.id, header.id2) + labels.tobytes() + payload
    return _IMAGE_HEADER.pack(0, header.label, header.id, header.id2) + payload


def unpack(record: bytes) -> tuple[ImageHeader, bytes]:
    """Split the bytes of a record into its image header and its payload.

    Args:
        record: what ``pack`` returned.

    Raises:
        ValueError: too short for its header.
    """
    if len(record) < _IMAGE_HEADER.size:
        raise ValueError(f"a record of {len(record)} bytes has no image header ({_IMAGE_HEADER.size} bytes)")
    flag, label, first_id, second_id = _IMAGE_HEADER.unpack_from(record)
    start = _IMAGE_HEADER.size + 4 * flag
    if len(record) < start:
        raise ValueError(f"a record of {len(record)} bytes ends inside its {flag} labels")
    if flag == 0:
        return ImageHeader(label, first_id, second_id), record[start:]
    labels = np.frombuffer(record, "<f4", flag, _IMAGE_HEADER.size).astype(np.float32)
    return ImageHeader(labels, first_id, second_id), record[start:]


class RecordFile:
    """Random access to the records of a `.rec`, by position in ascending key order.

    Cheap to hand to data workers: a forked worker shares the arrays, and the file is mapped again where the object was
    pickled.

    Args:
        rec_path: the `.rec`.
        idx_path: its `.idx`; beside it by default. Where it is missing, or does not fit the file, the records are
            found by a scan (a warning says so); `build_idx` writes one.

    Attributes:
        keys: (N,) int64, ascending.
        offsets: (N,) int64, byte where each record begins.
        lengths: (N,) uint32, bytes of each record, image header included.
        labels: (N,) float32, first label of each; NaN where a record has no image header.

    Raises:
        FileNotFoundError: there is no such `.rec`.
        ValueError: an empty, truncated or damaged file.
    """

    keys: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def __init__(self, rec_path: PathLike, idx_path: PathLike | None = None) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = Path(idx_path) if idx_path is not None else self.rec_path.with_suffix(".idx")
        words = _open_words(self.rec_path)
        index = _index_of_file(self.idx_path, words) if self.idx_path.is_file() else None
        if index is None:
            problem = "does not fit the file" if self.idx_path.is_file() else "is missing"
            warnings.warn(
                f"{self.idx_path} {problem}: the records of {self.rec_path} are found by a scan", stacklevel=2
            )
            index = _index_by_scan(self.rec_path, words)
        self.keys, self.offsets = index
        self.lengths = self._read_lengths(words)
        self.labels = self._read_labels(words)
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a mapping cannot be pickled

    def read(self, position: int) -> bytes:
        """Return a whole record, its parts joined.

        Args:
            position: in [0, N).

        Raises:
            ValueError: the file is damaged there (it names key and offset).
        """
        if self._map is None:
            with self.rec_path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        key, offset = int(self.keys[position]), int(self.offsets[position])
        parts = list(_parts(self._map, offset, f"{self.rec_path}, key {key}"))
        return _MAGIC_BYTES.join(parts)

    def read_image(self, position: int) -> bytes:
        """Return the encoded image of a record (its payload).

        Args:
            position: in [0, N).

        Raises:
            ValueError: the file is damaged there.
        """
        return self._unpack(position)[1]

    def header(self, position: int) -> ImageHeader:
        """Return the image header of a record.

        Args:
            position: in [0, N).

        Raises:
            ValueError: the file is damaged there, or the record has no image header.
        """
        return self._unpack(position)[0]

    def image_positions(self) -> np.ndarray:
        """Return the positions of the records that hold images, in ascending key order.

        With InsightFace's header record (key 0, two labels [n + 1, n + 1 + identities]) these are the keys 1 to n;
        without one, every record.

        Raises:
            ValueError: the header record promises images that the file does not have.
        """
        header = self._insightface_header()
        if header is None:
            return np.arange(len(self))
        images = header[0] - 1
        positions = np.flatnonzero((self.keys >= 1) & (self.keys <= images))
        if len(positions) == 0 and images > 0:
            raise ValueError(f"{self.rec_path}: its header record promises {images} images, it has none of them")
        return positions

    def num_identities(self) -> int | None:
        """Return the number of identities that the header record states; None without one."""
        header = self._insightface_header()
        return None if header is None else header[1] - header[0]

    def _insightface_header(self) -> tuple[int, int] | None:
        """Return (n + 1, n + 1 + identities), or None where the first record is an image."""
        if len(self) == 0 or self.keys[0] != 0 or self.lengths[0] < _IMAGE_HEADER.size:
            return None
        label = self.header(0).label
        if not isinstance(label, np.ndarray):
            return None
        if len(label) < 2 or not 1 <= label[0] <= label[1]:
            raise ValueError(f"{self.rec_path}: a broken header record, its labels are {label.tolist()}")
        return int(label[0]), int(label[1])

    def _unpack(self, position: int) -> tuple[ImageHeader, bytes]:
        try:
            return unpack(self.read(position))
        except ValueError as error:
            where = f"{self.rec_path}, key {self.keys[position]}, offset {self.offsets[position]}"
            raise ValueError(str(error) if str(self.rec_path) in str(error) else f"{where}: {error}") from error

    def _read_lengths(self, words: np.ndarray) -> np.ndarray:
        """Gather the lengths of all records; those of split ones are summed up part by part."""
        lrec = words[self.offsets // 4 + 1]
        lengths = lrec & np.uint32(_LENGTH_MASK)
        for position in np.flatnonzero(lrec >> _LENGTH_BITS):
            where = f"{self.rec_path}, key {self.keys[position]}"
            parts = list(_parts(words.view(np.uint8).data, int(self.offsets[position]), where))
            lengths[position] = sum(map(len, parts)) + 4 * (len(parts) - 1)
        self._refuse_truncated(lengths, lrec >> _LENGTH_BITS == _WHOLE, 4 * len(words))
        return lengths

    def _refuse_truncated(self, lengths: np.ndarray, whole: np.ndarray, size: int) -> None:
        ends = self.offsets + 8 + lengths
        cut = np.flatnonzero(whole & (ends > size))
        if len(cut):
            first = cut[0]
            raise ValueError(
                f"{self.rec_path} is truncated: the record of key {self.keys[first]} at offset {self.offsets[first]} "
                f"needs {lengths[first]} bytes, {size - self.offsets[first] - 8} are there. Copy or download it again"
            )

    def _read_labels(self, words: np.ndarray) -> np.ndarray:
        """Gather the first labels: from the image header, or from the labels after it where there are any."""
        labels = np.full(len(self), np.nan, np.float32)
        start = self.offsets // 4 + 2  # words; the image header: flag, label, id (2 words), id2 (2 words)
        whole = words[self.offsets // 4 + 1] >> _LENGTH_BITS == _WHOLE
        has_header = whole & (self.lengths >= _IMAGE_HEADER.size)
        flag = np.zeros(len(self), np.uint32)
        flag[has_header] = words[start[has_header]]
        single, several = has_header & (flag == 0), has_header & (flag > 0) & (self.lengths >= _IMAGE_HEADER.size + 4)
        floats = words.view("<f4")
        labels[single] = floats[start[single] + 1]
        labels[several] = floats[start[several] + _IMAGE_HEADER.size // 4]
        for position in np.flatnonzero(~whole & (self.lengths >= _IMAGE_HEADER.size)):
            where = f"{self.rec_path}, key {self.keys[position]}"
            record = _MAGIC_BYTES.join(_parts(words.view(np.uint8).data, int(self.offsets[position]), where))
            with suppress(ValueError):
                label = unpack(record)[0].label
                labels[position] = label[0] if isinstance(label, np.ndarray) else label
        return labels


class RecordWriter:
    """Write a `.rec` and its `.idx`; both get their names when they are whole.

    Use as a context manager: an exception inside leaves what was there before.

    Args:
        rec_path: the `.rec` to write.
        idx_path: its `.idx`; beside it by default.
    """

    def __init__(self, rec_path: PathLike, idx_path: PathLike | None = None) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = Path(idx_path) if idx_path is not None else self.rec_path.with_suffix(".idx")
        self._offset = 0
        self._rec = _partial(self.rec_path).open("wb")
        self._idx = _partial(self.idx_path).open("w", encoding="ascii", newline="\n")

    def write(self, key: int, record: bytes) -> None:
        """Append a record.

        Args:
            key: its integer key, at least 0.
            record: its bytes, as ``pack`` returns them; below 2**29.

        Raises:
            ValueError: a negative key or a record too long for the format.
        """
        if key < 0:
            raise ValueError(f"a key is an integer from 0 on, got {key}")
        if len(record) > _LENGTH_MASK:
            raise ValueError(f"record {key} has {len(record)} bytes; the format holds at most {_LENGTH_MASK}")
        framed = _frame(record)
        self._rec.write(framed)
        self._idx.write(f"{key}\t{self._offset}\n")
        self._offset += len(framed)

    def close(self) -> None:
        """Finish both files and give them their names, the index last."""
        for file in (self._rec, self._idx):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        # a kill between the two leaves an index that does not fit, which readers notice and rebuild
        _partial(self.rec_path).replace(self.rec_path)
        _partial(self.idx_path).replace(self.idx_path)

    def abort(self) -> None:
        """Give up: remove what was written."""
        self._rec.close()
        self._idx.close()
        _partial(self.rec_path).unlink(missing_ok=True)
        _partial(self.idx_path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise


def scan(rec_path: PathLike) -> np.ndarray:
    """Find the records of a file without an index.

    Args:
        rec_path: the `.rec`.

    Returns:
        (N,) int64 offsets in file order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: empty, truncated or damaged (the offset is named).
    """
    return _scan(Path(rec_path), _open_words(Path(rec_path)))


def build_idx(rec_path: PathLike, idx_path: PathLike | None = None) -> Path:
    """Write the `.idx` of a `.rec` by a scan.

    Keys are the ids of the image headers where these are all different, as InsightFace writes them, else 0, 1, 2, ...

    Args:
        rec_path: the `.rec`.
        idx_path: where to write; beside it by default.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: empty, truncated or damaged.
    """
    rec_path = Path(rec_path)
    target = Path(idx_path) if idx_path is not None else rec_path.with_suffix(".idx")
    keys, offsets = _index_by_scan(rec_path, _open_words(rec_path))
    order = np.argsort(offsets)
    partial = _partial(target)
    lines = (f"{key}\t{offset}\n" for key, offset in zip(keys[order].tolist(), offsets[order].tolist(), strict=True))
    with partial.open("w", encoding="ascii", newline="\n") as file:
        file.writelines(lines)
    partial.replace(target)
    return target


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _frame(record: bytes) -> bytes:
    """Return a record as it stands in the file, cut wherever the magic is at an aligned place."""
    cuts = []
    place = record.find(_MAGIC_BYTES)
    while place >= 0:
        if place % 4 == 0:
            cuts.append(place)
        place = record.find(_MAGIC_BYTES, place + 1)
    starts = [0, *(cut + 4 for cut in cuts)]
    parts = [record[start:end] for start, end in zip(starts, [*cuts, len(record)], strict=True)]
    framed = bytearray()
    for number, part in enumerate(parts):
        cflag = _WHOLE if len(parts) == 1 else _FIRST if number == 0 else _LAST if number == len(parts) - 1 else _MIDDLE
        framed += _PART_HEADER.pack(MAGIC, cflag << _LENGTH_BITS | len(part)) + part + bytes(-len(part) % 4)
    return bytes(framed)


def _parts(data: "mmap.mmap | memoryview", offset: int, where: str) -> Iterator[bytes]:
    """Yield the parts of the record at ``offset``; ``where`` names it in errors."""
    size, expected = len(data), (_WHOLE, _FIRST)
    while True:
        if offset < 0 or offset + _PART_HEADER.size > size:
            raise ValueError(f"{where}: the file ends at {size} bytes, before a record part at offset {offset}")
        magic, lrec = _PART_HEADER.unpack_from(data, offset)
        cflag, length = lrec >> _LENGTH_BITS, lrec & _LENGTH_MASK
        if magic != MAGIC or cflag not in expected:
            raise ValueError(
                f"{where}: a broken record header at offset {offset} (magic {magic:#010x}, expected {MAGIC:#010x}; "
                f"part {cflag}, expected one of {expected})"
            )
        end = offset + _PART_HEADER.size + length
        if end > size:
            raise ValueError(f"{where}: {length} bytes expected at offset {offset}, the file ends after {size}")
        yield bytes(data[offset + _PART_HEADER.size : end])
        if cflag in (_WHOLE, _LAST):
            return
        offset, expected = end, (_MIDDLE, _LAST)  # parts before the last are whole words, without padding


def _open_words(rec_path: Path) -> np.ndarray:
    """Map a `.rec` as little-endian 32-bit words; a rest of fewer than 4 bytes is found by the checks that follow."""
    if not rec_path.is_file():
        raise FileNotFoundError(f"there is no record file {rec_path}")
    size = rec_path.stat().st_size
    if size < _PART_HEADER.size:
        raise ValueError(f"{rec_path} has {size} bytes: it holds no record")
    return np.asarray(np.memmap(rec_path, "<u4", "r", shape=(size // 4,)))


def _index_of_file(idx_path: Path, words: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Read keys and offsets, ascending by key; None where they do not all point at records of the file."""
    keys, offsets = _parse_idx(idx_path)
    if len(keys) == 0 or offsets.min() < 0 or (offsets % 4).any() or offsets.max() // 4 + 1 >= len(words):
        return None
    if (words[offsets // 4] != MAGIC).any() or (words[offsets // 4 + 1] >> _LENGTH_BITS > _FIRST).any():
        return None
    order = np.argsort(keys, kind="stable")
    keys, offsets = keys[order], offsets[order]
    if (keys[1:] == keys[:-1]).any():
        raise ValueError(f"{idx_path}: the key {keys[1:][keys[1:] == keys[:-1]][0]} occurs twice")
    return keys, offsets


def _parse_idx(idx_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Parse ``key<TAB>offset`` lines, all at once where they are well formed."""
    text = idx_path.read_bytes()
    if text.translate(None, b"0123456789\t \r\n"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.translate(None, b"0123456789\t "):
                raise ValueError(f"{idx_path}, line {number}: expected `key<TAB>offset`, got {line[:60]!r}")
    numbers = np.fromstring(text.decode("ascii"), np.int64, sep=" ")
    lines = sum(1 for line in text.splitlines() if line.strip()) if len(numbers) % 2 else len(numbers) // 2
    if len(numbers) != 2 * lines:
        raise ValueError(f"{idx_path}: expected two numbers a line, got {len(numbers)} in {lines} lines")
    return numbers[0::2].copy(), numbers[1::2].copy()


def _index_by_scan(rec_path: Path, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (ascending) and offsets of all records; see ``build_idx`` for the keys."""
    offsets = _scan(rec_path, words)
    keys = np.arange(len(offsets), dtype=np.int64)
    lengths = words[offsets // 4 + 1] & np.uint32(_LENGTH_MASK)
    if (lengths >= _IMAGE_HEADER.size).all():
        place = offsets // 4 + 4  # part header and flag, label
        ids = words[place].astype(np.uint64) | words[place + 1].astype(np.uint64) << np.uint64(32)
        if ids.max() < 2**63 and len(np.unique(ids)) == len(ids):
            keys = ids.astype(np.int64)
    order = np.argsort(keys, kind="stable")
    return keys[order], offsets[order]


def _scan(rec_path: Path, words: np.ndarray) -> np.ndarray:
    """Find all parts by their magic, check that each ends where the next begins, and keep those that begin a record."""
    chunks = [
        np.flatnonzero(words[start : start + _SCAN_WORDS] == MAGIC) + start
        for start in range(0, len(words), _SCAN_WORDS)
    ]
    places = np.concatenate(chunks)  # words
    size = rec_path.stat().st_size
    if len(places) == 0 or places[0] != 0:
        raise ValueError(f"{rec_path} is not a record file: it does not begin with the magic {MAGIC:#010x}")
    if places[-1] + 1 >= len(words):
        raise ValueError(f"{rec_path} is truncated: it ends inside the record header at offset {4 * places[-1]}")
    lrec = words[places + 1]
    cflags, lengths = lrec >> _LENGTH_BITS, (lrec & np.uint32(_LENGTH_MASK)).astype(np.int64)
    begins = 4 * places
    ends = begins + _PART_HEADER.size + (lengths + 3) // 4 * 4
    broken = np.flatnonzero(ends != np.append(begins[1:], size))
    if len(broken):
        begin, end = begins[broken[0]], ends[broken[0]]
        if end > size and broken[0] == len(places) - 1:
            raise ValueError(
                f"{rec_path} is truncated: the record at offset {begin} should end at {end}, the file at {size}. "
                "Copy or download it again"
            )
        raise ValueError(f"{rec_path} is damaged after offset {begin}: no record begins at {end}")
    before = np.append(_LAST, cflags[:-1])
    continues = (before == _FIRST) | (before == _MIDDLE)
    wrong = np.flatnonzero(continues != ((cflags == _MIDDLE) | (cflags == _LAST)))
    if len(wrong) or cflags[-1] in (_FIRST, _MIDDLE) or cflags.max() > _LAST:
        place = begins[wrong[0]] if len(wrong) else begins[-1]
        raise ValueError(
            f"{rec_path} is damaged at offset {place}: the parts of a split record do not follow each other"
        )
    return begins[~continues]
