"""Writing a `.rec` and its `.idx`, byte for byte as mxnet does.

Sources: dmlc-core's RecordIO (`recordio.h`), mxnet's `MXIndexedRecordIO`.
Differences: the files have temporary names until they are complete.
"""

import contextlib
import os
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from adaface.records.format import LENGTH_MASK, frame
from adaface.records.index import PathLike, default_idx_path
from adaface.system.files import atomic_file, name_full_file


class RecordWriter:
    """Write a `.rec` and its `.idx`, byte for byte as mxnet does.

    Both have temporary names (`.<name>.part`, same folder) until `close`. If a `with` block ends with an exception,
    they are deleted and existing files are kept.

    Args:
        rec_path: the `.rec` to write; its folder must exist.
        idx_path: its `.idx`; None: same folder and name as the `.rec`.
        overwrite: replace an existing `.rec`; an existing `.idx` always is.

    Raises:
        FileNotFoundError: the folder does not exist.
        FileExistsError: the `.rec` exists and is not to be replaced, or another process writes the files.
    """

    def __init__(self, rec_path: PathLike, idx_path: PathLike | None = None, *, overwrite: bool = True) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = default_idx_path(self.rec_path, idx_path)
        for path in (self.rec_path, self.idx_path):
            if not path.parent.is_dir():
                raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to; create it first")
        self._offset = 0
        self._keys = array("q")
        with contextlib.ExitStack() as files:  # if the second cannot be opened, the first is deleted
            self._idx_file = files.enter_context(contextlib.ExitStack())
            # `close` forces both to the disk before it renames either of them
            self._idx = self._idx_file.enter_context(atomic_file(self.idx_path, to_disk=False))
            self._rec = files.enter_context(atomic_file(self.rec_path, to_disk=False, overwrite=overwrite))
            self._files = files.pop_all()

    def write(self, key: int, record: bytes) -> None:
        """Append a record.

        Args:
            key: unique key in the `.idx`, 0 to 2^63 - 2.
            record: image header and payload, see `pack`; below 2^29 bytes.

        Raises:
            ValueError: a key or a record is out of range, or the writer is closed.
            OSError: for example no space left.
        """
        if self._rec.closed:
            raise ValueError(f"{self.rec_path}: the writer is closed")
        if not 0 <= key < 2**63 - 1:
            raise ValueError(f"{self.rec_path}: key {key}, expected 0 to 2^63 - 2")
        if len(record) > LENGTH_MASK:
            raise ValueError(
                f"{self.rec_path}, key {key}: a record of {len(record):,} bytes; the format takes at most "
                f"{LENGTH_MASK:,}"
            )
        framed = frame(record)
        self._rec.write(framed)
        self._idx.write(b"%d\t%d\n" % (key, self._offset))
        self._keys.append(key)
        self._offset += len(framed)

    def close(self) -> None:
        """Finish and rename both files; a second call does nothing.

        Raises:
            ValueError: a key was written twice; both files are deleted.
            OSError: for example no space left; both files are deleted.
        """
        if self._rec.closed:
            return
        try:
            keys = np.sort(np.frombuffer(self._keys, np.int64)) if self._keys else np.empty(0, np.int64)
            duplicates = np.flatnonzero(keys[1:] == keys[:-1])
            if len(duplicates):
                raise ValueError(
                    f"{self.rec_path}: key {keys[duplicates[0]]} was written twice; expected each key once"
                )
            for file in (self._rec, self._idx):
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            name_full_file(error, self.rec_path)
            self.abort()
            raise
        # never leave an old index next to a new file; a missing one is rebuilt
        self.idx_path.unlink(missing_ok=True)
        if not self.rec_path.exists():  # a killed command that is started again keeps a `.rec`, and so needs both
            self._idx_file.close()
        self._files.close()  # renames the `.rec` first

    def abort(self) -> None:
        """Delete what was written; existing files are kept."""
        # flushing the buffers may fail as well if the disk is full
        with contextlib.suppress(OSError, _AbortedError), self._files:
            raise _AbortedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            name_full_file(error, self.rec_path)
            self.abort()


class _AbortedError(Exception):
    pass
