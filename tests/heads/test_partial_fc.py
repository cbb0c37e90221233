"""The sharded head against the dense one, with real processes over gloo (sharded_worker.py)."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from adaface.heads.partial_fc import build_sharded_head, reason_to_shard, shard_range
from adaface.heads.sharded_optimizer import coalesce_gradient
from tests.support import sharded_worker as worker
from tests.support.forked import run_processes
from tests.support.sharded_worker import FEW, MARGINS, MICRO_BATCHES, ODD, SAMPLED, B, Model, micro_batches

WORLDS = (2, 3, 4)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=WORLDS)
def group(request, tmp_path_factory) -> tuple[int, list[dict]]:
    """The number of processes, and what each of them got."""
    W, folder = request.param, tmp_path_factory.mktemp("group")
    run_processes(worker.main, [(rank, W, folder) for rank in range(W)], folder)
    return W, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(W)]


def dense(name: str, classes: int, batches: list[tuple[Tensor, Tensor]]) -> dict:
    model = Model(name, classes)
    return worker.outcome(model, worker.accumulate(model, batches))


def assert_same(expected: dict, parts: list[dict], **tolerance: float) -> None:
    """Compare a dense outcome with those of all processes; their kernels' gradients are rows."""
    for part in parts:
        assert part["losses"] == pytest.approx(expected["losses"], rel=tolerance["rtol"])
        assert part["statistics"] == pytest.approx(expected["statistics"], rel=tolerance["rtol"])
        torch.testing.assert_close(part["backbone"], expected["backbone"], **tolerance)
    kernel = torch.cat([part["kernel"] for part in parts]).t()
    torch.testing.assert_close(kernel, expected["kernel"], **tolerance)


@pytest.mark.parametrize("count", [1, MICRO_BATCHES])
@pytest.mark.parametrize("classes", [ODD, FEW])
@pytest.mark.parametrize("name", MARGINS)
def test_loss_gradients_and_statistics_are_those_of_the_dense_head(group, name, classes, count):
    W, results = group
    parts = [result[name, classes, count] for result in results]
    expected = dense(name, classes, micro_batches(classes, W)[:count])
    assert len({tuple(part["losses"]) for part in parts}) == 1, "one number in all processes"
    assert_same(expected, parts, **TOLERANCE)
    assert len(torch.cat([p["kernel"] for p in parts])) == len(expected["kernel"].t())


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_accumulated_batches_are_one_large_batch(group, name):
    W, results = group
    large = [torch.cat(parts) for parts in zip(*micro_batches(ODD, W), strict=True)]
    expected = dense(name, ODD, [tuple(large)])
    parts = [result[name, ODD, MICRO_BATCHES] for result in results]
    assert sum(parts[0]["losses"]) / MICRO_BATCHES == pytest.approx(expected["losses"][0], rel=1e-5)
    for part in parts:
        torch.testing.assert_close(part["backbone"], expected["backbone"], **TOLERANCE)
    torch.testing.assert_close(torch.cat([p["kernel"] for p in parts]).t(), expected["kernel"], **TOLERANCE)


def test_a_batch_may_have_no_positive_in_some_shard(group):
    W, results = group
    assert_same(
        dense("adaface", ODD, micro_batches(ODD, W, labels=[0])[:1]), [r["one shard"] for r in results], **TOLERANCE
    )


def test_under_autocast_the_products_alone_are_in_16_bits(group):
    W, results = group
    model = Model("adaface", ODD)
    with torch.autocast("cpu", torch.bfloat16):
        losses = worker.accumulate(model, micro_batches(ODD, W)[:1])
    parts = [result["autocast"] for result in results]
    assert all(part["kernel"].dtype == torch.float32 for part in parts)
    assert_same(worker.outcome(model, losses), parts, rtol=2e-2, atol=2e-2)


def test_each_process_knows_the_target_cosines_of_its_own_images(group):
    W, results = group
    expected = torch.cat([result["adaface", ODD, 1]["cosine"] for result in results])
    features, labels = micro_batches(ODD, W)[0]
    model = Model("adaface", ODD)
    cosines = F.normalize(model.backbone(features)) @ F.normalize(model.head.kernel, dim=0)
    torch.testing.assert_close(expected, cosines.gather(1, labels[:, None])[:, 0].detach(), **TOLERANCE)


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_steps_keep_the_positives_and_equal_a_head_of_the_chosen_classes(group, name):
    W, results = group
    parts = [result["sampled"][name] for result in results]
    K = Model(name, 40).head.sub_centers
    assert all(part["sparse"] for part in parts)
    for number, (features, labels) in enumerate(micro_batches(40, W)[:2]):
        chosen = [part["chosen"][number] + shard_range(40, rank, W)[0] for rank, part in enumerate(parts)]
        for rank, classes in enumerate(chosen):
            first, end = shard_range(40, rank, W)
            positives = {label for label in labels.tolist() if first <= label < end}
            assert positives <= set(classes.tolist())
            assert len(classes) == max(len(positives), int(worker.RATE * (end - first)))
            assert (classes[1:] > classes[:-1]).all()
        union = torch.cat(chosen)
        columns = (union[:, None] * K + torch.arange(K)).flatten()
        model = Model(name, 40)
        if number == 0:  # the statistics of the second batch follow from the first
            model.head.kernel = torch.nn.Parameter(model.head.kernel.detach()[:, columns])
            model.head.class_num = len(union)
            losses = worker.accumulate(model, [(features, torch.searchsorted(union, labels))])
            assert parts[0]["losses"][:1] == pytest.approx(losses, rel=1e-5)
            gradient = torch.zeros(40 * K, worker.D)
            gradient[columns] = model.head.kernel.grad.t()
            torch.testing.assert_close(torch.cat([part["first"] for part in parts]), gradient, **TOLERANCE)
    for part in parts:
        touched = torch.zeros(len(part["before"]) // K, dtype=torch.bool)
        touched[torch.cat(part["chosen"])] = True
        touched = touched.repeat_interleave(K)
        assert 0 < touched.sum() < len(touched)
        assert torch.equal(part["after"][~touched], part["before"][~touched]), "not even weight decay"
        moved = part["before"] - 0.1 * (part["kernel"] + 0.1 * part["before"])
        torch.testing.assert_close(part["after"][touched], moved[touched], **TOLERANCE)


def test_the_gradient_is_clipped_as_that_of_the_dense_head(group):
    W, results = group
    model = Model("arcface", ODD)
    worker.accumulate(model, micro_batches(ODD, W)[:1])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    parts = [result["clipped"] for result in results]
    assert_same(worker.outcome(model, []), parts, **TOLERANCE)
    assert [part["norm"] for part in parts] == pytest.approx([0.1] * W, rel=1e-4)


def test_all_processes_skip_the_step_in_which_one_shard_or_all_overflow(group):
    _, results = group
    for fused in (0, 1):
        for result in (result["overflow"][fused] for result in results):
            # of all: fused optimizers skip where the flag is 1, not where it is the number of bad shards
            assert result["changed"] == [[False] * 3, [False] * 3, [True] * 3]
            assert result["scales"] == [4.0, 2.0, 2.0]


def test_all_processes_refuse_what_one_of_them_brings(group):
    W, results = group
    for sizes, labels in (result["refused"] for result in results):
        assert f"the processes have batches of [2, {', '.join(['3'] * (W - 1))}] samples" in sizes
        assert f"labels must be in [0, {ODD}), got 0 to {ODD}" in labels


def test_the_seed_decides_on_the_weights_whatever_the_number_of_processes(group):
    W, results = group
    for classes in (ODD, FEW, 1):
        parts = [result["initial"][classes] for result in results]
        assert [part.shape[1] for part in parts] == [len(range(*shard_range(classes, r, W))) for r in range(W)]
        together = torch.cat(parts, 1)
        assert torch.equal(together, worker.initial_weights(classes)), "one process, the same bits"
        torch.manual_seed(9)
        of_dense = worker.build_head("arcface", worker.D, classes, 0.5, 0.01, 0.3, 64.0).kernel
        torch.testing.assert_close(together, of_dense.detach(), rtol=1e-6, atol=0)


# one process


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("classes", [1, ODD])
def test_one_process_is_enough(name, classes):
    batches = micro_batches(classes, 1)
    model = Model(name, classes, sharded=True)
    losses = worker.accumulate(model, batches)
    assert_same(dense(name, classes, batches), [worker.outcome(model, losses)], **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_of_16_bits_have_the_loss_of_the_dense_head(dtype):
    features, labels = micro_batches(ODD, 1)[0]
    of_both = []
    for sharded in (False, True):
        head = Model("arcface", ODD, sharded=sharded).head
        embeddings = F.normalize(Model("arcface", ODD).backbone(features)).detach().to(dtype)
        loss = head.loss(embeddings, features.norm(dim=1, keepdim=True), labels)
        loss.backward()
        of_both.append((loss.detach(), head.kernel.grad.t() if sharded else head.kernel.grad))
    torch.testing.assert_close(of_both[1], of_both[0], rtol=1e-3, atol=1e-3)
    assert of_both[1][0].dtype == torch.float32


def test_sampling_all_classes_is_not_sampling():
    outcomes = []
    for rate in (None, 1.0):
        model = Model("adaface", ODD, sharded=True, **({} if rate is None else {"sample_rate": rate}))
        outcomes.append(worker.outcome(model, worker.accumulate(model, micro_batches(ODD, 1))))
    assert outcomes[0]["losses"] == outcomes[1]["losses"]
    assert torch.equal(outcomes[0]["kernel"], outcomes[1]["kernel"])
    sampled = Model("adaface", ODD, sharded=True, sample_rate=0.5)
    sampled.head._sample = lambda local, owned: torch.arange(ODD)  # the other way through the code, all classes chosen
    losses = worker.accumulate(sampled, micro_batches(ODD, 1))
    assert losses == outcomes[0]["losses"]
    assert torch.equal(sampled.head.kernel.grad.to_dense(), outcomes[0]["kernel"])


def test_the_choice_depends_on_the_seed_alone_and_evaluation_takes_all():
    model = Model("cosface", 40, sharded=True, sample_rate=0.5)
    batch = micro_batches(40, 1)[0]

    def loss(seed: int) -> float:
        model.head.sampling_seed = seed
        return model(*batch).item()

    assert loss(1) == loss(1) != loss(2)
    model.eval()
    assert loss(1) == loss(2) == pytest.approx(Model("cosface", 40).eval()(*batch).item(), rel=1e-5)


def test_negatives_are_drawn_evenly():
    head = Model("cosface", 40, sharded=True, sample_rate=0.25).head
    counts = torch.zeros(40)
    local = torch.tensor([3])
    for seed in range(2000):
        head.sampling_seed = seed
        counts[head._sample(local, torch.tensor([True]))] += 1
    assert counts[3] == 2000
    expected = 2000 * 9 / 39
    others = torch.cat([counts[:3], counts[4:]])
    assert (others - expected).abs().max() < 5 * (expected * (1 - 9 / 39)) ** 0.5


def test_the_state_dict_is_the_dense_heads_part():
    head = Model("adaface", ODD, sharded=True).head
    state = head.state_dict()
    assert list(state) == ["kernel", "t", "batch_mean", "batch_std"]
    assert state["kernel"].shape == (worker.D, ODD)
    head.load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch for kernel"):
        head.load_state_dict({**state, "kernel": torch.zeros(worker.D, ODD + 1)})


def test_logits_are_refused():
    with pytest.raises(RuntimeError, match="a sharded head has no logits"):
        Model("adaface", ODD, sharded=True).head(torch.ones(B, worker.D), torch.ones(B, 1), torch.zeros(B).long())


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, float("nan")])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"sample_rate must be a fraction of the classes in \(0, 1\]"):
        build_sharded_head("adaface", 8, 5, 0.4, 0.01, 0.3, 64.0, sample_rate=rate)


def test_unknown_margins_are_refused():
    with pytest.raises(ValueError, match="did you mean arcface"):
        build_sharded_head("arcfase", 8, 5, 0.4, 0.01, 0.3, 64.0)


@pytest.mark.parametrize("W", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("classes", [1, 5, 11, 12])
def test_ranges_are_those_of_chunk(classes, W):
    chunks = [part.tolist() for part in torch.arange(classes).chunk(W)]
    chunks += [[]] * (W - len(chunks))
    assert [list(range(*shard_range(classes, rank, W))) for rank in range(W)] == chunks


def test_sharding_is_chosen_where_the_dense_head_would_not_fit_or_would_be_slow():
    sizes = {"columns": 100_000, "embedding_size": 512, "processes": 2}
    needed = 4 * 12 * 512 * 100_000
    asked = []

    def reason(memory: float, **others: int) -> str:
        return reason_to_shard(**{**sizes, **others}, memory_bytes=lambda: asked.append(memory) or memory)

    assert reason(100 * needed, columns=100_001) == "more than 100,000"
    assert reason(1, columns=100_001, processes=1) == reason(1, processes=1) == ""
    assert not asked, "asking a GPU takes time, and a context on it"
    assert reason(needed - 1) == "with their gradient and momentum more than a quarter of the memory"
    assert reason(needed) == ""
    assert asked == [needed - 1, needed]


def test_summed_gradients_have_the_classes_of_all_batches_once():
    model = Model("cosface", 40, sharded=True, sample_rate=0.25)
    chosen = []
    for seed, batch in enumerate(micro_batches(40, 1)[:2]):
        model.head.sampling_seed = seed
        chosen.append(model.head._sample(batch[1], torch.ones(len(batch[1]), dtype=torch.bool)))
        model(*batch).backward()
    rows = model.head.kernel.grad._indices()[0]
    assert len(rows) == len(torch.cat(chosen).unique()), "what --plan counts on"


def test_the_gradient_of_one_batch_is_known_to_be_in_order():
    """Looking at its rows would make each step wait for a GPU."""
    model = Model("cosface", 40, sharded=True, sample_rate=0.25)
    first, second = micro_batches(40, 1)[:2]
    reads = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            reads.extend(["read"] if "local_scalar" in str(function) else [])
            return function(*args, **(kwargs or {}))

    model(*first).backward()
    expected = model.head.kernel.grad.to_dense()
    with Reads():
        coalesce_gradient(model.head.kernel)
    assert not reads
    gradient = model.head.kernel.grad
    assert gradient.is_coalesced()
    assert torch.equal(gradient.to_dense(), expected)
    model.head.kernel.grad = None
    for batch in (first, second):
        model.head.sampling_seed += 1
        model(*batch).backward()
    with Reads():
        coalesce_gradient(model.head.kernel)
    assert reads, "the rows of two batches may be in any order"
