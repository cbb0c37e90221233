import numpy as np
import pytest

from adaface.metrics.comparison import compare_auc, compare_decisions, compare_tar
from adaface.metrics.verification import auc, tar_at_far


def two_models(generator, pairs=600, better=0.0, distance=2.0):
    """Scores of two models that share half of their variance; the second one parts the kinds better."""
    issame = np.arange(pairs) % 2 == 0
    shared = generator.standard_normal(pairs)
    first, second = ((shared + generator.standard_normal(pairs)) / np.sqrt(2) for _ in range(2))
    return first + distance * issame, second + (distance + better) * issame, issame


def test_mcnemar_by_hand():
    # 8 pairs only the second model has right, 1 only the first: 2 * (1 + 9) / 2**9
    first = np.array([False] * 8 + [True] + [True] * 91)
    second = np.array([True] * 8 + [False] + [True] * 91)
    found = compare_decisions(first, second)
    assert found.p_value == pytest.approx(20 / 512)
    assert (found.first, found.second, found.difference) == pytest.approx((0.92, 0.99, 0.07))
    # Bonett and Price: 9/102 and 2/102
    assert found.interval == pytest.approx((0.0063, 0.1310), abs=1e-4)


def test_the_same_model_twice_is_no_difference():
    scores, _, issame = two_models(np.random.default_rng(0))
    for found in (
        compare_decisions(scores > 1, scores > 1),
        compare_auc(scores, scores, issame),
        compare_tar(scores, scores, issame, 0.1),
    ):
        assert (found.difference, found.p_value) == (0, 1)
        assert found.interval[0] <= 0 <= found.interval[1]


@pytest.mark.parametrize("far", [0.01, 0.1, 0.6])
@pytest.mark.parametrize("known", [False, True])
def test_the_interval_contains_the_difference_also_of_equal_scores(far, known):
    scores, issame = np.random.default_rng(0).random(60), np.arange(60) % 2 == 0
    people = np.stack([np.arange(60) % 7, 10 + np.arange(60) % 5], axis=1) if known else None
    for first in (np.full(60, 0.5), scores.round(1), issame.astype(float)):
        for found in (compare_tar(first, scores, issame, far, people), compare_auc(first, scores, issame, people)):
            assert found.interval[0] <= found.difference <= found.interval[1]
    broken = compare_tar(np.full(60, 0.5), scores, issame, 0.1)
    assert (broken.first, broken.interval[0] >= 0) == (0, True)  # all equal scores are rejected, as measured


def test_a_better_model_is_found_and_the_order_only_turns_the_sign():
    first, second, issame = two_models(np.random.default_rng(0), pairs=2000, better=0.5)
    for compare in (compare_auc, lambda *scores: compare_tar(*scores, 0.01)):
        found, turned = compare(first, second, issame), compare(second, first, issame)
        assert found.p_value < 0.01
        assert 0 < found.interval[0] < found.difference < found.interval[1]
        assert turned.difference == pytest.approx(-found.difference)
        assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert compare_auc(first, second, issame).first == auc(first, issame)
    assert compare_tar(first, second, issame, 0.01).second == tar_at_far(second, issame, [0.01])[0.01]


@pytest.mark.parametrize("kind", ["decisions", "auc", "tar"])
def test_p_values_of_equal_models_are_uniform_enough(kind):
    repeats = 300 if kind != "tar" else 60
    p_values = []
    for seed in range(repeats):
        first, second, issame = two_models(np.random.default_rng(seed))
        if kind == "decisions":
            found = compare_decisions((first > 1) == issame, (second > 1) == issame)
        else:
            found = compare_auc(first, second, issame) if kind == "auc" else compare_tar(first, second, issame, 0.1)
        p_values.append(found.p_value)
        assert (found.p_value < 0.05) <= (not found.interval[0] < 0 < found.interval[1]) or kind == "decisions"
    p_values = np.array(p_values)
    error = np.sqrt(0.05 * 0.95 / repeats)
    assert np.mean(p_values < 0.05) < 0.05 + 3 * error
    assert np.mean(p_values < 0.5) == pytest.approx(0.5, abs=0.5 * 3.5 / np.sqrt(repeats))  # an exact test is lower


def test_decisions_about_the_same_people_are_fewer_than_they_seem():
    generator, rejected = np.random.default_rng(0), np.zeros(2)
    person = np.repeat(np.arange(60), 20)
    for _ in range(200):
        liking = generator.random((60, 2)) < 0.5  # which model has a person's probes right
        first, second = (np.where(generator.random(1200) < 0.3, liking[person, i], True) for i in range(2))
        for number, who in enumerate((person, None)):
            rejected[number] += compare_decisions(first, second, who).p_value < 0.05
    assert rejected[0] / 200 < 0.11
    assert rejected[1] / 200 > 0.15


def test_scores_of_the_same_people_are_less_sure():
    generator = np.random.default_rng(0)
    issame = np.arange(1200) % 2 == 0
    person = generator.integers(40, size=(1200, 2))
    person[issame, 1] = person[issame, 0]
    scores = [generator.standard_normal(40)[person].sum(1) + generator.standard_normal(1200) + 3 * issame for _ in "12"]
    for compare in (compare_auc, lambda *data: compare_tar(*data[:3], 0.1, *data[3:])):
        alone, shared = compare(*scores, issame), compare(*scores, issame, person)
        assert np.diff(shared.interval) > 1.3 * np.diff(alone.interval)
        assert shared.difference == alone.difference


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(4,\)"):
        compare_decisions(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="2 identities for 3"):
        compare_decisions(np.ones(3), np.ones(3), np.arange(2))
