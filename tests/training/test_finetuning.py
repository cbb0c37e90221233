"""Heads that are initialized with the means of their classes."""

import numpy as np
import pytest
import torch

from adaface.heads.margins import build_head
from adaface.heads.partial_fc import build_sharded_head
from adaface.training.finetuning import begin_statistics, class_means, set_classes

OPTIONS = ("adaface", 4, 3, 0.4, 0.01, 0.333, 64.0)


def test_means_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((12, 4))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = rng.permutation(np.repeat([5, 6, 8], 4))
    # the "images" are places in the list
    batches = [(torch.arange(start, start + 5), torch.from_numpy(labels[start : start + 5])) for start in (0, 5)]
    batches.append((torch.arange(0), torch.arange(0)))
    norms = rng.uniform(1, 40, (12, 1))
    means = class_means(batches, lambda i: (torch.from_numpy(embeddings)[i], torch.from_numpy(norms)[i]), 5, 9, 4)
    found = means.directions
    for label in range(5, 9):
        own = embeddings[:10][labels[:10] == label].sum(axis=0)
        expected = own / np.linalg.norm(own) if label != 7 else np.zeros(4)
        np.testing.assert_allclose(found[label - 5], expected, atol=1e-6)
    np.testing.assert_allclose(means.norm_moments, [10, norms[:10].sum(), (norms[:10] ** 2).sum()])


@pytest.mark.parametrize("build", [build_head, build_sharded_head], ids=["dense", "sharded"])
def test_adaface_begins_with_the_statistics_of_all_norms(build):
    norms = torch.tensor([18.0, 22.0, 30.0, 26.0], dtype=torch.float64)
    moments = torch.stack([torch.tensor(4.0), norms.sum(), (norms**2).sum()])
    head, other = build("adaface", 4, 3), build("arcface", 4, 3)
    for one in (head, other):
        begin_statistics(one, moments)
    assert head.batch_mean.item() == pytest.approx(24.0)
    assert head.batch_std.item() == pytest.approx(norms.std().item())
    begin_statistics(head, torch.tensor([1.0, 9.0, 81.0]))  # of one image there is no deviation: left as it is
    assert head.batch_mean.item() == pytest.approx(24.0)


def test_opposite_images_have_no_direction():
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    batches = [(torch.arange(2), torch.zeros(2, dtype=torch.int64))]
    found = class_means(batches, lambda i: (directions[i], torch.ones(2, 1)), 0, 1, 2)
    assert found.directions.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("build", [build_head, build_sharded_head], ids=["dense", "sharded"])
def test_known_classes_are_set_and_the_others_left(build):
    torch.manual_seed(0)
    head = build(*OPTIONS)
    before = head.state_dict()["kernel"].clone()  # (4, 3)
    means = torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.0] * 4, [0.0, 0.0, 1.0, 0.0]])
    assert set_classes(head, means) == 1
    kernel = head.state_dict()["kernel"]
    assert torch.equal(kernel[:, [0, 2]], means[[0, 2]].t())
    assert torch.equal(kernel[:, 1], before[:, 1])


def test_every_center_of_a_class_is_set():
    head = build_head(*OPTIONS)
    head.kernel = torch.nn.Parameter(torch.zeros(4, 6))  # two centers a class, side by side
    means = torch.eye(4)[:3]
    assert set_classes(head, means) == 0
    assert torch.equal(head.kernel, means.repeat_interleave(2, dim=0).t())
