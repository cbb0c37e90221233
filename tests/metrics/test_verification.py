import numpy as np
import pytest
import torch

from adaface.metrics.verification import auc, eer, evaluate, fuse_flip, pair_similarities, roc, tar_at_far
from tests.support import oracles_evaluate as oracle
from tests.support.oracles_evaluate import pairs_at, random_pairs

NAMES = ("tpr", "fpr", "accuracy", "best_thresholds")


@pytest.mark.parametrize("case", range(5))
def test_golden_values(golden, case):
    reference = np.load(golden / "evaluate.npz")
    embeddings, issame = reference[f"{case}.embeddings"], reference[f"{case}.issame"]
    for name, values in zip(NAMES, evaluate(embeddings, issame, pca=6 if case == 4 else 0), strict=True):
        expected = reference[f"{case}.{name}"]
        assert values.shape == expected.shape
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("pairs", "folds", "pca"), [(57, 10, 0), (20, 3, 0), (7, 7, 0), (2, 2, 0), (60, 4, 5)])
def test_as_the_slow_oracle(pairs, folds, pca):
    embeddings, issame = random_pairs(pairs, seed=pairs)
    expected = oracle.evaluate(embeddings, issame, folds, pca)
    for name, values, wanted in zip(NAMES, evaluate(embeddings, issame, folds, pca), expected, strict=True):
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-12, err_msg=name)


def test_by_hand():
    # fold 1: a genuine and an impostor pair; fold 2: the same
    tpr, fpr, accuracy, best = evaluate(pairs_at([0.505, 2.005, 1.005, 1.605]), np.array([1, 0, 1, 0]), nrof_folds=2)
    assert best.tolist() == [1.01, 0.51]  # the first thresholds that part the other fold's pairs
    assert accuracy.tolist() == [1.0, 0.5]  # 0.51 rejects the genuine pair at 1.005
    assert [tpr[i] for i in (50, 51, 100, 101)] == [0, 0.5, 0.5, 1]
    assert [fpr[i] for i in (160, 161, 200, 201)] == [0, 0.5, 0.5, 1]


def test_a_distance_at_a_threshold_is_not_below_it():
    same_images = np.tile([[1.0, 0.0]], (8, 1))
    tpr, fpr, accuracy, best = evaluate(same_images, np.ones(4, dtype=bool), nrof_folds=2)
    assert tpr[0] == 0
    assert tpr[1] == 1
    assert best.tolist() == [0.01, 0.01]
    assert accuracy.tolist() == [1, 1]
    assert not fpr.any()  # nothing to count


def test_impostors_alone_are_best_rejected_by_the_first_threshold():
    _, _, accuracy, best = evaluate(random_pairs(6)[0], np.zeros(6, dtype=bool), nrof_folds=3)
    assert best.tolist() == [0, 0, 0]
    assert accuracy.tolist() == [1, 1, 1]


def test_the_input_stays_as_it_is_and_half_precision_is_widened():
    embeddings, issame = random_pairs(20)
    before = embeddings.copy()
    evaluate(embeddings, issame)
    assert np.array_equal(embeddings, before)
    half = embeddings.astype(np.float16)
    for narrow, wide in zip(evaluate(half, issame), evaluate(half.astype(np.float32), issame), strict=True):
        assert np.array_equal(narrow, wide)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, s: (e[:-1], s), "got 39 embeddings: an even number"),
        (lambda e, s: (e[:-2], s), "got 38 embeddings and 20 issame flags"),
        (lambda e, s: (e[:, 0], s), r"shape \(40,\)"),
        (lambda e, s: (e, s * 2), "issame must hold booleans"),
        (lambda e, s: (e[:18], s[:9]), "cannot split 9 pairs into 10 folds"),
        (lambda e, s: (np.where(np.arange(40)[:, None] < 3, np.nan, e), s), "3 of 40 embeddings are not finite"),
        (lambda e, s: (np.where(np.arange(40)[:, None] == 5, np.inf, e), s), "1 of 40 embeddings are not finite"),
    ],
)
def test_input_that_is_refused(change, message):
    embeddings, issame = random_pairs(20)
    with pytest.raises(ValueError, match=message):
        evaluate(*change(embeddings, issame))


@pytest.mark.parametrize("components", [-1, 9])
def test_pca_that_is_refused(components):
    with pytest.raises(ValueError, match=f"from 1 to 8 components .* got {components}"):
        evaluate(*random_pairs(20), pca=components)


@pytest.mark.parametrize("folds", [0, 1, 21])
def test_fold_counts_that_are_refused(folds):
    with pytest.raises(ValueError, match=f"20 pairs into {folds} folds"):
        evaluate(*random_pairs(20), nrof_folds=folds)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_flip_fusion_by_hand(kind):
    first, second = kind(np.array([[1.0, 0.0], [1.0, 0.0]])), kind(np.array([[0.0, 1.0], [-1.0, 0.0]]))
    embedding, norm = fuse_flip(first, kind(np.array([[3.0], [2.0]])), second, kind(np.array([[4.0], [2.0]])))
    assert norm.tolist() == [[5.0], [0.0]]
    assert np.asarray(embedding).tolist() == [[0.6, 0.8], [0.0, 0.0]]  # opposite vectors cancel, without NaN


def test_similarity_is_the_cosine():
    assert pair_similarities(pairs_at([0.0, 2.0, 4.0]), np.ones(3)) == pytest.approx([1, 0, -1])


@pytest.mark.parametrize("seed", range(8))
def test_error_rates_as_the_slow_oracles(seed):
    embeddings, issame = random_pairs(150, noise=1.5, seed=seed)
    similarity = pair_similarities(embeddings, issame).round(2)  # with ties
    fars = (0.0, 1e-3, 1e-2, 0.03, 0.1, 0.17, 0.25, 0.37, 0.5, 1.0)
    found = tar_at_far(similarity, issame, fars)
    assert list(found) == list(fars)
    for far in fars:
        assert found[far] == pytest.approx(oracle.tar_at_far(similarity, issame, far), abs=1e-12)
    assert auc(similarity, issame) == pytest.approx(oracle.auc(similarity, issame), abs=1e-12)


def test_of_equally_near_points_the_largest_tar():
    similarity = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    issame = np.array([1, 0, 1, 0, 1, 0])
    # the curve's points: (0, 1/3), (1/3, 1/3), (1/3, 2/3), (2/3, 2/3), (2/3, 1), (1, 1)
    assert tar_at_far(similarity, issame, [1 / 3])[1 / 3] == pytest.approx(2 / 3)
    assert tar_at_far(similarity, issame, [0.5])[0.5] == 1.0  # as far from 1/3 as from 2/3
    assert tar_at_far(similarity, issame, [1e-6])[1e-6] == pytest.approx(1 / 3)


def test_roc_ascends_and_its_thresholds_accept_what_they_say():
    embeddings, issame = random_pairs(80, noise=1.5)
    similarity = pair_similarities(embeddings, issame)
    far, tar, thresholds = roc(similarity, issame)
    assert thresholds[0] == np.inf
    assert (np.diff(far) >= 0).all()
    assert (np.diff(tar) >= 0).all()
    for rate, rate_genuine, threshold in zip(far, tar, thresholds, strict=True):
        assert rate == pytest.approx((similarity[~issame] >= threshold).mean())
        assert rate_genuine == pytest.approx((similarity[issame] >= threshold).mean())


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [([4, 3, 2, 1], 0.0), ([1, 2, 3, 4], 1.0), ([1, 1, 1, 1], 0.5), ([4, 2, 3, 1], 0.5)],
)
def test_equal_error_rate_by_hand(similarity, expected):
    assert eer(np.array(similarity), np.array([1, 1, 0, 0])) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("similarity", "issame", "message"),
    [
        ([0.1, 0.2], [1, 1], "got 2 genuine and 0 impostor pairs"),
        ([0.1, 0.2], [0, 0], "got 0 genuine and 2 impostor pairs"),
        ([0.1, 0.2, 0.3], [0, 1], r"shape \(3,\) and issame of shape \(2,\)"),
        ([0.1, np.nan], [0, 1], "1 of 2 similarity scores are not finite"),
    ],
)
def test_scores_that_are_refused(similarity, issame, message):
    for measure in (roc, auc, eer):
        with pytest.raises(ValueError, match=message):
            measure(np.array(similarity), np.array(issame))


def test_false_accept_rates_are_fractions():
    with pytest.raises(ValueError, match=r"fractions in \[0, 1\], got \[10\]"):
        tar_at_far(np.array([0.1, 0.2]), np.array([0, 1]), [0.1, 10])
