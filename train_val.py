"""The training module: a backbone and a margin head, trained together, evaluated on verification pairs.

One step of training is ``loss = head.loss(model(images), labels)``; one step of evaluation embeds images and
their mirrors, and serves validation and test alike. The checkpoint's ``state_dict`` has exactly the official
keys, ``model.*`` and ``head.*``.

Sources: AdaFace (Kim, Jain, Liu, CVPR 2022); the official repository for schedule, weight decay and evaluation.
Differs from the official code: weight decay is the option's value; several processes evaluate every pair exactly
once, in order; dropout depends on (seed, epoch, batch, rank) alone, so that a resumed run goes on with the same
numbers. AdaFace's running statistics are those of each process's own batch, and rank 0's are the ones kept, as
officially.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from batch_norm_folding import fold_batch_norms
from evaluate_utils import fuse_flip
from head import build_head
from lightning_setup import pl
from net import build_model, normalize_images
from optimization import Schedule, build_optimizer, group_options, settle_loaded_state
from results import SetResult, evaluate_set

Batch = tuple[Tensor, Tensor]
EvaluationBatch = tuple[Tensor, Tensor, Tensor]


class FaceRecognitionModule(pl.LightningModule):
    """Backbone + head + optimiser.

    Args:
        arch: backbone name (``net.ARCHITECTURES``).
        class_num: number of identities C; 0 builds no head, for evaluation alone.
        head_type: margin name (``head.build_head``).
        m: margin.
        h: concentration of AdaFace.
        s: scale of the logits.
        t_alpha: weight of the newest batch in AdaFace's statistics.
        optimizer: ``sgd`` or ``adamw``.
        lr: highest learning rate.
        momentum: momentum of SGD.
        weight_decay: weight decay of all but the batch-norm parameters.
        lr_schedule: ``multistep``, ``cosine`` or ``poly`` (``optimization.Schedule``).
        lr_milestones: multistep: epochs after which the learning rate is multiplied by ``lr_gamma``.
        lr_gamma: multistep: factor of the learning rate.
        lr_power: poly: its power.
        warmup_epochs: epochs in which the learning rate rises to ``lr``.
        seed: seed of dropout.
        metadata: plain values stored in each checkpoint under ``adaface`` (config, class names, versions).

    Attributes:
        channels_last: memory layout of the backbone's weights, and so of its input (``execution.prepare_step``).
        schedule: the learning rate of each step.
        last_norms: (B, 1) feature norms of the newest training batch, without gradient.
        results: of the last evaluation, one for each set.
    """

    def __init__(
        self,
        *,
        arch: str,
        class_num: int = 0,
        head_type: str = "adaface",
        m: float = 0.4,
        h: float = 0.333,
        s: float = 64.0,
        t_alpha: float = 0.01,
        optimizer: str = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        lr_schedule: str = "multistep",
        lr_milestones: tuple[int, ...] = (),
        lr_gamma: float = 0.1,
        lr_power: float = 2.0,
        warmup_epochs: float = 0.0,
        seed: int = 42,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arch, self.class_num = arch, class_num
        self.channels_last = False
        self.model = build_model(arch)
        if class_num:
            self.head = build_head(head_type, 512, class_num, m, t_alpha, h, s)
        self.optimizer_name, self.momentum, self.weight_decay = optimizer, momentum, weight_decay
        self.schedule = Schedule(lr, lr_schedule, lr_milestones, lr_gamma, lr_power, warmup_epochs)
        self.seed = seed
        self.metadata = dict(metadata or {})
        self.results: list[SetResult] = []
        self._embedded: list[tuple[Tensor, Tensor, Tensor]] = []
        self._inference_model: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no part of the state dict
        self.last_norms: Tensor | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images, without labels.

        Args:
            images: (B, 112, 112, 3) uint8 BGR.

        Returns:
            Unit embeddings (B, 512) and their norms (B, 1).
        """
        dtype = next(self.model.parameters()).dtype
        return self.model(normalize_images(images, dtype, channels_last=self.channels_last))

    # training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate and seed dropout, both from the position, so that a resume has nothing to restore."""
        window = self.trainer.accumulate_grad_batches
        updates = -(-int(self.trainer.num_training_batches) // window)
        update = self.current_epoch * updates + batch_idx // window
        for group in self.optimizers().param_groups:
            group["lr"] = self.schedule.learning_rate(update, updates, self.trainer.max_epochs)
        position = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of one batch: images (B, 112, 112, 3) uint8 BGR, labels (B,)."""
        images, labels = batch
        embeddings, norms = self(images)
        loss = self.head.loss(embeddings, norms, labels)
        self.last_norms = norms.detach()
        self.log("train_loss", loss, batch_size=len(labels))
        # filled in on the device: a number copied to a GPU makes the GPU's host wait
        lr = torch.full((), self.optimizers().param_groups[0]["lr"], device=loss.device)
        self.log("lr", lr, batch_size=len(labels))
        return loss

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Return the optimiser; its learning rate is set before each step."""
        optimizer = build_optimizer(self, self.optimizer_name, self.schedule.lr, self.momentum, self.weight_decay)
        self._group_options = group_options(optimizer)
        return {"optimizer": optimizer}

    def on_train_start(self) -> None:
        """Make the state of the optimiser that a resume has loaded fit this run."""
        settle_loaded_state(self.optimizers(), self._group_options)

    # evaluation, the same for validation and test

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation: every rank with rank 0's batch-norm and AdaFace statistics, folded for speed."""
        self._embedded = []
        if dist.is_initialized() and dist.get_world_size() > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)
        folded = fold_batch_norms(self.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._inference_model = (folded,)

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Embed images (B, 112, 112, 3) uint8 BGR and keep them with their set and place, each (B,)."""
        images, set_index, image_index = batch
        # two passes: one of twice the size is no faster, and takes twice the memory
        embeddings, norms = self._embed(images)
        mirrored, mirrored_norms = self._embed(images.flip(2))
        fused, _ = fuse_flip(embeddings.double(), norms.double(), mirrored.double(), mirrored_norms.double())
        self._embedded.append((fused.float(), set_index, image_index))

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model = self._inference_model[0]
        return model(normalize_images(images, next(model.parameters()).dtype))

    def on_validation_epoch_end(self) -> None:
        """Gather the embeddings of all ranks and compute the accuracies."""
        self._inference_model = ()
        if not self._embedded:
            return
        embeddings, sets, places = (
            _gather_rows(torch.cat(parts)).cpu().numpy() for parts in zip(*self._embedded, strict=True)
        )
        self._embedded = []
        if self.trainer.sanity_checking:
            return  # a few batches, to see that it works
        self.results = []
        for number, (name, pair_set) in enumerate(self.trainer.datamodule.pair_sets.items()):
            chosen = sets == number
            complete, issame = _pairs_in_order(embeddings[chosen], places[chosen], pair_set.issame)
            if len(issame):
                self.results.append(evaluate_set(name, complete, issame))
        if self.trainer.testing:
            return  # a table of its own, not a point of the validation curves
        # a single pair cannot be cut into folds: it has no accuracy
        accuracies = {result.name: result.accuracy for result in self.results if np.isfinite(result.accuracy)}
        for name, accuracy in accuracies.items():
            self.log(f"{name}_acc", accuracy)
        if accuracies:
            self.log("val_acc", float(np.mean(list(accuracies.values()))))

    def on_test_epoch_start(self) -> None:
        """Begin a test as a validation."""
        self.on_validation_epoch_start()

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Embed one batch as in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """End a test as a validation."""
        self.on_validation_epoch_end()

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the metadata and the position in the training data."""
        fit = self.trainer.fit_loop
        epoch, batch = fit.epoch_progress.current.completed, fit.epoch_loop.batch_progress.current.processed
        if fit.epoch_progress.current.processed > epoch:  # between two epochs
            epoch, batch = fit.epoch_progress.current.processed, 0
        checkpoint["adaface"] = {**self.metadata, "position": {"epoch": epoch, "batch": batch}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Tell the data module where in the epoch to go on."""
        position = checkpoint.get("adaface", {}).get("position")
        datamodule = getattr(self.trainer, "datamodule", None)
        if position is not None and datamodule is not None:
            datamodule.start_epoch, datamodule.start_batch = position["epoch"], position["batch"]


def _gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, one after the other; ranks may hold different numbers of rows."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = torch.cat([rows, rows.new_zeros((most - len(rows), *rows.shape[1:]))])
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])


def _pairs_in_order(embeddings: np.ndarray, places: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put embeddings in file order, each image once, and keep the pairs of which both images are there.

    Args:
        embeddings: (N, D), as gathered; images may occur twice (the sampler's padding).
        places: (N,) index of each row's image in its set.
        issame: (P,) of the whole set.

    Returns:
        Embeddings (2Q, D) and issame (Q,) of the Q complete pairs; Q = P unless the run saw a part only.
    """
    unique, first = np.unique(places, return_index=True)
    position = np.full(2 * len(issame), -1)
    position[unique] = first
    complete = (position.reshape(-1, 2) >= 0).all(axis=1)
    return embeddings[position.reshape(-1, 2)[complete].reshape(-1)], issame[complete]
