import math
import tracemalloc

import numpy as np
import oracles_identification as oracle
import pytest

from evaluation.similarity_search import nearest, search

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


@pytest.mark.parametrize("block_bytes", [ROW, 7 * ROW, 10**9])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_nearest_as_the_slow_oracle_however_it_is_cut(k, block_bytes):
    probes, gallery, _, _ = random_search()
    scores = probes.astype(np.float64) @ gallery.T.astype(np.float64)
    places, values = nearest(probes, gallery, k, block_bytes=block_bytes)
    assert places.tolist() == [oracle.ranking(row)[:k] for row in scores]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, places, axis=1))


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
    with pytest.raises(ValueError, match=f"give at least {ROW}"):
        search(probes, gallery, probe_labels, gallery_labels, block_bytes=ROW - 1)
    for k in (0, 41):
        with pytest.raises(ValueError, match=f"cannot find the {k} most similar of 40"):
            nearest(probes, gallery, k)


@pytest.mark.parametrize("block_bytes", [600_000, 5_000_000])
def test_no_more_memory_than_the_bound(block_bytes):
    probes, gallery = oracle.random_units(1000, 8, 0), oracle.random_units(10_000, 8, 1)  # 40 MB of scores
    labels = np.arange(10_000)
    tracemalloc.start()
    search(probes, gallery, labels[:1000], labels, nonmate_count=100, block_bytes=block_bytes)
    of_search = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    nearest(probes, gallery, 5, block_bytes=block_bytes)
    of_nearest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert block_bytes / 4 < of_search < block_bytes + 400_000  # the result, and places of the gallery by subject
    assert block_bytes / 4 < of_nearest < block_bytes + 400_000
