"""Verification pairs on disk: InsightFace `.bin`, memory-mapped `.npy`, and the official bcolz folders.

A set of P pairs has 2P face images (images 2k and 2k+1 form pair k) and P booleans (same person or not). An opened set
yields uint8 (112, 112, 3) BGR images, whatever its format on disk.

Source: the `.bin` files of InsightFace (a pickle of encoded images), the bcolz folders of the official AdaFace
converter (float32 BGR in [-1, 1]).
Differences: a `.bin` is read by an unpickler that can only build lists, bytes, booleans, integers and uint8/bool arrays
(an ordinary unpickler would execute any code that the file names).
"""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaface.data.bcolz_folder import open_bcolz
from adaface.data.images import IMAGE_SHAPE, LazyImages, decode_image
from adaface.data.pair_pickle import EncodedImage, check_counts, read_bin
from adaface.system.command_line import invocation
from adaface.system.files import FileState, checksum_of, state_of
from adaface.system.json_file import read_object
from adaface.system.numpy_file import read_array

PAPER_SETS = ("agedb_30", "cfp_fp", "lfw", "cplfw", "calfw")
IMAGES_SUFFIX = "_images.npy"
LIST_SUFFIX = "_list.npy"
# ToTensor, then Normalize(0.5, 0.5), in float32: the values that the official converter stores
OFFICIAL_FLOAT = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
_FLOAT_SLACK = 0.001
_FINGERPRINT_IMAGES = 32


class PairImages(LazyImages):
    """The 2P images of a set, in a file that is opened on first use.

    A copy in another process reopens the file instead of copying the images.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._store: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    @abstractmethod
    def _open(self) -> Any:
        """Open the file; the result is cached."""

    @property
    def store(self) -> Any:
        """The file, opened on first use in this process."""
        if self._store is None:
            self._store = self._open()
        return self._store

    def __len__(self) -> int:
        return len(self.store)


class _BinImages(PairImages):
    """Images of a `.bin`, decoded on access."""

    def _open(self) -> list[EncodedImage]:
        return read_bin(self.path)[0]

    def read(self, index: int) -> np.ndarray:
        """Return one image, (112, 112, 3) uint8 BGR."""
        return decode_image(self.store[index], f"{self.path}, image {index}")


class _MemfileImages(PairImages):
    """Images of a memory-mapped `.npy`."""

    def _open(self) -> np.ndarray:
        images = _load_npy(self.path, memory_map=True)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE:
            raise ValueError(
                f"{self.path}: array of shape {images.shape} and type {images.dtype}, expected uint8 "
                f"(2P, 112, 112, 3); run {invocation('convert')} --make_validation_memfiles --overwrite"
            )
        return images

    def read(self, index: int) -> np.ndarray:
        """Return one image, (112, 112, 3) uint8 BGR."""
        return np.array(self.store[index])


class _BcolzImages(PairImages):
    """Images of an official bcolz folder, rounded back to the uint8 values that they were made from."""

    def _open(self) -> Any:
        return open_bcolz(self.path)

    def read(self, index: int) -> np.ndarray:
        """Return one image, (112, 112, 3) uint8 BGR."""
        try:
            planes = self.store[index]
        except Exception as error:
            raise ValueError(f"{self.path}, image {index}: damaged bcolz chunk ({error})") from error
        with np.errstate(all="ignore"):
            pixels = np.rint((planes + np.float32(1)) * np.float32(127.5)).clip(0, 255).astype(np.uint8)
            # Written so that NaN fails too.
            if not np.abs(planes - OFFICIAL_FLOAT[pixels]).max() <= _FLOAT_SLACK:
                raise ValueError(f"{self.path}, image {index}: values that no pixel has; the folder is damaged")
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))  # (112, 112, 3)


@dataclass
class PairSet:
    """A verification set.

    Attributes:
        name: such as `lfw`.
        images: 2P images, each (112, 112, 3) uint8 BGR; images 2k and 2k+1 are pair k.
        issame: bool (P,).
        identities: (P, 2) identities of the images, if known.
        note: remark on the origin of the set, for the user; may be empty.
    """

    name: str
    images: Sequence[np.ndarray]
    issame: np.ndarray
    identities: np.ndarray | None = None
    note: str = ""


def find_pair_sets(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Find all verification sets in a folder, in any format.

    Args:
        folder: folder of the sets; converted sets are preferred to the `.bin` files they were converted from.

    Returns:
        Name -> `<name>_images.npy`, bcolz folder `<name>`, or `<name>.bin`; the sets of the paper first, in their
        order, then the others alphabetically. Empty if there are none.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected the folder of the verification sets")
    entries = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    paths = {name.removesuffix(".bin"): folder / name for name in entries if name.endswith(".bin")}
    for name in entries:
        stem = name.removesuffix(LIST_SUFFIX)
        if not name.endswith(LIST_SUFFIX) or not stem:
            continue
        if stem + IMAGES_SUFFIX in entries:
            paths[stem] = folder / (stem + IMAGES_SUFFIX)
        elif stem in entries and (folder / stem / "meta" / "sizes").is_file():
            paths[stem] = folder / stem
    order = {name: rank for rank, name in enumerate(PAPER_SETS)}
    return {name: paths[name] for name in sorted(paths, key=lambda name: (order.get(name, len(order)), name))}


def one_kind_warnings(issame: Mapping[str, np.ndarray]) -> list[str]:
    """Return a line on each set whose pairs are all genuine, or all impostor pairs.

    Args:
        issame: bool (P,) by name of the set.
    """
    return [
        f"{name} has no {'impostor' if same.all() else 'genuine'} pairs: its accuracy says nothing about the model"
        for name, same in issame.items()
        if len(same) and same.all() == same.any()
    ]


def fingerprint_of_pairs(pair_set: PairSet) -> str:
    """Return a digest of a set's pairs and of 32 images spread over it, the same in every format.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    digest = hashlib.sha256(np.asarray(pair_set.issame, bool).tobytes())
    for index in np.unique(np.linspace(0, len(pair_set.images) - 1, _FINGERPRINT_IMAGES).astype(int)).tolist():
        try:
            digest.update(np.ascontiguousarray(pair_set.images[index]).data)
        except (OSError, ValueError):  # the validation reports it
            digest.update(b"damaged")
    return digest.hexdigest()


def origin_file(folder: Path, name: str) -> Path:
    """Return the file that records from which `.bin` a set was converted."""
    return folder / f".{name}.convert.json"


def origin_of(path: Path) -> dict[str, Any]:
    """Return what identifies the `.bin` of a converted set, as plain values."""
    state = state_of(path)
    return {"bytes": state.size, "mtime_ns": state.modified_ns, "sha256": state.sha256}


def content_checksums(folder: Path, name: str) -> dict[str, int]:
    """Return the CRC-32 of each `.npy` and each bcolz chunk of a converted set, by name."""
    files = [folder / f"{name}{suffix}" for suffix in (IMAGES_SUFFIX, LIST_SUFFIX)]
    files += (folder / name / "data").glob("*.blp")
    return {str(file.relative_to(folder)): checksum_of(file) for file in files if file.is_file()}


def was_made_from(origin: object, path: Path) -> bool:
    """Return whether a converted set was made from a `.bin`.

    Args:
        origin: read from ``origin_file``.
        path: the `.bin`.

    Raises:
        OSError: the `.bin` cannot be read.
    """
    if not isinstance(origin, dict):
        return False
    size, modified_ns, sha256 = (origin.get(name) for name in ("bytes", "mtime_ns", "sha256"))
    if not isinstance(size, int) or not isinstance(modified_ns, int) or not isinstance(sha256, str):
        return False
    return FileState(size, modified_ns, sha256).still_of(path)


def _check_origin(folder: Path, name: str) -> None:
    """Raise ValueError if a converted set is damaged, or the `.bin` beside it is not the one it was converted from."""
    source, record = folder / f"{name}.bin", origin_file(folder, name)
    if not record.is_file():
        return
    try:
        origin = read_object(record)
    except ValueError:
        origin = {}  # as if it were of another file
    again = _again(folder)
    if source.is_file() and not was_made_from(origin, source):  # without its source, it is what there is
        raise ValueError(
            f"the converted set {folder / name} was not made from the {source.name} beside it, which has changed: "
            f"{again}"
        )
    written = origin.get("checksums")
    if not isinstance(written, dict):  # an older record
        return
    for file, checksum in content_checksums(folder, name).items():
        if written.get(file, checksum) != checksum:
            raise ValueError(
                f"{folder / file} is damaged: its checksum is not the one it was written with; "
                f"{again if source.is_file() else 'copy it again, or convert its .bin again'}"
            )


def _again(folder: Path) -> str:
    return f"{invocation('convert')} --rec_path {folder} --make_validation_memfiles --overwrite converts it again"


def _compare_unrecorded(folder: Path, name: str, issame: np.ndarray) -> str:
    """Compare a set that another program has converted with the `.bin` beside it, without decoding images.

    Args:
        folder: folder of the set.
        name: such as `lfw`.
        issame: of the set, bool (P,).

    Returns:
        A note for the user; empty if this program has recorded the conversion, or there is no `.bin`.
    """
    source = folder / f"{name}.bin"
    if origin_file(folder, name).is_file() or not source.is_file():
        return ""
    foreign = f"the set {folder / name} was written by another program"
    try:
        expected = read_bin(source)[1]
    except (OSError, ValueError) as error:
        return f"{foreign}, and could not be compared with the {source.name} beside it: {error}"
    if np.array_equal(issame, expected):
        return (
            f"{foreign}; only the number of its pairs, and which of them are the same person, were compared with the "
            f"{source.name} beside it"
        )
    what = f"it has {len(issame):,} pairs, {source.name} has {len(expected):,}"
    if len(issame) == len(expected):
        different = np.count_nonzero(issame != expected)
        what = f"{different:,} of {len(issame):,} pairs are the same person in one and different persons in the other"
    return f"{foreign}, and not made from the {source.name} beside it: {what}. It is used as it is; {_again(folder)}"


def open_pair_set(folder: str | os.PathLike[str], name: str) -> PairSet:
    """Open a verification set in any format.

    Args:
        folder: folder of the sets.
        name: such as `lfw`.

    Returns:
        The set; images are read on access.

    Raises:
        FileNotFoundError: no set of that name.
        ValueError: the files are damaged or do not match.
    """
    check_name(name)
    paths = find_pair_sets(folder)
    if name not in paths:
        raise FileNotFoundError(f"no verification set {name!r} in {folder}; found: {', '.join(paths) or 'none'}")
    path = paths[name]
    images: PairImages
    if path.suffix == ".bin" and path.is_file():
        images = _BinImages(path)
        # Read once: the list of images, the large part, is kept.
        images._store, issame = read_bin(path)
        return PairSet(name, images, issame)
    _check_origin(Path(folder), name)
    images = _MemfileImages(path) if path.name.endswith(IMAGES_SUFFIX) else _BcolzImages(path)
    issame = _load_npy(Path(folder) / (name + LIST_SUFFIX))
    if issame.ndim != 1 or issame.dtype.kind not in "biuf" or not np.isin(issame, (0, 1)).all():
        raise ValueError(
            f"{folder}/{name}{LIST_SUFFIX}: expected P booleans, got {issame.dtype} of shape {issame.shape}"
        )
    check_counts(len(images), len(issame), path)
    issame = issame.astype(bool)
    return PairSet(name, images, issame, note=_compare_unrecorded(Path(folder), name, issame))


def check_name(name: str) -> None:
    """Raise an error for a set name that is not a plain file stem."""
    if not name or name.startswith(".") or name != Path(name).name or "\\" in name:
        raise ValueError(f"{name!r} cannot be the name of a verification set; expected a plain name like 'lfw'")


def _load_npy(path: Path, memory_map: bool = False) -> np.ndarray:
    """Load a `.npy` without pickles, and name the file in the error if it is damaged."""
    try:
        return read_array(path, memory_map=memory_map)
    except ValueError as error:
        raise ValueError(f"{error}; convert the set again") from None
