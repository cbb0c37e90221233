"""InsightFace's `.bin` files, which are pickles: written, and read without executing code from them.

A pickle can name functions and have them called: an ordinary unpickler executes what the file says. Here, every name
that a verification set may need (`_codecs.encode`, `bytes`, `bytearray`, and numpy's `_reconstruct`, `scalar`,
`ndarray`, `dtype`) maps to a stand-in defined below, and every other name raises an error. Even numpy's own functions
are not called: the file describes arrays, and they are built here after the description was checked.

Source: the pickle protocols 0 to 4 as Python 2 and 3 write them; numpy's pickles of uint8 and bool arrays.
"""

import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaface.system.files import atomic_file

EncodedImage = bytes | np.ndarray
_NOT_A_SET = "is not a verification .bin (a pickle of (images, issame) as InsightFace writes it)"


class _Refused(pickle.UnpicklingError):
    """The pickle contains something that a verification set never contains."""


class _Builder:
    """Stand-in for a global of a pickle: callable, and immutable for the pickle."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _Refused("the pickle tries to change a function")


class _Encode(_Builder):
    """Stand-in for `_codecs.encode`: protocol 2 stores bytes as latin-1 text."""

    __slots__ = ()

    def __call__(self, text: object, codec: object = None) -> bytes:
        """Encode latin-1 text."""
        if not isinstance(text, str) or codec not in ("latin1", b"latin1", "latin-1", b"latin-1"):
            raise _Refused(f"the pickle calls _codecs.encode with {codec!r}, expected latin1 text")
        return text.encode("latin-1")


class _Bytes(_Builder):
    """Stand-in for `bytes` and `bytearray`, which given a large number would fill the memory."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> bytes:
        """Build bytes from nothing, from bytes, or from latin-1 text."""
        match arguments:
            case ():
                return b""
            case (bytes() | bytearray() as data,):
                return bytes(data)
            case (str() as text, "latin-1" | "latin1" | b"latin-1" | b"latin1"):
                return text.encode("latin-1")
        raise _Refused("the pickle builds bytes from something other than bytes or latin-1 text")


_DTYPES = {"u1": np.uint8, "uint8": np.uint8, "b1": np.bool_, "bool": np.bool_}


class _Dtype(_Builder):
    """Stand-in for a numpy dtype, uint8 or bool."""

    __slots__ = ("dtype",)

    def __init__(self, name: object) -> None:
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or text.lstrip("|") not in _DTYPES:
            raise _Refused(f"the pickle holds an array of type {text!r}, expected uint8 or bool")
        self.dtype = np.dtype(_DTYPES[text.lstrip("|")])

    def __setstate__(self, state: object) -> None:
        # numpy's state of a dtype: version, byte order, fields. Single bytes have no byte order.
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("the pickle holds a structured array, expected uint8 or bool")


class _DtypeBuilder(_Builder):
    """Stand-in for the class `numpy.dtype`."""

    __slots__ = ()

    def __call__(self, name: object, *flags: object) -> _Dtype:
        """Return the stand-in of a dtype; the flags (align, copy) have no effect on single bytes."""
        return _Dtype(name)


class _ArrayClass(_Builder):
    """Stand-in for the class `numpy.ndarray`: an argument of `_reconstruct`, never called in numpy's pickles."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> None:
        """Raise an error: the array would expose uninitialized memory."""
        raise _Refused("the pickle calls numpy.ndarray")


class _Array(_Builder):
    """Stand-in for an array while the pickle is read; `value` is the checked array."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _Dtype() as dtype, bool() | int() as fortran, bytes() as data):
                pass
            case (int(), _, _Dtype(), _, _):
                raise _Refused("the pickle holds an array that is not stored as bytes")
            case _:
                raise _Refused("the pickle holds an array in an unknown form")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise _Refused(f"the pickle holds an array of shape {shape!r}")
        flat = np.frombuffer(data, np.uint8)
        if dtype.dtype == np.bool_:
            flat = flat != 0
        try:
            self.value = flat.reshape(shape, order="F" if fortran else "C")
        except ValueError:
            raise _Refused(f"an array of shape {shape!r} is stored in {len(data)} bytes") from None


class _Reconstruct(_Builder):
    """Stand-in for numpy's `_reconstruct`: returns an empty array that the pickle then fills."""

    __slots__ = ()

    def __call__(self, array_class: object, *shape_and_type: object) -> _Array:
        """Start an array."""
        if not isinstance(array_class, _ArrayClass):
            raise _Refused("the pickle builds an array of a class other than numpy.ndarray")
        return _Array()


class _Scalar(_Builder):
    """Stand-in for numpy's `scalar`: one bool or uint8."""

    __slots__ = ()

    def __call__(self, dtype: object, data: object = b"") -> bool | int:
        """Read one value."""
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or len(data) != 1:
            raise _Refused("the pickle holds a number other than a uint8 or a bool")
        return data[0] != 0 if dtype.dtype == np.bool_ else data[0]


_ALLOWED: dict[tuple[str, str], _Builder] = {
    ("_codecs", "encode"): _Encode(),
    **{(module, name): _Bytes() for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
    **{
        (module, name): builder
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        for name, builder in (
            ("_reconstruct", _Reconstruct()),
            ("scalar", _Scalar()),
            ("ndarray", _ArrayClass()),
            ("dtype", _DtypeBuilder()),
        )
    },
}


class _PairsUnpickler(pickle.Unpickler):
    """An unpickler that maps every global to a stand-in above, so that no name in the file reaches real code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of an allowed global."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(
                f"the pickle asks for {module}.{name}, which no verification set needs. Nothing was executed. "
                f"Do not trust this file"
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
            loaded = _PairsUnpickler(file, encoding="bytes").load()
    except _Refused as error:
        raise ValueError(f"{path} was refused: {error}") from None
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
    kind = "array" if isinstance(value, _Array) else type(value).__name__
    return f"a {kind} of length {len(value)}" if isinstance(value, (list, tuple)) else f"one {kind}"


def _plain_images(stored: object, path: Path) -> list[EncodedImage]:
    """Turn the first half of the pickle into bytes and uint8 arrays."""
    if isinstance(stored, _Array) and stored.value is not None and stored.value.ndim == 4:
        stored = list(stored.value)
    if not isinstance(stored, (list, tuple)):
        raise ValueError(f"{path} {_NOT_A_SET}: its images are {_describe(stored)}, expected a list")
    images: list[EncodedImage] = []
    for index, image in enumerate(stored):
        plain = image.value if isinstance(image, _Array) else image
        if isinstance(plain, bytearray):
            plain = bytes(plain)
        if isinstance(plain, bytes) or (
            isinstance(plain, np.ndarray) and plain.dtype == np.uint8 and plain.ndim in (1, 3)
        ):
            images.append(plain)
        else:
            raise ValueError(f"{path}: image {index} is {_describe(image)}, expected encoded bytes")
    return images


def _plain_booleans(stored: object, path: Path) -> np.ndarray:
    """Turn the second half of the pickle into bool (P,)."""
    values = stored.value if isinstance(stored, _Array) else stored
    if isinstance(values, np.ndarray):
        values = values.tolist() if values.ndim == 1 else None
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{path} {_NOT_A_SET}: issame is {_describe(stored)}, expected a list of booleans")
    for index, value in enumerate(values):
        if type(value) not in (bool, int) or value not in (0, 1):
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


def write_bin(path: str | os.PathLike[str], images: Sequence[bytes], issame: Iterable[bool]) -> None:
    """Write a verification set the way InsightFace does: a pickle of (list of encoded images, list of bool).

    Args:
        path: the `.bin` to write; replaced only when complete.
        images: 2P encoded images (JPEG or PNG).
        issame: P booleans.

    Raises:
        ValueError: counts that do not match, or an image that is not bytes.
    """
    pairs = [bool(value) for value in issame]
    check_counts(len(images), len(pairs), path)
    for index, image in enumerate(images):
        if not isinstance(image, bytes):
            raise ValueError(f"{path}: image {index} is a {type(image).__name__}, expected encoded bytes")
    with atomic_file(path) as file:
        pickle.dump((list(images), pairs), file, protocol=4)
