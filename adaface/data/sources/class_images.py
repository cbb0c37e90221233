"""Digests of a few images of classes, by which a resumed run notices that classes have the images of others.

The head has one row for each class. If an identity is removed, the folders after it move up by one number and a new
one fills the end, then the names are the same as before, but most rows belong to other people. Relabeled images must
not be taken for that: a class has moved only if most of the images that are compared are in one other class now.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np

from adaface.data.sources.base import TrainingSource, read_if_possible
from adaface.system.progress_bar import progress_bar
from adaface.system.threads import in_order

_CLASSES = 1000
_DIGITS = 16
_FEWEST_MOVED = 2  # a single one may be a correction
_SHOWN = 3
_THREADS = 8  # small files of a network are waited for
_AHEAD = 64

ClassImages = Mapping[int, Sequence[str]]


def sample_classes(source: TrainingSource) -> dict[int, list[str]]:
    """Return digests of some images of classes, for ``describe_moved``.

    Args:
        source: all samples.

    Returns:
        By class, for up to 1,000 classes spread evenly over all: digests of its first, middle and last image, or of
        the one or two that it has; 16 hexadecimal digits each, empty for an image that cannot be read.
    """
    numbers = np.linspace(0, len(source.class_names) - 1, _CLASSES).astype(int)
    return _digests(source, numbers.tolist(), _first_middle_last)


def describe_moved(before: ClassImages, source: TrainingSource, *, shown: bool = True) -> str:
    """Return which classes have the images of others, such as "Ada has those of Bob, Bob has those of Ada".

    Empty if less than two of the sampled classes have moved. If the first and the last image of two or more are not
    what they were, the first image of every class is read to find where they are.

    Args:
        before: ``sample_classes``, earlier.
        source: all samples today; the numbers of the classes are the same.
        shown: show the progress of the search.
    """
    names = source.class_names
    before = {number: digests for number, digests in before.items() if number < len(names)}
    if not before:
        return ""
    now = _digests(source, list(before), _first_middle_last)
    changed = [n for n, old in before.items() if n in now and old[0] != now[n][0] and old[-1] != now[n][-1]]
    if len(_moved(before, now)) < _FEWEST_MOVED <= len(changed):
        begin_alike = _classes_that_begin_with({before[number][0] for number in changed}, source, shown)
        now |= _digests(source, begin_alike, _first_middle_last)
    if moved := _moved(before, now):  # the images may still be elsewhere in the class, and copies of them in another
        moved = _moved(before, now | _digests(source, [old for _, old in moved], range))
    if len(moved) < _FEWEST_MOVED:
        return ""
    told = [f"{names[new]} has those of {names[old]}" for new, old in sorted(moved)]
    at_least = "at least " if len(before) < len(names) else ""
    rest = f", and {at_least}{len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return ", ".join(told[:_SHOWN]) + rest


def _moved(before: ClassImages, now: ClassImages) -> list[tuple[int, int]]:
    """Return the classes of which most images are in one other class: this one, and the class itself."""
    often = Counter(digest for digests in before.values() for digest in set(digests))
    owner = {digest: number for number, digests in now.items() for digest in digests}
    moved = []
    for old, digests in before.items():
        known = {digest for digest in digests if digest and often[digest] == 1}  # others do not tell classes apart
        gone = known.difference(now.get(old, ()))
        for new, votes in Counter(owner[digest] for digest in gone if digest in owner).most_common(1):
            if 2 * votes > len(known):
                moved.append((new, old))
    return moved


def _classes_that_begin_with(digests: set[str], source: TrainingSource, shown: bool) -> list[int]:
    """Return the classes whose first image has one of the digests."""
    classes, firsts = np.unique(source.labels, return_index=True)
    found = progress_bar(
        _read(source, firsts.tolist()),
        total=len(firsts),
        desc="searching moved identities",
        unit=" identities",
        leave=False,
        disable=not shown,
    )
    return [number for number, digest in zip(classes.tolist(), found, strict=True) if digest and digest in digests]


def _digests(
    source: TrainingSource, numbers: Sequence[int], places: Callable[[int], Sequence[int]]
) -> dict[int, list[str]]:
    """Return digests of images of some classes; ``places`` chooses them by the number of images of a class."""
    labels = source.labels
    chosen = np.zeros(len(source.class_names), bool)
    chosen[numbers] = True
    samples = np.flatnonzero(chosen[labels])
    samples = samples[np.argsort(labels[samples], kind="stable")]
    classes, starts, counts = np.unique(labels[samples], return_index=True, return_counts=True)
    taken = [samples[start:][places(count)] for start, count in zip(starts, counts.tolist(), strict=True)]
    read = _read(source, (sample for some in taken for sample in some.tolist()))
    return {number: list(islice(read, len(some))) for number, some in zip(classes.tolist(), taken, strict=True)}


def _first_middle_last(count: int) -> list[int]:
    return list(dict.fromkeys((0, count // 2, count - 1)))


def _read(source: TrainingSource, samples: Iterable[int]) -> Iterator[str]:
    """Yield the digests of samples."""
    return in_order(partial(_digest, source), samples, threads=_THREADS, ahead=_AHEAD)


def _digest(source: TrainingSource, sample: int) -> str:
    image = read_if_possible(source, sample)
    return hashlib.sha256(image).hexdigest()[:_DIGITS] if image else ""
