"""The order of torchvision's `ImageFolder`: classes by name, inside a class files by name, both as text.

Source: torchvision's `ImageFolder` on `<label>/<key>.jpg`.
Differences: the names are numbers and stay so; nothing is formatted, and where classes lie together nothing is sorted.
"""

import numpy as np

_MOST_DIGITS = 19
_POWERS = np.uint64(10) ** np.arange(_MOST_DIGITS + 1, dtype=np.uint64)


def order_by_class(keys: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Sort by class, then by key as text.

    Args:
        keys: (N,) from 0 on, ascending.
        classes: int32 (N,), 0..C-1, not necessarily all of them.

    Returns:
        (N,) positions in sorted order.
    """
    starts = np.append(0, np.flatnonzero(classes[1:] != classes[:-1]) + 1)
    pieces_fit = 0 < len(starts) <= int(classes.max(initial=-1)) + 1
    if not pieces_fit or np.bincount(classes[starts]).max() > 1:  # some class is in several pieces
        return lexicographic_order(keys, classes)
    sizes = np.diff(starts, append=len(keys))
    pieces = np.argsort(classes[starts])
    begins = np.cumsum(sizes[pieces]) - sizes[pieces]  # in the order to make
    small = np.int32 if len(keys) < 2**31 else np.int64  # fresh memory is what takes the time here
    order = np.repeat((starts[pieces] - begins).astype(small), sizes[pieces])
    order += np.arange(len(keys), dtype=small)
    # Keys with as many digits ascend as text too.
    lasts = starts + sizes - 1
    for piece in np.flatnonzero((_digits(keys[starts]) != _digits(keys[lasts]))[pieces]).tolist():
        inside = slice(begins[piece], begins[piece] + sizes[pieces[piece]])
        order[inside] = order[inside][lexicographic_order(keys[order[inside]])]
    return order


def lexicographic_order(numbers: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Sort whole numbers as if they were text, without making text of them.

    Args:
        numbers: (N,) from 0 on; distinct within a group.
        groups: (N,) from 0 on; sorted by these first, as numbers. None: one group.

    Returns:
        (N,) positions in sorted order: 0, 1, 10, 100, 11, 2. So too when an extension follows: "." is below "0".

    Raises:
        ValueError: a negative number.
    """
    numbers = np.asarray(numbers)
    if len(numbers) and int(numbers.min()) < 0:
        raise ValueError(f"negative key {int(numbers.min())}: expected keys from 0 on")
    digits = _digits(numbers)
    most = int(digits.max(initial=1))
    # First digits under each other; the same digits followed by nothing come before those followed by zeros.
    aligned = numbers.astype(np.uint64) * _POWERS[most - digits]
    group_count = 1 if groups is None or len(groups) == 0 else int(groups.max()) + 1
    if group_count * 10**most * most < 2**64:  # all in one number: sorts many times faster
        combined = aligned * np.uint64(most) + (digits - 1)
        if groups is not None:
            combined += groups.astype(np.uint64) * np.uint64(10**most * most)
        return np.argsort(combined)
    return np.lexsort((digits, aligned) if groups is None else (digits, aligned, groups))


def _digits(numbers: np.ndarray) -> np.ndarray:
    """Count the decimal digits, uint8 (N,); of 0: one."""
    return np.maximum(np.searchsorted(_POWERS, numbers.astype(np.uint64), side="right"), 1).astype(np.uint8)
