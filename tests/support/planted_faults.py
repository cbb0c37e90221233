"""Plants 200 faults of eight kinds in a copy of drawn faces, and looks for them among what an audit has found.

    python tests/planted_faults.py --output demo/faulty

draws the faces, converts them, and writes `clean/` and `faulty/` (image folders), `faults.csv` and the test set that 25
images leak from; audit both with `adaface audit demo/faulty/faulty --test_sets demo/faulty/faces/lfw.bin`.
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adaface.commands import convert
from adaface.data.pair_pickle import read_bin
from adaface.demo.dataset import Picture, draw_picture, write_demo_data

EACH = 25
# what is planted, and the findings that name it
KINDS = {
    "unreadable": {"unreadable image"},
    "wrong size or grey": {"wrong size", "grey image"},
    "empty or single": {"empty identity", "single image"},
    "copy inside": {"duplicate inside"},
    "near copy across": {"near duplicate across"},
    "swapped": {"red and blue swapped"},
    "leaked": {"leaked image"},
    "mislabelled": {"mislabelled"},
}
NEEDS_MODEL = "mislabelled"
SIZE = {"identities": 48, "images_per_identity": 12, "pairs": 20, "seed": 11}


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        kind: of ``KINDS``.
        identity: folder of the image, or the one that is empty or has one image.
        image: its file; empty for an empty identity.
    """

    kind: str
    identity: str
    image: str = ""


@dataclass
class _Planter:
    """Images of a folder that no fault was planted in yet."""

    root: Path
    rng: np.random.Generator
    left: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        images = sorted(self.root.glob("*/*.jpg"))
        self.left = [images[place] for place in self.rng.permutation(len(images))]

    def take(self) -> Path:
        return self.left.pop()

    def note(self, kind: str, path: Path) -> None:
        self.faults.append(Fault(kind, path.parent.name, path.name))

    def other_identity(self, path: Path) -> Path:
        others = sorted({one.parent for one in self.left} - {path.parent})
        return others[self.rng.integers(len(others))]


def make_clean_copy(folder: Path) -> tuple[Path, Path]:
    """Draw faces and convert them; returns the image folder and a test set of people who are not in it."""
    faces = write_demo_data(folder / "faces", **SIZE, processes=1)
    assert convert.main(["--rec_path", str(faces), "--make_image_files"]) == 0
    shutil.move(faces / "imgs", folder / "clean")
    return folder / "clean", faces / "lfw.bin"


def plant(clean: Path, faulty: Path, test_set: Path, seed: int = 0) -> list[Fault]:
    """Copy an image folder, and plant 25 faults of each kind in the copy."""
    shutil.copytree(clean, faulty)
    planter = _Planter(faulty, np.random.default_rng(seed))
    _plant_swapped(planter)  # first: it takes a whole identity
    for number in range(EACH):
        _plant_unreadable(planter, number)
        _plant_shape(planter, number)
        _plant_lonely(planter, number)
        _plant_copy(planter)
        _plant_near_copy(planter, number)
        _plant_leak(planter, read_bin(test_set)[0], number)
        _plant_label(planter)
    return planter.faults


def _plant_unreadable(planter: _Planter, number: int) -> None:
    path = planter.take()
    data = path.read_bytes()
    cut = planter.rng.integers(20, len(data) - 20)
    path.write_bytes([data[:cut], b"", b"<html>not found</html>", data[: len(data) // 2] + b"\xff\xd9"][number % 4])
    planter.note("unreadable", path)


def _plant_shape(planter: _Planter, number: int) -> None:
    path = planter.take()
    image = cv2.imread(str(path))
    sizes = [(112, 96), (160, 160), (250, 250), (56, 56)]
    changed = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if number % 2 else cv2.resize(image, sizes[number // 2 % 4])
    cv2.imwrite(str(path), changed)
    planter.note("wrong size or grey", path)


def _plant_lonely(planter: _Planter, number: int) -> None:
    folder = planter.root / f"lonely_{number}"
    folder.mkdir()
    if number % 2:
        planter.faults.append(Fault("empty or single", folder.name))
        return
    picture = draw_picture(Picture(SIZE["seed"], SIZE["identities"] + number, 0, "mild"))
    cv2.imwrite(str(folder / "0.jpg"), picture)
    planter.note("empty or single", folder / "0.jpg")


def _plant_copy(planter: _Planter) -> None:
    path = planter.take()
    copy = path.with_name(f"{path.stem}_copy.jpg")
    shutil.copy(path, copy)
    planter.note("copy inside", copy)


def _changed(image: np.ndarray, number: int) -> np.ndarray:
    """The same picture, as it comes from another site."""
    shift = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    changes: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda x: x,  # and encoded anew
        lambda x: x[:, ::-1],
        lambda x: cv2.convertScaleAbs(x, alpha=0.9, beta=6),
        lambda x: cv2.GaussianBlur(x, (0, 0), 1.0),
        lambda x: cv2.resize(cv2.resize(x, (64, 64), interpolation=cv2.INTER_AREA), (112, 112)),
        lambda x: cv2.warpAffine(x, shift, (112, 112), borderMode=cv2.BORDER_REPLICATE),
    ]
    return np.ascontiguousarray(changes[number % len(changes)](image))


def _write(path: Path, image: np.ndarray, quality: int) -> None:
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _plant_near_copy(planter: _Planter, number: int) -> None:
    path = planter.take()
    copy = planter.other_identity(path) / f"{path.stem}_of_{path.parent.name}.jpg"
    _write(copy, _changed(cv2.imread(str(path)), number), 60)
    planter.note("near copy across", copy)


def _plant_leak(planter: _Planter, images: list[bytes], number: int) -> None:
    folder = planter.take().parent
    path = folder / f"leak_{number}.jpg"
    if number % 3 == 0:
        path.write_bytes(images[number])
    else:
        _write(path, _changed(cv2.imdecode(np.frombuffer(images[number], np.uint8), 1), number), 60)
    planter.note("leaked", path)


def _plant_label(planter: _Planter) -> None:
    path = planter.take()
    moved = planter.other_identity(path) / f"{path.stem}_of_{path.parent.name}.jpg"
    shutil.move(path, moved)
    planter.note(NEEDS_MODEL, moved)


def _plant_swapped(planter: _Planter) -> None:
    whole = planter.left[-1].parent
    chosen = [path for path in planter.left if path.parent == whole]
    chosen += [path for path in planter.left if path.parent != whole][: EACH - len(chosen)]
    for path in chosen:
        planter.left.remove(path)
        cv2.imwrite(str(path), cv2.imread(str(path))[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        planter.note("swapped", path)


def not_found(faults: Iterable[Fault], findings: list[dict[str, str]]) -> list[Fault]:
    """The faults that no line of `audit.csv` names by its kind and its image, or its identity where it has none."""
    named = set()
    for row in findings:
        for column in ("image", "other_image"):
            path = Path(row[column])
            named.add((row["kind"], path.parent.name, path.name))
        named.add((row["kind"], row["identity"], ""))
    return [f for f in faults if not any((kind, f.identity, f.image) in named for kind in KINDS[f.kind])]


def above_notes(findings: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in findings if row["level"] != "note"]


def read_findings(output: Path) -> list[dict[str, str]]:
    with (output / "audit.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Plant 200 faults of eight kinds in a copy of drawn faces.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    clean, test_set = make_clean_copy(options.output)
    faults = plant(clean, options.output / "faulty", test_set, options.seed)
    with (options.output / "faults.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("kind", "identity", "image"))
        writer.writerows((fault.kind, fault.identity, fault.image) for fault in faults)
    print(f"{len(faults)} faults in {options.output / 'faulty'}")


if __name__ == "__main__":
    main()
