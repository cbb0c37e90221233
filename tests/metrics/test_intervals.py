import numpy as np
import pytest

from adaface.metrics.intervals import (
    accuracy_interval,
    auc_interval,
    eer_interval,
    exact,
    rate_interval,
    tar_intervals,
    wilson,
)
from adaface.metrics.verification import auc, best_accuracy, eer, evaluate, fold_decisions, tar_at_far
from bench.interval_coverage import INDEPENDENT, SHARED, Case, coverage, intervals, misses
from tests.support.oracles_evaluate import pairs_at, random_pairs

FARS = (1e-1, 1e-2)


def test_wilson_by_hand():
    assert wilson(0.0, 10) == pytest.approx((0, 3.8415 / 13.8415), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((10 / 13.8415, 1), abs=1e-4)
    for size in range(1, 300):  # rounding must not exclude the rate
        assert wilson(0.0, size)[0] == 0
        assert wilson(1.0, size)[1] == 1
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_the_intervals_hold_the_point_estimates():
    similarity, issame, _ = Case(1000, 2).draw(np.random.default_rng(0))
    found = intervals(similarity, issame, None, FARS, seed=0)
    points = {f"TAR@{far:g}": tar for far, tar in tar_at_far(similarity, issame, FARS).items()}
    points |= {"AUC": auc(similarity, issame), "EER": eer(similarity, issame)}
    for name, value in points.items():
        assert 0 <= found[name][0] < value < found[name][1] <= 1
    assert found == intervals(similarity, issame, None, FARS, seed=0)


@pytest.mark.parametrize("known", [False, True])
def test_nothing_wrong_among_few_is_not_certainty(known):
    issame = np.arange(100) % 2 == 0
    who = np.stack((np.arange(100), np.arange(100) + ~issame), 1) if known else None
    similarity = np.where(issame, 0.9, 0.1) + np.arange(100) / 1000
    assert auc_interval(similarity, issame, who) == (pytest.approx(0.94, abs=0.05), 1)
    assert eer_interval(similarity, issame, who) == (pytest.approx(0), pytest.approx(0.0362, abs=1e-3))
    low, high = tar_intervals(similarity, issame, [0.1], who)[0.1]
    assert (low, high) == (pytest.approx(0.94, abs=0.03), 1)
    embeddings = pairs_at(np.where(issame, 0.2, 1.8).tolist())
    thresholds = evaluate(embeddings, issame)[3]
    assert accuracy_interval(embeddings, issame, thresholds, who) == (pytest.approx(0.963, abs=0.005), 1)


@pytest.mark.parametrize("case", ["reversed", "equal"])
def test_nothing_right_and_no_difference_stay_within_0_and_1(case):
    issame = np.arange(60) % 2 == 0
    similarity = np.where(issame, -0.5, 0.5) if case == "reversed" else np.zeros(60)
    ends = [auc_interval(similarity, issame), eer_interval(similarity, issame)]
    ends += tar_intervals(similarity, issame, FARS).values()
    for low, high in ends:
        assert 0 <= low < high <= 1
    if case == "reversed":
        assert ends[0][0] == 0
        assert ends[2][0] == 0


def test_people_who_each_occur_once_are_as_no_people():
    similarity, issame, _ = Case(800, 2).draw(np.random.default_rng(1))
    who = np.stack((2 * np.arange(800), 2 * np.arange(800) + ~issame), axis=1)
    told, untold = (intervals(similarity, issame, known, FARS, seed=0) for known in (who, None))
    for name, ends in untold.items():
        assert told[name] == pytest.approx(ends, abs=4e-3), name


def test_decisions_and_the_best_accuracy_agree_with_the_folds():
    embeddings, issame = random_pairs(57, noise=1.5)
    _, _, accuracy, thresholds = evaluate(embeddings, issame)
    correct = fold_decisions(embeddings, issame, thresholds)
    folds = np.array_split(correct, 10)
    np.testing.assert_allclose([fold.mean() for fold in folds], accuracy)
    distance_sq = np.square(embeddings[0::2] - embeddings[1::2]).sum(axis=1)
    best = max(((distance_sq < step / 100) == issame).mean() for step in range(400))
    assert best_accuracy(embeddings, issame) == pytest.approx(best)
    low, high = accuracy_interval(embeddings, issame, thresholds)
    assert low <= correct.mean() <= best <= high


@pytest.mark.parametrize("case", [Case(600, 2), Case(1200, 3)], ids=str)
def test_95_percent_intervals_hold_the_truth(case):
    """Few repeats: their standard error is 1.8 percent. The slow test takes 1,000."""
    for name, (held, _) in coverage(case, 150, seed=1).items():
        assert held > 0.90, name


def test_pairs_of_the_same_people_need_to_be_known_as_such():
    told, untold = (coverage(Case(2000, 2, 100, 0.3), 60, blind=blind) for blind in (False, True))
    for name in ("accuracy", "AUC", "EER", "TAR@0.1"):
        assert told[name][0] > 0.87, name
        assert untold[name][0] < 0.87, name
        assert told[name][1] > 1.4 * untold[name][1]


@pytest.mark.slow
@pytest.mark.parametrize("case", INDEPENDENT + SHARED, ids=str)
def test_intervals_hold_the_truth_in_93_to_97_percent_of_1000_repeats(case):
    measured = coverage(case, 1000)
    assert not misses(case, measured), measured


@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_rates_of_probes_of_the_same_people(rate):
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(300):
        person = np.repeat(np.arange(80), generator.integers(1, 12, size=80))
        hits = generator.random(len(person)) < generator.beta(2 * rate, 2 * (1 - rate), size=80)[person]
        for number, who in enumerate((person, None)):
            low, high = rate_interval(hits, who)
            held[number] += low <= rate <= high
    assert 0.91 < held[0] / 300 <= 0.99
    assert held[1] / 300 < 0.85


def test_no_misses_of_few_people_are_less_sure_than_of_many():
    hits = np.ones(200, dtype=bool)
    alone, ten = rate_interval(hits), rate_interval(hits, np.arange(200) % 10)
    assert alone == pytest.approx(wilson(1, 200))
    assert ten == exact(1, 10) == (pytest.approx(0.025**0.1), 1)


def test_what_has_no_interval_is_refused():
    with pytest.raises(ValueError, match="at least one observation"):
        rate_interval(np.array([], dtype=bool))
    with pytest.raises(ValueError, match="3 identities for 4 observations, expected one for each"):
        rate_interval(np.ones(4), np.arange(3))
    with pytest.raises(ValueError, match="3 genuine and 0 impostor pairs"):
        tar_intervals(np.ones(3), np.ones(3, dtype=bool), FARS)
    with pytest.raises(ValueError, match=r"between 0 and 1, got \[0\]"):
        tar_intervals(np.ones(3), np.array([True, True, False]), [0])
    with pytest.raises(ValueError, match=r"identities of shape \(2,\), expected \(3, 2\)"):
        auc_interval(np.ones(3), np.array([True, True, False]), np.arange(2))
