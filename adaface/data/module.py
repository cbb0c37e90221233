"""Lightning data module: find, check and load training and validation data.

Images stay uint8 (112, 112, 3) BGR until they are on the device; a batch is one array of them. Every batch is a
function of (seed, epoch, position in the epoch): it depends neither on the number of data workers nor on where a run
was interrupted.

Source: the data module of the official AdaFace code. Differences: there, every worker repeats the same random numbers,
and images become float32 in the workers; here, class count, validation sets and paths are read from the data, not
derived from the name of the path, and the five sets of the paper are optional.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from adaface.augmentation.paper import Augmenter
from adaface.config.options import AugmentationOptions, DataOptions
from adaface.data.chosen_sets import choose_sets
from adaface.data.datasets import (
    PlainDataset,
    TrainingDataset,
    ValidationDataset,
    WaitingLoader,
    as_it_is,
    start_worker,
)
from adaface.data.held_out import hold_out
from adaface.data.image_files import summary
from adaface.data.pair_sets import PairSet, one_kind_warnings, open_pair_set
from adaface.data.sampler import EpochBatchSampler, ShardedBatchSampler
from adaface.data.sources.base import TrainingSource, fingerprint_of
from adaface.data.sources.class_images import sample_classes
from adaface.data.sources.cleaned_index import select_indexed
from adaface.data.sources.finder import folder_sources, open_training_source, split_paths
from adaface.data.sources.selection import SUBSET_LIST, SelectedSource, read_subset_list, select_subset
from adaface.system.command_line import counted
from adaface.system.lightning_setup import pl
from adaface.system.threads import usable_cores

logger = logging.getLogger(__name__)

_SHOWN_BAD = 10


class FaceDataModule(pl.LightningDataModule):
    """Training images, validation pairs and their loaders. Call ``open`` first.

    Args:
        options: location and choice of the data. ``swap_color_channel`` applies to training images only: verification
            sets are read as they are, as in the official code.
        augmentation: applied to training images.
        batch_size: images per step over all devices of a node.
        devices: processes per node.
        num_nodes: machines.
        seed: of shuffling and augmentation, in [0, 2**32).
        evaluate_only: no training, so no training data are needed.
        needs_validation: hold identities out if ``val_sets`` is empty and there are no sets.

    Attributes:
        pair_sets: name -> verification set, only existing ones, the paper's first.
        missing_sets: sets of the paper that are missing.
        notes: information for the user, one line each.
        warnings: why numbers of the run mean nothing, one line each; for the report too.
        sharing: processes that share this machine's CPU cores; set it before the data are opened.
        equal_batches: whether an epoch ends with its last full batch; set it before the data are opened.
        start_epoch: epoch at which an interrupted run resumes.
        start_batch: batches of that epoch that are already done.
        start_sample: samples of that epoch that are already done, by all processes.
    """

    equal_batches = False

    def __init__(
        self,
        options: DataOptions,
        augmentation: AugmentationOptions = AugmentationOptions(),
        *,
        batch_size: int,
        devices: int = 1,
        num_nodes: int = 1,
        seed: int = 42,
        evaluate_only: bool = False,
        needs_validation: bool = False,
    ) -> None:
        super().__init__()
        self.options, self.seed = options, seed
        self.evaluate_only, self.needs_validation = evaluate_only, needs_validation
        self.augmenter = Augmenter(
            augmentation.crop_augmentation_prob,
            augmentation.low_res_augmentation_prob,
            augmentation.photometric_augmentation_prob,
            more=augmentation.more_augmentations,
        )
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.batch_size_per_process = _divided(batch_size, devices)
        self.sharing = devices
        self.num_workers = options.num_workers
        self.processes = devices * num_nodes
        self.start_epoch = self.start_batch = self.start_sample = 0
        self.pair_sets: dict[str, PairSet] = {}
        self.missing_sets: list[str] = []
        self._dataset: TrainingDataset | None = None
        self._fingerprint: str | None = None  # takes seconds for millions of images
        self._class_images: dict[int, list[str]] | None = None

    def open(self) -> None:
        """Find, open and check all data, before the model is built.

        Raises:
            FileNotFoundError: the data or the subset list are missing.
            ValueError: the data are damaged, or do not fit the options.
        """
        options = self.options
        self.num_workers = self._capped(options.num_workers)
        folder = Path(options.data_root, options.val_data_path)
        sets = choose_sets(
            folder, self.options.val_sets, held_out_otherwise=self.needs_validation, compulsory=self.evaluate_only
        )
        self.pair_sets = {name: open_pair_set(folder, name) for name in sets.names}
        self.missing_sets = sets.missing
        self.notes += [note for note in (sets.note, *(found.note for found in self.pair_sets.values())) if note]
        self.warnings += one_kind_warnings({name: found.issame for name, found in self.pair_sets.items()})
        if not self.evaluate_only:
            source = self._open_source()
            if sets.held_out:
                source, held_out = hold_out(
                    source,
                    options.held_out_share,
                    self.seed,
                    swap_color_channel=options.swap_color_channel,
                    skip_bad_images=options.skip_bad_images,
                )
                self.pair_sets = {**self.pair_sets, held_out.name: held_out}
            self._dataset = TrainingDataset(
                source,
                self.augmenter,
                seed=self.seed,
                swap_color_channel=options.swap_color_channel,
                skip_bad_images=options.skip_bad_images,
            )
            self._check_class_count()
            self._batches(0, self.processes)  # raises an error if there are too few images
            images, batch_size = len(self._dataset), self.batch_size_per_process * self.processes
            if batch_size > images:
                self.notes.append(
                    f"--batch_size is larger than the data: {batch_size:,} images, but there are {images:,}, so an "
                    "epoch has one batch"
                )

    @property
    def dataset(self) -> TrainingDataset:
        """The training data.

        Raises:
            RuntimeError: not opened, or opened with ``evaluate_only``.
        """
        if self._dataset is None:
            raise RuntimeError("no training data: call open() first, without evaluate_only")
        return self._dataset

    @property
    def class_names(self) -> Sequence[str]:
        """Folder name, or label in the `.rec`, of each class; <set>/<name> if there are several sets.

        Empty in evaluation.
        """
        return [] if self._dataset is None else self._dataset.source.class_names

    def order_classes_as(self, names: Sequence[str]) -> None:
        """Number the classes in the order of a list.

        Args:
            names: all ``class_names``, in another order.
        """
        source = self.dataset.source
        place = {name: number for number, name in enumerate(names)}
        number_of = np.array([place[name] for name in source.class_names], np.int32)
        every = np.arange(len(source), dtype=np.uint32 if len(source) < 2**32 else np.int64)
        self.dataset.source = SelectedSource(source, every, number_of[source.labels], list(names), source.location)
        self._fingerprint = self._class_images = None

    @property
    def num_classes(self) -> int:
        """Number of classes of the head: that of the data, or ``custom_num_class`` if larger; 0 in evaluation."""
        return max(self.options.custom_num_class, len(self.class_names)) if self.class_names else 0

    @property
    def largest_batch(self) -> int:
        """Images of the largest batch of one process: the batch size, or fewer if there are not so many images."""
        images = self.batch_size_per_process if self._dataset is None else -(-len(self._dataset) // self.processes)
        return min(self.batch_size_per_process, images)

    @property
    def images_per_step(self) -> int:
        """Images of the largest step of all processes: the batch size, or all images if there are fewer."""
        batch_size = self.batch_size_per_process * self.processes
        return batch_size if self._dataset is None else min(batch_size, len(self._dataset))

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of one process in one epoch."""
        return len(self._batches(0, self.processes))

    def resume_at(self, epoch: int, batch: int, samples: int | None = None) -> None:
        """Set the position at which a run resumes.

        Args:
            epoch: epoch to start in.
            batch: batches of it that each process has completed.
            samples: samples of it that all processes have seen (``samples_seen``); None if its batches had the current
                size.
        """
        _, world_size = self._place()
        self.start_epoch, self.start_batch = epoch, batch
        self.start_sample = batch * self.batch_size_per_process * world_size if samples is None else samples

    def samples_seen(self, epoch: int, batch: int) -> int:
        """Return how many samples of an epoch all processes have seen after this number of batches each.

        Args:
            epoch: epoch, from 0.
            batch: batches of this epoch, including those before a resume.
        """
        _, world_size = self._place()
        resumed = epoch == self.start_epoch
        first_sample, first_batch = (self.start_sample, self.start_batch) if resumed else (0, 0)
        seen = first_sample + (batch - first_batch) * self.batch_size_per_process * world_size
        return min(seen, len(self.dataset))

    def summary(self) -> str:
        """Return a summary of the data in a few lines."""
        lines = []
        if self._dataset is not None:
            source = self._dataset.source
            lines.append(
                f"training data: {counted(len(source), 'image', 'images')} of "
                f"{counted(len(self.class_names), 'identity', 'identities')}, {source.location}"
            )
        if self.pair_sets:
            sizes = {name: counted(len(pair_set.issame), "pair", "pairs") for name, pair_set in self.pair_sets.items()}
            sets = ", ".join(f"{name} ({size})" for name, size in sizes.items())
            missing = f"; missing: {', '.join(self.missing_sets)}" if self.missing_sets else ""
            lines.append(f"validation sets: {sets}{missing}")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def fingerprint(self) -> str:
        """Identify the training data, see ``data.sources.base.fingerprint_of``; empty in evaluation."""
        if self._fingerprint is None:
            self._fingerprint = "" if self._dataset is None else fingerprint_of(self._dataset.source)
        return self._fingerprint

    def class_images(self) -> dict[int, list[str]]:
        """Return digests of some images of classes, see ``data.sources.class_images``; empty in evaluation."""
        if self._class_images is None:
            self._class_images = {} if self._dataset is None else sample_classes(self._dataset.source)
        return self._class_images

    # loaders

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of training batches: images (B, 112, 112, 3) uint8 BGR, labels (B,) int64."""
        rank, world_size = self._place()
        return self._loader(self.dataset, self._batches(rank, world_size), persistent_workers=self.num_workers > 0)

    def val_dataloader(self) -> Any:
        """Return the loader of this process's share of all verification images; an empty list if there are no sets.

        Batches are images (B, 112, 112, 3) uint8 BGR, number of the set (B,), place in the set (B,). Every process
        gets the same number of batches; the last image may be repeated.
        """
        if not self.pair_sets:
            return []
        dataset = ValidationDataset(self.pair_sets)
        rank, world_size = self._place()
        return self._loader(
            dataset, ShardedBatchSampler(len(dataset), self.batch_size_per_process, rank=rank, world_size=world_size)
        )

    def test_dataloader(self) -> Any:
        """Return the loader of the verification images, as for validation."""
        return self.val_dataloader()

    def plain_dataloader(self, samples: np.ndarray) -> DataLoader[Any]:
        """Return a loader of images without augmentation: images (B, 112, 112, 3) uint8 BGR, labels (B,) int64.

        Args:
            samples: (M,) indices of the images, in order; with ``skip_bad_images``, unreadable ones are skipped.
        """
        dataset = PlainDataset(
            self.dataset.source,
            swap_color_channel=self.options.swap_color_channel,
            skip_bad_images=self.options.skip_bad_images,
        )
        size = self.batch_size_per_process
        return self._loader(dataset, [samples[start : start + size] for start in range(0, len(samples), size)])

    # bad images

    def bad_images(self) -> list[str]:
        """Return the locations of training images that this process had to replace (``skip_bad_images``)."""
        if self._dataset is None:
            return []
        return [self._dataset.source.describe(sample) for sample in self._dataset.bad_samples()]

    def teardown(self, stage: str) -> None:
        """Report replaced training images at the end of the training."""
        if stage == "fit":
            self._report_bad_images()

    def on_exception(self, exception: BaseException) -> None:
        """Report replaced training images if a run ends early."""
        self._report_bad_images()

    def _report_bad_images(self) -> None:
        bad = self.bad_images()
        if bad:
            rank, world_size = self._place()
            which = f"process {rank}: " if world_size > 1 else ""
            more = f"\n  ... and {len(bad) - _SHOWN_BAD} more" if len(bad) > _SHOWN_BAD else ""
            listed = "".join(f"\n  {name}" for name in bad[:_SHOWN_BAD])
            logger.warning(f"{which}{len(bad)} bad training image(s) replaced by the next readable one:{listed}{more}")

    # parts

    def _open_source(self) -> TrainingSource:
        """Open all training images, or those of a list."""
        options = self.options
        if options.train_data_subset:
            self._refuse_subset_of_several()
        source = open_training_source(
            options.data_root,
            options.train_data_path,
            use_mxrecord=options.use_mxrecord,
            flawed=bool(options.train_data_index),
        )
        for folder in folder_sources(source):
            if lines := summary(folder.listing, f"images in {folder.root}", len(folder)):
                self.notes.append("\n".join(lines))
            self.notes += [folder.note] if folder.note else []
        if options.train_data_index:
            return select_indexed(source, options.train_data_index)
        if options.train_data_subset:
            return select_subset(source, read_subset_list(options.data_root, options.train_data_path))
        return source

    def _refuse_subset_of_several(self) -> None:
        paths = split_paths(self.options.data_root, self.options.train_data_path)
        if len(paths) > 1:
            raise ValueError(
                f"--train_data_subset, but --train_data_path names {len(paths)} data sets ({', '.join(paths)}): the "
                f"list {SUBSET_LIST} is for MS1MV2 only: give only that data set, or omit the option"
            )

    def _check_class_count(self) -> None:
        classes, given = len(self.class_names), self.options.custom_num_class
        if given != -1 and given < classes:
            raise ValueError(
                f"--custom_num_class {given}, but the training data has {classes} identities; "
                f"give {classes} or more, or omit the option"
            )
        if classes == 1:
            self.warnings.append(
                "the training data has one identity: there is nothing to tell apart, and a model cannot learn from it"
            )

    def _batches(self, rank: int, world_size: int) -> EpochBatchSampler:
        batches = EpochBatchSampler(
            len(self.dataset),
            self.batch_size_per_process,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            start_epoch=self.start_epoch,
            start_batch=self.start_batch,
            start_sample=self.start_sample,
        )
        batches.equal = self.equal_batches
        return batches

    def _place(self) -> tuple[int, int]:
        """Return rank and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, dataset: Dataset[Any], batches: Any, persistent_workers: bool = False) -> DataLoader[Any]:
        device = None if self.trainer is None else self.trainer.strategy.root_device
        on_gpu = device is not None and device.type == "cuda"
        loader = WaitingLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=as_it_is,
            worker_init_fn=start_worker,
            pin_memory=on_gpu,
            persistent_workers=persistent_workers,
        )
        loader.copies_to = device if on_gpu else None
        return loader

    def _capped(self, num_workers: int) -> int:
        cores = usable_cores()
        most = max(1, cores // self.sharing)
        if num_workers > most:
            whose = "this machine" if self.sharing > 1 or self.processes == 1 else "each process"
            self.notes.append(f"{most} data worker(s) per device instead of {num_workers}: {whose} has {cores} cores")
        return min(num_workers, most)


def _divided(batch_size: int, devices: int) -> int:
    """Return the batch size of one process, or raise an error if it is not divisible."""
    rest = batch_size % devices
    if rest:
        nearest = [size for size in (batch_size - rest, batch_size - rest + devices) if size]
        raise ValueError(
            f"--batch_size {batch_size} is the total over all devices and is not divisible by {devices}: "
            f"use {' or '.join(map(str, nearest))}, or another number of devices (--gpus)"
        )
    return batch_size // devices
