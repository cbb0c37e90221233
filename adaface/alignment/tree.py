"""Align all photographs below a folder, in threads; an interrupted alignment resumes."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from adaface.alignment.detector import Face, choose_faces
from adaface.alignment.journal import ALIGNED, NO_FACE, NO_TRANSFORM, NOT_LISTED, UNREADABLE, Journal, Line
from adaface.alignment.photograph import read_photograph
from adaface.alignment.warp import warp_face
from adaface.system.files import write_atomically
from adaface.system.threads import in_order

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif", ".jp2")
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
        find_faces: returns the faces of a photograph; called from several threads.
        which_faces: one of ``detector.WHICH_FACES``.
        suffix: file name suffix of the crops, one of ``CROP_SUFFIXES``.
        threads: number of photographs processed at a time.
    """

    source: Path
    output: Path
    names: Sequence[str]
    find_faces: FindFaces
    which_faces: str
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
    """

    photographs: int
    done_before: int
    crops: int
    without: list[tuple[str, str]]
    by_status: Counter[str]


def find_photographs(source: Path, output: Path) -> list[str]:
    """Return the names of the image files below a folder, sorted, with / between folders.

    Args:
        source: folder to search; files and folders whose name begins with a dot are skipped.
        output: folder to skip.
    """
    photographs = []
    for folder, folders, files in os.walk(source):
        here = Path(folder)
        folders[:] = [name for name in folders if name[0] != "." and (here / name).resolve() != output.resolve()]
        images = (here / name for name in files if name[0] != "." and name.lower().endswith(SUFFIXES))
        photographs += [image.relative_to(source).as_posix() for image in images]
    return sorted(photographs)


def crop_stems(names: Sequence[str]) -> dict[str, str]:
    """Return the file names of the crops of each photograph, without suffix.

    Args:
        names: names of the photographs. ``a.jpg`` gives ``a``; if there is an ``a.png`` too, ``a.jpg`` and ``a.png``.

    Raises:
        ValueError: two photographs would still get the same file name.
    """
    stems = {name: str(Path(name).with_suffix("")) for name in names}
    counts = Counter(stems.values())
    stems = {name: stem if counts[stem] == 1 else name for name, stem in stems.items()}
    if len(set(stems.values())) < len(stems):
        twice = Counter(stems.values()).most_common(1)[0][0]
        both = " and ".join(name for name, stem in stems.items() if stem == twice)
        raise ValueError(f"the crops of {both} would have the same name: rename one of them")
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
    waiting = [name for name in job.names if name not in journal]
    work = partial(_align, job, stems)
    done_before = len(job.names) - len(waiting)
    with tqdm(total=len(job.names), initial=done_before, unit=" photographs", disable=None) as bar:
        results = in_order(work, waiting, threads=job.threads, ahead=4 * job.threads)
        for name, (faces_found, lines) in zip(waiting, results, strict=True):
            journal.add(name, faces_found, lines)
            bar.update()
    rows = journal.finish(job.names)
    without = {name: some for name, some in rows.items() if all(row["status"] != ALIGNED for row in some)}
    return Outcome(
        photographs=len(rows),
        done_before=done_before,
        crops=sum(row["status"] == ALIGNED for some in rows.values() for row in some),
        without=[(name, some[0]["reason"] or some[0]["status"]) for name, some in without.items()],
        by_status=Counter(some[0]["status"] for some in without.values()),
    )


def _align(job: AlignmentJob, stems: dict[str, str], name: str) -> tuple[int, list[Line]]:
    """Write the crops of one photograph; return the number of its faces and the lines for the journal."""
    try:
        image = read_photograph(job.source / name)
    except ValueError as error:
        return 0, [Line(UNREADABLE, reason=str(error))]
    faces = job.find_faces(name, image)
    if faces is None:
        return 0, [Line(NOT_LISTED, reason="the landmark file does not name it")]
    if not faces:
        return 0, [Line(NO_FACE)]
    chosen = choose_faces(faces, job.which_faces, image.shape)
    numbered = job.which_faces == "all"
    crops = [f"{stems[name]}{f'_{number}' if numbered else ''}{job.suffix}" for number in range(len(chosen))]
    return len(faces), list(_write_crops(job, image, zip(chosen, crops, strict=True)))


def _write_crops(job: AlignmentJob, image: np.ndarray, faces: Iterator[tuple[Face, str]]) -> Iterator[Line]:
    for face, crop in faces:
        try:
            aligned = warp_face(image, face.landmarks)
        except ValueError as error:
            yield Line(NO_TRANSFORM, face=face, reason=str(error))
            continue
        path = job.output / crop
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode(job.suffix, aligned, _ENCODING[job.suffix])[1]
        write_atomically(path, encoded.tobytes())
        yield Line(ALIGNED, crop, face)
