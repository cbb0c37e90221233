import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from adaface.metrics.identification import (
    compare_macro_f1,
    macro_f1,
    nonmates_needed,
    open_set_rates,
    rank_rates,
    tpir_at_fpir,
)


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


def weighted_macro_f1(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    """The mean of F1 with identities counted ``weights`` (I,) times, by loops over the definition."""
    people = np.unique(labels)
    total = 0.0
    for c, person in enumerate(people):
        hits = weights[c] * np.sum((labels == person) & (predicted == person))
        taken = sum(weights[i] * np.sum((labels == who) & (predicted == person)) for i, who in enumerate(people))
        total += weights[c] * 2 * hits / (weights[c] * np.sum(labels == person) + taken)
    return total / weights.sum()


@pytest.fixture
def identified() -> tuple[np.ndarray, np.ndarray]:
    """90 probes of 20 identities numbered with gaps, a third wrong; some are taken for people without probes."""
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.arange(20), generator.integers(0, 20, 70)]) * 3 + 1
    predicted = np.where(generator.random(90) < 0.67, labels, generator.integers(0, 64, 90))
    assert not np.isin(predicted, labels).all()
    return labels, predicted


def test_the_score_is_that_of_scikit_learn(identified):
    labels, predicted = identified
    expected = f1_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert macro_f1(labels, predicted).score == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 0.9


def test_influences_are_derivatives_by_the_weights_of_identities(identified):
    labels, predicted = identified
    found = macro_f1(labels, predicted)
    people = len(np.unique(labels))
    step = 1e-5
    for number in range(people):
        change = step * (np.arange(people) == number)
        up, down = (weighted_macro_f1(labels, predicted, 1 + sign * change) for sign in (1, -1))
        # the mean of I identities moves by an I-th of an influence
        assert found.influences[number] == pytest.approx(people * (up - down) / (2 * step), abs=1e-7)
    assert found.influences.sum() == pytest.approx(0, abs=1e-12)


def test_an_example_worked_by_hand():
    # 1: one of two right, the other is taken for 2; 2: both right; 3: its one probe is taken for 9, who has none
    found = macro_f1(np.array([1, 1, 2, 2, 3]), np.array([1, 2, 2, 2, 9]))
    mean = (2 / 3 + 4 / 5 + 0) / 3
    assert found.score == pytest.approx(mean)
    lost = (4 / 5) / 5
    np.testing.assert_allclose(found.influences, [2 / 3 - mean - lost, 4 / 5 - mean + lost, -mean])


def test_without_an_error_nobody_moves_the_mean_and_the_interval_has_a_width():
    found = macro_f1(np.array([4, 4, 7]), np.array([4, 4, 7]))
    assert found.score == 1
    np.testing.assert_array_equal(found.influences, [0, 0])
    assert found.interval()[0] < 0.9
    assert found.interval()[1] == pytest.approx(1)
    nothing = macro_f1(np.array([4, 7]), np.array([7, 4]))
    assert (nothing.score, nothing.interval()[0]) == (0, pytest.approx(0))


def test_the_interval_is_as_wide_as_resampled_identities_make_it():
    """Wide sets, where Wilson's interval is the normal one: 1.96 standard deviations of the bootstrap."""
    generator = np.random.default_rng(1)
    people, images = 300, 4
    labels = np.repeat(np.arange(people), images)
    difficulty = np.repeat(generator.beta(0.6, 1.4, people), images)
    neighbour = (labels + generator.integers(1, 4, len(labels))) % people
    predicted = np.where(generator.random(len(labels)) < difficulty, neighbour, labels)
    counts = np.zeros((people, people))
    np.add.at(counts, (labels, predicted), 1)
    scores = []
    for _ in range(2000):
        weights = np.bincount(generator.integers(0, people, people), minlength=people).astype(float)
        taken = weights @ counts
        f1 = 2 * weights * counts.diagonal() / np.maximum(weights * counts.sum(axis=1) + taken, 1e-12)
        scores.append(weights @ f1 / people)
    found = macro_f1(labels, predicted)
    low, high = found.interval()
    assert low < found.score < high
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(scores), rel=0.08)


def predictions(labels: np.ndarray, wrong: float, generator: np.random.Generator) -> np.ndarray:
    """Predictions of a model that takes a share of the probes for the next identity."""
    return np.where(generator.random(len(labels)) < wrong, (labels + 1) % (labels.max() + 1), labels)


def test_a_comparison_finds_what_is_there_and_little_else():
    generator = np.random.default_rng(2)
    labels = np.repeat(np.arange(60), 5)
    found = 0
    for _ in range(300):
        first, second = (macro_f1(labels, predictions(labels, 0.15, generator)) for _ in range(2))
        found += compare_macro_f1(first, second).p_value < 0.05
    assert found <= 24  # 15 are expected of a test at 5 %; 24 or more have a probability of 2 %
    worse, better = (macro_f1(labels, predictions(labels, wrong, generator)) for wrong in (0.3, 0.05))
    compared = compare_macro_f1(worse, better)
    assert compared.difference == pytest.approx(better.score - worse.score)
    assert 0 < compared.interval[0] < compared.difference < compared.interval[1]
    assert compared.p_value < 1e-3
    turned = compare_macro_f1(better, worse)
    assert turned.p_value == pytest.approx(compared.p_value)
    assert turned.interval == pytest.approx((-compared.interval[1], -compared.interval[0]))


def test_few_identities_prove_nothing():
    labels = np.array([0, 1, 2])
    compared = compare_macro_f1(macro_f1(labels, labels), macro_f1(labels, np.roll(labels, 1)))
    assert compared.difference == -1
    assert compared.p_value > 0.05
    same = compare_macro_f1(macro_f1(labels, labels), macro_f1(labels, labels))
    assert (same.difference, same.p_value) == (0, 1)
    assert same.interval[0] < 0 < same.interval[1]


def test_other_probes_are_refused():
    first, second = macro_f1(np.array([0, 1]), np.array([0, 1])), macro_f1(np.array([0]), np.array([0]))
    with pytest.raises(ValueError, match="F1 over 2 and 1 identities: a comparison needs the same probes"):
        compare_macro_f1(first, second)
