"""The most similar faces of a gallery: exact, by numpy in a small one, by faiss in a large one.

Both compute every similarity, so they find the same faces; those whose scores differ in the last bits may change places
between the two. numpy multiplies faster while its bound of memory holds the scores of a hundred probes or more (on two
cores twice as fast as faiss in a gallery of 150,000); with fewer it reads the gallery again and again, and faiss, which
keeps only the best, overtakes it (``bench/search.py``).

Source: ``faiss.knn`` (inner product), which searches the caller's array and copies nothing.
"""

import importlib
from typing import Any

import numpy as np

from evaluation.similarity_search import check_features, nearest

ENGINES = ("auto", "numpy", "faiss")
LARGE_GALLERY = 300_000  # faces, from which on `auto` takes faiss: numpy's blocks hold 70 probes there


def choose_engine(engine: str, gallery: int) -> str:
    """Return ``numpy`` or ``faiss``.

    Args:
        engine: one of ``ENGINES``.
        gallery: faces in it.
    """
    if engine == "auto":
        return "faiss" if gallery >= LARGE_GALLERY else "numpy"
    return engine


def most_similar(
    probes: np.ndarray, gallery: np.ndarray, k: int, engine: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k most similar gallery faces of each probe.

    Args:
        probes: (P, D) unit vectors.
        gallery: (G, D) unit vectors.
        k: how many, 1 to G.
        engine: one of ``ENGINES``.

    Returns:
        Places in the gallery (P, k) and their cosines (P, k) float32, most similar first; of equal cosines the
        earlier place first.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or another k.
        RuntimeError: faiss is asked for, and not installed.
    """
    if choose_engine(engine, len(gallery)) == "numpy":
        return nearest(probes, gallery, k)
    check_features(probes, gallery)
    if not 1 <= k <= len(gallery):
        raise ValueError(f"cannot find the {k} most similar of {len(gallery)} gallery faces: k is from 1 to that many")
    if not len(probes):
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    faiss = _faiss()
    scores, places = faiss.knn(
        np.ascontiguousarray(probes, dtype=np.float32),
        np.ascontiguousarray(gallery, dtype=np.float32),
        k,
        metric=faiss.METRIC_INNER_PRODUCT,
    )
    order = np.lexsort((places, -scores), axis=1)
    return np.take_along_axis(places, order, 1), np.take_along_axis(scores, order, 1)


def _faiss() -> Any:
    """Import faiss; it is large, and small galleries do without it."""
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        raise RuntimeError("large galleries need faiss: pip install faiss-cpu; --engine numpy does without") from error
