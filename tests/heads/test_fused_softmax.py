"""The loss path against the logits that it does not make: same loss, same gradients, whatever the blocks."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaface.heads import fused_softmax
from adaface.heads.base import Head
from adaface.heads.fused_softmax import SoftmaxOptions, target_and_negatives
from adaface.heads.margins import HEADS, build_head
from adaface.heads.partial_fc import build_sharded_head

B, D, C = 10, 8, 23
BLOCKS = {"one block": 1 << 21, "blocks of 4": 4 * C, "blocks of 1": C}


@pytest.fixture(params=BLOCKS)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the classes into blocks of several widths."""
    monkeypatch.setattr(fused_softmax, "_BLOCK_NUMBERS_CPU", max(1, BLOCKS[request.param] * max(B, D) // C))


@pytest.fixture(params=["looks at the limits", "does not look"])
def looking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the path of a CPU, and that of a device which must not wait."""
    monkeypatch.setattr(fused_softmax, "_looking_is_cheap", lambda _: request.param.startswith("looks"))


def make(name: str, class_num: int = C, s: float = 64.0) -> Head:
    torch.manual_seed(0)
    head = build_head(name, D, class_num, 0.4, 0.01, 0.333, s).double()
    with torch.no_grad():
        head.kernel.mul_(torch.linspace(0.3, 3, head.kernel.shape[1]))  # columns of any length
    return head


def batch(class_num: int = C, size: int = B) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = F.normalize(torch.randn(size, D, generator=generator, dtype=torch.float64))
    norms = torch.rand(size, 1, generator=generator, dtype=torch.float64) * 60 + 0.5
    return embeddings, norms, torch.randint(0, class_num, (size,), generator=generator)


def at_the_clamps(head: Head, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Embeddings equal and opposite to their own and to other classes' columns: cosines of 1 and -1."""
    columns = F.normalize(head.kernel.detach(), dim=0).T[:: head.sub_centers]
    own, other = columns[labels], columns[(labels + 1) % C]
    return torch.cat((own[:2], -own[2:4], other[4:6], -other[6:8], embeddings[8:]))


def loss_of_logits(head: Head, embeddings: Tensor, norms: Tensor, labels: Tensor) -> Tensor:
    penalty = head.penalty(norms)
    loss = F.cross_entropy(head(embeddings, norms, labels), labels)
    return loss if penalty is None else loss + penalty.mean()


def loss_and_gradients(loss: Tensor, embeddings: Tensor, head: Head) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, (embeddings, head.kernel))]


@pytest.mark.usefixtures("blocks", "looking")
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_are_those_of_the_logits(name: str, clamped: bool, keep: bool) -> None:
    head = make(name)
    embeddings, norms, labels = batch()
    if clamped:
        embeddings = at_the_clamps(head, embeddings, labels)
    embeddings.requires_grad_()
    head.keep_exponentials = keep
    plain = copy.deepcopy(head)
    expected = loss_and_gradients(loss_of_logits(plain, embeddings, norms, labels), embeddings, plain)
    computed = loss_and_gradients(head.loss(embeddings, norms, labels), embeddings, head)
    for was, now in zip(expected, computed, strict=True):
        torch.testing.assert_close(now, was, rtol=1e-10, atol=1e-12)
    for (key, was), now in zip(plain.named_buffers(), head.buffers(), strict=True):
        torch.testing.assert_close(now, was, rtol=1e-12, atol=0, msg=key)


@pytest.mark.usefixtures("blocks")
def test_exponentials_computed_again_give_the_same_bits() -> None:
    embeddings, norms, labels = batch()
    embeddings = embeddings.float().requires_grad_()
    results = []
    for keep in (True, False):
        head = make("adaface").float()
        head.keep_exponentials = keep
        results.append(loss_and_gradients(head.loss(embeddings, norms, labels), embeddings, head))
    assert all(torch.equal(kept, again) for kept, again in zip(*results, strict=True))


def test_a_second_backward_gives_the_same_gradient() -> None:
    head = make("adaface")
    embeddings, norms, labels = batch()
    loss = head.loss(embeddings.requires_grad_(), norms, labels)
    first = torch.autograd.grad(loss, (embeddings, head.kernel), retain_graph=True)
    second = torch.autograd.grad(loss, (embeddings, head.kernel))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("keep", [True, False])
def test_both_outputs_have_the_gradient_of_their_formula(keep: bool) -> None:
    embeddings, _, labels = batch(size=4)
    kernel = make("cosface").kernel.detach().requires_grad_()
    options = SoftmaxOptions(scale=3.0, eps=1e-3, product_dtype=torch.float64, keep_exponentials=keep)

    def outputs(e: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return target_and_negatives(e, k, labels, options)

    assert torch.autograd.gradcheck(outputs, (embeddings.requires_grad_(), kernel))


def test_only_the_embeddings_may_need_a_gradient() -> None:
    head = make("arcface")
    head.kernel.requires_grad_(False)
    embeddings, norms, labels = batch()
    plain = F.cross_entropy(head(embeddings.requires_grad_(), norms, labels), labels)
    expected = torch.autograd.grad(plain, embeddings)[0]
    head.loss(embeddings, norms, labels).backward()
    torch.testing.assert_close(embeddings.grad, expected, rtol=1e-10, atol=1e-12)
    assert head.kernel.grad is None


@pytest.mark.usefixtures("looking")
def test_a_single_class_has_no_loss_and_no_gradient() -> None:
    head = make("adaface", class_num=1)
    embeddings, norms, labels = batch(class_num=1)
    loss = head.loss(embeddings.requires_grad_(), norms, labels)
    loss.backward()
    assert loss.item() == 0.0
    assert not embeddings.grad.any()
    assert not head.kernel.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scales_neither_overflow_nor_lose_the_loss(dtype: torch.dtype) -> None:
    head = make("cosface", s=200.0).to(dtype)
    embeddings, norms, labels = batch()
    embeddings = embeddings.to(dtype).requires_grad_()
    expected = F.cross_entropy(head(embeddings, norms, labels), labels)
    loss = head.loss(embeddings, norms, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(torch.autograd.grad(loss, embeddings)[0]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_matrix_products_are_in_16_bits_under_autocast(dtype: torch.dtype) -> None:
    head = make("adaface").float()
    embeddings, norms, labels = batch()
    embeddings = embeddings.float().requires_grad_()
    exact = copy.deepcopy(head)
    expected = loss_and_gradients(exact.loss(embeddings, norms, labels), embeddings, exact)
    with torch.autocast("cpu", dtype=dtype):
        loss = head.loss(embeddings, norms, labels)
        plain = F.cross_entropy(copy.deepcopy(head)(embeddings, norms, labels), labels)
    computed = loss_and_gradients(loss, embeddings, head)
    assert [value.dtype for value in computed] == [torch.float32] * 3
    steps = 64 * torch.finfo(dtype).eps
    assert not torch.equal(computed[0], expected[0])
    torch.testing.assert_close(computed[0], expected[0], rtol=0, atol=steps)
    torch.testing.assert_close(loss, plain, rtol=0, atol=2 * steps)
    for now, was in zip(computed[1:], expected[1:], strict=True):
        assert (now - was).norm() < 10 * torch.finfo(dtype).eps * was.norm()


@pytest.mark.parametrize("alike", [0.0, 0.7, 1.0])  # of the classes: the loss is 4e-5, 3 and 10
@pytest.mark.parametrize("build", [build_head, build_sharded_head])
def test_the_gradient_of_a_trained_network_is_as_exact_in_bfloat16(build: Any, alike: float) -> None:
    torch.manual_seed(0)
    samples, size, classes = 64, 512, 3001
    kernel = F.normalize(torch.randn(size, classes) + alike * torch.randn(size, 1), dim=0)
    labels = torch.randint(0, classes, (samples,))
    across = F.normalize(torch.randn(samples, size))
    faces = F.normalize(0.75 * kernel[:, labels].T + (1 - 0.75**2) ** 0.5 * across)  # cosines near 0.75
    norms = 15 + 10 * torch.rand(samples, 1)

    def step(dtype: torch.dtype, *, autocast: bool) -> tuple[torch.Tensor, ...]:
        head = build("adaface", size, classes, m=0.4, h=0.333, t_alpha=0.01)
        head.load_state_dict({**head.state_dict(), "kernel": kernel})
        head.to(dtype)
        embeddings = faces.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = head.loss(embeddings, norms.to(dtype), labels)
        return tuple(value.detach().double() for value in (loss, *torch.autograd.grad(loss, (embeddings, head.kernel))))

    exact, short = step(torch.float64, autocast=False), step(torch.float32, autocast=True)
    off = [float((now - was).norm() / was.norm()) for now, was in zip(short, exact, strict=True)]
    assert off[0] < 2e-3
    assert max(off[1:]) < 6e-3


@pytest.mark.parametrize("hip", [None, "6.4"])
@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta stands for a GPU
def test_products_of_16_bits_are_not_rounded_to_16_bits(device: str, hip: str | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    a, b = (torch.ones(shape, dtype=torch.bfloat16, device=device) for shape in ((2, 3), (3, 5)))
    product = fused_softmax._product(a, b)
    assert (product.dtype, product.shape) == (torch.float32, (2, 5))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_of_16_bits_have_a_loss_and_gradients_too(dtype: torch.dtype, name: str) -> None:
    head = make(name).float()
    embeddings, norms, labels = batch()
    embeddings[0] = F.normalize(head.kernel.detach()[:, labels[0] * head.sub_centers], dim=0)  # 1 - eps is 1 in 16 bits
    leaf = embeddings.float().requires_grad_()
    exact = copy.deepcopy(head)
    expected = loss_and_gradients(exact.loss(leaf, norms.float(), labels), leaf, exact)
    short = embeddings.to(dtype).requires_grad_()
    computed = loss_and_gradients(head.loss(short, norms.to(dtype), labels), short, head)
    assert [value.dtype for value in computed] == [torch.float32, dtype, torch.float32]
    torch.testing.assert_close(computed[0], expected[0], rtol=0, atol=64 * torch.finfo(dtype).eps)
    for now, was in zip(computed[1:], expected[1:], strict=True):
        assert (now[1:] - was[1:]).norm() < 20 * torch.finfo(dtype).eps * was.norm()


@pytest.mark.parametrize("wrong", [-1, C])
def test_a_label_out_of_range_gives_nan_where_nobody_looks(wrong: int) -> None:
    embeddings, _, labels = batch()
    labels[3] = wrong
    kernel = make("cosface").kernel
    options = SoftmaxOptions(scale=64.0, eps=1e-3, product_dtype=torch.float64)
    target, negatives = target_and_negatives(embeddings, kernel, labels, options)
    assert target.isnan().nonzero().flatten().tolist() == [3]
    assert negatives.isfinite().all()


def test_of_no_classes_there_is_no_target_and_nothing_to_weigh():
    embeddings = F.normalize(torch.randn(3, 4)).requires_grad_()
    kernel = torch.empty(4, 0, requires_grad=True)
    options = SoftmaxOptions(scale=8.0, eps=1e-3, product_dtype=torch.float32)
    target, negatives = target_and_negatives(embeddings, kernel, torch.tensor([-1, 0, 5]), options)
    assert target.isnan().all()
    assert negatives.tolist() == [-torch.inf] * 3
    negatives.sum().backward()
    assert not embeddings.grad.any()
    assert kernel.grad.shape == (4, 0)
