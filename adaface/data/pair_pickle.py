"""InsightFace's `.bin` files, which are pickles: written, and read without executing code from them.

A pickle can name functions and have them called: an ordinary unpickler executes what the file says. Here, every name
that a verification set may need (`_codecs.encode`, `bytes`, `bytearray`, and numpy's `_reconstruct`, `_frombuffer`,
`scalar`, `ndarray`, `dtype`) maps to a stand-in below, and every other name raises an error. Even numpy's own functions
are not called: the file describes arrays, and they are built here after the description was checked. Before anything
is built, `system/pickle_walk.py` looks at every opcode; calls cannot produce more bytes than the file has.

Source: the pickle protocols 0 to 5 as Python 2 and 3 write them; numpy's pickles of arrays and scalars.
"""

import math
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adaface.system.files import atomic_file
from adaface.system.pickle_walk import PAIR_SET_OPCODES, DamagedPickleError, UnsafePickleError, walk_pickle

EncodedImage = bytes | np.ndarray
_NOT_A_SET = "is not a verification .bin (a pickle of (images, issame) as InsightFace writes it)"


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that a verification set never contains."""


class _Budget:
    """Bytes that calls in the pickle may still produce: in a real file, no more than twice its own."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _Refused("the pickle builds more bytes than the file has")


class _Builder:
    """Stands in for a global: callable, and nothing about it can be changed by the pickle."""

    __slots__ = ("budget",)

    def __init__(self, budget: _Budget) -> None:
        self.budget = budget

    def __setstate__(self, state: object) -> None:
        raise _Refused("the pickle tries to change a function")


# of a JPEG and a PNG in Python 2's bytes, read as latin-1 and written again
_LATIN_STARTS = ("\xff\xd8\xff", "\x89PNG")
_LATIN = ("latin1", b"latin1", "latin-1", b"latin-1")


class _Encode(_Builder):
    """Stands in for `_codecs.encode`: protocol 2 stores bytes as text in latin-1."""

    __slots__ = ()

    def __call__(self, text: object, codec: object = None) -> bytes:
        """Encode latin-1 text."""
        if not isinstance(text, str) or not isinstance(codec, (str, bytes)) or codec not in _LATIN:
            raise _Refused("the pickle calls _codecs.encode for something other than latin1 text")
        self.budget.spend(len(text))
        return text.encode("latin-1")


class _Bytes(_Builder):
    """Stands in for `bytes` and `bytearray`, which from a number would fill the memory."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> bytes:
        """Build bytes from nothing, from bytes, or from latin-1 text."""
        match arguments:
            case ():
                return b""
            case (bytes() | bytearray() as data,):
                self.budget.spend(len(data))
                return bytes(data)
            case (str() as text, str() | bytes() as codec) if codec in _LATIN:
                self.budget.spend(len(text))
                return text.encode("latin-1")
        raise _Refused("the pickle builds bytes from something other than bytes or latin-1 text")


# labels are stored as any kind of number, images as uint8
_DTYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "b1", "O8"}
_DTYPE_NAMES = {"uint8": "u1", "int64": "i8", "bool": "b1"}
_OBJECTS = "O8"


class _Dtype:
    """Stands in for one numpy dtype: a number, a boolean, or `object` for a list."""

    __slots__ = ("name", "order")

    def __init__(self, name: object) -> None:
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or len(text) > 8:
            raise _Refused("the pickle contains an array of an unknown type, expected numbers")
        text = _DTYPE_NAMES.get(text, text)
        self.order, self.name = (text[0], text[1:]) if text[:1] in ("<", ">", "|") else ("|", text)
        if self.name not in _DTYPES:
            raise _Refused(f"the pickle contains an array of type {self.name!r}, expected numbers")

    def __setstate__(self, state: object) -> None:
        # numpy's state of a dtype: version, byte order, nothing special
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("the pickle contains a structured array, expected numbers")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise _Refused("the pickle contains a type of an unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        """Return the type, which is not `object`."""
        if self.name == _OBJECTS:
            raise _Refused("the pickle contains an array of objects where numbers are expected")
        return np.dtype(f"{self.order}{self.name}")


class _DtypeBuilder(_Builder):
    """Stands in for the class `numpy.dtype`."""

    __slots__ = ()

    def __call__(self, name: object, *flags: object) -> _Dtype:
        """Make the stand-in of a dtype; the flags (align, copy) have no meaning here."""
        return _Dtype(name)


class _ArrayClass(_Builder):
    """Stands in for the class `numpy.ndarray`: a mark for `_reconstruct`, never called by a file numpy wrote."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> None:
        """Refuse: an array made this way would hold memory that nobody wrote."""
        raise _Refused("the pickle calls numpy.ndarray")


def _checked_shape(shape: object) -> tuple[int, ...]:
    # few and small ones: the product of thousands of long numbers takes hours
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 < n < 2**48 for n in shape):
        raise _Refused("the pickle contains an array whose shape is not a tuple of a few positive numbers")
    return shape


def _array_of(data: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Build an array whose description was checked; it shares the memory of its bytes."""
    numbers = dtype.numpy()
    if math.prod(shape) * numbers.itemsize != len(data):
        raise _Refused(f"the pickle stores an array in {len(data)} bytes that do not fit its shape")
    flat = np.frombuffer(data, np.uint8 if numbers == np.bool_ else numbers)
    return flat.reshape(shape, order="F" if order == "F" else "C")  # (*shape); booleans as 0 and 1, or another byte


class _Array:
    """Stands in for an array while the pickle is read.

    Attributes:
        value: the checked array; a list of its items if it is one of objects; None before its state is read.
    """

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value: np.ndarray | list[object] | None = value

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _Dtype() as dtype, bool() | int() as fortran, bytes() | bytearray() as data):
                self.value = _array_of(data, dtype, _checked_shape(shape), "F" if fortran else "C")
            case (int(), (int() as count,), _Dtype(name="O8"), _, list() as items) if count == len(items):
                self.value = list(items)
            case _:
                raise _Refused("the pickle contains an array in an unknown form")


class _Reconstruct(_Builder):
    """Stands in for numpy's `_reconstruct`: an empty array that the pickle then fills."""

    __slots__ = ()

    def __call__(self, array_class: object, *shape_and_type: object) -> _Array:
        """Start an array."""
        if not isinstance(array_class, _ArrayClass):
            raise _Refused("the pickle builds an array of a class other than numpy.ndarray")
        return _Array()


class _FromBuffer(_Builder):
    """Stands in for numpy's `_frombuffer`, which protocol 5 calls for an array in one piece."""

    __slots__ = ()

    def __call__(self, data: object, dtype: object, shape: object, order: object = "C", axes: object = None) -> _Array:
        """Build an array."""
        known = isinstance(data, (bytes, bytearray)) and isinstance(dtype, _Dtype) and isinstance(order, (str, bytes))
        if not known or axes is not None:
            raise _Refused("the pickle contains an array in an unknown form")
        assert isinstance(data, (bytes, bytearray)) and isinstance(dtype, _Dtype)
        return _Array(_array_of(data, dtype, _checked_shape(shape), "F" if order in ("F", b"F") else "C"))


class _Scalar(_Builder):
    """Stands in for numpy's `scalar`: one number or boolean."""

    __slots__ = ()

    def __call__(self, dtype: object, data: object = b"") -> bool | int | float:
        """Read one value."""
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise _Refused("the pickle contains a number in an unknown form")
        value = _array_of(data, dtype, (1,), "C").tolist()[0]
        return bool(value) if dtype.name == "b1" else value


def _stand_ins(budget: _Budget) -> dict[tuple[str, str], _Builder]:
    """Return the stand-ins by module and name of the global."""
    multiarray = {
        "_reconstruct": _Reconstruct(budget),
        "scalar": _Scalar(budget),
        "ndarray": _ArrayClass(budget),
        "dtype": _DtypeBuilder(budget),
    }
    modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    return {
        ("_codecs", "encode"): _Encode(budget),
        **{(m, name): _Bytes(budget) for m in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
        **{(m, name): builder for m in modules for name, builder in multiarray.items()},
        **{(m, "_frombuffer"): _FromBuffer(budget) for m in ("numpy.core.numeric", "numpy._core.numeric")},
    }


def stand_ins_of_numbers(size: int) -> list[tuple[Any, str]]:
    """Return stand-ins by name for what a pickle of NumPy's numbers and booleans refers to.

    Args:
        size: of the file in bytes.
    """
    names = {".".join(name): builder for name, builder in _stand_ins(_Budget(size)).items()}
    chosen = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((names[name], name) for name in chosen), (_Dtype, f"{__name__}.{_Dtype.__name__}")]


class _PairsUnpickler(pickle.Unpickler):
    """An unpickler whose every global is one of the stand-ins above: no name in the file reaches real code.

    Args:
        file: the pickle, at its start.
        size: of it in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="bytes")
        self._globals = _stand_ins(_Budget(2 * size))

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of an allowed global."""
        try:
            return self._globals[module, name]
        except KeyError:
            raise _Refused(
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
    except (_Refused, UnsafePickleError) as error:
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
    kind = "array" if isinstance(value, _Array) else type(value).__name__
    return f"a {kind} of length {len(value)}" if isinstance(value, (list, tuple)) else f"one {kind}"


def _plain_images(stored: object, path: Path) -> list[EncodedImage]:
    """Turn the first half of the pickle into bytes and uint8 arrays."""
    if isinstance(stored, _Array):
        value = stored.value
        stored = list(value) if isinstance(value, list) or (value is not None and value.ndim == 4) else stored
    if not isinstance(stored, (list, tuple)):
        raise ValueError(f"{path} {_NOT_A_SET}: its images are {_describe(stored)}, expected a list")
    images: list[EncodedImage] = []
    copies: dict[int, bytes] = {}
    for index, image in enumerate(stored):
        plain = image.value if isinstance(image, _Array) else image
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
    values = stored.value if isinstance(stored, _Array) else stored
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
