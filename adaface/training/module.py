"""The training module: a backbone and a margin head, trained together, evaluated on verification pairs.

A training step is ``loss = head.loss(model(images), labels)``. An evaluation step embeds images and their mirror
images, for validation and test. The checkpoint's ``state_dict`` has exactly the official keys, ``model.*`` and
``head.*``.

Sources: AdaFace (Kim, Jain, Liu, CVPR 2022); the official repository for schedule, weight decay and evaluation.
Differs from the official code: weight decay has the value of the option; several processes evaluate every pair exactly
once, in order; dropout depends only on (seed, epoch, batch, rank), so that a resumed run continues with the same
numbers; a margin's running statistics are computed from the batch of all processes, once per batch (with
``batch_statistics="process"`` from each process's own batch, of which rank 0's are kept, as in the official code). The
classes of the head may be sharded over the processes (``heads/partial_fc.py``).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from adaface.checkpoints.files import KERNEL, THRESHOLD
from adaface.checkpoints.sharded import fill_in_head, strip_head
from adaface.config.options import HeadOptions, OptimizerOptions
from adaface.distributed.collectives import check_batch_sizes, gather_batch, gather_rows
from adaface.heads.margins import build_head
from adaface.heads.partial_fc import PartialFC, build_sharded_head
from adaface.heads.sharded_optimizer import clip_gradient, start_momentum_at_zero, step_on_touched_rows
from adaface.inference.embedder import prepare_for_inference
from adaface.metrics.calibration import default_threshold
from adaface.metrics.results import SetResult, evaluate_set
from adaface.metrics.verification import fuse_flip
from adaface.models.backbone import EMBEDDING_SIZE
from adaface.models.input_format import normalize_images
from adaface.models.registry import build_model
from adaface.system.csv_text import safe
from adaface.system.lightning_internals import leave_out_of_ddp, position, set_epoch_length, unscales_in_its_step
from adaface.system.lightning_setup import pl
from adaface.training.freezing import freeze, frozen_modules, learning_rate_scales
from adaface.training.optimization import LR_SCALE, Schedule, build_optimizer, group_options, settle_loaded_state
from adaface.training.weight_average import WeightAverage, put_into, take_from

Batch = tuple[Tensor, Tensor]
EvaluationBatch = tuple[Tensor, Tensor, Tensor]


class FaceRecognitionModule(pl.LightningModule):
    """Backbone + head + optimizer.

    Args:
        arch: backbone name (``models.registry.build_model``).
        class_num: number of identities C; 0 builds no head, for evaluation alone.
        head: margin, its options, statistics and sharding.
        optimizer: optimizer, schedule, clipping, averaging and freezing; ``lr`` is the peak, after linear scaling.
        sharded: shard the classes over the processes; the head is then built when a trainer starts.
        seed: seed of dropout and of the sampled classes.
        metadata: plain values stored in each checkpoint under ``adaface`` (config, versions); ``class_names`` may be
            any sequence.

    Attributes:
        sub_centers: columns of the head for each class.
        channels_last: memory layout of the backbone's weights and input
            (``training.execution.configure_backbone``).
        head_options: of the head.
        optimizer_options: of the optimizer.
        schedule: learning rate of each step.
        average: moving average of the weights during training; it is validated, and is ``model.*`` of the checkpoints.
        gradient_norm: of the step that is being made, if a callback has computed it (``training.health``).
        last_norms: (B, 1) feature norms of the latest training batch, without gradient.
        results: results of the last evaluation, one per set.
        threshold: decision threshold of the present weights, stored in checkpoints; None until they are validated, or
            if the validation pairs are too few.
    """

    def __init__(
        self,
        arch: str,
        class_num: int = 0,
        head: HeadOptions = HeadOptions(),
        optimizer: OptimizerOptions = OptimizerOptions(),
        *,
        sharded: bool = False,
        seed: int = 42,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arch, self.class_num = arch, class_num
        self.head_options, self.optimizer_options = head, optimizer
        self.channels_last = False
        self.model = build_model(arch)
        margin = head.margin_options
        self.sub_centers = int(margin.get("sub_centers", 1))
        self._head_arguments: dict[str, Any] = {
            "head_type": head.head, "embedding_size": EMBEDDING_SIZE, "class_num": class_num, "s": head.s, **margin,
        }  # fmt: skip
        self.sharded = sharded
        self.average: WeightAverage | None = None
        self._resumed_average: tuple[dict[str, Tensor], int] | None = None
        self._keep_exponentials = True
        self._head_random_state = torch.get_rng_state()  # a sharded head is initialized from it later
        if class_num and not sharded:
            self.head = build_head(**self._head_arguments)
        self.schedule = Schedule(optimizer)
        freeze(self.model, optimizer.freeze_stages, batch_norm=optimizer.freeze_batch_norm)
        self.seed = seed
        self.metadata = dict(metadata or {})
        self.results: list[SetResult] = []
        self.threshold: dict[str, Any] | None = None
        self._embedded: list[tuple[Tensor, Tensor, Tensor]] = []
        self._inference_model: tuple[nn.Module, ...] = ()  # in a tuple, to keep it out of the state dict
        self.last_norms: Tensor | None = None
        self.gradient_norm: Tensor | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images, without labels.

        Args:
            images: (B, 112, 112, 3) uint8 BGR.

        Returns:
            Unit embeddings (B, 512) and their norms (B, 1).
        """
        dtype = next(self.model.parameters()).dtype
        return self.model(normalize_images(images, dtype, channels_last=self.channels_last))

    # the head

    def configure_model(self) -> None:
        """Build a sharded head once the process group exists; DistributedDataParallel ignores its weights."""
        if not self.sharded or not self.class_num or self.sharded_head:
            return
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._head_random_state)
            self.head = build_sharded_head(**self._head_arguments, sample_rate=self.head_options.sample_rate)
        self.head.keep_exponentials = self._keep_exponentials
        leave_out_of_ddp(self, [KERNEL])

    @property
    def sharded_head(self) -> PartialFC | None:
        """The head, if its classes are sharded."""
        head = getattr(self, "head", None)
        return head if isinstance(head, PartialFC) else None

    @property
    def shards(self) -> list[nn.Parameter]:
        """The parameters that are sharded over the processes."""
        return [self.sharded_head.kernel] if self.sharded_head else []

    @property
    def keep_exponentials(self) -> bool:
        """Whether the head keeps (B, C) numbers for its backward pass (``head.Head``), also before it is built."""
        return self._keep_exponentials

    @keep_exponentials.setter
    def keep_exponentials(self, keep: bool) -> None:
        """Set it for the head, also before it is built."""
        self._keep_exponentials = keep
        if hasattr(self, "head"):
            self.head.keep_exponentials = keep

    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a checkpoint's state dict: with the classes of all processes."""
        shapes = {key: tuple(value.shape) for key, value in self.state_dict().items() if not key.startswith("head.")}
        if self.class_num:
            with torch.device("meta"):
                head = build_head(**self._head_arguments).state_dict()
            shapes |= {f"head.{key}": tuple(value.shape) for key, value in head.items()}
        return shapes

    # training

    def train(self, mode: bool = True) -> "FaceRecognitionModule":
        """Set the mode; frozen modules stay in evaluation mode, so that their batch norms do not change."""
        super().train(mode)
        options = self.optimizer_options
        for module in frozen_modules(self.model, options.freeze_stages, batch_norm=options.freeze_batch_norm):
            module.eval()
        return self

    def on_fit_start(self) -> None:
        """Restrict the optimizer to the sampled classes, freeze modules, and start the average."""
        self.train()
        if self.sharded_head:
            step_on_touched_rows(self.trainer.optimizers[0], self.shards)
        if self.optimizer_options.ema_decay:
            self.average = WeightAverage(self.model, self.optimizer_options.ema_decay)
            if self._resumed_average:
                weights, self.average.updates = self._resumed_average
                self.average.model.load_state_dict(weights)
            self._resumed_average = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set learning rate and seeds from the position, so that there is no state to restore."""
        self.threshold = None  # it belongs to the weights before this step
        window = self.trainer.accumulate_grad_batches
        updates = -(-int(self.trainer.num_training_batches) // window)
        update = self.current_epoch * updates + batch_idx // window
        for group in self.optimizers().param_groups:
            rate = self.schedule.learning_rate(update, updates, self.trainer.max_epochs)
            group["lr"] = rate * group[LR_SCALE]
        position = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        dropout, sampling = np.random.SeedSequence(position).generate_state(2, np.uint64)
        torch.manual_seed(int(dropout))
        if self.sharded_head:
            self.sharded_head.sampling_seed = int(sampling)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of one batch: images (B, 112, 112, 3) uint8 BGR, labels (B,)."""
        images, labels = batch
        embeddings, norms = self(images)
        loss = self.head.loss(embeddings, norms, labels, self._gather_for_statistics(len(labels), labels.device))
        self.last_norms = norms.detach()
        self.log("train_loss", loss, batch_size=len(labels))
        # filled on the device, because copying a number to a GPU would synchronize
        lr = torch.full((), self.optimizers().param_groups[0]["lr"], device=loss.device)
        self.log("lr", lr, batch_size=len(labels))
        return loss

    def _gather_for_statistics(self, batch_size: int, device: torch.device) -> Callable[[Tensor], Tensor] | None:
        """Return the function that gathers the inputs of the margin's statistics; None if they are local."""
        if self.sharded or self.head_options.batch_statistics == "process":
            return None
        check_batch_sizes(batch_size, device)
        return gather_batch

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip by ``gradient_clip_val`` of this module, over all processes; the trainer's own value is ignored."""
        limit = self.optimizer_options.gradient_clip_val
        if not limit:
            return
        scaler = self.trainer.scaler
        if scaler is not None and unscales_in_its_step(optimizer):
            scaler.unscale_(optimizer)  # fused optimizers do this in their step, which detects that it is done
        clip_gradient(self.parameters(), self.shards, limit, self.gradient_norm)
        self.gradient_norm = None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, and update the average of the weights."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average:
            self.average.update(self.model)

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Return the optimizer; its learning rate is set before each step."""
        scales = learning_rate_scales(self.model, self.optimizer_options.layer_lr_decay)
        optimizer = build_optimizer(self, self.optimizer_options, scales)
        self._group_options = group_options(optimizer)
        return {"optimizer": optimizer}

    def on_train_start(self) -> None:
        """Adapt the loaded state of the optimizer to this run."""
        settle_loaded_state(self.optimizers(), self._group_options)
        start_momentum_at_zero(self.optimizers())

    def on_train_epoch_start(self) -> None:
        """Tell Lightning the length of this epoch: if it is resumed with other batches, it differs from others."""
        set_epoch_length(self.trainer, len(self.trainer.train_dataloader))

    # evaluation, the same for validation and test

    def on_validation_epoch_start(self) -> None:
        """Begin a validation, of the average if there is one."""
        self._begin_evaluation(self.average.model if self.average else self.model)

    def _begin_evaluation(self, model: nn.Module) -> None:
        """Broadcast rank 0's batch-norm and margin statistics, and fold the batch norms into a copy for speed."""
        self._embedded = []
        if dist.is_initialized() and dist.get_world_size() > 1:
            for buffer in (*self.buffers(), *(model.buffers() if model is not self.model else ())):
                dist.broadcast(buffer, 0)
        self._inference_model = (prepare_for_inference(model),)

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Embed images (B, 112, 112, 3) uint8 BGR and store the results with their set and index, each (B,)."""
        images, set_index, image_index = batch
        # two passes: a single one of twice the size is not faster, and takes twice the memory
        embeddings, norms = self._embed(images)
        mirrored, mirrored_norms = self._embed(images.flip(2))
        fused, _ = fuse_flip(*map(_in_double, (embeddings, norms, mirrored, mirrored_norms)))
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
            gather_rows(torch.cat(parts)).cpu().numpy() for parts in zip(*self._embedded, strict=True)
        )
        self._embedded = []
        if self.trainer.sanity_checking:
            return  # Lightning's sanity check, of a few batches
        self.results = []
        for number, (name, pair_set) in enumerate(self.trainer.datamodule.pair_sets.items()):
            chosen = sets == number
            complete, kept = _pairs_in_order(embeddings[chosen], places[chosen], np.arange(len(pair_set.issame)))
            if len(kept):
                identities = None if pair_set.identities is None else pair_set.identities[kept]
                # confidence intervals in the test only, not in every validation
                self.results.append(
                    evaluate_set(
                        name,
                        complete,
                        pair_set.issame[kept],
                        intervals=self.trainer.testing,
                        identities=identities,
                    )
                )
        if self.trainer.testing:
            return  # a separate table, not a point of the validation curves
        self.threshold = default_threshold(self.results)
        # a single pair cannot be split into folds, so it has no accuracy
        accuracies = {result.name: result.accuracy for result in self.results if np.isfinite(result.accuracy)}
        for name, accuracy in accuracies.items():
            self.log(safe(f"{name}_acc"), accuracy)  # a column of metrics.csv
        if accuracies:
            self.log("val_acc", float(np.mean(list(accuracies.values()))))

    def on_test_epoch_start(self) -> None:
        """Begin a test of the loaded weights."""
        self._begin_evaluation(self.model)

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Embed one batch as in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """End a test like a validation."""
        self.on_validation_epoch_end()

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the metadata, the position in the training data, and the threshold of a validated model."""
        epoch, batch = position(self.trainer)
        place = {"epoch": epoch, "batch": batch}
        if self.trainer.datamodule is not None:
            place["samples"] = self.trainer.datamodule.samples_seen(epoch, batch)
        # names of millions of classes are created on access
        names = list(self.metadata.get("class_names", ()))
        checkpoint["adaface"] = {**self.metadata, "class_names": names, "position": place}
        if self.threshold:
            checkpoint[THRESHOLD] = self.threshold
        if self.average:
            put_into(checkpoint, self.average)
        if self.sharded_head:
            strip_head(checkpoint, self.sharded_head, self.trainer.optimizers[0])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set the position of the data module, and load this process's shard of the head."""
        if "adaface" not in checkpoint:
            return
        if self.trainer.datamodule is not None:
            self.trainer.datamodule.resume_at(**checkpoint["adaface"]["position"])
        self._resumed_average = take_from(checkpoint)
        fill_in_head(checkpoint, self.sharded_head)


def _in_double(numbers: Tensor) -> Tensor:
    """Convert to double precision if the device supports it, which Apple's GPUs do not."""
    return numbers if numbers.device.type == "mps" else numbers.double()


def _pairs_in_order(embeddings: np.ndarray, places: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put embeddings in file order, each image once, and keep the pairs with both images.

    Args:
        embeddings: (N, D), as gathered; images may occur twice (because of the sampler's padding).
        places: (N,) index of each row's image in its set.
        pairs: (P,) labels of the pairs of the whole set.

    Returns:
        Embeddings (2Q, D) and labels (Q,) of the Q complete pairs; Q = P unless the run evaluated only a part.
    """
    unique, first = np.unique(places, return_index=True)
    position = np.full(2 * len(pairs), -1)
    position[unique] = first
    complete = (position.reshape(-1, 2) >= 0).all(axis=1)
    return embeddings[position.reshape(-1, 2)[complete].reshape(-1)], pairs[complete]
