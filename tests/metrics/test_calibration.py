import json

import numpy as np
import pytest
from scipy.stats import norm

from adaface.metrics.calibration import calibrate, default_threshold, describe_threshold, stored_threshold
from adaface.metrics.results import evaluate_set


def test_by_hand():
    issame = np.array([True] * 4 + [False] * 10)
    similarity = np.array([0.9, 0.8, 0.45, 0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0, 0])
    found = calibrate(similarity, issame, 0.1)
    assert found.threshold == pytest.approx(0.45)  # between 0.5 and 0.4
    assert (found.far, found.tar) == (0.1, 0.75)
    assert (found.genuine, found.impostors) == (4, 10)
    assert found.far_interval[0] < 0.1 < found.far_interval[1]
    assert json.loads(json.dumps(found.as_dict()))["tar_interval"] == list(found.tar_interval)


def test_equal_scores_never_exceed_the_wanted_rate():
    issame = np.arange(30) < 10
    similarity = np.where(issame, 0.6, 0.5)
    found = calibrate(similarity, issame, 0.3)  # 6 of 20, but they are all equal
    assert (found.far, found.tar) == (0, 1)
    assert 0.5 < found.threshold <= 0.6
    all_equal = calibrate(np.full(30, 0.5), issame, 0.3)
    assert all_equal.far == 0
    assert all_equal.threshold > 0.5


def test_a_rate_that_the_pairs_cannot_show_is_refused():
    issame, similarity = np.arange(600) < 300, np.random.default_rng(0).random(600)
    with pytest.raises(
        ValueError, match=r"300 impostor pairs are too few to measure a .* of 0\.001: .* at least 1,000 impostor"
    ):
        calibrate(similarity, issame, 1e-3)
    assert calibrate(similarity, issame, 1 / 300).far == 1 / 300
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        calibrate(similarity, issame, 1)
    with pytest.raises(ValueError, match="0 genuine"):
        calibrate(similarity, np.zeros(600, dtype=bool), 0.1)


def test_the_intervals_hold_the_true_rates_of_the_threshold():
    issame, held = np.arange(1200) < 200, np.zeros(2)
    for seed in range(300):
        similarity = np.random.default_rng(seed).standard_normal(1200) + 3 * issame
        found = calibrate(similarity, issame, 1e-2)
        held += [found.far_interval[0] <= norm.sf(found.threshold) <= found.far_interval[1],
                 found.tar_interval[0] <= norm.sf(found.threshold - 3) <= found.tar_interval[1]]  # fmt: skip
    assert ((held / 300 > 0.91) & (held / 300 <= 0.99)).all()


def test_an_endless_number_of_pairs_is_not_written_out():
    with pytest.raises(ValueError, match=r"use at least 1\.0e\+300 impostor pairs, or"):
        calibrate(np.array([0.1, 0.9]), np.array([False, True]), 1e-300)


def of_pairs(impostors: int, genuine: int, name: str):
    embeddings = np.random.default_rng(impostors).standard_normal((2 * (impostors + genuine), 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return evaluate_set(name, embeddings, np.arange(impostors + genuine) < genuine)


def test_the_stored_threshold_is_for_the_rate_that_the_pairs_allow():
    assert default_threshold([]) is None
    assert default_threshold([of_pairs(99, 50, "a")]) is None
    assert default_threshold([of_pairs(100, 0, "a")]) is None  # no genuine pairs
    (line,) = describe_threshold(None)
    assert (
        "needs genuine pairs, and at least 100 impostor pairs, nearly all with a cosine below 1; use --threshold"
        in line
    )
    of_two = [of_pairs(500, 50, "a"), of_pairs(499, 50, "b")]
    assert default_threshold(of_two)["wanted_far"] == 1e-2
    stored = default_threshold([*of_two, of_pairs(1, 1, "c")])
    assert (stored["wanted_far"], stored["sets"], stored["impostors"], stored["genuine"]) == (
        1e-3,
        "a, b, c",
        1000,
        101,
    )
    impostor = np.sort(np.concatenate([of.similarity[~of.issame] for of in [*of_two, of_pairs(1, 1, "c")]]))
    assert impostor[-2] < stored["cosine"] < impostor[-1]  # one of 1,000 is accepted


def test_without_a_threshold_the_sets_are_named():
    with pytest.raises(ValueError, match="no threshold from a, b: got 0 genuine and 6 impostor pairs"):
        stored_threshold([of_pairs(3, 0, "a"), of_pairs(3, 0, "b")], 0.1)


def test_a_threshold_above_every_cosine_is_not_stored():
    collapsed = evaluate_set("a", np.tile(np.float32([[0, 1]]), (600, 1)), np.arange(300) < 100)
    assert default_threshold([collapsed]) is None
    with pytest.raises(
        ValueError, match=r"no threshold from a: more impostor pairs than a false accept rate of 0\.01 "
    ):
        stored_threshold([collapsed], 1e-2)
