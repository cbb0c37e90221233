"""``alignment.csv``: one line per aligned face or photograph without a face; an interrupted run resumes from it.

The lines of a photograph are appended when its crops are complete. At the end they are sorted in the order of the
photographs, so that a resumed alignment writes the same file as an uninterrupted one.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaface.alignment.detector import Face
from adaface.system.files import write_atomically

TABLE, SETTINGS = "alignment.csv", "alignment.json"
ALIGNED, NO_FACE, NO_TRANSFORM, UNREADABLE, NOT_LISTED = (
    "aligned", "no face", "no transform", "unreadable", "no landmarks"
)  # fmt: skip
_POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
_EDGES = ("left", "top", "right", "bottom")
_NUMBERS = ("score", *_EDGES, *(f"{point}_{axis}" for point in _POINTS for axis in "xy"))
COLUMNS = ("file", "status", "faces_found", "faces_listed", "crop", *_NUMBERS, "reason")
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True)
class Line:
    """Result for one face, or for a photograph without one.

    Attributes:
        status: ``aligned``, or why not.
        crop: path of the aligned face, relative to the output folder; empty if there is none.
        face: box and landmarks; None if there is no face.
        reason: details of the status; may be empty.
    """

    status: str
    crop: str = ""
    face: Face | None = None
    reason: str = ""


class Journal:
    """The table of an output folder, and the photographs that are done.

    Args:
        folder: existing output folder.
        settings: options that the crops depend on; texts and numbers.

    Raises:
        ValueError: the folder was started with other settings, or contains a table of another program.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str | int]) -> None:
        self._folder, self._path = folder, folder / TABLE
        _check_settings(folder, settings)
        self._rows = self._read()
        self._write(self._rows)  # without a line that was cut off
        self._file = self._path.open("a", newline="", **_ENCODING)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def add(self, name: str, faces_found: int, lines: Sequence[Line]) -> None:
        """Append the lines of a photograph whose crops are complete.

        Args:
            name: path of the photograph, relative to the input folder.
            faces_found: number of faces in it.
            lines: at least one line.
        """
        self._rows[name] = [_row(name, faces_found, len(lines), line) for line in lines]
        self._file.write(_text(self._rows[name]))
        self._file.flush()

    def finish(self, names: Iterable[str]) -> dict[str, list[dict[str, str]]]:
        """Rewrite the table in the order of the photographs, and return its rows by photograph.

        Args:
            names: names of all photographs; rows of other photographs are dropped.
        """
        rows = {name: self._rows[name] for name in names}
        self._write(rows)
        return rows

    def _read(self) -> dict[str, list[dict[str, str]]]:
        """Return the rows of photographs that are done; unreadable ones are tried again."""
        if not self._path.is_file():
            return {}
        with self._path.open(newline="", **_ENCODING) as file:
            text = file.read()
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if lines and tuple(lines[0]) != COLUMNS:
            raise ValueError(
                f"{self._path} was not written by this program (other columns): choose another output folder"
            )
        rows = defaultdict(list)
        for fields in lines[1:]:
            if len(fields) == len(COLUMNS):
                rows[fields[0]].append(dict(zip(COLUMNS, fields, strict=True)))
        return {name: some for name, some in rows.items() if self._is_done(some)}

    def _is_done(self, rows: list[dict[str, str]]) -> bool:
        if str(len(rows)) != rows[0]["faces_listed"] or rows[0]["status"] == UNREADABLE:
            return False
        return all((self._folder / row["crop"]).is_file() for row in rows if row["crop"])

    def _write(self, rows: Mapping[str, list[dict[str, str]]]) -> None:
        caption = ",".join(COLUMNS) + "\n"
        text = caption + _text([row for some in rows.values() for row in some])
        write_atomically(self._path, text.encode(**_ENCODING))


def _row(name: str, faces_found: int, faces_listed: int, line: Line) -> dict[str, str]:
    row = {"file": name, "status": line.status, "crop": line.crop, "reason": " ".join(line.reason.split())}
    row |= {"faces_found": str(faces_found), "faces_listed": str(faces_listed)}
    if line.face is None:
        return row | dict.fromkeys(_NUMBERS, "")
    values = (*line.face.box, *line.face.landmarks.ravel().tolist())
    places = zip(_NUMBERS[1:], (f"{value:.2f}" for value in values), strict=True)
    return row | {"score": f"{line.face.score:.4f}"} | dict(places)


def _text(rows: Iterable[Mapping[str, str]]) -> str:
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _check_settings(folder: Path, settings: Mapping[str, str | int]) -> None:
    """Write the settings of a new output folder; raise ValueError if an existing folder has different ones."""
    path = folder / SETTINGS
    if not path.is_file():
        write_atomically(path, json.dumps(dict(settings), indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete it, or choose another output folder") from error
    other = [f"{key} {before.get(key)} (now {value})" for key, value in settings.items() if before.get(key) != value]
    if other:
        raise ValueError(f"{folder} contains faces aligned with {', '.join(other)}: choose another output folder")
