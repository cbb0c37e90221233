"""``alignment.csv``: a line for each aligned face and each photograph without one; also how far an alignment is.

The lines of a photograph are appended when its crops are complete. At the end they are put into the order of the
photographs, so that a killed and continued alignment leaves the same file as one that was never stopped.
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
    """What became of one face, or of a photograph without one.

    Attributes:
        status: ``aligned`` or why not.
        crop: name of the aligned face, below the output folder; empty where there is none.
        face: where it is; None where there is none.
        reason: more than the status says, empty if nothing.
    """

    status: str
    crop: str = ""
    face: Face | None = None
    reason: str = ""


class Journal:
    """The table of an output folder, and which photographs are in it.

    Args:
        folder: it exists.
        settings: what the crops depend on; texts and numbers.

    Raises:
        ValueError: the folder was begun with other settings, or holds a table that is not ours.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str | int]) -> None:
        self._folder, self._path = folder, folder / TABLE
        _check_settings(folder, settings)
        self._rows = self._read()
        self._write(self._rows)  # without what a kill has cut off
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
            name: of the photograph, below the input folder.
            faces_found: in it.
            lines: at least one.
        """
        self._rows[name] = [_row(name, faces_found, len(lines), line) for line in lines]
        self._file.write(_text(self._rows[name]))
        self._file.flush()

    def finish(self, names: Iterable[str]) -> dict[str, list[dict[str, str]]]:
        """Write the table anew in the order of the photographs, and return its rows by photograph.

        Args:
            names: of all photographs; those that are no longer there are left out of the table.
        """
        rows = {name: self._rows[name] for name in names}
        self._write(rows)
        return rows

    def _read(self) -> dict[str, list[dict[str, str]]]:
        """Return the rows of photographs that are done; unreadable ones may have been repaired since."""
        if not self._path.is_file():
            return {}
        with self._path.open(newline="", **_ENCODING) as file:
            text = file.read()
        found = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if found and tuple(found[0]) != COLUMNS:
            raise ValueError(f"{self._path} is not a table of this program: give another output folder")
        rows = defaultdict(list)
        for fields in found[1:]:
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
    """Write the settings of a new output folder; raise where those of an old one are others."""
    path = folder / SETTINGS
    if not path.is_file():
        write_atomically(path, json.dumps(dict(settings), indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete it, or give another output folder") from error
    other = [f"{key} {before.get(key)} (now {value})" for key, value in settings.items() if before.get(key) != value]
    if other:
        raise ValueError(f"{folder} holds faces that were aligned with {', '.join(other)}: give another output folder")
