"""Output folders for benchmarks that write many files: a new one for each run, the last one emptied before it.

Files are emptied, not deleted, until the end: for minutes after a deletion ext4 passes over the inodes that became
free, and looks for others one by one, which takes a millisecond per new file and would drown both sides. Emptying
gives the memory and the disk space back.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FreshFolders:
    """Gives each run a new folder.

    Args:
        root: where to make them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.current = root
        self._number = 0

    def renew(self) -> None:
        """Empty the files of the last run and make the folder of the next one, ``current``."""
        if self._number:
            for path in self.current.rglob("*"):
                if path.is_file():
                    os.truncate(path, 0)
        self._number += 1
        self.current = self.root / f"run{self._number}"
        self.current.mkdir()


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary folder; deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="bench_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
