"""A margin head whose classes are sharded over all processes, with optional sampling of the negatives.

Each process holds a contiguous range of classes. Embeddings, norms and labels of all processes are gathered; each
process computes the cosines to its own classes. After that, only a few numbers per sample are exchanged: the target's
cosine and logit, and the logsumexp of the negatives. No process holds the logits of all classes. With ``sample_rate``
below 1, a step uses the classes of the batch and random others, which reduces its time and memory in proportion.

Source: An et al., "Killing two birds with one stone" (PartialFC), CVPR 2022, arXiv 2203.15565. Values and gradients
equal those of the dense head (``heads/margins.py``), whose margins and statistics are used unchanged.

Differs from the official PartialFC: adaptive margins are supported, with running statistics over the global batch;
labels out of range raise an error; the sampled classes depend only on ``sampling_seed``, so that resuming a run needs
no sampler state.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from adaface.distributed.collectives import check_batch_sizes, gather_batch, gather_labels_and_norms, rank, world_size
from adaface.heads.base import Head, at_least_float32, dtype_of_products
from adaface.heads.fused_softmax import target_cosines
from adaface.heads.margins import chosen_options, head_class

_BYTES_PER_TRAINED_WEIGHT = 12  # float32 weight, gradient and momentum
# above it, exchanging the gradients of the whole head takes longer than the exchanges of a sharded one
_MOST_DENSE_COLUMNS = 100_000
_LARGEST_DENSE_SHARE = 0.25  # of a device's memory; backbone, activations and logits need the rest
_DRAWN_AT_ONCE = 1 << 24  # random numbers in one buffer, 64 MiB


def reason_to_shard(*, columns: int, embedding_size: int, processes: int, memory_bytes: Callable[[], float]) -> str:
    """Return why the classes should be sharded over the processes; empty if they should not.

    Args:
        columns: C, times the sub-centers.
        embedding_size: D.
        processes: W, over all machines.
        memory_bytes: returns the total memory of a process's device, not its free memory: all processes, and a resumed
            run, must make the same decision. It is called only if the decision depends on it.
    """
    if processes == 1:
        return ""
    if columns > _MOST_DENSE_COLUMNS:
        return f"more than {_MOST_DENSE_COLUMNS:,}"
    if _BYTES_PER_TRAINED_WEIGHT * embedding_size * columns > _LARGEST_DENSE_SHARE * memory_bytes():
        return "with their gradient and momentum more than a quarter of the memory"
    return ""


def shard_range(class_num: int, number: int, processes: int) -> tuple[int, int]:
    """Return the half-open range of classes of a process, split as by ``torch.chunk``.

    Args:
        class_num: C.
        number: rank of the process, in [0, W).
        processes: W.

    Returns:
        First class and end; ceil(C / W) classes, fewer or none for the last processes.
    """
    share = -(-class_num // processes)  # rounded up
    return min(number * share, class_num), min((number + 1) * share, class_num)


class PartialFC(Head):
    """The class weights of one of W processes; ``build_sharded_head`` combines it with a margin.

    With several processes, initialize the process group before building the head. A module wrapped in
    DistributedDataParallel must exclude ``kernel`` (``_ddp_params_and_buffers_to_ignore``). The weights are drawn from
    the state of PyTorch's CPU generator: the same state gives the same weights for every W, equal to the dense head's
    up to rounding.

    Args:
        embedding_size: D.
        class_num: C, over all processes.
        s: scale of the logits.
        options: of the margin (``Head``).
        sample_rate: fraction of a process's classes used in a training step, in (0, 1]; the classes of the batch are
            always among them. 1 uses all, with the same bits as without sampling.

    Attributes:
        kernel: (K, D) weights of this process's classes, one row per class and sub-center. In the state dict it is
            (D, K), columns of the dense head's (D, C); both shapes can be loaded.
        sampling_seed: determines which negatives a step samples; set it before each step.
        last_target_cosine: target cosines (B,) of this process's images in the latest ``loss``, before the margin,
            without gradient.
    """

    last_target_cosine: Tensor | None = None

    def __init__(
        self,
        embedding_size: int,
        class_num: int,
        s: float,
        *,
        sample_rate: float = 1.0,
        **options: float,
    ) -> None:
        super().__init__(embedding_size, 0, s, **options)  # no dense kernel is allocated
        self.class_num, self.sample_rate, self.sampling_seed = class_num, sample_rate, 0
        self.first_class, self.end_class = shard_range(class_num, rank(), world_size())
        generator = torch.Generator("cpu").set_state(torch.get_rng_state())
        weights = _initial_rows(embedding_size, self.columns, *self._own_columns, generator)
        self.kernel = nn.Parameter(weights)  # (K, D)

    @property
    def columns(self) -> int:
        """Number of columns of the dense head's kernel: C times the sub-centers."""
        return self.class_num * self.sub_centers

    @property
    def _own_columns(self) -> tuple[int, int]:
        return self.first_class * self.sub_centers, self.end_class * self.sub_centers

    def forward(self, embeddings: Tensor, norms: Tensor, labels: Tensor) -> Tensor:
        """Raise an error: no process has the logits of all classes.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a sharded head has no logits because its classes are in several processes: use its `loss`, or a dense "
            "head (--head_sharding off)"
        )

    def loss(
        self, embeddings: Tensor, norms: Tensor, labels: Tensor, gather: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Compute the mean loss over the batches of all processes; every process returns the same value.

        Args:
            embeddings: (B, D) unit vectors of this process; B is the same in all. Their gradient, and the norms', is W
                times that of the loss, since DistributedDataParallel divides the backbone's gradients by W.
            norms: (B, 1) their norms before normalization.
            labels: (B,) classes in [0, C).
            gather: unused; this head always computes the running statistics over all processes.

        Returns:
            Scalar loss; float32 under autocast and for 16-bit embeddings. The gradient of ``kernel`` is that of the
            loss; with a sample rate below 1 it is sparse, with the rows of the sampled classes.

        Raises:
            ValueError: labels out of range, or batches of different sizes; raised in every process (labels are checked
                on the CPU only; on a GPU the loss of such labels is NaN).
        """
        B = len(labels)
        check_batch_sizes(B, labels.device)
        fixed = at_least_float32(norms.detach())
        labels, all_norms = gather_labels_and_norms(labels, fixed)  # (N,) and (N, 1), N = W B
        self._check_labels(labels)
        product_dtype = dtype_of_products(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            if self.norms_learn:
                norms = _GatheredRows.apply(norms.to(embeddings.dtype))  # (N, 1)
            else:
                norms = all_norms.to(embeddings.dtype)  # (N, 1)
            embeddings = _GatheredRows.apply(embeddings)  # (N, D)
            if self.training:
                self.update_statistics(norms.detach())
            kernel, rows = self._classes_of_step(labels)  # (M, D), (N,)
            owned = rows >= 0  # (N,)
            detached_target = None
            if self.changes_negatives:
                detached_target = self._all_target_cosines(embeddings, kernel, rows, owned)  # (N,)
            target_cosine, negatives = self._pass_over_classes(
                embeddings, kernel.t(), rows, detached_target, product_dtype
            )  # (N,) each
            # samples of other shards are NaN; masked before and after the margin, or its gradient would be NaN too
            target_cosine = torch.where(owned, target_cosine, 0.0)  # (N,)
            target = self.margin(self._clamp(target_cosine), norms) * self.s  # (N,)
            target = torch.where(owned, target, 0.0)
            target, negatives, cosines = _AcrossShards.apply(target, negatives, owned, target_cosine)  # (N,) each
            self.last_target_cosine = cosines[rank() * B : (rank() + 1) * B]  # (B,)
            penalty = self.penalty(norms)
            if penalty is not None:  # every process computes it; its gradient must come from one only
                penalty = torch.where(owned, penalty, penalty.detach())  # (N,)
            return self._mean_loss(target, negatives, penalty)

    def _all_target_cosines(self, embeddings: Tensor, kernel: Tensor, rows: Tensor, owned: Tensor) -> Tensor:
        """Return the clamped target cosines (N,) of all samples, and update the statistics with them."""
        cosines = torch.where(owned, target_cosines(embeddings, kernel.t(), rows, self.sub_centers), 0.0)  # (N,)
        if world_size() > 1:
            dist.all_reduce(cosines)  # a sum: every target has one owner, the others add 0
        cosines = self._clamp(cosines)
        if self.training:
            self.update_from_targets(cosines)
        return cosines

    def _classes_of_step(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (M, D) used in this step, and the class of each label among them (N,), -1 if not owned."""
        owned = (labels >= self.first_class) & (labels < self.end_class)  # (N,)
        local = labels - self.first_class  # (N,)
        if self.sample_rate == 1 or not self.training or not len(self.kernel):
            return self.kernel, torch.where(owned, local, -1)
        sampled = self._sample(local, owned)  # increasing
        rows = torch.searchsorted(sampled, local)  # (N,)
        if self.sub_centers > 1:
            centers = torch.arange(self.sub_centers, device=sampled.device)
            sampled = (sampled.unsqueeze(1) * self.sub_centers + centers).flatten()  # (M,)
        self.kernel.sampled_rows = sampled  # type: ignore[attr-defined]  # for sharded_optimizer.coalesce_gradient
        # a sparse gradient: the optimizer then updates the sampled rows only
        return F.embedding(sampled, self.kernel, sparse=True), torch.where(owned, rows, -1)

    def _sample(self, local: Tensor, owned: Tensor) -> Tensor:
        """Return the sorted classes of a step: all classes of the batch, filled up with random ones to the rate.

        As in InsightFace's PartialFC, they are more than the rate allows if the batch has more classes.
        """
        device, own = local.device, self.end_class - self.first_class
        count = max(1, int(self.sample_rate * own))
        if count < len(local):  # the batch may have more classes than that; counting them synchronizes a GPU
            count = max(count, len(local[owned].unique()))
        generator = torch.Generator(device).manual_seed(self.sampling_seed)
        priority = torch.rand(own, device=device, generator=generator)  # (own,), below 1
        # classes of the batch come first; 0 for samples of other processes changes nothing
        batch_priority = torch.where(owned, 2.0, 0.0)  # (N,)
        priority.scatter_reduce_(0, local.clamp(0, own - 1), batch_priority, "amax")
        return priority.topk(count, sorted=False).indices.sort().values  # (count,)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}kernel"] = destination[f"{prefix}kernel"].t()  # (D, K)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        kernel = state_dict.get(f"{prefix}kernel")
        if kernel is not None:
            state_dict = {**state_dict, f"{prefix}kernel": self.shard_of(kernel)}
        super()._load_from_state_dict(state_dict, prefix, *more)

    def shard_of(self, columns: Tensor) -> Tensor:
        """Return this process's rows of a dense head's weights, or of a tensor of the same shape such as a momentum.

        Args:
            columns: (D, C) of the dense head, or (D, K) of this process.

        Returns:
            (K, D), a view.
        """
        first, end = self._own_columns
        return (columns[:, first:end] if columns.shape[1] == self.columns else columns).t()


def build_sharded_head(
    head_type: str,
    embedding_size: int,
    class_num: int,
    m: float | None = None,
    t_alpha: float | None = None,
    h: float | None = None,
    s: float = 64.0,
    *,
    sample_rate: float = 1.0,
    **more: float,
) -> PartialFC:
    """Build this process's shard of a head.

    Args:
        head_type: a key of ``HEADS``.
        embedding_size: D.
        class_num: C, over all processes.
        m: margin; m, t_alpha and h are ignored by margins without them, as in ``build_head``.
        t_alpha: weight of the current batch in running statistics, in [0, 1].
        h: concentration of AdaFace.
        s: scale of the logits, above 0.
        sample_rate: fraction of the classes used in a training step, in (0, 1].
        more: other options of the margin, by name.

    Raises:
        ValueError: unknown type, no classes, an option that the margin does not have, or a sample rate out of range.
    """
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must be a fraction of the classes in (0, 1], got {sample_rate}")
    margin = head_class(head_type, class_num)
    options = chosen_options(margin, m=m, t_alpha=t_alpha, h=h, more=more)
    # PartialFC overrides the weights and the loss, the margin adds its hooks and buffers
    sharded = type(f"Sharded{margin.__name__}", (PartialFC, margin), {})
    return sharded(embedding_size, class_num, s, sample_rate=sample_rate, **options)


def _initial_rows(embedding_size: int, columns: int, first: int, end: int, generator: torch.Generator) -> Tensor:
    """Return columns [first, end) of the dense head's initial weights as rows (K, D).

    Every process draws the numbers of all classes, a few rows of the (D, C) matrix at a time, and keeps its columns.
    """
    # explicit, because Lightning changes the default device and dtype while it builds a model
    rows = torch.empty(end - first, embedding_size, dtype=torch.float32, device="cpu")
    at_once = max(1, min(16, _DRAWN_AT_ONCE // columns))  # 16 float32 are one cache line of a row
    for start in range(0, embedding_size, at_once):
        block = torch.empty(min(at_once, embedding_size - start), columns, dtype=torch.float32, device="cpu")
        block.uniform_(-1, 1, generator=generator)
        rows[:, start : start + len(block)] = block[:, first:end].t()
    return rows.renorm_(2, 0, 1e-5).mul_(1e5)  # rows of length 1, as in the dense head


class _GatheredRows(torch.autograd.Function):
    """Gather rows (B, D) of each process to (W * B, D); the gradient is W times the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.view_as(rows) if world_size() == 1 else gather_batch(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        W = world_size()
        if W == 1:
            return grad
        own = grad.new_empty(len(grad) // W, *grad.shape[1:])  # (B, D)
        dist.reduce_scatter_single(own, grad.contiguous())
        return own.mul_(W)  # DistributedDataParallel divides the backbone's gradients by W


class _AcrossShards(torch.autograd.Function):
    """Combine target logits, logsumexp of the negatives and target cosines, (N,) each, of one shard with all others.

    A target comes from the shard that owns its class, NaN if none does. The backward pass does not communicate; the
    cosines have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, target: Tensor, negatives: Tensor, owned: Tensor, cosine: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if world_size() == 1:
            all_negatives, has_owner, cosines = negatives.clone(), owned, cosine.clone()
        else:
            highest = negatives.clone()  # (N,)
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            # -inf if the target is the only class: -inf - -inf would be NaN
            highest.clamp_min_(torch.finfo(highest.dtype).min)
            # one all_reduce for everything that is summed
            sums = torch.stack([(negatives - highest).exp(), target, owned.to(target), cosine])  # (4, N)
            dist.all_reduce(sums)
            all_negatives, target, has_owner, cosines = highest + sums[0].log(), sums[1], sums[2] > 0, sums[3]
        ctx.save_for_backward(negatives, all_negatives, owned)
        ctx.mark_non_differentiable(cosines)
        return torch.where(has_owner, target, torch.nan), all_negatives, cosines

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_target: Tensor, grad_negatives: Tensor, grad_cosines: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        negatives, all_negatives, owned = ctx.saved_tensors
        # d logsumexp over all shards / d logsumexp of this one
        share = (negatives - all_negatives.clamp_min(torch.finfo(all_negatives.dtype).min)).exp()  # (N,)
        return torch.where(owned, grad_target, 0.0), grad_negatives * share, None, None
