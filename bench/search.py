"""The ten most similar of 1,000,000 gallery faces for each of 1,000 probes, faiss against numpy.

    python -m bench.search

The baseline multiplies all probes with a part of the gallery at a time, so large that its scores take some 250 MB, and
partitions; both sides are exact.
"""

from typing import Any

import numpy as np

from adaface.inference.search import most_similar
from bench.timing import Side, compare, options, report

_TOP = 10
_BLOCK_BYTES = 80_000_000  # of scores; as much again is taken twice while they are compared
_EMBEDDING = 512
_TOLERANCE = 1e-5  # of a cosine
Found = tuple[np.ndarray, np.ndarray]


def unit_vectors(count: int, seed: int) -> np.ndarray:
    """Return random unit vectors, (count, 512) float32, without an array twice as large on the way."""
    vectors = np.random.default_rng(seed).standard_normal((count, _EMBEDDING), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def same_faces(baseline: Found, candidate: Found) -> dict[str, Any]:
    """Raise unless both found faces of the same cosines; places may differ where these are equal."""
    difference = float(np.abs(candidate[1] - baseline[1]).max())
    if not difference < _TOLERANCE:
        raise AssertionError(f"the cosines differ by {difference:.1e}")
    return {
        "largest difference": f"{difference:.1e}",
        "same places": round(float((baseline[0] == candidate[0]).mean()), 6),
    }


def in_blocks(probes: np.ndarray, gallery: np.ndarray, k: int) -> Found:
    """Return places and cosines (P, k) by numpy, most similar first."""
    places = np.empty((len(probes), k), np.int64)
    scores = np.empty((len(probes), k), np.float32)
    rows = max(1, _BLOCK_BYTES // gallery[:, :1].nbytes)
    for start in range(0, len(probes), rows):
        block = probes[start : start + rows] @ gallery.T  # (rows, G)
        best = np.argpartition(-block, k - 1, axis=1)[:, :k]
        order = np.take_along_axis(best, np.argsort(-np.take_along_axis(block, best, 1), axis=1), 1)
        places[start : start + rows], scores[start : start + rows] = order, np.take_along_axis(block, order, 1)
    return places, scores


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    probe_count, gallery_count = (10, 2_000) if chosen.quick else (1_000, 1_000_000)
    probes, gallery = unit_vectors(probe_count, 1), unit_vectors(gallery_count, 2)
    result = compare(
        f"search, {probe_count:,} probes in a gallery of {gallery_count:,}",
        Side("numpy, in blocks", lambda: in_blocks(probes, gallery, _TOP)),
        Side("faiss", lambda: most_similar(probes, gallery, _TOP)),
        count=probe_count,
        unit="probes",
        target=1,
        check=same_faces,
        repeats=chosen.repeats,
    )
    report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
