"""How `bench/fuzz.py` damages a file: any bytes, and the parts that a format reads first."""

import io
import pickle
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

Mutation = Callable[[random.Random, bytes], bytes]

_WIDTHS = ("B", "H", "I", "Q")
_PICKLE_PARTS = (  # a deep nest, shared tuples, announced sizes, memo indices
    b"(" * 40, b"(tt", b")\x85" * 40, b"\x85" * 40, b"\x8e" + struct.pack("<Q", 2**40) + b"x", b"B\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x8c\x02os\x8c\x06system\x93", b"cos\nsystem\n", b"}(K\x01)s", b"0",
    b"2", b"e", b"u", b"R", b"b", b"\x94", b"\x92", b"\x96" + struct.pack("<Q", 2**33), b"K\x00", b"N", b"]", b".",
)  # fmt: skip
_TOKEN = re.compile(rb"[A-Za-z_]+|-?[0-9.]+|[^\sA-Za-z0-9]|\s")
_TOKENS = (
    b"", b"0", b"-1", b"1", b"1e400", b"-1e400", b"NaN", b"Infinity", b"1" * 400, b"9223372036854775808", b"1_0",
    b"true", b"false", b"null", b"None", b"[]", b"{}", b"{", b"[", b"]", b"}", b'"', b"'", b",", b":", b"\t", b"\n",
    b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"&a ", b"*a", b"!!bool ", b"!!python/name:os.system ", b"<<: ",
    b"2001-13-01", b"0o17", b"- - - ", b"[" * 90, b"{a: " * 12, b"..", b"/", b"~", b"=1+1", b"\xe2\x80\xa8", b"\x0b",
)  # fmt: skip


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """Flip one to four bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite_run(rng: random.Random, data: bytes) -> bytes:
    """Write zeros, ones, or any bytes over a run."""
    start, length = _run(rng, data)
    filling = (bytes(length), b"\xff" * length, rng.randbytes(length))
    return data[:start] + rng.choice(filling)[: len(data) - start] + data[start + length :]


def truncate(rng: random.Random, data: bytes) -> bytes:
    """Cut off the end."""
    return data[: rng.randrange(len(data) + 1)]


def insert(rng: random.Random, data: bytes) -> bytes:
    """Insert or append bytes."""
    start = rng.choice((len(data), rng.randrange(len(data) + 1)))
    return data[:start] + rng.choice((rng.randbytes(rng.randint(1, 40)), bytes(rng.randint(1, 40)))) + data[start:]


def delete(rng: random.Random, data: bytes) -> bytes:
    """Delete a chunk."""
    start, length = _run(rng, data)
    return data[:start] + data[start + length :]


def copy_chunk(rng: random.Random, data: bytes) -> bytes:
    """Insert a copy of a chunk elsewhere, or write it over what is there."""
    start, length = _run(rng, data)
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[start : start + length] + data[place + rng.choice((0, length)) :]


def set_integer(rng: random.Random, data: bytes) -> bytes:
    """Write an integer that a reader may trip over, more often near the start."""
    width = rng.choice(_WIDTHS)
    size = struct.calcsize(width)
    if len(data) < size:
        return data
    place = rng.randrange(len(data) - size + 1)
    if rng.random() < 0.5:
        place = min(place, rng.randrange(128))
    if rng.random() < 0.5:
        place -= place % size
    return data[:place] + _integer(rng, width, len(data)) + data[place + size :]


def set_token(rng: random.Random, data: bytes) -> bytes:
    """Replace, delete or double a word, a number or a sign of a text, or put another one before it."""
    tokens = list(_TOKEN.finditer(data))
    if not tokens:
        return rng.choice(_TOKENS) + data
    token, other = rng.choice(tokens), rng.choice(tokens).group()
    inserted = rng.choice((rng.choice(_TOKENS), other, token.group() + other))
    return data[: token.start()] + inserted + data[rng.choice((token.start(), token.end())) :]


def change_lines(rng: random.Random, data: bytes) -> bytes:
    """Delete, double or swap lines, or change their ends."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[first]
        case 1:
            lines.insert(second, lines[first])
        case 2:
            lines[first], lines[second] = lines[second], lines[first]
        case _:
            ending = rng.choice((b"\r", b"\r\n", b"", b"\n\n"))
            lines = [line.rstrip(b"\r\n") + ending for line in lines]
    return b"".join(lines)


def change_pickle(rng: random.Random, data: bytes) -> bytes:
    """Replace, delete or double an opcode of a pickle, or insert others."""
    places = _opcodes(data)
    if len(places) < 2:
        return flip_bits(rng, data)
    number = rng.randrange(len(places) - 1)
    start, end = places[number], places[number + 1]
    other = places[rng.randrange(len(places) - 1)]
    match rng.randrange(5):
        case 0:
            return data[:start] + rng.choice(pickletools.opcodes).code.encode("latin-1") + data[start + 1 :]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:start] + data[other:end] + data[start:]
        case 3:
            return data[:start] + rng.choice(_PICKLE_PARTS) * rng.choice((1, 1, 1, 5)) + data[start:]
        case _:
            argument = min(start + 1, end)
            return data[:argument] + rng.randbytes(end - argument) + data[end:]


def change_zip_field(rng: random.Random, data: bytes) -> bytes:
    """Change a field of a local or central header, or of the end of the directory."""
    starts = [m.start() for m in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)", data)]
    if not starts:
        return flip_bits(rng, data)
    width = rng.choice(("H", "I"))
    place = rng.choice(starts) + rng.randrange(4, 46)
    return data[:place] + _integer(rng, width, len(data)) + data[place + struct.calcsize(width) :]


def inside_zip(change: Mutation) -> Mutation:
    """Return a mutation of one member of a zip, whose checksum fits again, or of its name or its compression."""

    def changed(rng: random.Random, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(one.filename, archive.read(one)) for one in archive.infolist()]
        number = rng.randrange(len(members))
        name, content = members[number]
        match rng.randrange(10):
            case 0:
                members.pop(number)
            case 1:
                members[number] = (members[rng.randrange(len(members))][0], content)
            case _:
                members[number] = (name, change(rng, content))
        target = io.BytesIO()
        kind = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
        with zipfile.ZipFile(target, "w", kind) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content, kind)
        return target.getvalue()

    return changed


def change_png(rng: random.Random, data: bytes) -> bytes:
    """Change a chunk of a PNG, with a checksum that fits again."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    if not chunks:
        return data
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    chunks[number] = (rng.choice((kind, kind, kind, b"IDAT", b"tRNS", b"eXIf")), any_bytes(rng, content))
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    parts = [len(c).to_bytes(4, "big") + k + c + zlib.crc32(k + c).to_bytes(4, "big") for k, c in chunks]
    return data[:8] + b"".join(parts)


def any_bytes(rng: random.Random, data: bytes) -> bytes:
    """Apply one of the mutations that know no format."""
    return rng.choice(BYTES)(rng, data)


def mutate(rng: random.Random, data: bytes, of_format: tuple[Mutation, ...]) -> bytes:
    """Apply one to three mutations, half of them of the format where there are some.

    Args:
        rng: decides everything.
        data: a valid file.
        of_format: mutations that know the format.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        choices = of_format if of_format and rng.random() < 0.5 else BYTES
        try:
            data = rng.choice(choices)(rng, data)
        except (
            ValueError,
            KeyError,
            IndexError,
            RuntimeError,
            zipfile.BadZipFile,
            struct.error,
            OverflowError,
            zlib.error,
            EOFError,
        ):
            data = any_bytes(rng, data)  # an earlier mutation left nothing that this one knows
    return data


def _integer(rng: random.Random, width: str, size: int) -> bytes:
    """Return an integer of a width in either order."""
    bits = 8 * struct.calcsize(width)
    choices = (0, 1, 2, 3, -1, -2, 2 ** (bits - 1), 2 ** (bits - 1) - 1, size, size - 1, size + 1, 2**16, 2**20, 2**31)
    value = rng.choice((*choices, 2 ** rng.randrange(bits), rng.getrandbits(bits)))
    return (value % 2**bits).to_bytes(bits // 8, rng.choice(("little", "big")))


def _run(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Return start and length of a run."""
    length = min(len(data), rng.choice((1, 2, 4, 8, rng.randint(1, 64), rng.randint(1, max(1, len(data))))))
    return rng.randrange(max(1, len(data) - length + 1)), length


def _opcodes(data: bytes) -> list[int]:
    """Return where the opcodes of a pickle start, as far as it can be read."""
    places = []
    try:
        for _, _, place in pickletools.genops(data):
            places.append(place or 0)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, pickle.UnpicklingError):
        pass
    return places


BYTES: tuple[Mutation, ...] = (
    flip_bits, overwrite_run, truncate, insert, delete, copy_chunk, set_integer, set_integer,
)  # fmt: skip
TEXT: tuple[Mutation, ...] = (set_token, set_token, change_lines)
