"""The newer margins, dense: golden values of the official code, the papers' formulas, what is special about each."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaface.heads import fused_softmax
from adaface.heads.base import Head
from adaface.heads.margins import HEADS, build_head, chosen_options
from adaface.heads.names import MARGINS
from tests.support import oracles_margins

NEWER = ("magface", "curricularface", "subcenter_arcface", "combined")
D, C, B = 16, 9, 12


def make(name: str, class_num: int = C, **options: float) -> Head:
    torch.manual_seed(0)
    return build_head(name, D, class_num, **options).double()


def batch(seed: int = 0, size: int = B, near: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Unit embeddings, norms below, inside and above MagFace's limits, labels; some embeddings near their class."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, D, generator=generator, dtype=torch.float64)
    norms = torch.rand(size, 1, generator=generator, dtype=torch.float64) * 140 + 0.5
    labels = torch.randint(0, C, (size,), generator=generator)
    if near is not None:
        columns = F.normalize(near.detach(), dim=0)[:, :: near.shape[1] // C].T  # (C, D)
        features = F.normalize(features)
        features[::2] = F.normalize(features[::2] + 2 * columns[labels[::2]])
        features[1::4] = F.normalize(features[1::4] - 4 * columns[labels[1::4]])  # theta + m beyond pi
    return F.normalize(features).requires_grad_(), norms.requires_grad_(), labels


def oracle(name: str, head: Head, embeddings: Tensor, norms: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and loss from the paper's formula, with the options and statistics of a head."""
    options = {option: getattr(head, option) for option in head.options}
    if name == "curricularface":
        options["t"] = float(head.t)
    return getattr(oracles_margins, name)(embeddings, norms, labels, head.kernel, s=head.s, **options)


def gradients(loss: Tensor, head: Head, embeddings: Tensor, norms: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, (embeddings, head.kernel, norms), allow_unused=True))


# golden values of the official code


@pytest.mark.parametrize("path", ["logits", "loss"])
@pytest.mark.parametrize("name", ["magface", "curricularface"])
def test_three_steps_give_the_official_logits_losses_gradients_and_statistics(
    name: str, path: str, golden: Path
) -> None:
    values = np.load(golden / "margins.npz")
    head = build_head(name, 32, 30).double()
    head.load_state_dict({**head.state_dict(), "kernel": torch.from_numpy(values["kernel"])})
    for step in range(3):
        features = torch.from_numpy(values["features"][step]).requires_grad_()
        labels = torch.from_numpy(values["labels"][step])
        norms = features.norm(dim=1, keepdim=True)
        if path == "logits":
            logits = head(features / norms, norms, labels)
            np.testing.assert_allclose(logits.detach(), values[f"{name}.{step}.logits"], rtol=1e-8)
            penalty = head.penalty(norms)
            loss = F.cross_entropy(logits, labels) + (0.0 if penalty is None else penalty.mean())
        else:
            loss = head.loss(features / norms, norms, labels)
        head.kernel.grad = None
        loss.backward()
        computed = {"loss": loss, "grad_features": features.grad, "grad_kernel": head.kernel.grad}
        if name == "curricularface":
            computed["t"] = head.t
        else:
            computed["regulariser"] = head.penalty(norms).mean() / head.lambda_g
        for key, value in computed.items():
            expected = values[f"{name}.{step}.{key}"]
            np.testing.assert_allclose(value.detach(), expected, rtol=1e-8, atol=1e-10, err_msg=f"{step} {key}")


# the papers' formulas


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("block", [1 << 21, 4 * D, 1], ids=["one block", "blocks of 4", "blocks of 1"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NEWER)
def test_loss_and_gradients_are_those_of_the_paper(name, seed, block, keep, monkeypatch):
    monkeypatch.setattr(fused_softmax, "_BLOCK_NUMBERS_CPU", block)
    head = make(name)
    head.keep_exponentials = keep
    if name == "curricularface":
        head.t.fill_(0.4)
    with torch.no_grad():
        head.kernel.mul_(torch.linspace(0.3, 3, head.kernel.shape[1]))  # columns of any length
    embeddings, norms, labels = batch(seed, near=head.kernel)
    before = float(head.t) if name == "curricularface" else 0.0
    fused = head.loss(embeddings, norms, labels)
    if name == "curricularface":
        after = oracles_margins.moved_t(embeddings, labels, head.kernel, before, 0.01)
        assert head.t.item() == pytest.approx(after, rel=1e-12)
    logits, expected = oracle(name, head, embeddings, norms, labels)
    assert fused.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(head.eval()(embeddings, norms, labels), logits, rtol=1e-10, atol=1e-10)
    of_paper = gradients(expected, head, embeddings, norms)
    for got, wanted in zip(gradients(fused, head, embeddings, norms), of_paper, strict=True):
        if wanted is None:
            assert got is None
        else:
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert (of_paper[2] is not None) == head.norms_learn


@pytest.mark.parametrize("name", NEWER)
def test_gradients_of_the_loss_are_those_of_small_steps(name: str) -> None:
    head = make(name, s=4.0, class_num=C).eval()
    embeddings, norms, labels = batch(size=4, near=head.kernel)
    inputs = (embeddings.detach().requires_grad_(), head.kernel, norms)
    assert torch.autograd.gradcheck(lambda e, k, n: head.loss(e, n, labels), inputs)


def test_the_oracles_meet_every_branch() -> None:
    seen = set()
    for seed in range(3):
        head = make("magface")
        embeddings, norms, labels = batch(seed, near=head.kernel)
        cosine = oracles_margins.cosines(embeddings, head.kernel)
        own = cosine[range(B), labels]
        seen |= {("below", bool((norms < 10).any())), ("above", bool((norms > 110).any()))}
        seen |= {("negative", bool((own < 0).any())), ("beyond pi", bool((own < math.cos(math.pi - 0.5)).any()))}
        hard = cosine > torch.cos(torch.arccos(own) + 0.5)[:, None]
        seen |= {("hard", bool(hard.sum() > B)), ("easy", bool((~hard).any()))}
    assert {name for name, there in seen if there} == {"below", "above", "negative", "beyond pi", "hard", "easy"}


# each by hand


def test_combined_with_one_margin_is_arcface_or_cosface() -> None:
    embeddings, norms, labels = batch(near=make("arcface").kernel)
    for name, m, options in (
        ("arcface", 0.5, {"m1": 1.0, "m2": 0.5, "m3": 0.0}),
        ("cosface", 0.25, {"m1": 1.0, "m2": 0.0, "m3": 0.25}),
    ):
        plain, combined = make(name, m=m), make("combined", **options)
        torch.testing.assert_close(combined(embeddings, norms, labels), plain(embeddings, norms, labels))
    sphere = make("combined", m1=1.5, m2=0.0, m3=0.0)
    got = sphere.margin(torch.tensor([0.5], dtype=torch.float64), torch.ones(1, 1))
    assert got.item() == pytest.approx(math.cos(math.pi / 2), abs=1e-12)


def test_magface_by_hand() -> None:
    head = make("magface", l_margin=0.2, u_margin=0.6, l_a=10.0, u_a=50.0, lambda_g=3.0)
    norms = torch.tensor([[5.0], [30.0], [80.0], [30.0]], dtype=torch.float64)
    got = head.margin(torch.tensor([0.5, 0.5, 0.5, -0.5], dtype=torch.float64), norms)
    expected = [*(math.cos(math.pi / 3 + m) for m in (0.2, 0.4, 0.6)), -0.5]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    penalty = [3 * (a / 2500 + 1 / a) for a in (10, 30, 50, 30)]
    assert head.penalty(norms).tolist() == pytest.approx(penalty)


def test_magface_pulls_norms_up_inside_its_limits_alone() -> None:
    head = make("magface")
    norms = torch.tensor([[5.0], [50.0], [200.0]], dtype=torch.float64, requires_grad=True)
    head.penalty(norms).sum().backward()
    assert norms.grad.view(-1).tolist() == pytest.approx([0.0, 35 * (1 / 110**2 - 1 / 50**2), 0.0])


def test_curricularface_by_hand() -> None:
    head = make("curricularface", m=0.5)
    head.t.fill_(0.3)
    target = torch.tensor([[0.5]], dtype=torch.float64)  # with the margin cos(pi / 3 + 0.5) = 0.0236
    got = head.negatives(torch.tensor([[0.0, 0.02, 0.03, 0.8]], dtype=torch.float64), target)
    assert got.tolist()[0] == pytest.approx([0.0, 0.02, 0.03 * 0.33, 0.8 * 1.1])
    far = head.margin(torch.tensor([-0.95], dtype=torch.float64), torch.ones(1, 1))
    assert far.item() == pytest.approx(-0.95 - 0.5 * math.sin(0.5))


def test_curricularface_moves_in_training_only_and_keeps_its_past_for_the_backward_pass() -> None:
    head = make("curricularface", t_alpha=0.5)
    embeddings, norms, labels = batch(near=head.kernel)
    head.eval().loss(embeddings, norms, labels)
    assert head.t.item() == 0.0
    results = []
    for moved_between in (False, True):
        again = copy.deepcopy(head).train()
        again.keep_exponentials = False
        loss = again.loss(embeddings, norms, labels)
        assert again.t.item() != 0.0
        if moved_between:
            again.t.fill_(0.9)  # another batch, before this one's backward pass
        results.append(torch.autograd.grad(loss, (embeddings, again.kernel)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_class_is_as_near_as_its_nearest_center() -> None:
    head = make("subcenter_arcface", sub_centers=4)
    plain = make("arcface")
    with torch.no_grad():  # three of four centers opposite to the first: never the nearest of embeddings beside it
        head.kernel.copy_(-plain.kernel.repeat_interleave(4, 1))
        head.kernel[:, ::4] = plain.kernel
    embeddings, norms, labels = batch(near=plain.kernel)
    chosen = (embeddings @ plain.kernel > 0).all(1)
    cosines = (embeddings @ F.normalize(plain.kernel, dim=0)).abs()
    logits = head(embeddings, norms, labels)
    others = F.one_hot(labels, C) == 0
    torch.testing.assert_close(logits[others], 64 * cosines[others])
    assert not chosen.all()


def test_only_the_nearest_center_learns() -> None:
    head = make("subcenter_arcface")
    embeddings, norms, labels = batch()
    cosine = (embeddings @ F.normalize(head.kernel, dim=0)).unflatten(1, (C, 3))
    head.loss(embeddings, norms, labels).backward()
    nearest = {(j, int(k)) for row in cosine.argmax(2) for j, k in enumerate(row)}
    moved = head.kernel.grad.unflatten(1, (C, 3)).abs().sum(0) > 0
    assert {(j, k) for j, k in moved.nonzero().tolist()} == nearest


@pytest.mark.parametrize("count", [0, 256])
def test_numbers_of_centers_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 255 sub-centers, got {count}"):
        build_head("subcenter_arcface", D, C, sub_centers=count)


# what all share


def test_the_command_line_knows_every_margin():
    assert list(MARGINS) == list(HEADS)
    for name, margin in HEADS.items():
        assert margin.options is MARGINS[name].options
        assert (margin.__doc__ or "").startswith(MARGINS[name].text)


@pytest.mark.parametrize("name", HEADS)
def test_the_papers_values_are_the_defaults_and_unknown_options_are_refused(name: str) -> None:
    head = make(name)
    assert {option: getattr(head, option) for option in head.options} == dict(HEADS[name].options)
    with pytest.raises(
        ValueError, match=rf"has no option 'margin'; its options are s, {', '.join(HEADS[name].options)}"
    ):
        build_head(name, D, C, margin=0.3)
    given = chosen_options(HEADS[name], m=0.1, t_alpha=0.2, h=0.3, more={})
    assert set(given) == set(HEADS[name].options)
    assert given.get("m", 0.1) == 0.1


@pytest.mark.parametrize("name", NEWER)
def test_state_dict_is_the_kernel_and_the_statistics(name: str) -> None:
    head = make(name)
    state = head.state_dict()
    assert list(state) == ["kernel", *HEADS[name].statistics]
    assert state["kernel"].shape == (D, C * head.sub_centers)
    make(name).load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NEWER)
def test_under_autocast_the_products_alone_are_in_16_bits(name: str, dtype: torch.dtype) -> None:
    head = make(name).float()
    embeddings, norms, labels = batch(near=head.kernel)
    embeddings, norms = embeddings.detach().float().requires_grad_(), norms.detach().float()
    exact = copy.deepcopy(head).loss(embeddings, norms, labels)
    with torch.autocast("cpu", dtype=dtype):
        loss = copy.deepcopy(head).loss(embeddings, norms, labels)
        logits = copy.deepcopy(head)(embeddings, norms, labels)
    assert loss.dtype == logits.dtype == torch.float32
    assert torch.autograd.grad(loss, embeddings)[0].dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0, atol=2 * 64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NEWER)
def test_one_sample_one_class_and_labels_out_of_range(name: str) -> None:
    head = make(name)
    embeddings, norms, labels = batch(size=1)
    loss = head.loss(embeddings, norms, labels)
    assert torch.isfinite(loss)
    assert all(g is None or torch.isfinite(g).all() for g in gradients(loss, head, embeddings, norms))
    alone = make(name, class_num=1)
    loss = alone.loss(embeddings, norms, torch.zeros(1, dtype=torch.long))
    penalty = alone.penalty(norms)
    assert loss.item() == pytest.approx(0.0 if penalty is None else penalty.mean().item())
    assert not gradients(loss, alone, embeddings, norms)[1].any()
    statistics = {key: value.clone() for key, value in head.named_buffers()}
    for wrong in (-1, C):
        for path in (head, head.loss):
            with pytest.raises(ValueError, match=rf"labels must be in \[0, {C}\), got {wrong}"):
                path(embeddings, norms, torch.tensor([wrong]))
    assert all(torch.equal(value, statistics[key]) for key, value in head.named_buffers())
