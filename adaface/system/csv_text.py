"""CSV files whose texts a spreadsheet does not execute.

A cell that begins with ``=``, ``+``, ``-``, ``@`` (or one of their full-width forms), a tab or the end of a line is a
formula for a spreadsheet, and names of files and identities may begin so. Such texts are written with ``'`` in front,
which spreadsheets hide; numbers stay as they are. ``original`` takes it away again.

Source: OWASP, "CSV injection".
"""

import csv
import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, TextIO

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def safe(cell: Any) -> Any:
    """Return a cell as it is to be written; only texts that are no numbers change."""
    if not isinstance(cell, str) or not _FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def original(cell: str) -> str:
    """Return the text that ``safe`` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class SafeWriter:
    r"""A ``csv.writer`` of ``safe`` cells and lines that end in ``\n``.

    Args:
        file: a text file, opened with ``newline=""``.
    """

    def __init__(self, file: TextIO) -> None:
        # the writer quotes a lone carriage return, which csv.reader takes for the end of a line, only with its own ends
        self._writer = csv.writer(SimpleNamespace(write=lambda line: file.write(f"{line[:-2]}\n")))

    def writerow(self, row: Iterable[Any]) -> None:
        """Write one row."""
        self._writer.writerow([safe(cell) for cell in row])

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write several rows."""
        for row in rows:
            self.writerow(row)
