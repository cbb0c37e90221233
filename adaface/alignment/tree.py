"""Align all photographs below a folder, in threads; an interrupted alignment resumes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from adaface.alignment.detector import Face, choose_faces
from adaface.alignment.journal import (
    ALIGNED,
    NO_FACE,
    NO_TRANSFORM,
    NOT_LISTED,
    SKIPPED,
    UNREADABLE,
    Journal,
    Line,
    read_with_state,
)  # fmt: skip
from adaface.alignment.photograph import decode_photograph
from adaface.alignment.warp import warp_face, warp_listed_face
from adaface.data.image_files import Skipped
from adaface.system.files import FileState, write_atomically
from adaface.system.progress_bar import progress_bar
from adaface.system.threads import in_order

_ENCODING = {
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
    ".jpg": [
        cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    ],
}  # fmt: skip
CROP_SUFFIXES = tuple(_ENCODING)
# name and pixels of a photograph -> its faces; None if it is not listed
FindFaces = Callable[[str, np.ndarray], list[Face] | None]


@dataclass(frozen=True)
class AlignmentJob:
    """What to align, and how.

    Attributes:
        source: folder of the photographs.
        output: folder of the crops.
        names: paths of the photographs, relative to ``source``.
        skipped: files that are not read; photographs among them are listed in the table.
        find_faces: returns the faces of a photograph; called from several threads.
        which_faces: one of ``detector.WHICH_FACES``.
        listed: the landmarks come from a file, and are checked.
        suffix: file name suffix of the crops, one of ``CROP_SUFFIXES``.
        threads: number of photographs processed at a time.
    """

    source: Path
    output: Path
    names: Sequence[str]
    skipped: Sequence[Skipped]
    find_faces: FindFaces
    which_faces: str
    listed: bool
    suffix: str
    threads: int


@dataclass(frozen=True)
class Outcome:
    """Summary of an alignment.

    Attributes:
        photographs: number of photographs.
        done_before: number of photographs that earlier runs have processed.
        crops: number of aligned faces.
        without: name and reason of each photograph without an aligned face.
        by_status: number of photographs without an aligned face, by status.
        misplaced: number of faces whose landmarks do not fit the photograph.
        crops_deleted: number of faces of earlier runs whose photographs are gone or skipped.
    """

    photographs: int
    done_before: int
    crops: int
    without: list[tuple[str, str]]
    by_status: Counter[str]
    misplaced: int
    crops_deleted: int


def crop_stems(names: Sequence[str]) -> dict[str, str]:
    """Return the file names of the crops of each photograph, without suffix; no two are equal.

    Args:
        names: names of the photographs. ``a.jpg`` gives ``a``; if there is an ``a.png`` too, ``a.jpg`` and ``a.png``.
    """
    stems = {name: str(Path(name).with_suffix("")) for name in names}
    while len(counts := Counter(stems.values())) < len(stems):  # a full name may be the stem of a third photograph
        stems = {name: stem if counts[stem] == 1 else name for name, stem in stems.items()}
    return stems


def align_tree(job: AlignmentJob, journal: Journal) -> Outcome:
    """Align every photograph that is not in the journal yet, with a progress bar.

    Args:
        job: what to align, and how.
        journal: journal of the output folder.

    Raises:
        OSError: a crop cannot be written.
    """
    stems = crop_stems(job.names)
    journal.forget_renamed(job.names, lambda name, number: _crop_name(job, stems[name], number))
    waiting = [name for name in job.names if not journal.is_done(name, job.source / name)]
    work = partial(_align, job, stems)
    done_before = len(job.names) - len(waiting)
    with progress_bar(total=len(job.names), initial=done_before, unit=" photographs") as bar:
        results = in_order(work, waiting, threads=job.threads, ahead=4 * job.threads)
        for name, (faces_found, lines, state) in zip(waiting, results, strict=True):
            journal.add(name, faces_found, lines, state)
            bar.update()
    lost = {entry.name: Line(SKIPPED, reason=entry.reason) for entry in job.skipped if entry.photograph}
    rows = journal.finish(job.names, lost)
    without = {name: some for name, some in rows.items() if all(row["status"] != ALIGNED for row in some)}
    return Outcome(
        photographs=len(rows),
        done_before=done_before,
        crops=sum(row["status"] == ALIGNED for some in rows.values() for row in some),
        without=[(name, some[0]["reason"] or some[0]["status"]) for name, some in without.items()],
        by_status=Counter(some[0]["status"] for some in without.values()),
        misplaced=sum(row["status"] == NO_TRANSFORM for some in rows.values() for row in some),
        crops_deleted=journal.crops_deleted,
    )


def _align(job: AlignmentJob, stems: dict[str, str], name: str) -> tuple[int, list[Line], FileState | None]:
    """Write the crops of one photograph; return the number of its faces, lines for the journal, and its state."""
    path, state = job.source / name, None
    try:
        content, state = read_with_state(path)
        image = decode_photograph(content, str(path))
    except OSError as error:
        return 0, [Line(UNREADABLE, reason=f"{path} cannot be read: {error.strerror or error}")], None
    except ValueError as error:
        return 0, [Line(UNREADABLE, reason=str(error))], state
    faces = job.find_faces(name, image)
    if faces is None:
        return 0, [Line(NOT_LISTED, reason="the landmark file does not name it")], state
    if not faces:
        return 0, [Line(NO_FACE)], state
    chosen = choose_faces(faces, job.which_faces, image.shape)
    crops = [_crop_name(job, stems[name], number) for number in range(len(chosen))]
    return len(faces), list(_write_crops(job, image, zip(chosen, crops, strict=True))), state


def _crop_name(job: AlignmentJob, stem: str, number: int) -> str:
    return f"{stem}{f'_{number}' if job.which_faces == 'all' else ''}{job.suffix}"


def _write_crops(job: AlignmentJob, image: np.ndarray, faces: Iterator[tuple[Face, str]]) -> Iterator[Line]:
    for face, crop in faces:
        try:
            aligned = (warp_listed_face if job.listed else warp_face)(image, face.landmarks)
        except ValueError as error:
            yield Line(NO_TRANSFORM, face=face, reason=str(error))
            continue
        path = job.output / crop
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode(job.suffix, aligned, _ENCODING[job.suffix])[1]
        write_atomically(path, encoded.tobytes())
        yield Line(ALIGNED, crop, face)
