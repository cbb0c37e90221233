import math

import numpy as np
import oracles_identification as oracle
import pytest

from evaluation.identification import (
    nearest,
    nonmates_needed,
    open_set_rates,
    rank_rates,
    search,
    tpir_at_fpir,
)

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


def test_rank_rates_by_hand():
    assert rank_rates(np.array([1, 2, 5, 6, 0]), (1, 5, 10)) == {1: 0.2, 5: 0.6, 10: 0.8}
    with pytest.raises(ValueError, match="got no probes"):
        rank_rates(np.array([]), (1,))


def test_tpir_of_pairs_by_hand():
    mates = np.array([0.9, 0.5, 0.6, 0.1])
    others = np.array([0.8, 0.6, 0.5, 0.4])
    # k = ceil(0.25 * 4) = 1: above 0.8; k = ceil(0.3 * 4) = 2: above 0.6, not at it; k = 4: above 0.4
    assert tpir_at_fpir(mates, others, (0.25, 0.3, 1)) == {0.25: 0.25, 0.3: 0.25, 1: 0.75}
    assert nonmates_needed(4, (0.25, 0.3)) == 2
    assert nonmates_needed(100, (0.07,)) == 7  # though 0.07 * 100 is a little more than 7 in floating point
    assert nonmates_needed(3, (1e-9,)) == 1
    with pytest.raises(ValueError, match="needs the 4 largest scores between different subjects, got 3"):
        tpir_at_fpir(mates, others[:3], (1,))
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match=r"fractions in \(0, 1\]"):
            tpir_at_fpir(mates, others, (wrong,))


def test_open_set_rates_by_hand():
    mate_scores, mate_ranks = np.array([0.9, 0.7, 0.6, 0.3]), np.array([1, 2, 1, 1])
    others = np.array([0.2, 0.8, 0.6, 0.5])
    rates = open_set_rates(mate_scores, mate_ranks, others, (0, 0.25, 0.3, 0.5, 1))
    assert [(rate.threshold, rate.fpir, rate.tpir) for rate in rates.values()] == [
        (0.8, 0, 0.25), (0.6, 0.25, 0.5), (0.6, 0.25, 0.5), (0.5, 0.5, 0.75), (-math.inf, 1, 1),
    ]  # fmt: skip
    assert open_set_rates(mate_scores, mate_ranks, others, (0.5,), max_rank=1)[0.5].tpir == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_open_set_rates_as_a_search_over_all_thresholds(seed):
    generator = np.random.default_rng(seed)
    mates, others = generator.random(30).round(1), generator.random(23).round(1)
    ranks = generator.integers(1, 4, 30)
    for fpir in (0.0, 0.01, 0.1, 0.3, 23 / 23):
        candidates = [-math.inf, *sorted(set(others.tolist()))]
        threshold = next(t for t in candidates if sum(score > t for score in others) <= fpir * 23)
        wanted = sum(score > threshold and rank <= 2 for score, rank in zip(mates, ranks, strict=True)) / 30
        rate = open_set_rates(mates, ranks, others, (fpir,), max_rank=2)[fpir]
        assert rate.threshold == threshold
        assert rate.tpir == pytest.approx(wanted, abs=1e-12)
        assert rate.fpir <= fpir


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], [0.1], (0.1,)), "got 0 mated and 1 non-mated probes"),
        (([0.1], [1], [], (0.1,)), "got 1 mated and 0 non-mated probes"),
        (([0.1], [1, 2], [0.1], (0.1,)), "got 1 scores and 2 ranks"),
        (([0.1], [1], [0.1], (2,)), r"fractions in \[0, 1\], got \[2\]"),
    ],
)
def test_open_sets_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_set_rates(*map(np.array, arguments[:3]), arguments[3])


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
