"""Align all photographs below a folder, in threads; a stopped alignment goes on where it was."""

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
# name and pixels of a photograph -> its faces; None where nothing is known about it
FindFaces = Callable[[str, np.ndarray], list[Face] | None]


@dataclass(frozen=True)
class Wanted:
    """What to align, and how.

    Attributes:
        source: folder of the photographs.
        output: folder of the crops.
        names: of the photographs, below ``source``.
        find_faces: called in several threads.
        which_faces: one of ``detector.WHICH_FACES``.
        suffix: of the crops, one of ``CROP_SUFFIXES``.
        threads: how many photographs at a time.
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
    """What became of the photographs.

    Attributes:
        photographs: how many there are.
        done_before: of them, by earlier commands.
        crops: aligned faces.
        without: name and reason of each photograph from which no face was aligned.
        by_status: how many of those, by status.
    """

    photographs: int
    done_before: int
    crops: int
    without: list[tuple[str, str]]
    by_status: Counter[str]


def find_photographs(source: Path, output: Path) -> list[str]:
    """Return the names of the image files below a folder, sorted, with / between folders.

    Args:
        source: the folder; files and folders whose name begins with a dot are left out.
        output: a folder that is left out.
    """
    found = []
    for folder, folders, files in os.walk(source):
        here = Path(folder)
        folders[:] = [name for name in folders if name[0] != "." and (here / name).resolve() != output.resolve()]
        images = (here / name for name in files if name[0] != "." and name.lower().endswith(SUFFIXES))
        found += [image.relative_to(source).as_posix() for image in images]
    return sorted(found)


def crop_stems(names: Sequence[str]) -> dict[str, str]:
    """Return what the crops of each photograph are called, without suffix.

    Args:
        names: of the photographs. ``a.jpg`` gives ``a``; where ``a.png`` is there too, ``a.jpg`` and ``a.png``.

    Raises:
        ValueError: two photographs would still get the same name.
    """
    stems = {name: str(Path(name).with_suffix("")) for name in names}
    counts = Counter(stems.values())
    stems = {name: stem if counts[stem] == 1 else name for name, stem in stems.items()}
    if len(set(stems.values())) < len(stems):
        twice = Counter(stems.values()).most_common(1)[0][0]
        both = " and ".join(name for name, stem in stems.items() if stem == twice)
        raise ValueError(f"the crops of {both} would have the same name: rename one of them")
    return stems


def align_tree(wanted: Wanted, journal: Journal) -> Outcome:
    """Align every photograph that is not in the journal yet; a progress bar shows how far it is.

    Args:
        wanted: what to align.
        journal: of the output folder.

    Raises:
        OSError: a crop cannot be written.
    """
    stems = crop_stems(wanted.names)
    waiting = [name for name in wanted.names if name not in journal]
    work = partial(_align, wanted, stems)
    done_before = len(wanted.names) - len(waiting)
    with tqdm(total=len(wanted.names), initial=done_before, unit=" photographs", disable=None) as bar:
        results = in_order(work, waiting, threads=wanted.threads, ahead=4 * wanted.threads)
        for name, (faces_found, lines) in zip(waiting, results, strict=True):
            journal.add(name, faces_found, lines)
            bar.update()
    rows = journal.finish(wanted.names)
    without = {name: some for name, some in rows.items() if all(row["status"] != ALIGNED for row in some)}
    return Outcome(
        photographs=len(rows),
        done_before=done_before,
        crops=sum(row["status"] == ALIGNED for some in rows.values() for row in some),
        without=[(name, some[0]["reason"] or some[0]["status"]) for name, some in without.items()],
        by_status=Counter(some[0]["status"] for some in without.values()),
    )


def _align(wanted: Wanted, stems: dict[str, str], name: str) -> tuple[int, list[Line]]:
    """Write the crops of one photograph; return the number of its faces, and what became of them."""
    try:
        image = read_photograph(wanted.source / name)
    except ValueError as error:
        return 0, [Line(UNREADABLE, reason=str(error))]
    faces = wanted.find_faces(name, image)
    if faces is None:
        return 0, [Line(NOT_LISTED, reason="the landmark file does not name it")]
    if not faces:
        return 0, [Line(NO_FACE)]
    chosen = choose_faces(faces, wanted.which_faces, image.shape)
    numbered = wanted.which_faces == "all"
    crops = [f"{stems[name]}{f'_{number}' if numbered else ''}{wanted.suffix}" for number in range(len(chosen))]
    return len(faces), list(_write_crops(wanted, image, zip(chosen, crops, strict=True)))


def _write_crops(wanted: Wanted, image: np.ndarray, faces: Iterator[tuple[Face, str]]) -> Iterator[Line]:
    for face, crop in faces:
        try:
            aligned = warp_face(image, face.landmarks)
        except ValueError as error:
            yield Line(NO_TRANSFORM, face=face, reason=str(error))
            continue
        path = wanted.output / crop
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode(wanted.suffix, aligned, _ENCODING[wanted.suffix])[1]
        write_atomically(path, encoded.tobytes())
        yield Line(ALIGNED, crop, face)
