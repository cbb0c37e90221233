import tracemalloc

import numpy as np
import pytest

from adaface.config.choices import POOLINGS
from adaface.evaluation.template_pooling import (
    UNFUSED_POOLINGS,
    fused_features,
    pool_templates,
    unfused_features,
)
from adaface.metrics.verification import fuse_flip
from tests.support import oracles_identification as oracle

IDS = np.array([7, 3, 7, 7, 3, 7])
MEDIA = np.array([1, 1, 2, 2, 1, 2])


def test_by_hand():
    features = np.array([[6.0, 0], [2, 0], [0, 3], [0, 6], [4, 8], [0, 15]])
    ids, templates = pool_templates(lambda rows: features[rows], IDS, MEDIA)
    # template 3 has one medium, mean (3, 4); template 7 two, (6, 0) and (0, 8)
    assert ids.tolist() == [3, 7]
    np.testing.assert_allclose(templates, [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6)
    assert templates.dtype == np.float32


def test_golden_template_features(golden):
    folder = golden / "ijb" / "IJBC"
    expected = np.load(folder / "expected.npz")
    features = np.load(folder / "features.npy")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    _, template_ids, media_ids = np.loadtxt(folder / "meta" / "ijbc_face_tid_mid.txt", dtype=str).T
    ids, templates = pool_templates(
        fused_features("pre_norm_vector_add", features / norms, norms), template_ids.astype(int), media_ids.astype(int)
    )
    assert ids.tolist() == expected["template_ids"].tolist()
    np.testing.assert_allclose(templates, expected["template_features"], rtol=0, atol=1e-6)


def random_images(count: int = 400):
    generator = np.random.default_rng(0)
    sides = [oracle.random_units(count, 6, seed) for seed in (1, 2)]
    norms = generator.uniform(1, 40, (2, count, 1)).astype(np.float32)
    return sides, norms, generator.integers(50, 90, count), generator.integers(0, 4, count)


@pytest.mark.parametrize("block_bytes", [1, 700, 32_000_000])  # one image, some templates and parts of them, all
@pytest.mark.parametrize("pooling", POOLINGS)
def test_as_the_slow_oracle(pooling, block_bytes):
    (e1, e2), (n1, n2), template_ids, media_ids = random_images()
    features = np.array(
        [
            oracle.image_feature(pooling, *(part.astype(np.float64) for part in image))
            for image in zip(e1, n1, e2, n2, strict=True)
        ]
    )
    wanted = oracle.pooled(features, template_ids, media_ids)
    if pooling in UNFUSED_POOLINGS:
        features_of = unfused_features(pooling, e1, e2)
    else:
        features_of = fused_features(pooling, *fuse_flip(e1, n1, e2, n2))
    ids, templates = pool_templates(features_of, template_ids, media_ids, block_bytes=block_bytes)
    assert ids.tolist() == list(wanted)
    np.testing.assert_allclose(templates, np.stack(list(wanted.values())), rtol=0, atol=1e-6)
    assert templates.shape[1] == (12 if pooling == "concat" else 6)


def test_an_image_is_asked_for_once_and_in_any_order_the_result_is_the_same():
    (e1, _), _, template_ids, media_ids = random_images()
    asked = []

    def features_of(rows):
        asked.extend(rows.tolist())
        return e1[rows]

    _, templates = pool_templates(features_of, template_ids, media_ids, block_bytes=500)
    assert sorted(asked[1:]) == list(range(400))  # after one row for the width
    shuffled = np.random.default_rng(3).permutation(400)
    again = pool_templates(lambda rows: e1[shuffled][rows], template_ids[shuffled], media_ids[shuffled])[1]
    np.testing.assert_allclose(templates, again, rtol=0, atol=1e-6)


def test_no_more_memory_than_the_bound():
    features = oracle.random_units(40_000, 64, 0)  # 10 MB
    ids, media = np.repeat(np.arange(40), 1000), np.tile(np.arange(1000) // 3, 40)
    tracemalloc.start()
    pool_templates(lambda rows: features[rows], ids, media, block_bytes=500_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000 + 40_000 * 8 * 8  # at most eight numbers for each image, whatever the width


def test_features_that_cancel_give_zeros_without_a_warning():
    features = np.array([[1.0, 0], [-1, 0]])
    _, templates = pool_templates(lambda rows: features[rows], np.array([1, 1]), np.array([1, 2]))
    assert templates.tolist() == [[0, 0]]


def test_features_that_are_not_finite_are_refused_with_their_template():
    features = np.ones((6, 2))
    features[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 2 templates are not finite .* the first is 3"):
        pool_templates(lambda rows: features[rows], IDS, MEDIA)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, n: fused_features("concat", e, n), "concat needs unfused embeddings"),
        (lambda e, n: fused_features("mean", e, n), "mean needs unfused embeddings"),
        (lambda e, n: fused_features("norm_weighted_avg", e, n[:-1]), r"norms of shape \(5, 1\)"),
        (lambda e, n: unfused_features("pre_norm_vector_add", e, e), "pre_norm_vector_add needs fused embeddings"),
        (lambda e, n: unfused_features("average", e, e[:-1]), r"of shape \(5, 2\) of the mirrored images"),
        (lambda e, n: pool_templates(lambda rows: e[rows], IDS, MEDIA[:-1]), r"media ids of shape \(5,\)"),
        (lambda e, n: pool_templates(lambda rows: e[rows], IDS[:0], MEDIA[:0]), "at least one image"),
    ],
)
def test_input_that_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((6, 2)), np.ones((6, 1)))
