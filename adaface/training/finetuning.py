"""Fine-tuning: the pretrained model of a run, and the initialization of its head.

The weights of each class are initialized with the mean of its images' pretrained embeddings.

With random weights, the head would first have to learn the classes, with gradients that harm the backbone. The
embeddings are unit vectors of the images without mirroring or augmentation, and the mean is scaled to length 1. Each
process embeds the images of a range of classes; with a sharded head, of its own classes. The norms of these embeddings
initialize AdaFace's running statistics: from the official 20 and 100, a short training would not reach those of the
faces, and its margin would be CosFace's.

Source: "weight imprinting", Qi, Brown and Lowe, "Low-Shot Learning with Imprinted Weights" (CVPR 2018, section 3.2).
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaface.checkpoints.download import find_model
from adaface.checkpoints.files import load_checkpoint
from adaface.checkpoints.weights import find_architecture
from adaface.config.options import RunOptions
from adaface.data.module import FaceDataModule
from adaface.distributed.collectives import gather_rows, rank, world_size
from adaface.heads.base import Head
from adaface.heads.margins import AdaFace
from adaface.heads.partial_fc import PartialFC, shard_range
from adaface.inference.embedder import prepare_for_inference, read_model
from adaface.models.input_format import InputFormat, normalize_images
from adaface.system.lightning_setup import pl
from adaface.system.progress_bar import progress_bar

logger = logging.getLogger(__name__)

_NO_DIRECTION = 1e-6  # a mean of unit vectors below this length has no direction


def find_pretrained(word: str) -> Path:
    """Return the checkpoint that an option refers to.

    Args:
        word: a file (or the folder of a sharded head's checkpoint), or the name of a published model, which is
            downloaded if necessary.

    Raises:
        ValueError: neither a file nor the name of a published model.
        RuntimeError: the model cannot be downloaded.
    """
    return Path(word) if Path(word).exists() else find_model(word)


def with_pretrained(run: RunOptions, *, arch_given: bool) -> RunOptions:
    """Find the model to start from, and use its architecture if none was given.

    Args:
        run: options of a run that is not resumed.
        arch_given: whether the architecture was given.

    Returns:
        The options of the run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint, or of an unknown architecture.
        RuntimeError: the model cannot be downloaded.
    """
    name = "finetune" if run.finetune else "start_from_model_statedict"
    word = run.finetune or run.start_from_model_statedict
    if not word:
        return run
    path = find_pretrained(word)
    if path.suffix == ".onnx":
        raise ValueError(f"--{name} {path} is an ONNX export: give the checkpoint (.ckpt) that was exported")
    run = with_whole_path(run)
    return run if arch_given else replace(run, arch=find_architecture(load_checkpoint(path), path))


def with_whole_path(run: RunOptions) -> RunOptions:
    """Make the path of a file to fine-tune absolute: it is needed again at the end, maybe after a resume elsewhere.

    Args:
        run: options with or without such a file.
    """
    file = Path(run.finetune)
    return replace(run, finetune=str(file.absolute())) if run.finetune and file.exists() else run


def fingerprint_to_finetune(word: str, arch: str, color: str = "") -> str:
    """Return a digest of the weights of the model to fine-tune.

    Args:
        word: as in ``find_pretrained``.
        arch: its architecture.
        color: color order of its network, if another program wrote the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the architecture differs, or the model expects another input format than training uses.
        RuntimeError: the model cannot be downloaded.
    """
    path = find_pretrained(word)
    _, description = read_model(path, arch, color)
    if description.input_format != InputFormat():
        raise ValueError(
            f"{path} expects {description.input_format.color} images with mean {description.input_format.mean:g} and "
            f"std {description.input_format.std:g}; training uses BGR, 127.5 and 127.5, so it cannot be fine-tuned here"
        )
    return description.fingerprint


@dataclass(frozen=True)
class ClassMeans:
    """Mean embeddings of some classes, and moments of the norms.

    Attributes:
        directions: (K, D) float32 unit vectors on the CPU; zeros for a class without images, or whose images have no
            common direction.
        norm_moments: (3,) float64: number, sum and sum of squares of the norms.
    """

    directions: Tensor
    norm_moments: Tensor


def class_means(
    batches: Iterable[tuple[Tensor, Tensor]],
    embed: Callable[[Tensor], tuple[Tensor, Tensor]],
    first: int,
    end: int,
    size: int,
) -> ClassMeans:
    """Embed the images of a range of classes and compute the mean direction of each class.

    Args:
        batches: images (B, 112, 112, 3) uint8 BGR and labels (B,) in [first, end); B may be 0.
        embed: maps images to unit embeddings (B, D) and their norms (B, 1).
        first: the first class.
        end: end of the range, K = end - first.
        size: D.
    """
    sums, moments = torch.zeros(end - first, size), torch.zeros(3, dtype=torch.float64)
    for images, labels in batches:
        if len(labels):
            embeddings, norms = (numbers.cpu() for numbers in embed(images))
            sums.index_add_(0, labels.cpu() - first, embeddings.float())
            moments += torch.stack([torch.ones_like(norms), norms, norms**2]).double().sum(dim=(1, 2))
    directions = F.normalize(sums, dim=1)
    directions[sums.norm(dim=1) < _NO_DIRECTION] = 0.0
    return ClassMeans(directions, moments)


class HeadFromClassMeans(pl.Callback):
    """Initialize the head's weights with class means at the start of training.

    Args:
        data: the opened training data.
    """

    def __init__(self, data: FaceDataModule) -> None:
        self.data = data

    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Embed the training images and set the weights, in all processes."""
        head = pl_module.head
        first, end = shard_range(head.class_num, rank(), world_size())
        model = prepare_for_inference(pl_module.model)
        means = class_means(
            self._batches(first, end, shown=trainer.is_global_zero),
            lambda images: _embed(model, images.to(pl_module.device)),
            first,
            end,
            head.kernel.shape[1] if isinstance(head, PartialFC) else head.kernel.shape[0],
        )
        missing = set_classes(head, means.directions.to(pl_module.device))
        moments = means.norm_moments  # stays on the CPU, because Apple GPUs have no float64
        begin_statistics(head, moments if world_size() == 1 else moments.to(pl_module.device))
        if trainer.is_global_zero:
            logger.info(
                f"the head's {head.class_num:,} classes are initialized with the means of their images' embeddings"
            )
            if missing:
                logger.info(f"note: {missing:,} of them have no usable image and keep random weights")

    def _batches(self, first: int, end: int, *, shown: bool) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield images and labels of a range of classes."""
        labels = self.data.dataset.source.labels
        samples = np.flatnonzero((labels >= first) & (labels < end))
        with progress_bar(total=len(samples), desc="class means", unit=" images", disable=not shown) as bar:
            for images, of_classes in self.data.plain_dataloader(samples):
                yield images, of_classes
                bar.update(min(self.data.batch_size_per_process, len(samples) - bar.n))


def set_classes(head: Head, means: Tensor) -> int:
    """Set the weights of classes; call it in all processes.

    Args:
        head: changed in place; all centers of a class get the same weights.
        means: (K, D) unit vectors of this process's range of classes (``heads.partial_fc.shard_range``); classes with a
            row of zeros are not changed.

    Returns:
        The number of classes, over all processes, that were not changed.
    """
    if isinstance(head, PartialFC):
        rows, shown = head.kernel.data, means  # (K, D), one row per center
    else:
        shown = gather_rows(means)  # (C, D)
        rows = head.kernel.data.t()
    known = shown.any(dim=1)
    centers = len(rows) // max(1, len(shown))
    rows[known.repeat_interleave(centers)] = shown[known].repeat_interleave(centers, dim=0).to(rows)
    own = (~known).sum().reshape(1)
    return int((gather_rows(own) if isinstance(head, PartialFC) else own).sum())


def begin_statistics(head: Head, norm_moments: Tensor) -> None:
    """Initialize AdaFace's running statistics with those of all norms; call it in all processes.

    Args:
        head: changed in place; heads with another margin are not changed.
        norm_moments: (3,) moments of this process (``ClassMeans``).
    """
    count, total, squares = gather_rows(norm_moments.unsqueeze(0)).sum(dim=0).tolist()
    if isinstance(head, AdaFace) and count > 1:
        mean = total / count
        head.batch_mean.fill_(mean)
        head.batch_std.fill_(math.sqrt(max(0.0, squares - count * mean**2) / (count - 1)))


@torch.inference_mode()
def _embed(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    return model(normalize_images(images, next(model.parameters()).dtype))
