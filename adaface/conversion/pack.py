"""Convert image files to InsightFace files: folders to `train.rec`, lists of pairs to `.bin`.

Source: the layout of InsightFace's `train.rec` (record 0 contains the counts, images have the keys 1..n, then follows
one record per identity) and LFW's `pairs.txt` (Huang et al. 2007).
Differences: JPEG and PNG files are copied byte for byte; only other formats are encoded again.
"""

import csv
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from adaface.data.image_files import find_image_files, report_skipped
from adaface.data.images import decode_image, encode_image, image_suffix
from adaface.data.pair_pickle import write_bin
from adaface.data.sources.folder import FolderSource
from adaface.records import reader as recordio
from adaface.system.files import atomic_file, make_writable_folder, refuse_existing
from adaface.system.progress_bar import progress_bar
from adaface.system.text_file import read_text

logger = logging.getLogger(__name__)

# The header record stores the counts as float32, which is exact up to this number.
_LARGEST_COUNT = 2**24
_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "-1", "false", "no")
_SAME_COLUMN = ("same", "issame", "is_same", "label")


def _encoded_file(path: Path, swap: bool) -> bytes:
    """Return a 112x112 color image file as JPEG or PNG bytes; JPEG and PNG files are not encoded again."""
    data = path.read_bytes()
    image = decode_image(data, str(path))
    try:
        suffix = image_suffix(data, str(path))
    except ValueError:
        suffix = ""
    if suffix and not swap:
        return data
    return encode_image(np.ascontiguousarray(image[:, :, ::-1]) if swap else image, suffix or ".png")


# --- image folder -> train.rec --------------------------------------------------------------------------------


@dataclass
class PackResult:
    """Summary of a packed folder.

    Attributes:
        images: number of images written.
        identities: number of classes.
        skipped: one message for each skipped image.
    """

    images: int
    identities: int
    skipped: list[str] = field(default_factory=list)


def pack_folder(
    source: Path, output: Path, swap: bool = False, skip_bad: bool = False, overwrite: bool = False
) -> PackResult:
    """Write `train.rec`, `train.idx` and `property` from `<source>/<class>/<image>`.

    Args:
        source: image folder; classes and files are sorted as by `ImageFolder` (lexicographically).
        output: output folder, created if it does not exist.
        swap: swap red and blue.
        skip_bad: skip unusable images instead of stopping; every file is then read twice.
        overwrite: replace an existing `train.rec`.

    Returns:
        Counts and skipped images.

    Raises:
        FileNotFoundError: the folder does not exist, or contains no classes.
        FileExistsError: `train.rec` exists.
        OSError: the output folder is not writable.
        ValueError: a class without images, an image that is not a 112x112 color image, or too many images.
    """
    classes = _class_files(source)
    rec = output / "train.rec"
    if not overwrite:
        refuse_existing(rec)  # before the work
    make_writable_folder(output, "--output")
    skipped: list[str] = []
    if skip_bad:
        classes, skipped = _usable(classes)
    bounds = np.cumsum([1, *(len(files) for files in classes)]).tolist()  # first key of each class, and the end
    count = bounds[-1] - 1
    if count + len(classes) + 1 > _LARGEST_COUNT:
        raise ValueError(
            f"{count:,} images are too many: the header record cannot count beyond {_LARGEST_COUNT:,}; split the folder"
        )
    with recordio.RecordWriter(rec, overwrite=overwrite) as writer, progress_bar(total=count, unit=" images") as bar:
        totals = np.array([count + 1, count + 1 + len(classes)], np.float32)
        writer.write(0, recordio.pack(recordio.ImageHeader(totals), b""))
        for label, (files, first) in enumerate(zip(classes, bounds, strict=False)):
            for key, path in enumerate(files, first):
                header = recordio.ImageHeader(float(label), key)
                writer.write(key, recordio.pack(header, _encoded_file(path, swap)))
                bar.update()
        for label, (first, past) in enumerate(pairwise(bounds)):
            header = recordio.ImageHeader(np.array([first, past], np.float32), count + 1 + label)
            writer.write(count + 1 + label, recordio.pack(header, b""))
        # before the `.rec` gets its name, which is not replaced if a killed command is started again
        with atomic_file(output / "property") as file:
            file.write(f"{len(classes)},112,112\n".encode())
    return PackResult(count, len(classes), skipped)


def _class_files(source: Path) -> list[list[Path]]:
    """List the image files of every class, in `ImageFolder` order."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; expected a folder with one subfolder per identity")
    folder = FolderSource(source)
    report_skipped(folder.listing, count=len(folder))
    if folder.note:
        logger.info(f"note: {folder.note}")
    paths = [Path(folder.path(index)) for index in range(len(folder))]
    ends = np.cumsum(np.bincount(folder.labels)).tolist()
    return [paths[first:past] for first, past in pairwise([0, *ends])]


def _usable(classes: list[list[Path]]) -> tuple[list[list[Path]], list[str]]:
    """Return the files without unusable images and classes that become empty, and a message for each skipped image."""
    kept: list[list[Path]] = []
    skipped: list[str] = []
    with progress_bar(total=sum(map(len, classes)), desc="checking", unit=" images") as bar:
        for files in classes:
            good = []
            for path in files:
                bar.update()
                try:
                    decode_image(path.read_bytes(), str(path))
                except ValueError as error:
                    skipped.append(str(error))
                else:
                    good.append(path)
            if good:
                kept.append(good)
    if not kept:
        raise ValueError(f"none of the images is usable; the first one: {skipped[0]}")
    return kept, skipped


# --- pairs file -> .bin ---------------------------------------------------------------------------------------


def pack_pairs(
    pairs_file: Path, images_root: Path, output: Path, swap: bool = False, overwrite: bool = False
) -> tuple[int, int]:
    """Write a `.bin` from a list of pairs.

    Args:
        pairs_file: LFW's `pairs.txt`, or a CSV file `path1,path2,same`.
        images_root: folder that the paths are relative to; no file outside of it is read.
        output: the `.bin`.
        swap: swap red and blue.
        overwrite: replace an existing file.

    Returns:
        Number of genuine pairs, number of impostor pairs.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        FileExistsError: the `.bin` exists.
        OSError: its folder is not writable.
        ValueError: a malformed line, a path outside of the root, or an image that is not a 112x112 color image.
    """
    if not images_root.is_dir():
        raise FileNotFoundError(f"--images_root {images_root} is not a folder")
    if not overwrite:
        refuse_existing(output)  # before the work
    listed = read_pairs(pairs_file, images_root)
    make_writable_folder(output.parent, f"--output {output}: the folder")
    cache: dict[Path, bytes] = {}  # files occur in several pairs: LFW's 12,000 images are 7,700 files
    images: list[bytes] = []
    for first, second, _ in progress_bar(listed, unit=" pairs"):
        for path in (first, second):
            if path not in cache:
                cache[path] = _encoded_file(path, swap)
            images.append(cache[path])
    issame = [same for *_, same in listed]
    write_bin(output, images, issame, overwrite=overwrite)
    return sum(issame), len(issame) - sum(issame)


def read_pairs(pairs_file: Path, images_root: Path) -> list[tuple[Path, Path, bool]]:
    """Read a list of pairs.

    Args:
        pairs_file: LFW's `pairs.txt`, or a CSV file `path1,path2,same`; the first line decides which.
        images_root: folder that the paths are relative to.

    Returns:
        For each pair: first path, second path, whether it is the same person. The files exist.

    Raises:
        FileNotFoundError: the list or an image does not exist.
        ValueError: a malformed line, or a path outside of the root.
    """
    if not pairs_file.is_file():
        raise FileNotFoundError(f"{pairs_file} does not exist; expected LFW's pairs.txt or a CSV path1,path2,same")
    text = read_text(pairs_file, windows=True)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{pairs_file} is empty")
    separator = _separator(lines[0][1])
    if not separator:
        return list(_lfw_pairs(lines, pairs_file, images_root))
    rows = [(f"{pairs_file}, line {number}", _fields(line, separator)) for number, line in lines]
    return list(_csv_pairs(rows, pairs_file, images_root))


def _separator(line: str) -> str:
    """Return what separates the fields of the first line; empty for LFW's list."""
    for separator in ",;\t":
        fields = _fields(line, separator)
        if len(fields) == 3 and not (separator == "\t" and fields[1].isdecimal()):
            return separator
    return "," if "," in line else ""


def _fields(line: str, separator: str) -> list[str]:
    try:
        return [part.strip() for part in next(csv.reader([line], delimiter=separator))]
    except csv.Error:  # a field of more than 131,072 letters
        return []


def _csv_pairs(rows: list[tuple[str, list[str]]], pairs_file: Path, root: Path) -> Iterator[tuple[Path, Path, bool]]:
    """Read `path1,path2,same`, with or without a header line, which may name another place for `same`."""
    header = rows[0][1] if len(rows[0][1]) == 3 else []
    place = next((place for place, name in enumerate(header) if name.lower() in _SAME_COLUMN), None)
    if place is not None:
        rows = rows[1:]
    for where, fields in rows:
        if len(fields) != 3:
            raise ValueError(f"{where}: {len(fields)} fields, expected path1,path2,same")
        answer = fields.pop(2 if place is None else place)
        if answer.lower() not in _TRUE + _FALSE:
            which = "third" if place is None else f"{place + 1}."
            raise ValueError(f"{where}: the {which} field is {answer!r}, expected 1 or 0, true or false")
        first, second = (_inside(root, part, where) for part in fields)
        for path in (first, second):
            if not path.is_file():
                raise FileNotFoundError(f"{where}: {path} does not exist")
        yield first, second, answer.lower() in _TRUE
    if not rows:
        raise ValueError(f"{pairs_file} contains no pairs")


def _lfw_pairs(lines: list[tuple[int, str]], pairs_file: Path, root: Path) -> Iterator[tuple[Path, Path, bool]]:
    """Read `name i j` (genuine) and `name1 i name2 j` (impostor) below a header `folds pairs` or `pairs`."""
    header = lines[0][1].split()
    if len(header) not in (1, 2) or not all(map(_is_number, header)):
        raise ValueError(
            f"{pairs_file}, line {lines[0][0]}: {lines[0][1]!r}; expected LFW's header (such as `10 300`), or CSV "
            f"path1,path2,same"
        )
    expected = 2 * int(np.prod([int(part) for part in header]))
    if len(lines) - 1 != expected:
        raise ValueError(f"{pairs_file}: {len(lines) - 1} pairs, but its header announces {expected}")
    for number, line in lines[1:]:
        where = f"{pairs_file}, line {number}"
        match line.split("\t") if "\t" in line else line.split():
            case (name, i, j):
                other, same = name, True
            case (name, i, other, j):
                same = False
            case fields:
                raise ValueError(f"{where}: {len(fields)} fields, expected `name i j` or `name1 i name2 j`")
        yield _lfw_file(root, name, i, where), _lfw_file(root, other, j, where), same


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _lfw_file(root: Path, name: str, number: str, where: str) -> Path:
    """Return the path of a person's image with a number."""
    name, number = name.strip(), number.strip()
    if not _is_number(number):
        raise ValueError(f"{where}: {number!r} is not an image number")
    stem = _inside(root, f"{name}/{name}_{int(number):04d}", where)
    for suffix in (".jpg", ".png"):  # without a look into the folder
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    for image in find_image_files(stem.parent).names if stem.parent.is_dir() else ():
        if stem.name in (image, image.rpartition(".")[0]):
            return stem.parent / image
    raise FileNotFoundError(f"{where}: neither {stem}.jpg nor .png exists, nor another image of this name")


def _inside(root: Path, path: str, where: str) -> Path:
    """Join a path to the root; raise ValueError if it leads outside of the root."""
    base = os.path.abspath(root)  # noqa: PTH100 - links inside the root may point anywhere
    full = os.path.normpath(os.path.join(base, path))  # noqa: PTH118
    if os.path.commonpath([base, full]) != base or full == base:
        raise ValueError(f"{where}: {path!r} is outside of --images_root {root}")
    return Path(full)
