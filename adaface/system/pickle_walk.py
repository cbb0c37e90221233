"""Walk the opcodes of a pickle without building anything, and refuse what could crash or exhaust an unpickler.

Even an unpickler that calls no foreign code can be misused: a tuple nested a million times overflows the stack when it
is hashed, nine bytes announce a string of two gigabytes, a memo index makes a table of that size. A pickle that passed
the walk is built of the given opcodes, so few for its size that the walk takes seconds; its strings are inside the
file, its memo is no larger than its number of opcodes, its containers are nested a few levels deep, have few parts even
if shared ones are counted again each time, and only plain values are hashed. What calls in a checkpoint get is short,
so that they cannot produce gigabytes.

Source: ``pickletools`` of the standard library lists opcodes and their arguments.
"""

import os
import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

_BY_CODE = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_DEEPEST = 100  # a checkpoint has about ten levels
_PUSHED = {  # values without parts
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "GLOBAL",
}  # fmt: skip
_EMPTY = {"EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_BUILT = frozenset({*_EMPTY, *_TUPLES, "TUPLE", "LIST", "DICT"})
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_CHEAP = frozenset({*_PUSHED, *_PUTS, *_GETS, "MEMOIZE"})
_PLAIN = frozenset(_PUSHED | _EMPTY | set(_TUPLES) | _PUTS | _GETS) | {
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "LIST", "APPEND", "APPENDS", "TUPLE", "DICT", "SETITEM", "SETITEMS",
    "ADDITEMS", "STACK_GLOBAL", "REDUCE", "BUILD", "POP_MARK",
}  # fmt: skip
PAIR_SET_OPCODES = _PLAIN
CHECKPOINT_OPCODES = _PLAIN | {"NEWOBJ", "BINPERSID"}
_START_BYTES = 64
_MOST_OPCODES = 4_000_000  # in addition to one in 16 bytes; plain values and the memo count half: lists of booleans
_MOST_CONTAINERS = 1_000_000  # in addition to one in 64 bytes; they take 100 bytes each
_MOST_PARTS = 20_000_000  # of an object, in addition to those in the file
_CALL_PARTS = {"collections OrderedDict": 1_000_000}  # what a call in a checkpoint gets: Python 2 gives all items
_MOST_CALL_PARTS = 10_000  # others: the description of a tensor, a number
_MOST_CHOSEN = 5_000  # floats and large numbers as keys: their hashes are no secret, and could be chosen to collide
_SMALL = 2**31  # optimizers have such numbers as keys, a million of which hardly collide
_NO_EFFECT = {"PROTO", "FRAME", "STOP"}
_FROM_NUMBERS = {"__builtin__ bytearray", "builtins bytearray"}  # bytearray(10**10) fills the memory


class UnsafePickleError(ValueError):
    """The pickle is not built as a file of its kind."""


class DamagedPickleError(ValueError):
    """The pickle is damaged or truncated, or the file is no pickle."""


def walk_pickle(file: BinaryIO, size: int, opcodes: frozenset[str]) -> None:
    """Walk one pickle, and leave the file behind it.

    Args:
        file: at the start of the pickle.
        size: bytes from there to the end of the file.
        opcodes: names of those that may occur.

    Raises:
        UnsafePickleError: another opcode, or built as no such file is.
        DamagedPickleError: damaged, truncated, or no pickle.
    """
    start = file.read(min(size, _START_BYTES))
    if start[:1] not in _BY_CODE:
        raise DamagedPickleError(_describe_start(start))
    file.seek(-len(start), os.SEEK_CUR)
    walk = _Walk(size, calls_are_short="NEWOBJ" in opcodes)
    try:
        for opcode, argument in _opcodes(cast(BinaryIO, _Bounded(file, size))):
            if opcode.name not in opcodes:
                raise UnsafePickleError(f"it uses the opcode {opcode.name}, which such a file does not need")
            if opcode.name == "FRAME" and int(argument or 0) > size:  # the unpickler reserves so many bytes
                raise DamagedPickleError("it announces more bytes than the file has")
            walk.step(opcode.name, argument)
    except (UnsafePickleError, DamagedPickleError):
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise DamagedPickleError(str(error)[:80] or type(error).__name__) from None


def _describe_start(start: bytes) -> str:
    """Return in words what a file is that is no pickle."""
    if not start:
        return "it is empty"
    if start.lstrip().startswith(b"<"):
        return "it is a web page, download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, run: git lfs pull"
    if start.startswith(b"\x1f\x8b"):
        return "it is compressed by gzip, unpack it first"
    return f"it begins with {start[:8]!r}"


def _opcodes(file: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Yield opcodes with their arguments, as ``pickletools.genops``, which takes every STRING of Python 2 for ASCII."""
    opcode = None
    while opcode is None or opcode.name != "STOP":
        code = file.read(1)
        if code not in _BY_CODE:
            raise DamagedPickleError(f"it has the unknown opcode {code!r}")
        opcode = _BY_CODE[code]
        if opcode.name == "STRING":
            yield opcode, pickletools.read_stringnl(file, decode=False)
        else:
            yield opcode, None if opcode.arg is None else opcode.arg.reader(file)


class _Bounded:
    """A file that is never asked for more bytes than it has.

    Args:
        file: the file.
        size: bytes that it has.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def tell(self) -> int:
        return self._file.tell()

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            raise DamagedPickleError("it announces more bytes than the file has")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line


class _Value:
    """What the walk knows of an object.

    Attributes:
        depth: levels of containers in it; 0 for a plain value.
        chosen: floats and large numbers in it that would be hashed if a call got it.
        parts: in it, a shared part as often as it occurs; in a checkpoint, a text counts by its length.
        name: module and name of a global.
        used: it is a part of another object, and must not grow any more.
    """

    __slots__ = ("chosen", "depth", "name", "parts", "used")

    def __init__(self, depth: int, chosen: int = 0) -> None:
        self.depth, self.chosen, self.parts, self.name, self.used = depth, chosen, 1, "", False


_MARK = _Value(0)
_SHORT = _Value(0)  # all plain values of which nothing more is known, a pickle can have millions


class _Walk:
    """The unpickler's stack and memo, of ``_Value``.

    Args:
        size: of the file in bytes.
        calls_are_short: refuse calls that get much, or that produce bytes from a number.
    """

    def __init__(self, size: int, calls_are_short: bool) -> None:
        self._most_parts, self._calls_are_short = size + _MOST_PARTS, calls_are_short
        self._most_opcodes, self._most_containers = size / 16 + _MOST_OPCODES, size // 64 + _MOST_CONTAINERS
        self._stack: list[_Value] = []
        self._memo: dict[int, _Value] = {}
        self._steps = self._chosen = self._containers = 0
        self._opcodes = 0.0

    def step(self, name: str, argument: Any) -> None:
        """Do what an opcode does to the stack."""
        self._steps += 1
        self._opcodes += 0.5 if name in _CHEAP else 1
        self._containers += name in _BUILT
        if self._opcodes > self._most_opcodes:
            raise UnsafePickleError(f"it has more than {self._most_opcodes:,.0f} opcodes, too many for its size")
        if self._containers > self._most_containers:
            raise UnsafePickleError(f"it has more than {self._most_containers:,} containers, too many for its size")
        if name in _PUSHED:
            self._push(name, argument)
        elif name in _EMPTY:
            self._stack.append(_Value(1))
        elif name in _GETS:
            self._get(int(argument))
        elif name in _PUTS or name == "MEMOIZE":
            self._put(len(self._memo) if name == "MEMOIZE" else int(argument))
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name in _TUPLES:
            self._combine([self._pop() for _ in range(_TUPLES[name])])
        elif name not in _NO_EFFECT:
            getattr(self, f"_{name.lower()}")()

    def _push(self, name: str, argument: Any) -> None:
        value = _SHORT
        if isinstance(argument, float) or (isinstance(argument, int) and abs(argument) >= _SMALL):
            value = _Value(0, chosen=1)
        elif name == "GLOBAL" or (self._calls_are_short and isinstance(argument, (str, bytes, bytearray))):
            value = _Value(0)
            if self._calls_are_short:
                value.parts += len(argument)
        if name == "GLOBAL":
            value.name = argument
            if self._calls_are_short and argument in _FROM_NUMBERS:
                raise UnsafePickleError(f"it names {argument}, which such a file does not need")
        self._stack.append(value)

    def _put(self, index: int) -> None:
        if not 0 <= index <= self._steps:
            raise UnsafePickleError(f"it has the memo index {index} after {self._steps} opcodes")
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise DamagedPickleError(f"it has no object {index} in its memo")
        self._stack.append(self._memo[index])

    def _pop(self) -> _Value:
        value = self._stack.pop()
        if value is _MARK:
            raise DamagedPickleError("a mark in place of a value")
        return value

    def _pop_to_mark(self) -> list[_Value]:
        start = len(self._stack) - 1
        while self._stack[start] is not _MARK:  # an IndexError where there is none
            start -= 1
            if start < 0:
                raise DamagedPickleError("no mark")
        parts = self._stack[start + 1 :]
        del self._stack[start:]
        return parts

    def _combine(self, parts: list[_Value], container: _Value | None = None, keys: list[_Value] | None = None) -> None:
        """Push a new container of parts, or a given one that gets more parts; of a dictionary, with its new keys."""
        if container is not None and container.used:
            raise UnsafePickleError("it changes an object that is a part of another one")
        container = container or _Value(1)
        for part in parts:
            part.used = part.depth > 0
            container.depth = max(container.depth, 1 + part.depth)
            container.parts += part.parts
        container.chosen += sum(part.chosen for part in (parts if keys is None else keys))
        if container.depth > _DEEPEST:
            raise UnsafePickleError(f"its objects are nested more than {_DEEPEST} levels deep")
        if container.parts > self._most_parts:
            raise UnsafePickleError("its objects share their parts so often that they would fill the memory")
        self._stack.append(container)

    def _list(self) -> None:
        self._combine(self._pop_to_mark())

    _tuple = _list

    def _append(self) -> None:
        part = self._pop()
        self._combine([part], self._pop())

    def _build(self) -> None:
        state = self._pop()
        if self._calls_are_short:
            self._hash(state.chosen)  # of pairs, it becomes a dictionary
        self._combine([state], self._pop())

    def _appends(self) -> None:
        parts = self._pop_to_mark()
        self._combine(parts, self._pop())

    def _dict(self) -> None:
        parts = self._pop_to_mark()
        self._check_keys(parts[::2])
        self._combine(parts, keys=parts[::2])

    def _setitems(self) -> None:
        parts = self._pop_to_mark()
        self._check_keys(parts[::2])
        self._combine(parts, self._pop(), keys=parts[::2])

    def _setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._check_keys([key])
        self._combine([value], self._pop(), keys=[key])

    def _additems(self) -> None:
        parts = self._pop_to_mark()
        self._check_keys(parts)
        self._combine(parts, self._pop())

    def _check_keys(self, keys: list[_Value]) -> None:
        if any(key.depth for key in keys):
            raise UnsafePickleError("it has a key that is neither a text nor a number")
        self._hash(sum(key.chosen for key in keys))

    def _hash(self, chosen: int) -> None:
        self._chosen += chosen
        if self._chosen > _MOST_CHOSEN:
            raise UnsafePickleError(f"it has more than {_MOST_CHOSEN:,} floats or large numbers as keys")

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        most = _CALL_PARTS.get(function.name, _MOST_CALL_PARTS)
        if self._calls_are_short and arguments.parts > most:
            raise UnsafePickleError(f"it calls a function with more than {most:,} parts or letters")
        if self._calls_are_short:
            self._hash(arguments.chosen)  # of an OrderedDict or a set, they are keys
        result = _Value(1)
        self._combine([arguments] if arguments.depth > 1 else [], result)
        result.parts, result.chosen = 1 + arguments.parts, arguments.chosen

    _newobj = _reduce

    def _binpersid(self) -> None:
        if self._pop().depth > 1:
            raise UnsafePickleError("it has a nested persistent id")
        self._stack.append(_Value(1))

    def _stack_global(self) -> None:
        if self._pop().depth or self._pop().depth:
            raise UnsafePickleError("it names a global by something else than texts")
        self._stack.append(_Value(0))

    def _pop_mark(self) -> None:
        self._pop_to_mark()
