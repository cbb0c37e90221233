"""Cache files next to a `.rec`: arrays that every process maps instead of computing them.

`.train.rec.index` contains keys, offsets and labels, `.train.rec.order` the order and the classes of training. A cache
is valid for a `.rec` and an `.idx` of the same size and modification time, and its checksum is verified when it is
opened. If it is missing, stale or damaged, it is rebuilt; it can be deleted safely. If the folder of the `.rec` is
read-only, it is stored in `$XDG_CACHE_HOME/adaface` (default `~/.cache/adaface`) instead.

Format: 4,096 bytes of JSON (stamp, columns, checksum), padded with spaces; then the columns, little-endian, each
starting at a multiple of 8 bytes.
"""

import contextlib
import hashlib
import json
import mmap
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaface.system.files import atomic_file
from adaface.system.json_file import parse_object

Columns = dict[str, np.ndarray]

_VERSION = 1  # increased when a column changes its meaning
_HEADER_BYTES = 4096
_TYPES = ("<u4", "<i4", "<f4", "<i8")
_ALIGNMENT = 8
_BLOCK_BYTES = 4096


class Stamp(NamedTuple):
    """Size and modification time of a `.rec` and its `.idx` when a sidecar was built from them.

    Attributes:
        rec_path: the `.rec`.
        files: size in bytes and modification time in nanoseconds of the `.rec`, then of the `.idx`; for several files,
            224 bits of a hash over all of these.
    """

    rec_path: Path
    files: tuple[int, int, int, int]


def take_stamp(rec_path: Path, idx_path: Path) -> Stamp:
    """Record size and modification time of both files; call it before reading them.

    Args:
        rec_path: the `.rec`.
        idx_path: the `.idx`.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    rec, idx = rec_path.stat(), idx_path.stat()
    return Stamp(rec_path, (rec.st_size, rec.st_mtime_ns, idx.st_size, idx.st_mtime_ns))


def join_stamps(rec_path: Path, stamps: Sequence[Stamp]) -> Stamp:
    """Return a common stamp of several files.

    Args:
        rec_path: gives the name of the sidecar; the file need not exist.
        stamps: stamps of the files, in order.
    """
    digest = hashlib.sha256(repr([(stamp.rec_path.name, *stamp.files) for stamp in stamps]).encode()).digest()
    first, second, third, fourth = (int.from_bytes(digest[i : i + 7]) for i in range(0, 28, 7))
    return Stamp(rec_path, (first, second, third, fourth))


def load(stamp: Stamp, kind: str, *, checked: bool = False) -> Columns | None:
    """Map the columns of a sidecar.

    Args:
        stamp: stamp of the files that it must have been built from.
        kind: kind of sidecar, such as "index".
        checked: whether another process has verified the checksum.

    Returns:
        The columns by name, read-only; None if there is no sidecar with this stamp. A damaged one causes a warning.
    """
    for path in _places(stamp.rec_path, kind):
        try:
            columns = _mapped(path, stamp, checked)
        except OSError:
            continue
        except ValueError as error:
            warnings.warn(f"{path} is damaged ({error}); it is rebuilt", stacklevel=3)
            continue
        if columns is not None:
            return columns
    return None


def store(stamp: Stamp, kind: str, columns: Columns) -> Columns | None:
    """Write a sidecar, and map it.

    Args:
        stamp: stamp of the files that the columns were built from.
        kind: kind of sidecar, such as "index".
        columns: arrays (N,) by name.

    Returns:
        The same columns, mapped; None if no location is writable.
    """
    for path in _places(stamp.rec_path, kind):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, stamp, columns)
            return _mapped(path, stamp, checked=True)
        except (OSError, ValueError):
            continue
    return None


def _places(rec_path: Path, kind: str) -> list[Path]:
    """List the possible locations of a sidecar, the preferred one first."""
    absolute = rec_path.resolve()
    places = [absolute.with_name(f".{absolute.name}.{kind}")]
    with contextlib.suppress(RuntimeError):  # the user has no home folder
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(os.fsencode(absolute)).hexdigest()[:32]
        places.append(cache / "adaface" / f"{name}.{kind}")
    return places


def _write(path: Path, stamp: Stamp, columns: Columns) -> None:
    """Write a sidecar atomically, even if other processes write it at the same time."""
    contents = {name: np.ascontiguousarray(column, column.dtype.newbyteorder("<")) for name, column in columns.items()}
    described = {
        "version": _VERSION,
        "files": list(stamp.files),
        "columns": [[name, content.dtype.str, len(content)] for name, content in contents.items()],
    }
    header = json.dumps({**described, "checksum": _checksum(described, contents)}).encode()
    # no fsync: the checksum detects what a power failure leaves
    with atomic_file(path, to_disk=False, several_writers=True) as file:
        file.write(header.ljust(_HEADER_BYTES))
        for content in contents.values():
            file.write(content.data)
            file.write(bytes(-content.nbytes % _ALIGNMENT))


def _mapped(path: Path, stamp: Stamp, checked: bool) -> Columns | None:
    """Map a sidecar; None if its stamp differs.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _HEADER_BYTES:
            raise ValueError(f"{size} bytes, expected at least {_HEADER_BYTES}")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        header = parse_object(data[:_HEADER_BYTES])
        if header["version"] != _VERSION or header["files"] != list(stamp.files):
            return None
        declared = [(str(name), str(kind), int(count)) for name, kind, count in header["columns"]]
        checksum = header.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its header is unreadable: {type(error).__name__}") from None
    columns = {}
    position = _HEADER_BYTES
    for name, kind, count in declared:
        if kind not in _TYPES or count < 0 or position + count * np.dtype(kind).itemsize > size:
            raise ValueError(f"column {name[:20]!r} of {count} {kind[:20]!r} does not fit {size} bytes")
        columns[name] = np.frombuffer(data, kind, count, position) if count else np.empty(0, kind)
        position += columns[name].nbytes + -columns[name].nbytes % _ALIGNMENT
    if position != size:
        raise ValueError(f"{size} bytes, expected {position}")
    if not checked and checksum != _checksum(header, columns):
        raise ValueError("its checksum is not that of its content")
    return columns


def _checksum(described: dict[str, Any], columns: Columns) -> int:
    """Return the CRC-32 of the sums of all blocks of the columns, and of their description.

    Detects truncated and foreign files in a quarter of a CRC's time. The sums of 512 words of 64 bits do not detect
    changes that cancel out, such as two swapped words of a block.
    """
    checksum = 0
    for column in columns.values():
        content = column.view(np.uint8)
        whole = len(content) // _BLOCK_BYTES * _BLOCK_BYTES
        sums = content[:whole].view("<u8").reshape(-1, _BLOCK_BYTES // 8).sum(axis=1, dtype=np.uint64)
        checksum = zlib.crc32(content[whole:].data, zlib.crc32(sums.data, checksum))
    return zlib.crc32(json.dumps(described, sort_keys=True).encode(), checksum)
