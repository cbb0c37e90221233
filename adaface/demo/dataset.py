"""Create a small data set of synthetic faces in the InsightFace layout; no download is needed.

    python -m adaface.demo.dataset --output demo/faces

The folder contains the same files as that of a real data set, so the same commands convert it, train on it and evaluate
with it:

    train.rec, train.idx, property      record 0 is the header, images 1..n, then one record per identity
    lfw.bin                             everyday pictures
    cfp_fp.bin                          frontal against strong pose
    agedb_30.bin, calfw.bin             old and faded prints of any age; young against old
    cplfw.bin                           strong pose, hats, glasses, objects in front of the face
    demo.json                           the parameters, so that a finished folder is recognized and kept

`person.py` and `faces.py` draw a person and a scene, `camera.py` adds light and lens; this module decides which person
is drawn under which conditions. The people of a verification set are in no other set and not in the training data.
Every image depends only on the seed, the person and the number of the picture: a larger training set contains the
smaller one, and the verification sets do not depend on its size.
"""

import sys

from adaface.system.interrupt import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()


import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adaface.data.pair_pickle import write_bin
from adaface.data.pair_sets import PAPER_SETS
from adaface.demo.camera import draw_camera, photograph
from adaface.demo.faces import draw_face
from adaface.demo.person import SIDE_PX, Identity, draw_identity, draw_scene
from adaface.records.reader import ImageHeader, RecordWriter, pack
from adaface.system.command_line import run_to_status
from adaface.system.files import atomic_path
from adaface.system.json_file import read_object
from adaface.system.option_parser import Parser
from adaface.system.progress_bar import progress_bar
from adaface.system.threads import usable_cores

logger = logging.getLogger("adaface.demo.dataset")  # `__name__` is `__main__` if this module is run

_DRAWING_VERSION = 1  # increase it when the drawing changes, so that an older folder is not mistaken for a new one
_JPEG_QUALITY = 95
_PARAMETERS_FILE = "demo.json"
_PICTURE_BITS = 20  # bits for the picture number in the key of the random stream
_PERSON_BITS = 32  # bits for the people of one set; training set and verification sets have separate ranges
_CHUNK_PICTURES = 32
_FEWEST_PICTURES_PER_PROCESS = 500  # for fewer, starting a process takes longer than drawing


@dataclass(frozen=True)
class DemoSize:
    """Size of the data set, with the defaults of all its parameters."""

    identities: int = 250
    images_per_identity: int = 24
    pairs: int = 300  # of each verification set
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("identities", 2), ("images_per_identity", 1), ("pairs", 10), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")


@dataclass(frozen=True)
class Conditions:
    """Ranges, (low, high), from which a scene and a camera are drawn."""

    yaw_deg: tuple[float, float] = (0.0, 20.0)  # to either side
    pitch_deg: float = 10.0
    age: tuple[float, float] = (0.0, 0.3)
    faded: tuple[float, float] = (0.0, 0.1)
    hidden_prob: float = 0.06  # probability of each of glasses, hat, object
    wear: float = 0.4  # from 0 (clean) to 1 (dark, blurred, noisy, compressed)


CONDITIONS = {
    "mild": Conditions(),
    "frontal": Conditions(yaw_deg=(0.0, 10.0), pitch_deg=6.0),
    "profile": Conditions(yaw_deg=(30.0, 52.0), pitch_deg=14.0, wear=0.5),
    "young": Conditions(age=(0.0, 0.15), wear=0.5),
    "aged": Conditions(age=(0.5, 1.0), faded=(0.0, 0.3), wear=0.5),
    "print": Conditions(age=(0.0, 0.9), faded=(0.1, 0.6), wear=0.7),
    "hidden": Conditions(yaw_deg=(10.0, 42.0), pitch_deg=14.0, hidden_prob=0.4, wear=0.6),
}
# Conditions of the first and the second image of a pair. They are the same for genuine and impostor pairs; otherwise
# the conditions would reveal the answer.
SET_CONDITIONS = {
    "agedb_30": ("print", "print"),
    "cfp_fp": ("frontal", "profile"),
    "lfw": ("mild", "mild"),
    "cplfw": ("hidden", "hidden"),
    "calfw": ("young", "aged"),
}
TRAINING_CONDITIONS = ("mild", "frontal", "profile", "young", "aged", "print", "hidden", "hidden")


@dataclass(frozen=True)
class Picture:
    """A picture to draw: person, number and conditions."""

    seed: int
    person: int
    number: int
    conditions: str


def _stream(seed: int, person: int, number: int) -> np.random.Generator:
    """Return the random stream of a picture; number 0 is the stream of the person."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, person << _PICTURE_BITS | number], np.uint64)))


@lru_cache(maxsize=4)
def _draw_person(seed: int, person: int) -> Identity:
    return draw_identity(_stream(seed, person, 0))


def draw_picture(picture: Picture) -> np.ndarray:
    """Draw one picture.

    Args:
        picture: person, number and conditions.

    Returns:
        (112, 112, 3) uint8 BGR.
    """
    person = _draw_person(picture.seed, picture.person)
    rng = _stream(picture.seed, picture.person, picture.number + 1)
    conditions = CONDITIONS[picture.conditions]
    scene = draw_scene(conditions.yaw_deg, conditions.pitch_deg, conditions.age, conditions.hidden_prob, rng)
    camera = draw_camera(conditions.wear, conditions.faded, rng)
    return photograph(draw_face(person, scene, rng), camera, rng)


def _encode(picture: Picture) -> bytes:
    ok, encoded = cv2.imencode(".jpg", draw_picture(picture), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode {picture}; is it built with JPEG?")
    return encoded.tobytes()


def training_pictures(size: DemoSize) -> list[Picture]:
    """List the training pictures, sorted by person.

    Args:
        size: size of the data set.

    Returns:
        identities * images_per_identity pictures.
    """
    pictures = []
    for person in range(size.identities):
        for number in range(size.images_per_identity):
            # the conditions depend on person and number only, so a larger set keeps the pictures of a smaller one
            choice = (person + number) % len(TRAINING_CONDITIONS)
            pictures.append(Picture(size.seed, person, number, TRAINING_CONDITIONS[choice]))
    return pictures


def pair_pictures(size: DemoSize, name: str) -> tuple[list[Picture], np.ndarray]:
    """List the pictures of a verification set.

    Genuine and impostor pairs alternate, so every tenth of the file has the same number of both; they differ by one if
    that number is odd. No picture occurs twice.

    Args:
        size: size of the data set.
        name: one of the five sets.

    Returns:
        2P pictures, and `issame` (P,) bool.
    """
    first_person = (1 + PAPER_SETS.index(name)) << _PERSON_BITS
    people = max(2, size.pairs // 2)
    pictures, issame = [], np.arange(size.pairs) % 2 == 0
    for pair in range(size.pairs):
        person, other = (pair // 2) % people, (pair // 2) % people
        if not issame[pair]:
            other = (person + 1 + pair // 2 % (people - 1)) % people
        for member, who in enumerate((person, other)):
            pictures.append(Picture(size.seed, first_person + who, 2 * pair + member, SET_CONDITIONS[name][member]))
    return pictures, issame


def _encode_all(pictures: list[Picture], processes: int, bar: Any) -> Iterator[bytes]:
    """Draw and encode pictures in order, in several processes if that is faster."""
    processes = min(processes, len(pictures) // _FEWEST_PICTURES_PER_PROCESS)
    if processes < 2:
        for picture in pictures:
            bar.update()
            yield _encode(picture)
        return
    # forked children of a process that has used OpenCV's threads can hang, so spawn them
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        for encoded in pool.map(_encode, pictures, chunksize=_CHUNK_PICTURES):
            bar.update()
            yield encoded


def _write_training_records(folder: Path, size: DemoSize, images: Iterator[bytes]) -> None:
    """Write train.rec, train.idx and property."""
    count, identities = size.identities * size.images_per_identity, size.identities

    def labels(first: int, last: int) -> ImageHeader:
        return ImageHeader(label=np.array([first, last], np.float32))

    with RecordWriter(folder / "train.rec") as writer:
        writer.write(0, pack(labels(count + 1, count + 1 + identities), b""))
        for key in range(1, count + 1):
            label = float((key - 1) // size.images_per_identity)
            writer.write(key, pack(ImageHeader(label=label, id=key), next(images)))
        for person in range(identities):
            first = 1 + person * size.images_per_identity
            header = labels(first, first + size.images_per_identity)
            writer.write(count + 1 + person, pack(header, b""))
    (folder / "property").write_text(f"{identities},{SIDE_PX},{SIDE_PX}\n", encoding="utf-8")


def write_demo_data(
    output: str | os.PathLike[str],
    identities: int = DemoSize.identities,
    images_per_identity: int = DemoSize.images_per_identity,
    pairs: int = DemoSize.pairs,
    seed: int = DemoSize.seed,
    processes: int | None = None,
) -> Path:
    """Draw a data set: train.rec, train.idx, property and the five verification sets.

    The folder is created only when it is complete. A finished folder with the same parameters is kept.

    Args:
        output: folder to create.
        identities: number of identities of the training set.
        images_per_identity: number of training images per identity.
        pairs: number of pairs of each verification set, at least 10; a multiple of 20 balances every tenth.
        seed: random seed, at least 0.
        processes: number of processes; None: one per usable core. The result does not depend on it.

    Returns:
        The folder.

    Raises:
        ValueError: a size is out of range, or `output` contains other files.
    """
    size, folder = DemoSize(identities, images_per_identity, pairs, seed), Path(output)
    parameters = {"drawing_version": _DRAWING_VERSION, **asdict(size)}
    if folder.exists() and any(folder.iterdir()):
        _check_finished(folder, parameters)
        logger.info(f"{folder}: already finished with the same parameters; nothing to do")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    sets = {name: pair_pictures(size, name) for name in PAPER_SETS}
    pictures = training_pictures(size) + [picture for chosen, _ in sets.values() for picture in chosen]
    # an incomplete folder of a killed run is deleted, because drawing is faster than checking it
    with (
        atomic_path(folder) as part,
        progress_bar(total=len(pictures), desc="drawing faces", unit=" images") as bar,
    ):
        part.mkdir()
        images = _encode_all(pictures, processes or usable_cores(), bar)
        _write_training_records(part, size, images)
        for name, (chosen, issame) in sets.items():
            write_bin(part / f"{name}.bin", [next(images) for _ in chosen], issame)
        (part / _PARAMETERS_FILE).write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
    return folder


def _check_finished(folder: Path, parameters: dict[str, int]) -> None:
    """Raise ValueError if a folder is not the finished data set with these parameters."""
    try:
        stored = read_object(folder / _PARAMETERS_FILE)
    except (FileNotFoundError, ValueError):
        raise ValueError(
            f"{folder} is not empty and not a finished demo data set (no readable {_PARAMETERS_FILE}): "
            "choose another --output or remove the folder"
        ) from None
    if stored != parameters:
        raise ValueError(
            f"{folder} contains demo data with other parameters ({stored}), expected {parameters}: "
            "choose another --output or remove the folder"
        )


def main() -> int:
    """Run the command line and return the exit status."""
    defaults = DemoSize()
    parser = Parser(
        prog="python -m adaface.demo.dataset",
        description="Create a small data set of synthetic faces in the InsightFace layout.",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder to create")
    helps = {
        "identities": "number of identities of the training set",
        "images_per_identity": "number of training images per identity",
        "pairs": "number of pairs of each verification set, preferably a multiple of 20",
        "seed": "random seed",
    }
    for name, text in helps.items():
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", metavar="N", type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--processes", metavar="N", type=int, help="number of processes (default: one per core)")

    def job() -> int:
        logger.info(f"demo data: {write_demo_data(**vars(parser.parse(sys.argv[1:])))}")
        return 0

    return run_to_status("demo data", job, stopped="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
