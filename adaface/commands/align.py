r"""Align the faces of a tree of photographs to 112x112.

    adaface align <PHOTOGRAPHS> <FACES>
    adaface align <PHOTOGRAPHS> <FACES> --faces all --format jpg
    adaface align <PHOTOGRAPHS> <FACES> --landmarks landmarks.txt

The folder structure is kept. ``alignment.csv`` lists the result for each photograph. Run the same command again to
continue an interrupted alignment.
"""

import argparse
import hashlib
import sys
import time
from collections import Counter
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from adaface.alignment.detector import MTCNN, SMALLEST_FACE_PX, WHICH_FACES, Face
from adaface.alignment.journal import SETTINGS, TABLE, Journal
from adaface.alignment.landmark_file import check_landmarks, read_landmarks
from adaface.alignment.tree import (
    CROP_SUFFIXES,
    AlignmentJob,
    FindFaces,
    Outcome,
    align_tree,
)
from adaface.data.image_files import find_image_files, report_skipped
from adaface.data.image_header import readable_formats
from adaface.system.command_line import (
    DONE_WITH_PROBLEMS,
    FAILED,
    INTERRUPTED,
    counted,
    invocation,
    printable,
    program_name,
    run_to_status,
)
from adaface.system.files import make_writable_folder
from adaface.system.locks import RunLock
from adaface.system.option_parser import Parser
from adaface.system.quiet import quiet_decoders
from adaface.system.threads import usable_cores

MOST_MISPLACED = 0.001
_SHOWN = 5


def build_parser() -> Parser:
    """Build the command line's parser."""
    parser = Parser(
        prog=invocation("align"),
        description="Detect the faces in photographs and align them to 112x112 px, the input size of the networks. "
        f"Exit status: 0 if every photograph has a face, {DONE_WITH_PROBLEMS} if some have none, {FAILED} after an "
        f"error, {INTERRUPTED} if interrupted. Run the same command again to continue an interrupted alignment.",
    )
    parser.add_argument("source", metavar="PHOTOGRAPHS", type=Path, help="folder of photographs, at any depth")
    parser.add_argument(
        "output", metavar="FACES", type=Path, help="output folder, with the same subfolders as PHOTOGRAPHS"
    )
    parser.add_argument(
        "--faces",
        choices=WHICH_FACES,
        default=WHICH_FACES[0],
        help="faces of a photograph to align: the largest (default), the one nearest to the center, or all, largest "
        "first, named <name>_0, <name>_1, ...",
    )
    parser.add_argument(
        "--landmarks",
        metavar="FILE",
        type=Path,
        help="read landmarks from this file instead of detecting faces. Its lines are <file> <x1> <y1> ... <x5> <y5> "
        "[<score>]: eyes, nose and corners of the mouth, in px of the upright photograph",
    )
    parser.add_argument(
        "--format",
        choices=[suffix[1:] for suffix in CROP_SUFFIXES],
        default="png",
        help="image format of the faces (default: png)",
    )
    parser.add_argument(
        "--smallest_face_px",
        metavar="PX",
        type=int,
        default=SMALLEST_FACE_PX,
        help=f"side of the smallest face to detect, in px; 40 takes less than half the time of 20 (default: "
        f"{SMALLEST_FACE_PX})",
    )
    parser.add_argument(
        "--most_misplaced",
        metavar="FRACTION",
        type=float,
        default=MOST_MISPLACED,
        help="maximum fraction of faces, between 0 and 1, whose landmarks in the file do not fit the photograph "
        f"(default: {MOST_MISPLACED})",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="number of threads (default: one per core)")
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Args:
        words: command-line arguments after `adaface align`.

    Raises:
        ValueError: an unknown option, or contradictory options.
    """
    parser = build_parser()
    options = parser.parse(words)
    if options.threads is None:
        options.threads = usable_cores()
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if not 0 <= options.most_misplaced <= 1:
        parser.error(f"--most_misplaced must be between 0 and 1, got {options.most_misplaced}")
    if options.landmarks and options.smallest_face_px != SMALLEST_FACE_PX:
        parser.error("--smallest_face_px has no effect with --landmarks")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: command-line arguments after `adaface align`; None: those of the process.

    Returns:
        Exit status: 0 success, 1 some photographs have no aligned face, 2 error (one line on stderr), 130 interrupted.
    """
    opencv_threads = cv2.getNumThreads()

    def job() -> int:
        options = parse(sys.argv[1:] if words is None else words)
        cv2.setNumThreads(1)  # the threads work on different photographs
        with quiet_decoders():
            return _run(options)

    try:
        return run_to_status(
            program_name("align"), job, stopped="aligned faces are kept; run the same command to continue"
        )
    finally:
        cv2.setNumThreads(opencv_threads)


def _run(options: argparse.Namespace) -> int:
    source, output = options.source, options.output
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} is {'a file' if source.exists() else 'not there'}, expected a folder of photographs"
        )
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file, expected a folder for the faces")
    if output.resolve() == source.resolve():
        raise ValueError(f"{source} is given for both photographs and faces: choose another folder for the faces")
    settings = {"source": str(source.resolve()), "faces": options.faces, "format": options.format}
    found = find_image_files(source, omit=output)
    report_skipped(found, "photographs")
    names = sorted(found.names)
    if not names:
        raise FileNotFoundError(f"no photographs in {source}; readable are {', '.join(readable_formats())}")
    for note in _notes_on_earlier_faces(source, names):
        print(f"note: {note}")
    find_faces = _detector(options, settings, set(names))
    job = AlignmentJob(
        source,
        output,
        names,
        found.skipped,
        find_faces,
        options.faces,
        listed=options.landmarks is not None,
        suffix=f".{options.format}",
        threads=options.threads,
    )
    make_writable_folder(output, "FACES")
    with RunLock() as lock:
        try:
            lock.take(output)
        except RuntimeError as error:
            raise RuntimeError(f"another alignment is writing to {output}: wait for it, or stop it") from error
        began = time.monotonic()
        with Journal(output, settings) as journal:
            outcome = align_tree(job, journal)
    _tell(outcome, time.monotonic() - began, output)
    faces = outcome.crops + outcome.misplaced
    if options.landmarks and outcome.misplaced > options.most_misplaced * faces:
        raise ValueError(
            f"the landmarks of {outcome.misplaced:,} of {faces:,} faces do not fit their photographs "
            f"({100 * outcome.misplaced / faces:.1f} %, {100 * options.most_misplaced:g} % are allowed, see "
            f"--most_misplaced): is {options.landmarks} the file of these photographs, at this size? {output / TABLE} "
            "gives the reason of each"
        )
    return DONE_WITH_PROBLEMS if outcome.without else 0


def _notes_on_earlier_faces(source: Path, names: list[str]) -> list[str]:
    """Return a note on each folder among the photographs that an earlier alignment has written."""
    counts = Counter(name.rpartition("/")[0] for name in names)
    folders = {above.as_posix() for folder in counts for above in PurePosixPath(folder, "_").parents} - {".", "/"}
    notes = []
    for folder in sorted(folders):
        if (source / folder / TABLE).is_file() and (source / folder / SETTINGS).is_file():
            count = sum(count for place, count in counts.items() if f"{place}/".startswith(f"{folder}/"))
            faces = counted(count, "face in it is aligned as a photograph", "faces in it are aligned as photographs")
            notes.append(f"{printable(str(source / folder))} is the output of an earlier alignment: {faces}")
    return notes


def _detector(options: argparse.Namespace, settings: dict[str, str | int], names: set[str]) -> FindFaces:
    """Return the function that finds faces; add the options that it depends on to the settings."""
    if options.landmarks is None:
        settings["smallest_face_px"] = options.smallest_face_px
        detector = MTCNN(options.smallest_face_px)
        return lambda name, image: detector.detect(image)
    listed = read_landmarks(options.landmarks)
    settings["landmarks"] = hashlib.sha256(options.landmarks.read_bytes()).hexdigest()
    absent = [name for name in listed if name not in names]
    if absent:
        raise FileNotFoundError(
            f"{options.landmarks} names {len(absent)} of {len(listed)} photographs that are not in {options.source}, "
            f"such as {absent[0]}: names must be relative to that folder"
        )
    _check_set(options, listed)
    return lambda name, image: listed.get(name)


def _check_set(options: argparse.Namespace, listed: dict[str, list[Face]]) -> None:
    """Print a note, or raise ValueError, if the landmarks of most faces do not fit; --most_misplaced 1 allows it."""
    paths = [options.source / name for name, faces in listed.items() for _ in faces]
    landmarks = np.array([face.landmarks for faces in listed.values() for face in faces])
    try:
        for note in check_landmarks(options.source, paths, landmarks):
            print(f"note: {note}")
    except ValueError as error:
        if options.most_misplaced < 1:
            raise ValueError(f"{error} (--most_misplaced 1 aligns them all the same)") from error


def _tell(outcome: Outcome, seconds: float, output: Path) -> None:
    new = outcome.photographs - outcome.done_before
    before = f", {outcome.done_before:,} of them before" if outcome.done_before else ""
    rate = f"; {new / max(seconds, 1e-9):,.1f} photographs/s" if new else ""
    photographs, faces = _photographs(outcome.photographs), counted(outcome.crops, "face", "faces")
    print(f"{photographs}{before}: {faces} in {output}{rate}")
    if outcome.crops_deleted:
        faces = counted(outcome.crops_deleted, "face", "faces")
        print(f"deleted {faces} of earlier runs whose photographs are gone or skipped")
    if not outcome.without:
        return
    kinds = ", ".join(f"{count:,} {status}" for status, count in outcome.by_status.most_common())
    print(f"no face from {_photographs(len(outcome.without))} ({kinds}), all of them in {output / TABLE}:")
    for name, reason in outcome.without[:_SHOWN]:
        print(f"  {printable(name)}: {printable(reason)}")


def _photographs(number: int) -> str:
    return counted(number, "photograph", "photographs")


if __name__ == "__main__":
    sys.exit(main())
