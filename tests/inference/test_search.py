import math
import tracemalloc

import numpy as np
import pytest

from adaface.inference.search import most_similar, search
from tests.support import oracles_identification as oracle

ROW = 12 * 40  # bytes that the smallest block takes, for a gallery of 40


def random_search(probes: int = 60, gallery: int = 40):
    generator = np.random.default_rng(0)
    # 3 decimals of few numbers, so that many scores are equal, and equal in whatever order they are summed up
    vectors = [generator.integers(-2, 3, (rows, 5)).astype(np.float32) / 8 for rows in (probes, gallery)]
    return *vectors, generator.integers(0, 25, probes), generator.integers(0, 20, gallery)


@pytest.mark.parametrize("block_bytes", [ROW, 7 * ROW, 10**9])
def test_search_as_the_slow_oracle_however_it_is_cut(block_bytes):
    probes, gallery, probe_labels, gallery_labels = random_search()
    before = [array.copy() for array in (probes, gallery)]
    found = search(probes, gallery, probe_labels, gallery_labels, nonmate_count=50, block_bytes=block_bytes)
    scores, ranks, best_others, others = oracle.searched(
        probes.astype(np.float64) @ gallery.T.astype(np.float64), probe_labels, gallery_labels
    )
    assert (ranks == 0).any()
    assert (ranks > 5).any()
    np.testing.assert_array_equal(found.mate_scores, scores)
    np.testing.assert_array_equal(found.mate_ranks, ranks)
    np.testing.assert_array_equal(found.best_nonmate_scores, best_others)
    np.testing.assert_array_equal(found.top_nonmate_scores, others[:50])
    for array, was in zip((probes, gallery), before, strict=True):
        assert np.array_equal(array, was)


@pytest.mark.parametrize("probe_count", [3, 60])  # faiss multiplies few probes in another way
@pytest.mark.parametrize("k", [1, 3, 20, 39, 40])
def test_most_similar_as_the_slow_oracle(k, probe_count):
    probes, gallery, _, _ = random_search(probe_count)
    scores = probes.astype(np.float64) @ gallery.T.astype(np.float64)
    places, values = most_similar(probes, gallery, k)
    assert places.tolist() == [oracle.ranking(row)[:k] for row in scores]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, places, axis=1))


def unit(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 4, 300])
def test_most_similar_finds_what_sorting_finds(k):
    probes, gallery = unit(20, 0), unit(300, 1)
    places, scores = most_similar(probes, gallery, k)
    all_scores = probes.astype(np.float64) @ gallery.T.astype(np.float64)
    expected = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, expected, 1), atol=1e-6)
    assert scores.dtype == np.float32


def test_of_equal_faces_the_earlier_comes_first():
    gallery = np.repeat(np.eye(16, dtype=np.float32)[:2], 3, axis=0)
    places, scores = most_similar(gallery[3:4], gallery, 6)
    assert places.tolist() == [[3, 4, 5, 0, 1, 2]]
    assert scores.tolist() == [[1, 1, 1, 0, 0, 0]]
    same = np.repeat(gallery[:1], 1000, axis=0)
    assert most_similar(gallery[:2], same, 3)[0].tolist() == [[0, 1, 2]] * 2


def test_what_cannot_be_searched():
    with pytest.raises(ValueError, match="k must be from 1 to that number"):
        most_similar(unit(2, 0), unit(3, 1), 4)
    with pytest.raises(ValueError, match="with at least one in the gallery"):
        most_similar(unit(2, 0), unit(0, 1), 1)
    with pytest.raises(ValueError, match="are not finite"):
        most_similar(unit(2, 0) * np.nan, unit(3, 1), 1)
    places, scores = most_similar(unit(0, 0), unit(3, 1), 2)
    assert places.shape == scores.shape == (0, 2)


def test_all_scores_of_others_are_kept_where_there_are_fewer_than_asked_for():
    probes, gallery, probe_labels, gallery_labels = random_search(3, 4)
    found = search(probes, gallery, probe_labels, gallery_labels, nonmate_count=1000)
    assert len(found.top_nonmate_scores) == (probe_labels[:, None] != gallery_labels).sum()


def test_a_gallery_of_one_subject_has_no_others():
    found = search(np.eye(2), np.eye(2)[:1], np.array([5, 5]), np.array([5]), nonmate_count=3)
    assert found.mate_ranks.tolist() == [1, 1]
    assert found.best_nonmate_scores.tolist() == [-math.inf, -math.inf]
    assert not len(found.top_nonmate_scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, g, a, b: (p[:, 1:], g, a, b), r"probes of shape \(60, 4\) and a gallery of shape \(40, 5\)"),
        (lambda p, g, a, b: (p, g[:0], a, b[:0]), "at least one in the gallery"),
        (lambda p, g, a, b: (p, g, a[1:], b), r"labels of shape \(59,\) and \(40,\) for 60 probes"),
        (lambda p, g, a, b: (np.where(p == p[0, 0], np.nan, p), g, a, b), "probe features are not finite"),
        (lambda p, g, a, b: (p, np.where(np.arange(40)[:, None] < 2, np.inf, g), a, b), "2 of 40 gallery features"),
    ],
)
def test_searches_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        search(*change(*random_search()))


def test_bounds_that_cannot_be_kept_are_refused():
    probes, gallery, probe_labels, gallery_labels = random_search()
    with pytest.raises(ValueError, match=f"use at least {ROW}"):
        search(probes, gallery, probe_labels, gallery_labels, block_bytes=ROW - 1)
    for k in (0, 41):
        with pytest.raises(ValueError, match=f"cannot find the {k} most similar of 40"):
            most_similar(probes, gallery, k)


@pytest.mark.parametrize("block_bytes", [600_000, 5_000_000])
def test_no_more_memory_than_the_bound(block_bytes):
    probes, gallery = oracle.random_units(1000, 8, 0), oracle.random_units(10_000, 8, 1)  # 40 MB of scores
    labels = np.arange(10_000)
    tracemalloc.start()
    search(probes, gallery, labels[:1000], labels, nonmate_count=100, block_bytes=block_bytes)
    of_search = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert block_bytes / 4 < of_search < block_bytes + 400_000  # the result, and places of the gallery by subject
