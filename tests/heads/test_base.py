import copy
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from adaface.heads import margins
from adaface.heads.base import Head
from adaface.heads.margins import AdaFace, build_head
from tests.support import oracles

MARGINS = {"adaface": 0.4, "arcface": 0.5, "cosface": 0.35}
NAMES = tuple(MARGINS)  # of the official code; the newer ones: test_margins.py
B, D, C = 12, 16, 9


def make(name: str, class_num: int = C, m: float | None = None, **options: float) -> Head:
    torch.manual_seed(0)
    settings_ = {"m": MARGINS[name] if m is None else m, "t_alpha": 0.01, "h": 0.333, "s": 64.0, **options}
    return build_head(name, D, class_num, **settings_)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64, size: int = B) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, D, generator=generator, dtype=dtype)
    norms = torch.rand(size, 1, generator=generator, dtype=dtype) * 60 + 0.5
    return F.normalize(features), norms, torch.randint(0, C, (size,), generator=generator)


# golden values of the official code


@pytest.mark.parametrize("path", ["logits", "loss"])
@pytest.mark.parametrize("name", NAMES)
def test_four_steps_give_the_official_logits_losses_gradients_and_statistics(
    name: str, path: str, golden: Path
) -> None:
    values = np.load(golden / "head.npz")
    head = build_head(name, 64, 50, MARGINS[name], 0.01, 0.333, 64.0)
    head.load_state_dict({**head.state_dict(), "kernel": torch.from_numpy(values["kernel"])})
    for step in range(4):
        features = torch.from_numpy(values["features"][step]).requires_grad_()
        labels = torch.from_numpy(values["labels"][step])
        norms = features.norm(dim=1, keepdim=True)
        if path == "logits":
            logits = head(features / norms, norms, labels)
            loss = F.cross_entropy(logits, labels)
            np.testing.assert_allclose(logits.detach(), values[f"{name}.{step}.logits"], rtol=1e-4, atol=1e-5)
        else:
            loss = head.loss(features / norms, norms, labels)
        head.kernel.grad = None
        loss.backward()
        for key, value in {
            "loss": loss,
            "grad_features": features.grad,
            "grad_kernel": head.kernel.grad,
        }.items():
            expected = values[f"{name}.{step}.{key}"]
            np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=f"{step} {key}")
        if name == "adaface":
            for key in ("batch_mean", "batch_std"):
                expected = values[f"{name}.{step}.{key}"]
                np.testing.assert_allclose(getattr(head, key).numpy(), expected, rtol=1e-6)


# case -> head, margin, batch_mean before, t_alpha
EDGES = {
    **{
        f"adaface.m{m}.std{std}": ("adaface", m, mean, t_alpha)
        for m in (0.4, 1.2)
        for std, mean, t_alpha in (("100", 20.0, 0.01), ("5", 25.0, 0.01), ("0.001", 10.0, 0.0))
    },
    "arcface.m0.5": ("arcface", 0.5, 0.0, 0.0),
    "cosface.m0.35": ("cosface", 0.35, 0.0, 0.0),
}


@pytest.mark.parametrize("case", EDGES)
def test_at_and_beyond_every_clamp_values_and_gradients_are_the_official_ones(case: str, golden: Path) -> None:
    values = np.load(golden / "head_edge.npz")
    name, m, mean, t_alpha = EDGES[case]
    head = build_head(name, 16, 12, m, t_alpha, 0.333, 64.0).double()
    state = {"kernel": torch.from_numpy(values["kernel"])}
    if name == "adaface":
        std = float(case.rpartition("std")[2])
        statistics = {"t": 0.0, "batch_mean": mean, "batch_std": std}
        state |= {key: torch.tensor([value], dtype=torch.float64) for key, value in statistics.items()}
    head.load_state_dict(state)
    embeddings = torch.from_numpy(values["embeddings"]).requires_grad_()
    labels = torch.from_numpy(values["labels"])
    fused = copy.deepcopy(head).loss(embeddings, torch.from_numpy(values["norms"]), labels)
    np.testing.assert_allclose(fused.detach(), values[f"{case}.loss"], rtol=1e-8, atol=1e-8)
    logits = head(embeddings, torch.from_numpy(values["norms"]), labels)
    weights = torch.cos(torch.arange(logits.numel(), dtype=torch.float64)).view_as(logits)
    (logits * weights).sum().backward()
    computed = {
        "logits": logits,
        "loss": F.cross_entropy(logits, labels),
        "grad_embeddings": embeddings.grad,
        "grad_kernel": head.kernel.grad,
        **({"batch_mean": head.batch_mean, "batch_std": head.batch_std} if name == "adaface" else {}),
    }
    for key, value in computed.items():
        expected = values[f"{case}.{key}"]
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-8, atol=1e-8, err_msg=key)


def test_every_edge_case_of_the_golden_file_is_compared(golden: Path) -> None:
    cases = {key.rpartition(".")[0] for key in np.load(golden / "head_edge.npz").files if key.endswith(".logits")}
    assert cases == set(EDGES)


# against the slow computation, and by hand


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 10_000),
    m=st.floats(0, 1.5, width=32),
    mean=st.floats(1, 60),
    std=st.floats(0.01, 120),
)
def test_logits_and_loss_equal_the_slow_computation(name: str, seed: int, m: float, mean: float, std: float) -> None:
    head = make(name, m=m).double()
    embeddings, norms, labels = batch(seed)
    if name == "adaface":
        head.batch_mean.fill_(mean)
        head.batch_std.fill_(std)
        mean, std = oracles.adaface_statistics(norms.view(-1).tolist(), mean, std, 0.01)
    logits = head(embeddings, norms, labels)
    if name == "adaface":
        assert head.batch_mean.item() == pytest.approx(mean, rel=1e-12)
        assert head.batch_std.item() == pytest.approx(std, rel=1e-12)
    arrays = (x.detach().numpy() for x in (embeddings, norms.view(-1), labels, head.kernel))
    expected = oracles.logits(name, *arrays, m=m, s=64.0, mean=mean, std=std)
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    loss = F.cross_entropy(logits, labels).item()
    mean_loss = oracles.mean_cross_entropy(expected, labels.numpy())
    assert loss == pytest.approx(mean_loss, rel=1e-9)
    assert head.eval().loss(embeddings, norms, labels).item() == pytest.approx(mean_loss, rel=1e-9, abs=1e-12)


def test_adaface_by_hand() -> None:
    # cos = 0.5, norm = mean + 2 std: z = min(0.5 * 2, 1) = 1, so the angle shrinks by m and 2 m is subtracted
    head = make("adaface", m=0.3, h=0.5, s=10.0).double().eval()
    head.batch_mean.fill_(20.0)
    head.batch_std.fill_(5.0 - 1e-3)
    norm = torch.tensor([[30.0], [10.0], [20.0]], dtype=torch.float64)
    got = head.margin(torch.full((3,), 0.5, dtype=torch.float64), norm)
    # z = -1: ArcFace with margin m; z = 0: CosFace with margin m
    expected = [math.cos(math.pi / 3 - 0.3) - 0.6, math.cos(math.pi / 3 + 0.3), 0.5 - 0.3]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_adaface_without_concentration_is_cosface() -> None:
    embeddings, norms, labels = batch()
    adaface, cosface = make("adaface", h=0.0, m=0.25).double(), make("cosface", m=0.25).double()
    cosface.kernel.data.copy_(adaface.kernel)
    torch.testing.assert_close(
        adaface(embeddings, norms, labels), cosface(embeddings, norms, labels), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", NAMES)
def test_only_the_target_column_holds_a_margin(name: str) -> None:
    head = make(name).double()
    embeddings, norms, labels = batch()
    logits = head(embeddings, norms, labels).detach()
    plain = 64.0 * embeddings @ F.normalize(head.kernel.detach(), dim=0)
    others = F.one_hot(labels, C) == 0
    torch.testing.assert_close(logits[others], plain[others])
    assert (logits[~others] < plain[~others]).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_formulas(name: str) -> None:
    head = make(name, s=4.0).double().eval()
    embeddings, norms, labels = batch(size=4)
    inputs = (embeddings.requires_grad_(), head.kernel)
    assert torch.autograd.gradcheck(lambda e, _: head(e, norms, labels), inputs)


# statistics


def test_statistics_move_in_training_only_and_before_use() -> None:
    embeddings, norms, labels = batch()
    head = make("adaface", t_alpha=1.0).double()
    head.eval()(embeddings, norms, labels)
    assert (head.batch_mean.item(), head.batch_std.item()) == (20.0, 100.0)
    trained = head.train()(embeddings, norms, labels)
    assert head.batch_mean.item() == pytest.approx(norms.mean().item())
    assert head.batch_std.item() == pytest.approx(norms.std().item())
    torch.testing.assert_close(head.eval()(embeddings, norms, labels), trained)


def test_one_sample_moves_the_mean_and_keeps_the_deviation() -> None:
    head = make("adaface").double()
    embeddings, norms, labels = batch(size=1)
    assert torch.isfinite(head.loss(embeddings, norms, labels))
    assert head.batch_mean.item() == pytest.approx(0.01 * norms.item() + 0.99 * 20.0)
    assert head.batch_std.item() == 100.0


@pytest.mark.parametrize("name", NAMES)
def test_norms_receive_no_gradient_and_inputs_do_not_change(name: str) -> None:
    head = make(name).double()
    embeddings, norms, labels = batch()
    norms.requires_grad_()
    before = embeddings.clone(), norms.detach().clone(), head.kernel.detach().clone()
    (loss := head.loss(embeddings, norms, labels)).backward()
    assert norms.grad is None
    assert loss.dtype == torch.float64
    assert head.kernel.grad.abs().sum(0).min() > 0  # every class
    for was, now in zip(before, (embeddings, norms, head.kernel), strict=True):
        assert torch.equal(was, now)


# state, precision, errors


@pytest.mark.parametrize(
    ("name", "keys"),
    [("adaface", ["kernel", "t", "batch_mean", "batch_std"]), ("arcface", ["kernel"]), ("cosface", ["kernel"])],
)
def test_state_dict_is_the_official_one(name: str, keys: list[str]) -> None:
    state = make(name).state_dict()
    assert list(state) == keys
    assert [tuple(state[key].shape) for key in keys] == [(D, C)] + [(1,)] * (len(keys) - 1)
    assert [state[key].item() for key in keys[1:]] == [0.0, 20.0, 100.0][: len(keys) - 1]


def test_columns_start_inside_the_unit_ball_in_all_directions() -> None:
    kernel = build_head("adaface", 64, 200, 0.4, 0.01, 0.333, 64.0).kernel
    torch.testing.assert_close(kernel.norm(dim=0), torch.ones(200), rtol=0, atol=1e-2)
    assert abs(kernel.mean().item()) < 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_margin_and_softmax_are_float32_under_autocast(name: str, dtype: torch.dtype) -> None:
    head = make(name)
    embeddings, norms, labels = batch(dtype=torch.float32)
    exact = copy.deepcopy(head)(embeddings, norms, labels)
    seen = []
    margin = head.margin
    head.margin = lambda cosine, n: seen.append((cosine.dtype, n.dtype)) or margin(cosine, n)
    with torch.autocast("cpu", dtype=dtype):
        logits = head(embeddings, norms, labels)
        loss = head.loss(embeddings, norms, labels)
    assert seen == [(torch.float32, torch.float32)] * 2
    assert logits.dtype == loss.dtype == torch.float32
    # the matrix product alone is in 16 bits
    assert (logits - exact).abs().max() < 64 * 0.02


@pytest.mark.parametrize("wrong", [-1, C])
def test_labels_out_of_range_are_refused(wrong: int) -> None:
    embeddings, norms, labels = batch()
    labels[3] = wrong
    head = make("adaface").double()
    for path in (head, head.loss):
        with pytest.raises(ValueError, match=rf"labels must be in \[0, {C}\), got .*{wrong}"):
            path(embeddings, norms, labels)
    assert head.batch_mean.item() == 20.0  # refused before anything changed


def test_unknown_head_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"'arcfase'; did you mean arcface\? choose from: adaface, arcface, cosface"):
        build_head("arcfase", D, C, 0.5, 0.01, 0.333, 64.0)
    with pytest.raises(ValueError, match="unknown head 'zzz'; choose from: adaface"):
        build_head("zzz", D, C, 0.5, 0.01, 0.333, 64.0)


def test_a_head_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="class_num 0"):
        build_head("adaface", D, 0, 0.4, 0.01, 0.333, 64.0)


def test_a_new_margin_is_a_subclass_and_a_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    class SphereLike(Head):
        options: ClassVar[dict[str, float]] = {"m": 0.7}
        m: float

        def margin(self, target_cosine: Tensor, norms: Tensor) -> Tensor:
            return target_cosine * self.m

    monkeypatch.setitem(margins.HEADS, "sphere_like", SphereLike)
    head = build_head("sphere_like", D, C, 0.5, 0.01, 0.333, 64.0).double()
    embeddings, norms, labels = batch()
    logits = head(embeddings, norms, labels)
    plain = 64.0 * embeddings @ F.normalize(head.kernel, dim=0)
    torch.testing.assert_close(logits.gather(1, labels[:, None]), 0.5 * plain.gather(1, labels[:, None]))


def test_margin_alone_changes_no_statistics() -> None:
    head = make("adaface")
    assert isinstance(head, AdaFace)
    head.margin(torch.tensor([0.1, 0.2]), torch.tensor([[10.0], [80.0]]))
    assert (head.batch_mean.item(), head.batch_std.item()) == (20.0, 100.0)
