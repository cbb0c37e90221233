"""The text of an `.idx`: a line with key, tab and offset for each record, parsed to arrays.

Source: mxnet's `MXIndexedRecordIO`.
Differences: lines of equal form (the same number of digits in the key and in the offset) are parsed together, eight
digits at a time; the form changes only about a dozen times in a sorted file.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adaface.system.threads import in_order

_THREADS = 2
_BYTES_AT_ONCE = 1 << 20  # small enough for a block to stay in the CPU cache
_TAB, _NEWLINE = ord("\t"), ord("\n")
_MOST_DIGITS = 16  # of a number that is parsed in two words of eight
_WORD = 8
_FEWEST_ROWS = 64  # if blocks are shorter than this on average, parsing number by number is faster
_ZEROS = np.uint64(0x3030303030303030)
_UPPER_HALVES = np.uint64(0xF0F0F0F0F0F0F0F0)


def read_idx(idx_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an `.idx`.

    Args:
        idx_path: the file.

    Returns:
        Keys and offsets, int64 (N,) each, in the order of the file.

    Raises:
        ValueError: a line that is not key, tab, offset, both whole numbers from 0 to 2^63 - 2; names the line.
    """
    keys, offsets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    line = 1
    with idx_path.open("rb") as file:
        # numpy releases Python's lock while it works on a column
        for text, parsed in in_order(_try_blocks, _parts(file), threads=_THREADS, ahead=2 * _THREADS):
            parsed = parsed or _parse_lines(text.replace(b"\r\n", b"\n"), line, idx_path)
            keys.append(parsed[0])
            offsets.append(parsed[1])
            line += text.count(b"\n")
    return np.concatenate(keys), np.concatenate(offsets)


def _parts(file: BinaryIO) -> Iterator[bytes]:
    """Cut a file into parts of whole lines; a byte order mark, as Windows editors write it, is left out."""
    mark = codecs.BOM_UTF8
    while text := file.read(_BYTES_AT_ONCE):
        if part := text.removeprefix(mark) + file.readline():
            yield part
        mark = b""


def _try_blocks(text: bytes) -> tuple[bytes, tuple[np.ndarray, np.ndarray] | None]:
    """Return the text and the result of ``_parse_blocks``."""
    return text, _parse_blocks(text)


# --- lines of equal form --------------------------------------------------------------------------------------


def _parse_blocks(text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Parse whole lines, block by block; return None if their form changes too often, or a line is unusual."""
    keys, offsets = [], []
    padded = np.frombuffer(text + bytes(_WORD), np.uint8)
    start = rows = 0
    while start < len(text):
        tab, end = text.find(b"\t", start), text.find(b"\n", start)
        if not start < tab < end - 1 or max(tab - start, end - tab - 1) > _MOST_DIGITS:
            return None
        block = _parse_block(padded, start, tab - start, end - tab - 1)
        keys.append(block[0])
        offsets.append(block[1])
        rows += len(block[0])
        start += len(block[0]) * (end + 1 - start)
        if not len(block[0]) or len(keys) * _FEWEST_ROWS > rows + 16 * _FEWEST_ROWS:
            return None
    if len(keys) == 1:
        return keys[0], offsets[0]
    return np.concatenate(keys), np.concatenate(offsets)


def _parse_block(padded: np.ndarray, start: int, key_digits: int, offset_digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Parse the lines from ``start`` on with these numbers of digits; return keys and offsets, int64 (N,), N >= 0."""
    width = key_digits + offset_digits + 2
    count = (len(padded) - _WORD - start) // width
    rows = padded[start : start + count * width].reshape(count, width)
    # By induction: bytes that start after the end of a line, with separators here and digits between them, are a line.
    same = (rows[:, key_digits] == _TAB) & (rows[:, -1] == _NEWLINE)
    count = count if same.all() else int(np.argmin(same))
    key, good = _numbers(padded, start, width, count, key_digits)
    offset, also_good = _numbers(padded, start + key_digits + 1, width, count, offset_digits)
    good &= also_good
    if not good.all():
        count = int(np.argmin(good))
    return key[:count], offset[:count]


def _numbers(padded: np.ndarray, start: int, width: int, count: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Parse a column of numbers, one per ``width`` bytes; return int64 (N,), and whether all were digits, bool (N,)."""
    leading = digits - _WORD
    if leading <= 0:
        return _up_to_eight(padded, start, width, count, digits)
    upper, good = _up_to_eight(padded, start, width, count, leading)
    lower, also_good = _up_to_eight(padded, start + leading, width, count, _WORD)
    return upper * 10**_WORD + lower, good & also_good


def _up_to_eight(padded: np.ndarray, start: int, width: int, count: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Parse numbers of one to eight digits, like `_numbers`, by combining pairs of digits, then pairs of pairs."""
    words = np.ndarray((count,), "<u8", padded.data, start, (width,)).astype(np.uint64)
    if digits < _WORD:  # shift out the bytes after the number, shift in zeros before its first digit
        shift = np.uint64(8 * (_WORD - digits))
        words <<= shift
        words |= _ZEROS >> (np.uint64(64) - shift)
    # a byte is a digit if its upper half is 3, also after adding 6
    good = (words & _UPPER_HALVES) == _ZEROS
    good &= ((words + np.uint64(0x0606060606060606)) & _UPPER_HALVES) == _ZEROS
    words &= ~_UPPER_HALVES
    words *= np.uint64(10 << 8 | 1)
    words >>= np.uint64(8)
    words &= np.uint64(0x00FF00FF00FF00FF)
    words *= np.uint64(100 << 16 | 1)
    words >>= np.uint64(16)
    words &= np.uint64(0x0000FFFF0000FFFF)
    words *= np.uint64(10_000 << 32 | 1)
    words >>= np.uint64(32)
    return words.view(np.int64), good


# --- lines of any form ----------------------------------------------------------------------------------------


def _parse_lines(text: bytes, first_line: int, idx_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Parse lines of any form, or raise an error that names the first bad line."""
    text = text.rstrip() + b"\n"  # empty lines at the end are no entries
    if not text.strip():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    separators = np.frombuffer(text.translate(None, b"0123456789"), np.uint8)
    alternate = np.array_equal(separators[0::2], np.full((len(separators) + 1) // 2, _TAB, np.uint8))
    alternate &= np.array_equal(separators[1::2], np.full(len(separators) // 2, _NEWLINE, np.uint8))
    if alternate:
        # two consecutive separators count as one, so an empty field gives a wrong number of numbers
        numbers = np.fromstring(text, np.int64, sep=" ")
        # a number that is too large is read as the largest one
        if len(numbers) == len(separators) and not (numbers == np.iinfo(np.int64).max).any():
            return numbers[0::2], numbers[1::2]
    lines = list(enumerate(text.splitlines(), first_line))
    separator = b"\t" if b"\t" in text else None  # None: an edited file, blanks in place of all tabs
    bad = next(((number, line) for number, line in lines if not _is_entry(line, separator)), None)
    if bad is None:
        entries = np.array([list(map(int, line.strip(b" \r").split(separator))) for _, line in lines], np.int64)
        return entries[:, 0], entries[:, 1]
    number, line = bad
    raise ValueError(
        f"{idx_path}, line {number}: expected `key<TAB>offset`, two whole numbers from 0 on, got {line[:60]!r}. "
        f"Delete the file to rebuild the index from the .rec"
    )


def _is_entry(line: bytes, separator: bytes | None) -> bool:
    """Return whether a line is key, separator, offset, both whole numbers from 0 to 2^63 - 2."""
    fields = line.strip(b" \r").split(separator)
    fits = (field.isdigit() and len(field.lstrip(b"0")) < 20 and int(field) < 2**63 - 1 for field in fields)
    return len(fields) == 2 and all(fits)
