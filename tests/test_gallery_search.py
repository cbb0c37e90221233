import sys

import numpy as np
import pytest

from gallery_search import LARGE_GALLERY, choose_engine, most_similar


def unit(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("engine", ["numpy", "faiss"])
@pytest.mark.parametrize("k", [1, 4, 300])
def test_both_engines_find_what_sorting_finds(engine, k):
    probes, gallery = unit(20, 0), unit(300, 1)
    places, scores = most_similar(probes, gallery, k, engine)
    all_scores = probes.astype(np.float64) @ gallery.T.astype(np.float64)
    expected = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, expected, 1), atol=1e-6)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("engine", ["numpy", "faiss"])
def test_of_equal_faces_the_earlier_comes_first(engine):
    gallery = np.repeat(np.eye(16, dtype=np.float32)[:2], 3, axis=0)
    places, scores = most_similar(gallery[3:4], gallery, 6, engine)
    assert places.tolist() == [[3, 4, 5, 0, 1, 2]]
    assert scores.tolist() == [[1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("engine", ["numpy", "faiss"])
def test_what_cannot_be_searched(engine):
    with pytest.raises(ValueError, match="k is from 1 to that many"):
        most_similar(unit(2, 0), unit(3, 1), 4, engine)
    with pytest.raises(ValueError, match="with at least one in the gallery"):
        most_similar(unit(2, 0), unit(0, 1), 1, engine)
    with pytest.raises(ValueError, match="are not finite"):
        most_similar(unit(2, 0) * np.nan, unit(3, 1), 1, engine)
    places, scores = most_similar(unit(0, 0), unit(3, 1), 2, engine)
    assert places.shape == scores.shape == (0, 2)


def test_large_galleries_take_faiss():
    assert choose_engine("auto", LARGE_GALLERY - 1) == "numpy"
    assert choose_engine("auto", LARGE_GALLERY) == "faiss"
    assert choose_engine("numpy", LARGE_GALLERY) == "numpy"
    assert choose_engine("faiss", 1) == "faiss"


def test_without_faiss_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RuntimeError, match="pip install faiss-cpu; --engine numpy does without"):
        most_similar(unit(2, 0), unit(3, 1), 1, "faiss")
    assert most_similar(unit(2, 0), unit(3, 1), 1)[0].shape == (2, 1)
