import numpy as np
import pytest
from sklearn.metrics import f1_score

from evaluation.macro_f1 import macro_f1


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
