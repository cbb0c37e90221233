"""``alignment.csv``: one line per aligned face or photograph without a face; an interrupted run resumes from it.

A photograph is done if its file has the size and time of before, or else the content of before.

The lines of a photograph are appended when its crops are complete. At the end they are sorted in the order of the
photographs, so that a resumed alignment writes the same file as an uninterrupted one.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaface.alignment.detector import Face
from adaface.system.csv_text import SafeWriter, original
from adaface.system.files import FileState, write_atomically
from adaface.system.json_file import read_object

TABLE, SETTINGS = "alignment.csv", "alignment.json"
ALIGNED, NO_FACE, NO_TRANSFORM, UNREADABLE, NOT_LISTED, SKIPPED = (
    "aligned", "no face", "no transform", "unreadable", "no landmarks", "skipped"
)  # fmt: skip
_POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
_EDGES = ("left", "top", "right", "bottom")
_NUMBERS = ("score", *_EDGES, *(f"{point}_{axis}" for point in _POINTS for axis in "xy"))
_STATE = ("bytes", "modified_ns", "sha256")
_FIRST_COLUMNS = ("file", "status", "faces_found", "faces_listed", "crop", *_NUMBERS, "reason")  # of version 0.2
COLUMNS = (*_FIRST_COLUMNS, *_STATE)
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


def read_with_state(path: Path) -> tuple[bytes, FileState]:
    """Read a file.

    Returns:
        Its content, and its state.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        content = file.read()
    return content, FileState(len(content), status.st_mtime_ns, hashlib.sha256(content).hexdigest())


class Journal:
    """The table of an output folder, and the photographs that are done.

    Args:
        folder: existing output folder.
        settings: options that the crops depend on; texts and numbers.

    Attributes:
        crops_deleted: number of crops whose photographs are gone or skipped; after ``finish``.

    Raises:
        ValueError: the folder was started with other settings, or contains a table of another program.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str | int]) -> None:
        self._folder, self._path = folder, folder / TABLE
        _check_settings(folder, settings)
        self._before: dict[str, list[dict[str, str]]] = {}  # rows of photographs to do again
        self._rows = self._read()
        self.crops_deleted = 0
        self._folders_to_tidy: set[Path] = set()
        self._write(self._rows)  # without a line that was cut off
        self._file = self._path.open("a", newline="", **_ENCODING)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._file.close()

    def forget_renamed(self, names: Iterable[str], crop_name: Callable[[str, int], str]) -> None:
        """Forget photographs whose crops have other names now, and delete these crops.

        Since another photograph of almost the same name was added or removed. Tables of earlier versions may list a
        crop for two photographs: both are forgotten, as it is the face of only one of them.

        Args:
            names: names of all photographs.
            crop_name: name of a photograph and number of the face -> name of the crop.
        """
        before = {**self._before, **self._rows}
        owners = Counter(row["crop"] for rows in before.values() for row in rows)
        renamed = {
            name
            for name in names
            for number, row in enumerate(before.get(name, []))
            if row["crop"] and (row["crop"] != crop_name(name, number) or owners[row["crop"]] > 1)
        }
        if not renamed:
            return
        gone = [row for name in renamed for row in before.pop(name)]
        self._before = {name: rows for name, rows in self._before.items() if name in before}
        self._rows = {name: rows for name, rows in self._rows.items() if name in before}
        self._delete_crops(gone, keep={row["crop"] for rows in before.values() for row in rows})

    def is_done(self, name: str, path: Path) -> bool:
        """Return whether a photograph is done, and is the same file or the same content as then.

        Args:
            name: path of the photograph, relative to the input folder.
            path: its file.
        """
        rows = self._rows.get(name)
        if rows is None:
            return False
        if not rows[0]["bytes"].isdecimal() or not rows[0]["modified_ns"].lstrip("-").isdecimal():
            return False
        before = FileState(int(rows[0]["bytes"]), int(rows[0]["modified_ns"]), rows[0]["sha256"])
        if not before.still_of(path):
            return False
        for row in rows:  # the same content may have another time: the next run need not read it
            row["modified_ns"] = str(path.stat().st_mtime_ns)
        return True

    def add(self, name: str, faces_found: int, lines: Sequence[Line], state: FileState | None) -> None:
        """Append the lines of a photograph whose crops are complete.

        Args:
            name: path of the photograph, relative to the input folder.
            faces_found: number of faces in it.
            lines: at least one line.
            state: of the photograph; None if it could not be read.
        """
        self._delete_crops(self._before.pop(name, self._rows.get(name, [])), keep={line.crop for line in lines})
        self._rows[name] = [_row(name, faces_found, len(lines), line, state) for line in lines]
        self._file.write(_text(self._rows[name]))
        self._file.flush()

    def finish(
        self, names: Iterable[str], skipped: Mapping[str, Line] | None = None
    ) -> dict[str, list[dict[str, str]]]:
        """Rewrite the table in the order of the photographs, and return its rows by photograph.

        Crops of photographs that are gone or skipped now are deleted, with folders that are empty then: training takes
        an empty folder for a person without images.

        Args:
            names: names of all photographs.
            skipped: lines of those that were not read, by name.
        """
        rows = {name: self._rows[name] for name in names}
        used = {row["crop"] for some in rows.values() for row in some}
        gone = [row for name, some in {**self._before, **self._rows}.items() if name not in rows for row in some]
        self.crops_deleted = self._delete_crops(gone, keep=used)
        for folder in self._folders_to_tidy:  # not before: a thread may be about to write into one
            with contextlib.suppress(OSError):  # it is not empty
                while folder != self._folder:
                    folder.rmdir()
                    folder = folder.parent
        rows |= {name: [_row(name, 0, 1, line, None)] for name, line in (skipped or {}).items()}
        self._write(rows)
        return rows

    def _delete_crops(self, rows: Iterable[Mapping[str, str]], keep: set[str]) -> int:
        """Delete crops that this table has listed; return their number."""
        deleted = 0
        for crop in {row["crop"] for row in rows} - keep - {""}:
            path = self._folder / crop
            # a table can be edited, and hold what is no name of a file
            if "\0" in crop or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._folder)):
                continue
            self._folders_to_tidy.add(path.parent)
            if path.is_file():
                path.unlink()
                deleted += 1
        return deleted

    def _read(self) -> dict[str, list[dict[str, str]]]:
        """Return the rows of photographs that are done; unreadable ones are tried again."""
        if not self._path.is_file():
            return {}
        with self._path.open(newline="", **_ENCODING) as file:
            text = file.read()
        try:
            lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        except csv.Error as error:
            raise ValueError(f"{self._path} is damaged ({error}): choose another output folder") from error
        columns = tuple(lines[0]) if lines else COLUMNS
        if columns not in (COLUMNS, _FIRST_COLUMNS):
            raise ValueError(
                f"{self._path} was not written by this program (other columns): choose another output folder"
            )
        rows = defaultdict(list)
        for fields in lines[1:]:
            if len(fields) == len(columns):
                row = dict(zip(columns, map(original, fields), strict=True))
                rows[row["file"]].append(dict.fromkeys(_STATE, "") | row)
        done = {name: some for name, some in rows.items() if self._is_complete(some)}
        self._before = {name: some for name, some in rows.items() if name not in done}
        return done

    def _is_complete(self, rows: list[dict[str, str]]) -> bool:
        if str(len(rows)) != rows[0]["faces_listed"] or rows[0]["status"] in (UNREADABLE, SKIPPED):
            return False
        crops = [self._folder / row["crop"] for row in rows if row["crop"]]
        return all(crop.is_file() and crop.stat().st_size for crop in crops)  # a full disk can leave an empty file

    def _write(self, rows: Mapping[str, list[dict[str, str]]]) -> None:
        caption = ",".join(COLUMNS) + "\n"
        text = caption + _text([row for some in rows.values() for row in some])
        write_atomically(self._path, text.encode(**_ENCODING))


def _row(name: str, faces_found: int, faces_listed: int, line: Line, state: FileState | None) -> dict[str, str]:
    row = {"file": name, "status": line.status, "crop": line.crop, "reason": " ".join(line.reason.split())}
    row |= {"faces_found": str(faces_found), "faces_listed": str(faces_listed)}
    values = ("", "", "") if state is None else (str(state.size), str(state.modified_ns), state.sha256)
    row |= dict(zip(_STATE, values, strict=True))
    if line.face is None:
        return row | dict.fromkeys(_NUMBERS, "")
    values = (*line.face.box, *line.face.landmarks.ravel().tolist())
    places = zip(_NUMBERS[1:], (f"{value:.2f}" for value in values), strict=True)
    return row | {"score": f"{line.face.score:.4f}"} | dict(places)


def _text(rows: Iterable[Mapping[str, str]]) -> str:
    buffer = io.StringIO()
    SafeWriter(buffer).writerows([row[name] for name in COLUMNS] for row in rows)
    return buffer.getvalue()


def _check_settings(folder: Path, settings: Mapping[str, str | int]) -> None:
    """Write the settings of a new output folder; raise ValueError if an existing folder has different ones."""
    path = folder / SETTINGS
    if not path.is_file():
        write_atomically(path, json.dumps(dict(settings), indent=1) + "\n")
        return
    try:
        before = read_object(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete it, or choose another output folder") from error
    other = [f"{key} {before.get(key)} (now {value})" for key, value in settings.items() if before.get(key) != value]
    if other:
        raise ValueError(f"{folder} contains faces aligned with {', '.join(other)}: choose another output folder")
