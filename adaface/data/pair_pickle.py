"""InsightFace's `.bin` files, which are pickles: written, and read without executing code from them.

An ordinary unpickler executes what a file says. Here, every name that a verification set may need maps to a stand-in of
`system/pickle_stand_ins.py`, and every other name raises an error. Before anything is built, `system/pickle_walk.py`
looks at every opcode.

Source: the pickle protocols 0 to 5 as Python 2 and 3 write them.
"""

import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adaface.system.files import atomic_file
from adaface.system.pickle_stand_ins import RefusedPickleError, StoredArray, stand_ins
from adaface.system.pickle_walk import PAIR_SET_OPCODES, DamagedPickleError, UnsafePickleError, walk_pickle

EncodedImage = bytes | np.ndarray
_NOT_A_SET = "is not a verification .bin (a pickle of (images, issame) as InsightFace writes it)"
# of a JPEG and a PNG in Python 2's bytes, read as latin-1 and written again
_LATIN_STARTS = ("\xff\xd8\xff", "\x89PNG")


class _PairsUnpickler(pickle.Unpickler):
    """An unpickler whose every global is a stand-in: no name in the file reaches real code.

    Args:
        file: the pickle, at its start.
        size: of it in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="bytes")
        self._globals = stand_ins(2 * size)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of an allowed global."""
        try:
            return self._globals[module, name]
        except KeyError:
            raise RefusedPickleError(
                f"the pickle asks for {module[:80]}.{name[:80]}, which a verification set never needs; nothing was "
                "run. Do not trust this file"
            ) from None


def read_bin(path: str | os.PathLike[str]) -> tuple[list[EncodedImage], np.ndarray]:
    """Read a verification set in InsightFace's `.bin` format without executing code from it.

    Args:
        path: the `.bin`, a pickle (any protocol, Python 2 or 3) of `(images, issame)`.

    Returns:
        The 2P images, each as encoded bytes or a uint8 array (one dimension: encoded bytes, three: RGB pixels),
        and issame, bool (P,).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a pickle, truncated, wrong counts, or a pickle with any other global.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a verification set (.bin)")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            walk_pickle(file, size, PAIR_SET_OPCODES)
            file.seek(0)
            loaded = _PairsUnpickler(file, size).load()
    except (RefusedPickleError, UnsafePickleError) as error:
        raise ValueError(f"{path} was refused: {error}") from None
    except DamagedPickleError as error:
        raise ValueError(f"{path} {_NOT_A_SET}, or is truncated: {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything; only stand-ins ran
        raise ValueError(f"{path} {_NOT_A_SET}, or is truncated: {type(error).__name__}: {error}") from None
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
        raise ValueError(f"{path} {_NOT_A_SET}: it holds {_describe(loaded)}")
    images = _plain_images(loaded[0], path)
    issame = _plain_booleans(loaded[1], path)
    check_counts(len(images), len(issame), path)
    return images, issame


def _describe(value: object) -> str:
    """Name a loaded object for an error message."""
    kind = "array" if isinstance(value, StoredArray) else type(value).__name__
    return f"a {kind} of length {len(value)}" if isinstance(value, (list, tuple)) else f"one {kind}"


def _plain_images(stored: object, path: Path) -> list[EncodedImage]:
    """Turn the first half of the pickle into bytes and uint8 arrays."""
    if isinstance(stored, StoredArray):
        value = stored.value
        if isinstance(value, np.ndarray) and value.dtype.kind == "S":  # without the zeros behind shorter images
            value = value.ravel().tolist()
        stored = list(value) if isinstance(value, list) or (value is not None and value.ndim == 4) else stored
    if not isinstance(stored, (list, tuple)):
        raise ValueError(f"{path} {_NOT_A_SET}: its images are {_describe(stored)}, expected a list")
    images: list[EncodedImage] = []
    copies: dict[int, bytes] = {}
    for index, image in enumerate(stored):
        plain = image.value if isinstance(image, StoredArray) else image
        if isinstance(plain, bytearray) or (isinstance(plain, str) and plain.startswith(_LATIN_STARTS)):
            if id(plain) not in copies:  # a file can use the same object a million times
                copies[id(plain)] = plain.encode("latin-1", "replace") if isinstance(plain, str) else bytes(plain)
            plain = copies[id(plain)]
        if isinstance(plain, np.ndarray) and plain.ndim == 2 and 1 in plain.shape:
            plain = plain.reshape(-1)  # encoded bytes as OpenCV returned them, (N, 1)
        if isinstance(plain, bytes) or (
            isinstance(plain, np.ndarray) and plain.dtype == np.uint8 and plain.ndim in (1, 3)
        ):
            images.append(plain)
        else:
            raise ValueError(f"{path}: image {index} is {_describe(image)}, expected encoded bytes")
    return images


def _plain_booleans(stored: object, path: Path) -> np.ndarray:
    """Turn the second half of the pickle into bool (P,)."""
    values = stored.value if isinstance(stored, StoredArray) else stored
    if isinstance(values, np.ndarray):
        values = values.reshape(-1).tolist() if values.size == max(values.shape, default=0) else None  # (P,) or (P, 1)
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{path} {_NOT_A_SET}: issame is {_describe(stored)}, expected a list of booleans")
    for index, value in enumerate(values):
        if type(value) not in (bool, int, float) or value not in (0, 1):
            raise ValueError(f"{path}: issame[{index}] is {_describe(value)}, expected True or False")
    return np.array(values, dtype=bool)


def check_counts(image_count: int, pair_count: int, where: str | os.PathLike[str]) -> None:
    """Raise an error if the numbers of images and pairs do not match.

    Args:
        image_count: number of images, 2P.
        pair_count: number of booleans, P.
        where: file name for the error message.

    Raises:
        ValueError: an odd number of images, not two images per pair, or no pairs at all.
    """
    if image_count % 2:
        raise ValueError(f"{where}: {image_count} images, an odd number; images 2k and 2k+1 form pair k")
    if image_count != 2 * pair_count:
        raise ValueError(f"{where}: {image_count} images for {pair_count} pairs, expected {2 * pair_count}")
    if not pair_count:
        raise ValueError(f"{where}: an empty verification set")


def write_bin(
    path: str | os.PathLike[str], images: Sequence[bytes], issame: Iterable[bool], *, overwrite: bool = True
) -> None:
    """Write a verification set the way InsightFace does: a pickle of (list of encoded images, list of bool).

    Args:
        path: the `.bin` to write; replaced only when complete.
        images: 2P encoded images (JPEG or PNG).
        issame: P booleans.
        overwrite: replace an existing file.

    Raises:
        ValueError: counts that do not match, or an image that is not bytes.
        FileExistsError: the file exists and is not to be replaced, or another process writes it.
    """
    pairs = [bool(value) for value in issame]
    check_counts(len(images), len(pairs), path)
    for index, image in enumerate(images):
        if not isinstance(image, bytes):
            raise ValueError(f"{path}: image {index} is a {type(image).__name__}, expected encoded bytes")
    with atomic_file(path, overwrite=overwrite) as file:
        pickle.dump((list(images), pairs), file, protocol=4)
