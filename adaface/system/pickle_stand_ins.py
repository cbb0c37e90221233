"""Stand-ins for the functions and classes that a pickle of bytes, NumPy arrays and numbers names.

A pickle can name functions and have them called: an ordinary unpickler executes what the file says. Here,
`_codecs.encode`, `bytes`, `bytearray`, and numpy's `_reconstruct`, `_frombuffer`, `scalar`, `ndarray` and `dtype` map
to the classes below. Even numpy's own functions are not called: the file describes arrays, and they are built here
after the description was checked. All calls together may produce a limited number of bytes.

Source: numpy's pickles of arrays and scalars, as Python 2 and 3 write them.
"""

import math
import pickle
import re
from typing import Any

import numpy as np


class RefusedPickleError(pickle.UnpicklingError):
    """The pickle asks for something that a verification set never contains."""


class _Budget:
    """Bytes that calls in the pickle may still produce: in a real file, no more than twice its own."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise RefusedPickleError("the pickle builds more bytes than the file has")


class _Builder:
    """Stands in for a global: callable, and nothing about it can be changed by the pickle."""

    __slots__ = ("budget",)

    def __init__(self, budget: _Budget) -> None:
        self.budget = budget

    def __setstate__(self, state: object) -> None:
        raise RefusedPickleError("the pickle tries to change a function")


_LATIN = ("latin1", b"latin1", "latin-1", b"latin-1")


class _Encode(_Builder):
    """Stands in for `_codecs.encode`: protocol 2 stores bytes as text in latin-1."""

    __slots__ = ()

    def __call__(self, text: object, codec: object = None) -> bytes:
        """Encode latin-1 text."""
        if not isinstance(text, str) or not isinstance(codec, (str, bytes)) or codec not in _LATIN:
            raise RefusedPickleError("the pickle calls _codecs.encode for something other than latin1 text")
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
        raise RefusedPickleError("the pickle builds bytes from something other than bytes or latin-1 text")


# labels are stored as any kind of number, images as uint8
_DTYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "b1", "O8"}
_DTYPE_NAMES = {"uint8": "u1", "int64": "i8", "bool": "b1"}
_OBJECTS = "O8"
_BYTES = re.compile("S[1-9][0-9]{0,6}")  # encoded images in one array, each as long as the longest


class _Dtype:
    """Stands in for one numpy dtype: a number, a boolean, bytes, or `object` for a list."""

    __slots__ = ("name", "order")

    def __init__(self, name: object) -> None:
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or len(text) > 8:
            raise RefusedPickleError("the pickle contains an array of an unknown type, expected numbers")
        text = _DTYPE_NAMES.get(text, text)
        self.order, self.name = (text[0], text[1:]) if text[:1] in ("<", ">", "|") else ("|", text)
        if self.name not in _DTYPES and not _BYTES.fullmatch(self.name):
            raise RefusedPickleError(f"the pickle contains an array of type {self.name!r}, expected numbers")

    def __setstate__(self, state: object) -> None:
        # numpy's state of a dtype: version, byte order, nothing special
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise RefusedPickleError("the pickle contains a structured array, expected numbers")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise RefusedPickleError("the pickle contains a type of an unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        """Return the type, which is not `object`."""
        if self.name == _OBJECTS:
            raise RefusedPickleError("the pickle contains an array of objects where numbers are expected")
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
        raise RefusedPickleError("the pickle calls numpy.ndarray")


def _checked_shape(shape: object) -> tuple[int, ...]:
    # few and small ones: the product of thousands of long numbers takes hours
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 < n < 2**48 for n in shape):
        raise RefusedPickleError("the pickle contains an array whose shape is not a tuple of a few positive numbers")
    return shape


def _array_of(data: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Build an array whose description was checked; it shares the memory of its bytes."""
    numbers = dtype.numpy()
    if math.prod(shape) * numbers.itemsize != len(data):
        raise RefusedPickleError(f"the pickle stores an array in {len(data)} bytes that do not fit its shape")
    flat = np.frombuffer(data, np.uint8 if numbers == np.bool_ else numbers)
    return flat.reshape(shape, order="F" if order == "F" else "C")  # (*shape); booleans as 0 and 1, or another byte


class StoredArray:
    """Stands in for an array while the pickle is read.

    Attributes:
        value: the checked array; a list of its items if it is one of objects; None before its state is read.
    """

    __slots__ = ("_dtype", "value")

    def __init__(self, value: np.ndarray | None = None, dtype: np.dtype[Any] | None = None) -> None:
        self.value: np.ndarray | list[object] | None = value
        self._dtype = dtype

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _Dtype() as dtype, bool() | int() as fortran, bytes() | bytearray() as data):
                self.value = _array_of(data, dtype, _checked_shape(shape), "F" if fortran else "C")
                self._dtype = dtype.numpy()
            case (int(), (int() as count,), _Dtype(name="O8"), _, list() as items) if count == len(items):
                self.value = list(items)
            case _:
                raise RefusedPickleError("the pickle contains an array in an unknown form")

    def __reduce__(self) -> Any:
        """Return numpy's own pickle of the array, so that a checkpoint can be written again."""
        if isinstance(self.value, np.ndarray) and self._dtype is not None:
            return self.value.view(self._dtype).__reduce__()  # booleans were read as numbers
        objects = np.empty(len(self.value or ()), object)
        for place, item in enumerate(self.value or ()):
            objects[place] = item
        return objects.__reduce__()


class _Reconstruct(_Builder):
    """Stands in for numpy's `_reconstruct`: an empty array that the pickle then fills."""

    __slots__ = ()

    def __call__(self, array_class: object, *shape_and_type: object) -> StoredArray:
        """Start an array."""
        if not isinstance(array_class, _ArrayClass):
            raise RefusedPickleError("the pickle builds an array of a class other than numpy.ndarray")
        return StoredArray()


class _FromBuffer(_Builder):
    """Stands in for numpy's `_frombuffer`, which protocol 5 calls for an array in one piece."""

    __slots__ = ()

    def __call__(
        self, data: object, dtype: object, shape: object, order: object = "C", axes: object = None
    ) -> StoredArray:
        """Build an array."""
        if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
            raise RefusedPickleError("the pickle contains an array in an unknown form")
        array = _array_of(data, dtype, _checked_shape(shape), "F" if order in ("F", b"F") else "C")
        if isinstance(axes, tuple) and len(axes) == array.ndim:  # order "K": the shape is that before axes were moved
            array = array.transpose(axes)
        elif axes is not None:
            raise RefusedPickleError("the pickle contains an array in an unknown form")
        return StoredArray(array, dtype.numpy())


class _Scalar(_Builder):
    """Stands in for numpy's `scalar`: one number, boolean, or bytes."""

    __slots__ = ()

    def __call__(self, dtype: object, data: object = b"") -> bool | int | float | bytes:
        """Read one value."""
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise RefusedPickleError("the pickle contains a number in an unknown form")
        self.budget.spend(len(data))
        value = _array_of(data, dtype, (1,), "C").tolist()[0]
        return bool(value) if dtype.name == "b1" else value


def stand_ins(size: int) -> dict[tuple[str, str], Any]:
    """Return the stand-ins by module and name of the global.

    Args:
        size: how many bytes all calls together may produce.
    """
    budget = _Budget(size)
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


def stand_ins_of_numpy(size: int) -> list[tuple[Any, str]]:
    """Return stand-ins by name for what a pickle of NumPy's numbers and arrays refers to.

    Args:
        size: of the file in bytes.
    """
    names = {".".join(name): builder for name, builder in stand_ins(size).items()}
    chosen = [name for name in names if name.startswith("numpy") and not name.endswith("._frombuffer")]
    classes = [(kind, f"{__name__}.{kind.__name__}") for kind in (_Dtype, StoredArray)]
    return [*((names[name], name) for name in chosen), *classes]
