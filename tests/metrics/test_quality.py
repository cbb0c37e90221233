import math

import numpy as np
import pytest

from adaface.metrics.quality import error_versus_reject, quality_conclusion, quality_warning, rank_correlation


def by_hand(norms):
    """Ten genuine pairs, of which the last two are false non-matches, and ten impostor pairs."""
    issame = np.arange(20) < 10
    similarity = np.concatenate((np.full(8, 0.9), [0.1, 0.2], np.linspace(0.3, 0.5, 10)))
    lower = np.concatenate((norms, np.ones(10)))
    return error_versus_reject(similarity, issame, np.stack((lower + 5, lower), 1), fmr=0.1, most=0.4)


def test_the_curve_by_hand():
    ideal = by_hand(np.arange(10, 0, -1))
    # the impostor scores up to 0.9 accept no genuine pair more, so that they are no points of the curve
    assert (ideal.fmr, ideal.threshold, ideal.pairs) == (0, 0.9, 10)
    assert ideal.rejected.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    assert ideal.fnmr == pytest.approx([0.2, 1 / 9, 0, 0, 0])
    assert ideal.area == pytest.approx(ideal.ideal_area)
    assert ideal.random_area == pytest.approx(0.08)
    assert ideal.gain == pytest.approx(1)
    worst = by_hand(np.arange(10))
    assert worst.fnmr == pytest.approx([0.2, 2 / 9, 2 / 8, 2 / 7, 2 / 6])
    assert worst.gain < 0


def synthetic(sign, pairs=2000, seed=0):
    generator = np.random.default_rng(seed)
    issame = np.arange(pairs) % 2 == 0
    quality = generator.standard_normal((pairs, 2))
    similarity = generator.standard_normal(pairs) + (2.5 + quality.min(1)) * issame
    return error_versus_reject(similarity, issame, 20 + sign * quality)


def test_a_norm_that_tells_quality_gains_and_one_against_it_is_warned_about():
    good, against = synthetic(1), synthetic(-1)
    assert good.gain > 0.1
    assert quality_warning(good) is None
    assert against.gain < 0
    warning = quality_warning(against)
    assert "contradicts image quality: without the 30% of pairs of lowest norm" in warning
    assert "\n" not in warning


def test_a_norm_that_knows_nothing_is_rarely_warned_about():
    warned, outside = 0, []
    for seed in range(200):
        curve = synthetic(0, pairs=400, seed=seed)  # equal norms: in the order of the pairs
        warned += quality_warning(curve) is not None
        low, high = curve.random_interval[-1]
        outside.append(not low <= curve.fnmr[-1] <= high)
    assert warned / 200 <= 0.06
    assert np.mean(outside) <= 0.09


def test_no_errors_no_gain():
    issame = np.arange(20) < 10
    curve = error_versus_reject(np.where(issame, 0.9, 0.1), issame, np.ones((20, 2)))
    assert math.isnan(curve.gain)
    assert not curve.fnmr.any()
    assert quality_warning(curve) is None


def test_the_norm_against_a_degradation():
    generator = np.random.default_rng(0)
    level = np.repeat(np.arange(5), 40)
    falling = rank_correlation(30 - level + generator.standard_normal((200, 1)).reshape(-1), level)
    assert falling.interval[0] < falling.rho < falling.interval[1] < 0
    assert quality_warning(correlation=falling) is None
    rising = rank_correlation(level + generator.standard_normal(200), level)
    assert "it rises with the degradation" in quality_warning(correlation=rising)
    for levels in (level, -level):
        straight = rank_correlation(level, levels)
        assert abs(straight.rho) == pytest.approx(1)
        assert straight.interval[0] <= straight.rho <= straight.interval[1]
    assert math.isnan(rank_correlation(np.ones(8), np.arange(8)).rho)
    assert quality_warning(correlation=rank_correlation(np.ones(8), np.arange(8))) is None


@pytest.mark.parametrize(
    ("slope", "noise", "conclusion"),
    [
        (-1, 0.1, "as a measure of quality should"),
        (-0.5, 1, "falls only slightly with the degradation"),
        (0, 1, "does not measurably depend on the degradation: it is no measure of quality here"),
        (1, 0.1, "rises with the degradation: it contradicts image quality"),
        (0, 0, "no conclusion: the norms are all equal"),
    ],
)
def test_a_correlation_in_words(slope, noise, conclusion):
    levels = np.tile(np.linspace(0, 1, 5), 100)
    norms = 20 + slope * levels + noise * np.random.default_rng(1).normal(size=500)
    assert conclusion in quality_conclusion(rank_correlation(norms, levels))


def test_intervals_of_the_correlation_hold_no_correlation():
    generator = np.random.default_rng(0)
    found = [rank_correlation(generator.standard_normal(60), np.arange(60) % 5).interval for _ in range(400)]
    assert 0.92 < np.mean([low <= 0 <= high for low, high in found]) < 0.98


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"norms of shape \(20,\) for 20 pairs"):
        error_versus_reject(np.zeros(20), np.arange(20) < 10, np.ones(20))
    with pytest.raises(ValueError, match="fractions between 0 and 1, got 0 and"):
        error_versus_reject(np.zeros(20), np.arange(20) < 10, np.ones((20, 2)), fmr=0)
    with pytest.raises(ValueError, match="at least 4"):
        rank_correlation(np.ones(3), np.ones(3))
