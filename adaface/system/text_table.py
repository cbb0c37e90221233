"""Text tables: aligned columns for the screen, and fast reading of files in chunks.

Errors name the file and the line number.
"""

import csv
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_GAP = "  "
_ROWS = 1 << 20  # per chunk
_SHOWN_LETTERS = 80  # of a bad line
_KINDS = {"int64": (int, "a whole number"), "float32": (float, "a number"), "str": (str, "a text")}


def aligned(rows: Iterable[Sequence[str] | None], sides: str = "<>") -> list[str]:
    """Align cells in columns, each as wide as its widest cell, two spaces apart.

    Args:
        rows: cells, the same number in each row; None is a rule across all columns.
        sides: alignment of each column, ``<`` left or ``>`` right; the last one applies to all further columns.

    Returns:
        One line per row, without trailing spaces.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*filter(None, rows), strict=True)]
    rule = "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))
    all_sides = sides + sides[-1] * len(widths)
    return [
        rule
        if row is None
        else _GAP.join(
            cell.rjust(width) if side == ">" else cell.ljust(width)
            for cell, width, side in zip(row, widths, all_sides, strict=False)
        ).rstrip()
        for row in rows
    ]


def read_table(
    path: Path, columns: Mapping[str, str], *, commas: bool = False, rows: int = _ROWS
) -> "Iterator[pd.DataFrame]":
    """Yield the rows of a text table in chunks; empty lines are skipped.

    Two forms: fields separated by spaces, without a header line, with exactly these columns; or fields separated by
    commas, with a header line, starting with these columns.

    Args:
        path: the file.
        columns: name -> ``int64``, ``float32`` or ``str``.
        commas: the second form.
        rows: maximum number of rows per chunk.

    Raises:
        ValueError: a line with too few or too many fields, or a field of the wrong type; names file and line.
    """
    import pandas as pd  # here: slow to import, and not needed by ``aligned``

    if commas and _first_line(path).split(",")[0].strip().lstrip("-").isdigit():
        raise ValueError(f"{path}, line 1: expected a header such as TEMPLATE_ID,SUBJECT_ID, got {_first_line(path)!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # too many fields in the first line
            yield from pd.read_csv(
                path,
                sep="," if commas else r"\s+",
                header=0 if commas else None,
                names=list(columns),
                usecols=list(range(len(columns))) if commas else None,
                dtype=dict(columns),
                quoting=csv.QUOTE_MINIMAL if commas else csv.QUOTE_NONE,
                na_filter=False,  # a file may be called NA
                index_col=False,
                chunksize=rows,
            )
    except pd.errors.EmptyDataError:
        return
    except (ValueError, OverflowError, pd.errors.ParserWarning) as error:
        raise ValueError(
            _first_misfit(path, columns, commas) or f"{path} is not a table of {list(columns)}: {error}"
        ) from error


def line_number(path: Path, row: int, *, commas: bool = False) -> int:
    """Return the line number, from 1 on, of a row, counted from 0.

    Args:
        path: the file.
        row: index of the row among all rows of ``read_table``.
        commas: as in ``read_table``.

    Raises:
        ValueError: the file has fewer rows.
    """
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        filled = (number for number, line in enumerate(file, 1) if line.strip())
        for place, number in enumerate(filled):
            if place == row + commas:
                return number
    raise ValueError(f"{path} has no row {row}")


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        return file.readline().strip()


def _first_misfit(path: Path, columns: Mapping[str, str], commas: bool) -> str:
    """Return the error message for the first bad line; empty if there is none."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (commas and number == 1):
                continue
            fields = [field.strip() for field in line.split(",")] if commas else line.split()
            if len(fields) < len(columns) or (len(fields) > len(columns) and not commas):
                expected = f"{len(columns)} ({', '.join(columns)})"
                shown = line.strip()[:_SHOWN_LETTERS]
                return f"{path}, line {number}: got {len(fields)} fields, expected {expected}: {shown!r}"
            for (name, kind), field in zip(columns.items(), fields, strict=False):
                convert, what = _KINDS[kind]
                try:
                    value = convert(field)
                    if isinstance(value, float) and math.isnan(value):  # pandas does not read it
                        raise ValueError(field)
                except ValueError:
                    return f"{path}, line {number}: {name} must be {what}, got {field[:_SHOWN_LETTERS]!r}"
                if kind == "int64" and not -(2**63) <= value < 2**63:
                    return f"{path}, line {number}: {name} must fit in 64 bits, got {field[:_SHOWN_LETTERS]}"
    return ""
