"""Training and verification images as PyTorch data sets: decode, augment, collate.

Images stay uint8 (112, 112, 3) BGR; a batch is one array of them, filled in place. A training sample depends on (seed,
epoch, sample) only.

Source: the data sets of the official AdaFace code. Differences: there, every worker repeats the same random numbers,
and images become float32 (four times the bytes) in the workers.
"""

import contextlib
import multiprocessing
import multiprocessing.util
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from adaface.augmentation.paper import Augmenter
from adaface.data.copy_ahead import copied_ahead
from adaface.data.images import IMAGE_SHAPE, decode_image
from adaface.data.pair_sets import PairSet
from adaface.data.sampler import RandomStreams
from adaface.data.sources.base import TrainingSource
from adaface.system.interrupt import STOP_SIGNALS, stop_signals_held
from adaface.system.lightning_internals import send_errors_of_queues
from adaface.system.threads import in_main_thread

_MOST_BAD_IN_A_ROW = 100
_AT_ONCE = 16


class TrainingDataset(Dataset[tuple[Tensor, int]]):
    """Decoded, augmented training images with labels, indexed by (epoch, sample).

    Args:
        source: encoded images and labels.
        augmenter: applied to each image.
        seed: of the augmentation, in [0, 2**32).
        swap_color_channel: the stored images have red and blue swapped.
        skip_bad_images: replace a sample that cannot be decoded by the next readable one and its label.
    """

    def __init__(
        self,
        source: TrainingSource,
        augmenter: Augmenter,
        *,
        seed: int,
        swap_color_channel: bool = False,
        skip_bad_images: bool = False,
    ) -> None:
        self.source, self.augmenter = source, augmenter
        self.swap_color_channel = swap_color_channel
        self._streams = RandomStreams(seed)
        # One flag per sample, in memory shared with all workers.
        self._bad = torch.zeros(len(source), dtype=torch.bool).share_memory_() if skip_bad_images else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, int]:
        """Return one sample.

        Args:
            position: epoch and sample.

        Returns:
            (112, 112, 3) uint8 BGR, and its label.

        Raises:
            ValueError: the image cannot be decoded, is not 112x112 or not color.
        """
        images, labels = self.__getitems__([position])
        return images[0], int(labels[0])

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return a collated batch: use it with ``collate_fn=as_it_is``.

        Args:
            positions: epoch and sample, B times.

        Returns:
            (B, 112, 112, 3) uint8 BGR, and labels (B,) int64.

        Raises:
            ValueError: as for one sample.
        """
        images = np.empty((len(positions), *IMAGE_SHAPE), np.uint8)
        labels = np.empty(len(positions), np.int64)
        # decode all, then augment all: the CPU caches then hold the code and tables of one task at a time
        for first in range(0, len(positions), _AT_ONCE):
            some = positions[first : first + _AT_ONCE]
            decoded = [self._image_of(sample) for _, sample in some]
            for place, ((epoch, sample), (image, taken)) in enumerate(zip(some, decoded, strict=True), first):
                self.augmenter(image, self._streams.at(epoch, sample), images[place])
                labels[place] = self.source.label(taken)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def bad_samples(self) -> list[int]:
        """Return the samples that could not be decoded so far, by all workers of this process."""
        return [] if self._bad is None else torch.nonzero(self._bad).flatten().tolist()

    def _image_of(self, sample: int) -> tuple[np.ndarray, int]:
        """Return the image of a sample or of its replacement, and the index of the sample used."""
        return self._decode(sample) if self._bad is None else self._decode_next_good(sample, self._bad)

    def _decode(self, sample: int) -> tuple[np.ndarray, int]:
        """Return an image and its sample index."""
        return decode_sample(self.source, sample, swap_color_channel=self.swap_color_channel), sample

    def _decode_next_good(self, sample: int, bad: Tensor) -> tuple[np.ndarray, int]:
        """Return the first image from ``sample`` on that can be decoded, and its sample index."""
        for candidate in range(sample, sample + _MOST_BAD_IN_A_ROW):
            taken = candidate % len(self.source)
            try:
                return self._decode(taken)
            except ValueError as error:
                bad[taken] = True
                reason = error
        raise ValueError(
            f"{_MOST_BAD_IN_A_ROW} consecutive images cannot be used; the last error: {reason}"
        ) from reason


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Decoded training images without augmentation, indexed by sample.

    Args:
        source: encoded images and labels.
        swap_color_channel: the stored images have red and blue swapped.
        skip_bad_images: skip images that cannot be decoded.
    """

    def __init__(self, source: TrainingSource, *, swap_color_channel: bool = False, skip_bad_images: bool) -> None:
        self.source, self.swap_color_channel, self.skip_bad_images = source, swap_color_channel, skip_bad_images

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a collated batch: use it with ``collate_fn=as_it_is``.

        Args:
            samples: B indices.

        Returns:
            Images (M, 112, 112, 3) uint8 BGR, and labels (M,) int64; M = B unless some were skipped.

        Raises:
            ValueError: an image cannot be decoded, is not 112x112 or not color.
        """
        images = np.empty((len(samples), *IMAGE_SHAPE), np.uint8)
        labels: list[int] = []
        for sample in map(int, samples):
            try:
                images[len(labels)] = decode_sample(self.source, sample, swap_color_channel=self.swap_color_channel)
            except ValueError:
                if not self.skip_bad_images:
                    raise
            else:
                labels.append(self.source.label(sample))
        return torch.from_numpy(images[: len(labels)]), torch.tensor(labels, dtype=torch.int64)


def decode_sample(source: TrainingSource, sample: int, *, swap_color_channel: bool) -> np.ndarray:
    """Return the image of a training sample.

    Args:
        source: encoded images.
        sample: index of the sample.
        swap_color_channel: the stored images have red and blue swapped.

    Returns:
        (112, 112, 3) uint8 BGR.

    Raises:
        ValueError: it cannot be decoded, is not 112x112 or not color; the message names it.
    """
    encoded = source.read(sample)
    try:
        image = decode_image(encoded, "")
    except ValueError:
        image = decode_image(encoded, source.describe(sample))  # fails again, now with the sample's name in the message
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if swap_color_channel else image


class ValidationDataset(Dataset[tuple[Tensor, int, int]]):
    """The images of all verification sets, concatenated, in file order.

    Args:
        pair_sets: name -> set; sets are numbered from 0 in this order.
    """

    def __init__(self, pair_sets: Mapping[str, PairSet]) -> None:
        self._sets = list(pair_sets.values())
        self._ends = np.cumsum([len(pair_set.images) for pair_set in self._sets], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """Return one image.

        Args:
            index: index among the images of all sets.

        Returns:
            (112, 112, 3) uint8 BGR, number of its set, index in that set.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        images = self._sets[number].images
        place = index - int(self._ends[number]) + len(images)
        return torch.from_numpy(images[place]), number, place

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return a collated batch: use it with ``collate_fn=as_it_is``.

        Args:
            indices: B indices among the images of all sets.

        Returns:
            (B, 112, 112, 3) uint8 BGR, set numbers (B,) int64, indices (B,) int64.
        """
        images, numbers, places = zip(*(self[index] for index in indices), strict=True)
        return torch.stack(images), torch.tensor(numbers), torch.tensor(places)


class _Workers(_MultiProcessingDataLoaderIter):
    """PyTorch's iterator over the batches of worker processes, which may be deleted before all of it has started."""

    def _shutdown_workers(self) -> None:
        if getattr(self, "_worker_pids_set", False):  # all have started; `_end_workers` ends those of others
            with contextlib.suppress(RuntimeError):  # no thread sends them the end: they are then killed
                super()._shutdown_workers()


class WaitingLoader(DataLoader[Any]):
    """A data loader that measures the time spent waiting for batches.

    Attributes:
        waited_sec: total over all batches so far, in this process.
        copies_to: GPU that batches are copied to while the step before is computed; None: they stay where they are.
    """

    waited_sec = 0.0
    copies_to: torch.device | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._timed() if self.copies_to is None else copied_ahead(self._timed(), self.copies_to)

    def _get_iterator(self) -> Any:
        return _Workers(self) if self.num_workers else super()._get_iterator()

    def _timed(self) -> Iterator[Any]:
        starts = self._iterator is None or not self.persistent_workers
        # a worker that starts would be ended by a signal before it can ignore it
        with stop_signals_held() if starts else contextlib.nullcontext():
            batches = super().__iter__()
        while True:
            started = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited_sec += time.monotonic() - started
            yield batch


def _end_workers() -> None:
    if in_main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error for a killed worker
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


# A loader's workers may live until the program exits, and those of a loader that an error has left half started have no
# other owner: multiprocessing then sends SIGTERM, which the workers ignore, and would wait forever.
multiprocessing.util.Finalize(None, _end_workers, exitpriority=0)


def as_it_is(batch: Any) -> Any:
    """Return a batch unchanged, as its data set has collated it: the ``collate_fn`` of the loaders."""
    return batch


def start_worker(_: int) -> None:
    """Set up a data worker: one thread, and stop signals are ignored.

    A terminal sends Ctrl-C, and a batch system SIGTERM, to the workers too, but the main process needs them to finish
    its step. A worker whose main process is gone exits by itself.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # held since before the fork; one that waits is dropped
    send_errors_of_queues()
    cv2.setNumThreads(0)  # not 1, which uses OpenCV's thread pool and hangs after a fork
