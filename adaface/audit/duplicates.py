"""Duplicate images: within an identity, in two identities, or in the data and a test set.

Exact duplicates are found by a hash of the pixels. Near duplicates are found by a perceptual hash; then both images are
read again and compared, and only pairs with a high correlation are reported.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adaface.audit.finding import Finding
from adaface.audit.hashing import LEAST_LIKENESS, likeness, near_pairs
from adaface.audit.images import AuditedData, TestImages
from adaface.audit.scan import GOOD, states
from adaface.system.progress_bar import progress_bar
from adaface.system.threads import in_order

Scanned = tuple[TestImages, np.ndarray]  # a test set and its (M,) rows of `scan.ROW`


def duplicate_findings(
    data: AuditedData, table: np.ndarray, test_sets: Sequence[Scanned] = (), *, threads: int
) -> list[Finding]:
    """Find exact and near duplicates within identities, across identities, and of images of test sets.

    A sample is reported with its first duplicate inside of its identity and with the first one outside of it, or with
    the first duplicate in a test set.

    Args:
        data: training data.
        table: (N,) array of ``scan.ROW``.
        test_sets: test sets, scanned with the same reference frequencies.
        threads: number of threads; the result does not depend on it.
    """
    good = states(table, GOOD)
    firsts = _firsts(table["pixels"][good])
    findings = list(_exact(data, good, firsts))
    leaks = _exact_leaks(data, table, good, test_sets)
    kept = good[firsts == np.arange(len(good))]  # one image per group of exact duplicates
    tests = [(images, int(place), rows["look"][place]) for images, rows in test_sets for place in states(rows, GOOD)]
    looks = np.concatenate([table["look"][kept], *(look[None] for _, _, look in tests)])
    pairs = near_pairs(looks, threads=threads)
    inner = kept[pairs[pairs[:, 1] < len(kept)]]
    alike = _verified([(data, a, data, b) for a, b in inner.tolist()], "near duplicates", threads)
    findings += _near(data, inner, alike)
    outer = pairs[(pairs[:, 0] < len(kept)) & (pairs[:, 1] >= len(kept))]
    crossed = [(int(kept[a]), *tests[b - len(kept)][:2]) for a, b in outer.tolist() if int(kept[a]) not in leaks]
    alike = _verified([(images, place, data, sample) for sample, images, place in crossed], "near leaks", threads)
    for (sample, images, place), value in zip(crossed, alike, strict=True):
        if value >= LEAST_LIKENESS:
            leaks.setdefault(sample, _leak(data, sample, images, place, value))
    return findings + [leaks[sample] for sample in sorted(leaks)]


def _exact_leaks(
    data: AuditedData, table: np.ndarray, good: np.ndarray, test_sets: Sequence[Scanned]
) -> dict[int, Finding]:
    """Return a finding for each sample with the same pixels as an image of a test set."""
    leaks: dict[int, Finding] = {}
    for images, rows in test_sets:
        there = states(rows, GOOD)
        firsts = _firsts(np.concatenate([rows["pixels"][there], table["pixels"][good]]))[len(there) :]
        for place in np.flatnonzero(firsts < len(there)).tolist():
            sample = int(good[place])
            if sample not in leaks:
                leaks[sample] = _leak(data, sample, images, int(there[firsts[place]]), 1.0)
    return leaks


def _firsts(pixels: np.ndarray) -> np.ndarray:
    """Return for each of (N, 2) hashes the index of the first equal one, (N,) int64."""
    if not len(pixels):
        return np.empty(0, np.int64)
    order = np.lexsort((pixels[:, 1], pixels[:, 0]))  # stable: equal hashes keep their order
    ordered = pixels[order]
    begins = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    firsts = np.empty(len(pixels), np.int64)
    firsts[order] = order[begins][np.cumsum(begins) - 1]
    return firsts


def _exact(data: AuditedData, good: np.ndarray, firsts: np.ndarray) -> Iterator[Finding]:
    seen: dict[tuple[int, int], int] = {}  # group of duplicates and identity -> first sample
    copies = np.bincount(firsts, minlength=len(good)) > 1
    for place in np.flatnonzero(copies[firsts]).tolist():
        first, sample = int(firsts[place]), int(good[place])
        label = int(data.labels[sample])
        if (first, label) in seen:
            yield _pair("duplicate inside", data, sample, seen[first, label], "the same pixels as")
            continue
        seen[first, label] = sample
        if first != place:
            yield _pair("duplicate across", data, sample, int(good[first]), "the same pixels as")


def _near(data: AuditedData, pairs: np.ndarray, alike: Sequence[float]) -> Iterator[Finding]:
    """Yield for each sample its first near duplicate inside of its identity, and the first one outside of it."""
    reported = set()
    for (first, sample), value in zip(pairs.tolist(), alike, strict=True):
        inside = data.labels[first] == data.labels[sample]
        if value < LEAST_LIKENESS or (sample, inside) in reported:
            continue
        reported.add((sample, inside))
        kind = "near duplicate inside" if inside else "near duplicate across"
        yield _pair(kind, data, sample, first, f"nearly the same image (correlation {value:.3f}) as", value)


def _pair(kind: str, data: AuditedData, sample: int, other: int, text: str, value: float = 1.0) -> Finding:
    text = f"{text} {data.source.describe(other)}"
    return Finding(kind, data.identity(sample), text, samples=(sample,), other=other, value=value)


def _leak(data: AuditedData, sample: int, images: TestImages, test: int, value: float) -> Finding:
    same = "the same pixels as" if value == 1 else f"nearly the same image (correlation {value:.3f}) as"
    return Finding(
        "leaked image",
        data.identity(sample),
        f"{same} {images.where(test)}",
        samples=(sample,),
        test_image=(images.name, test),
        value=value,
    )


def _verified(pairs: Sequence[tuple[Any, int, Any, int]], what: str, threads: int) -> list[float]:
    """Return the correlations of pairs of images."""

    def compare(pair: tuple[Any, int, Any, int]) -> float:
        left, a, right, b = pair
        return likeness(left.read(a), right.read(b))

    results = in_order(compare, pairs, threads=threads, ahead=4 * threads)
    return list(progress_bar(results, total=len(pairs), desc=what, unit=" pairs", disable=not pairs))
