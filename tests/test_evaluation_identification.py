import math

import numpy as np
import pytest

from evaluation.identification import nonmates_needed, open_set_rates, rank_rates, tpir_at_fpir


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
