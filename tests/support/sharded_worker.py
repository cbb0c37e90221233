"""One of W processes with a sharded head, for test_partial_fc.py: computes every case, saves what it got."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adaface.heads.margins import HEADS, build_head
from adaface.heads.partial_fc import build_sharded_head
from adaface.heads.sharded_optimizer import AgreedGradScaler, clip_gradient, gradient_norm, step_on_touched_rows

MARGINS: dict[str, float | None] = {**dict.fromkeys(HEADS), "adaface": 0.4, "arcface": 0.5, "cosface": 0.35}
FEATURES, D, B = 6, 8, 4  # B samples for each process and micro-batch
MICRO_BATCHES = 3
ODD, FEW = 11, 5  # classes: 4 + 4 + 3 of 3 processes; 2 + 2 + 1 + 0 of 4
RATE = 0.4
SAMPLED = ("adaface", "magface", "curricularface", "subcenter_arcface")


class Model(nn.Module):
    """A linear backbone and a head; the loss of features (N, 6) and labels (N,)."""

    def __init__(self, name: str, classes: int, *, sharded: bool = False, sample_rate: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Linear(FEATURES, D)
        options = (name, D, classes, MARGINS[name], 0.3, 0.333, 16.0)
        self.head = build_head(*options)
        if sharded:
            whole = self.head.state_dict()
            self.head = build_sharded_head(*options, sample_rate=sample_rate)
            self.head.load_state_dict(whole)
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, ["head.kernel"])

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        hidden = self.backbone(features)
        norms = hidden.norm(dim=1, keepdim=True)
        return self.head.loss(hidden / norms, norms * 10, labels)


def micro_batches(classes: int, W: int, labels: list[int] | None = None) -> list[tuple[Tensor, Tensor]]:
    """The batches of all processes together, each of W * B samples."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(MICRO_BATCHES):
        features = torch.randn(W * B, FEATURES, generator=generator)
        drawn = torch.randint(0, classes, (W * B,), generator=generator)
        batches.append((features, drawn if labels is None else torch.tensor(labels * W * B)[: W * B]))
    return batches


def accumulate(model: nn.Module, batches: list[tuple[Tensor, Tensor]], scale: float = 1.0) -> list[float]:
    """Forward and backward of micro-batches; the gradients are those of their mean loss."""
    losses = []
    for number, (features, labels) in enumerate(batches):
        last = number == len(batches) - 1
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else torch.enable_grad():
            loss = model(features, labels)
            (loss / len(batches) * scale).backward()
        losses.append(loss.item())
    return losses


def outcome(model: Model, losses: list[float]) -> dict:
    state = {key: value.clone() for key, value in model.head.state_dict().items()}
    return {
        "losses": losses,
        "backbone": model.backbone.weight.grad.clone(),
        "kernel": model.head.kernel.grad,
        "statistics": [state[key].item() for key in ("batch_mean", "batch_std", "t") if key in state],
        "cosine": getattr(model.head, "last_target_cosine", None),
    }


def mine(batches: list[tuple[Tensor, Tensor]], rank: int) -> list[tuple[Tensor, Tensor]]:
    return [(x[rank * B : (rank + 1) * B], y[rank * B : (rank + 1) * B]) for x, y in batches]


def sharded_case(
    name: str, classes: int, count: int, rank: int, W: int, labels: list[int] | None = None, autocast: bool = False
) -> dict:
    model = Model(name, classes, sharded=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = accumulate(DistributedDataParallel(model), mine(micro_batches(classes, W, labels)[:count], rank))
    return outcome(model, losses)


def sampled_case(name: str, rank: int, W: int) -> dict:
    """Two accumulated micro-batches of sampled classes, then a step of fused SGD."""
    model = Model(name, 40, sharded=True, sample_rate=RATE)
    chosen = []
    sample = model.head._sample
    model.head._sample = lambda *words: chosen.append(sample(*words)) or chosen[-1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, fused=True)
    step_on_touched_rows(optimizer, [model.head.kernel])
    wrapped, losses = DistributedDataParallel(model), []
    for number, batch in enumerate(mine(micro_batches(40, W)[:2], rank)):
        model.head.sampling_seed = 100 * rank + number
        losses += accumulate(wrapped, [batch])
        if number == 0:
            first = model.head.kernel.grad.to_dense()
    before = model.head.kernel.detach().clone()
    result = {"sparse": model.head.kernel.grad.is_sparse, **outcome(model, losses)}
    result["kernel"] = model.head.kernel.grad.to_dense()
    optimizer.step()
    return {**result, "chosen": chosen, "first": first, "before": before, "after": model.head.kernel.detach()}


def clipped_case(rank: int, W: int) -> dict:
    model = Model("arcface", ODD, sharded=True)
    accumulate(DistributedDataParallel(model), mine(micro_batches(ODD, W)[:1], rank))
    clip_gradient(model.parameters(), [model.head.kernel], 0.1)
    norm = gradient_norm(model.parameters(), [model.head.kernel])
    return {"norm": norm.item(), **outcome(model, [])}


def overflow_case(rank: int, W: int, fused: bool) -> dict:
    """A step in which the last process's shard has an infinite gradient, one in which all have, and a good one."""
    model = Model("cosface", ODD, sharded=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    scaler = AgreedGradScaler("cpu", init_scale=8.0)
    wrapped, weights, scales = DistributedDataParallel(model), [], []
    for bad in ((W - 1,), range(W), ()):
        optimizer.zero_grad()
        scaler.scale(torch.ones(()))  # makes the scale
        accumulate(wrapped, mine(micro_batches(ODD, W)[:1], rank), scaler.get_scale())
        if rank in bad:
            model.head.kernel.grad[0, 0] = torch.inf
        before = [parameter.detach().clone() for parameter in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        changed = [not torch.equal(was, now) for was, now in zip(before, model.parameters(), strict=True)]
        weights.append(changed)
        scales.append(scaler.get_scale())
    return {"changed": weights, "scales": scales}


def refused(rank: int, sizes: bool) -> str:
    """The message for batches of different sizes, or a label out of range, in rank 0 alone."""
    model = Model("adaface", ODD, sharded=True)
    count = 2 if sizes and rank == 0 else 3
    labels = torch.full((count,), ODD if rank == 0 and not sizes else 0)
    try:
        model(torch.ones(count, FEATURES), labels)
    except ValueError as error:
        return str(error)
    return "no error"


def initial_weights(classes: int) -> Tensor:
    torch.manual_seed(9)
    return build_sharded_head("arcface", D, classes, 0.5, 0.01, 0.3, 64.0).state_dict()["kernel"]


def main(rank: int, W: int, folder: Path) -> int:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=W)
    results: dict = {}
    for name in MARGINS:
        for classes in (ODD, FEW):
            for count in (1, MICRO_BATCHES):
                results[name, classes, count] = sharded_case(name, classes, count, rank, W)
    results["one shard"] = sharded_case("adaface", ODD, 1, rank, W, labels=[0])
    results["autocast"] = sharded_case("adaface", ODD, 1, rank, W, autocast=True)
    results["sampled"] = {name: sampled_case(name, rank, W) for name in SAMPLED}
    results["clipped"] = clipped_case(rank, W)
    results["overflow"] = [overflow_case(rank, W, fused) for fused in (False, True)]
    results["refused"] = [refused(rank, sizes) for sizes in (True, False)]
    results["initial"] = {classes: initial_weights(classes) for classes in (ODD, FEW, 1)}
    torch.save(results, folder / f"{rank}.pt")
    return 0
