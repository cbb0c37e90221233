"""The margin head with its classes shared out over all processes, and with sampled negatives.

Each process holds a contiguous range of classes. Embeddings, norms and labels of all processes are gathered; each
process computes the cosines to its own classes, and what goes around after that is a few numbers per sample: the
target's cosine and logit, and the logsumexp of the negatives. The logits of all classes are nowhere. With
``sample_rate`` below 1 a step uses the classes of the batch and random others, so that memory and time of a step
shrink with it.

Source: An et al., "Killing two birds with one stone" (PartialFC), CVPR 2022, arXiv 2203.15565. Values and gradients
are those of the dense head (``heads/margins.py``), whose margins and statistics are used as they are.

Differs from the official PartialFC: margins other than fixed ones work too, with running statistics over the global
batch; labels out of range are refused; the random choice depends on ``sampling_seed`` alone, so that a resumed run
has nothing to restore.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from adaface.distributed.collectives import check_batch_sizes, gather_batch, rank, world_size
from adaface.heads.base import Head, at_least_float32, dtype_of_products
from adaface.heads.fused_softmax import target_cosines
from adaface.heads.margins import chosen_options, head_class

_TRAINED_BYTES = 12  # of one weight in float32, with its gradient and its momentum
_MOST_OF_MEMORY = 0.25  # for a dense head's; backbone, activations and logits want the rest
_DRAWN_AT_ONCE = 1 << 24


def choose_sharding(option: str, *, columns: int, embedding_size: int, processes: int, memory_bytes: float) -> bool:
    """Decide whether the classes are shared out over the processes.

    Args:
        option: ``on``, ``off``, or ``auto``: where there are several processes and the dense head's weight, gradient
            and momentum (12 bytes for each of D x C numbers) would take more than a quarter of a process's memory.
        columns: C, times the sub-centers.
        embedding_size: D.
        processes: W, over all machines.
        memory_bytes: memory of a process's device in all, not what is free at the moment: all processes, and a resumed
            run, have to decide alike.
    """
    if option != "auto":
        return option == "on"
    return processes > 1 and _TRAINED_BYTES * embedding_size * columns > _MOST_OF_MEMORY * memory_bytes


def shard_range(class_num: int, number: int, processes: int) -> tuple[int, int]:
    """Return the first class of a process and the one after its last, those of ``torch.chunk``.

    Args:
        class_num: C.
        number: of the process, in [0, W).
        processes: W.

    Returns:
        A range of ceil(C / W) classes; fewer, or none, for the last processes.
    """
    share = -(-class_num // processes)
    return min(number * share, class_num), min((number + 1) * share, class_num)


class PartialFC(Head):
    """Class weights of one of W processes, and a margin; ``build_sharded_head`` makes one for each margin.

    The process group has to be there before the head is built, where there are several processes. A network under
    DistributedDataParallel has to leave ``kernel`` out (``_ddp_params_and_buffers_to_ignore``).

    Args:
        embedding_size: D.
        class_num: C, over all processes.
        s: scale of the logits.
        options: of the margin (``head.Head``).
        sample_rate: share of a process's classes that a training step uses, in (0, 1]; the classes of the batch are
            always among them. 1 uses all, to the same bits as without sampling.
        random_state: of the CPU generator to draw the weights from (``torch.get_rng_state``); the present one when
            None. The same state gives the same classes for every W, and those of the dense head to rounding.

    Attributes:
        kernel: (K, D) weights of this process's classes, one row a class, or as many as the margin has sub-centers. In
            the state dict it is (D, K), columns of the dense head's (D, C); either shape loads.
        sampling_seed: decides, with nothing else, which negatives a step takes; to be set before each step.
        last_target_cosine: of the newest ``loss``, (B,) cosines of this process's images with their own classes, before
            the margin, without gradient.
    """

    last_target_cosine: Tensor | None = None

    def __init__(
        self,
        embedding_size: int,
        class_num: int,
        s: float,
        *,
        sample_rate: float = 1.0,
        random_state: Tensor | None = None,
        **options: float,
    ) -> None:
        super().__init__(embedding_size, 0, s, **options)
        self.class_num, self.sample_rate, self.sampling_seed = class_num, sample_rate, 0
        self.first_class, self.end_class = shard_range(class_num, rank(), world_size())
        generator = torch.Generator("cpu").set_state(torch.get_rng_state() if random_state is None else random_state)
        weights = _initial_rows(embedding_size, self.columns, *self._own_columns, generator)
        self.kernel = nn.Parameter(weights)  # (K, D)

    @property
    def columns(self) -> int:
        """Columns of the dense head's kernel: C, times the sub-centers."""
        return self.class_num * self.sub_centers

    @property
    def _own_columns(self) -> tuple[int, int]:
        return self.first_class * self.sub_centers, self.end_class * self.sub_centers

    def forward(self, embeddings: Tensor, norms: Tensor, labels: Tensor) -> Tensor:
        """Refuse: the logits of all classes are in no process.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a sharded head has no logits, its classes are in several processes: use its `loss`, or a dense head "
            "(--head_sharding off)"
        )

    def loss(
        self, embeddings: Tensor, norms: Tensor, labels: Tensor, gather: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Compute the mean cross-entropy over the batches of all processes, the same number in each of them.

        Args:
            embeddings: (B, D) unit vectors of this process; B is the same in all. Their gradient, and the norms', is W
                times that of the loss, since DistributedDataParallel divides the gradients behind them by W.
            norms: (B, 1) their norms before normalisation.
            labels: (B,) classes in [0, C).
            gather: not used; the running statistics are of the batches of all processes, which this head sees.

        Returns:
            Scalar loss; float32 under autocast and of 16-bit embeddings. The gradient of ``kernel`` is that of the
            loss; below a sample rate of 1 it is sparse and has the rows of the sampled classes.

        Raises:
            ValueError: labels out of range, or batches of different sizes; raised in every process (looked at on the
                CPU only; on a GPU the loss of such labels is NaN).
        """
        B = len(labels)
        check_batch_sizes(B, labels.device)
        labels = gather_batch(labels)  # (N,), N = W B
        self._check_labels(labels)
        product_dtype = dtype_of_products(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            norms = self._as_learnt(norms).to(embeddings.dtype)
            norms = _GatheredRows.apply(norms) if self.norms_learn else gather_batch(norms)  # (N, 1)
            embeddings = _GatheredRows.apply(embeddings)  # (N, D)
            if self.training:
                self.update_statistics(norms.detach())
            kernel, places = self._classes_of_step(labels)  # (M, D), (N,)
            owned = places >= 0
            known = self._targets_first(embeddings, kernel, places, owned) if self.changes_negatives else None
            target_cosine, negatives = self._pass_over_classes(embeddings, kernel.t(), places, known, product_dtype)
            # NaN of the others' samples would come back from the margin's gradient: masked before and after it
            target_cosine = torch.where(owned, target_cosine, 0.0)  # (N,)
            target = self.margin(self._clamp(target_cosine), norms) * self.s
            target = torch.where(owned, target, 0.0)
            target, negatives, cosines = _AcrossShards.apply(target, negatives, owned, target_cosine)
            self.last_target_cosine = cosines[rank() * B : (rank() + 1) * B]
            penalty = self.penalty(norms)
            if penalty is not None:  # all know it; its gradient comes from one of them
                penalty = torch.where(owned, penalty, penalty.detach())
            return self._mean_loss(target, negatives, penalty)

    def _targets_first(self, embeddings: Tensor, kernel: Tensor, places: Tensor, owned: Tensor) -> Tensor:
        """Return all samples' cosines to their own classes (N,), clamped, and let the statistics take them."""
        known = torch.where(owned, target_cosines(embeddings, kernel.t(), places, self.sub_centers), 0.0)
        if world_size() > 1:
            dist.all_reduce(known)
        known = self._clamp(known)
        if self.training:
            self.update_from_targets(known)
        return known

    def _classes_of_step(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (M, D) that this step uses, and each sample's class (N,) in them, -1 where elsewhere."""
        owned = (labels >= self.first_class) & (labels < self.end_class)
        local = labels - self.first_class
        if self.sample_rate == 1 or not self.training or not len(self.kernel):
            return self.kernel, torch.where(owned, local, -1)
        chosen = self._sample(local, owned)  # increasing
        places = torch.searchsorted(chosen, local)
        if self.sub_centers > 1:
            centers = torch.arange(self.sub_centers, device=chosen.device)
            chosen = (chosen.unsqueeze(1) * self.sub_centers + centers).flatten()  # (M,)
        return F.embedding(chosen, self.kernel, sparse=True), torch.where(owned, places, -1)

    def _sample(self, local: Tensor, owned: Tensor) -> Tensor:
        """Return the classes of a step: all of the batch, and random others up to the rate's number."""
        device, own = local.device, self.end_class - self.first_class
        count = max(1, int(self.sample_rate * own))
        if count < len(local):  # the batch may have more classes than that; counting makes a GPU's host wait
            count = max(count, len(local[owned].unique()))
        generator = torch.Generator(device).manual_seed(self.sampling_seed)
        order = torch.rand(own, device=device, generator=generator)
        # above every random number; 0 for samples of other processes, which changes nothing
        first = torch.where(owned, 2.0, 0.0)
        order.scatter_reduce_(0, local.clamp(0, own - 1), first, "amax")
        return order.topk(count, sorted=False).indices.sort().values

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}kernel"] = destination[f"{prefix}kernel"].t()  # (D, K)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        kernel = state_dict.get(f"{prefix}kernel")
        if kernel is not None:
            state_dict = {**state_dict, f"{prefix}kernel": self.shard_of(kernel)}
        super()._load_from_state_dict(state_dict, prefix, *more)

    def shard_of(self, columns: Tensor) -> Tensor:
        """Return this process's rows of a dense head's weights, or of anything of their shape such as a momentum.

        Args:
            columns: (D, C), or (D, K) of this process already.

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
    random_state: Tensor | None = None,
    **more: float,
) -> PartialFC:
    """Build this process's part of a head.

    Args:
        head_type: a key of ``head.HEADS``.
        embedding_size: D.
        class_num: C, over all processes.
        m: margin; as t_alpha and h of ``head.build_head``.
        t_alpha: weight of the newest batch in running statistics, in [0, 1].
        h: concentration of AdaFace.
        s: scale of the logits, above 0.
        sample_rate: share of the classes that a training step uses, in (0, 1].
        random_state: of the generator to draw the weights from; the present one when None.
        more: other options of this margin, by name.

    Raises:
        ValueError: an unknown type, no classes, an option that the margin has not, or a sample rate out of range.
    """
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate is a share of the classes in (0, 1], got {sample_rate}")
    margin = head_class(head_type, class_num)
    options = chosen_options(margin, m=m, t_alpha=t_alpha, h=h, more=more)
    # the margin's methods and buffers, this module's weights and loss
    sharded = type(f"Sharded{margin.__name__}", (PartialFC, margin), {})
    return sharded(embedding_size, class_num, s, sample_rate=sample_rate, random_state=random_state, **options)


def _initial_rows(embedding_size: int, columns: int, first: int, end: int, generator: torch.Generator) -> Tensor:
    """Return columns [first, end) of the dense head's initial weights as rows (K, D).

    Every process draws the numbers of all classes, a few rows of the (D, C) matrix at a time, and keeps its own.
    """
    # Lightning makes the device, and for 64 bits the type, a default of its own while a model is built
    rows = torch.empty(end - first, embedding_size, dtype=torch.float32, device="cpu")
    at_once = max(1, min(16, _DRAWN_AT_ONCE // columns))  # 16 numbers are a cache line of a row
    for start in range(0, embedding_size, at_once):
        block = torch.empty(min(at_once, embedding_size - start), columns, dtype=torch.float32, device="cpu")
        block.uniform_(-1, 1, generator=generator)
        rows[:, start : start + len(block)] = block[:, first:end].t()
    return rows.renorm_(2, 0, 1e-5).mul_(1e5)


class _GatheredRows(torch.autograd.Function):
    """Rows (B, D) of each process -> (W * B, D); the gradient is W times the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.view_as(rows) if world_size() == 1 else gather_batch(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        W = world_size()
        if W == 1:
            return grad
        own = grad.new_empty(len(grad) // W, *grad.shape[1:])
        dist.reduce_scatter_single(own, grad.contiguous())
        return own.mul_(W)


class _AcrossShards(torch.autograd.Function):
    """Target logits, negatives' logsumexp and target cosines (N,) of one shard -> those of all.

    A target is its owner's, NaN where a label has none. The backward pass needs no other process; the cosines have
    none.
    """

    @staticmethod
    def forward(
        ctx: Any, target: Tensor, negatives: Tensor, owned: Tensor, cosine: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if world_size() == 1:
            everywhere, owners, cosines = negatives.clone(), owned, cosine.clone()
        else:
            highest = negatives.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            # -inf where all classes are targets: their exponentials are 0, and not NaN
            highest.clamp_min_(torch.finfo(highest.dtype).min)
            sums = torch.stack([(negatives - highest).exp(), target, owned.to(target), cosine])  # (4, N)
            dist.all_reduce(sums)
            everywhere, target, owners, cosines = highest + sums[0].log(), sums[1], sums[2] > 0, sums[3]
        ctx.save_for_backward(negatives, everywhere, owned)
        ctx.mark_non_differentiable(cosines)
        return torch.where(owners, target, torch.nan), everywhere, cosines

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_target: Tensor, grad_negatives: Tensor, grad_cosines: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        negatives, everywhere, owned = ctx.saved_tensors
        share = (negatives - everywhere.clamp_min(torch.finfo(everywhere.dtype).min)).exp()
        return torch.where(owned, grad_target, 0.0), grad_negatives * share, None, None
