"""Batches of samples and per-sample randomness, as functions of (seed, epoch, position) only.

No state needs to be saved: a resumed run sees each sample of the epoch once, with any number of data workers and
processes, and the same batches if their total size is unchanged.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

_WORD = 2**32
_SHUFFLE = 2**64 - 1  # key of the epoch's shuffle, beyond the keys of samples


class RandomStreams:
    """Independent random generators, one for each (seed, epoch, sample).

    Source: Philox 4x64 (Salmon et al., SC 2011), counter-based: its 128-bit key is (seed, epoch | sample).

    Args:
        seed: in [0, 2**32).

    Raises:
        ValueError: seed out of range.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < _WORD:
            raise ValueError(f"the seed must be in [0, 2**32), got {seed}")
        self.seed = seed
        self._bits = np.random.Philox(key=0)
        self._key = np.zeros(2, np.uint64)
        self._start: Any = {
            "bit_generator": "Philox",
            "state": {"counter": np.zeros(4, np.uint64), "key": self._key},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._generator = np.random.Generator(self._bits)

    def at(self, epoch: int, sample: int) -> np.random.Generator:
        """Return the generator of one sample in one epoch, in its initial state.

        Args:
            epoch: in [0, 2**32).
            sample: position in the training data.

        Returns:
            The generator ``Generator(Philox(key=[seed * 2**32 + epoch, sample]))``. All calls return the same object,
            set to that state (creating a new one takes ten times as long), so use it before the next call.
        """
        self._key[:] = self.seed * _WORD + epoch, sample
        self._bits.state = self._start  # the setter copies it
        return self._generator

    def shuffled(self, count: int, epoch: int) -> np.ndarray:
        """Return the samples of an epoch in random order.

        Args:
            count: number of samples N.
            epoch: in [0, 2**32).

        Returns:
            (N,) permutation of 0..N-1, uint32, because every process briefly holds all of it.
        """
        order = np.arange(count, dtype=np.uint32)
        self.at(epoch, _SHUFFLE).shuffle(order)
        return order


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, sample) for one process, shuffled every epoch.

    The W processes take turns in the shuffled order, so batch k holds the same samples for every W with the same total
    batch size. The order is padded with its first samples, at most W-1, so that all processes take the same number of
    steps. The last, incomplete batch is kept, unless it has a single sample, on which batch norm cannot train.

    Args:
        count: number of samples N in the training data.
        batch_size: samples per batch of this process.
        seed: of the shuffling.
        rank: of this process.
        world_size: number of processes W.
        start_epoch: epoch to begin with.
        start_batch: batches of ``start_epoch`` that the run completed before it was interrupted. They count in the
            length, as in Lightning's progress.
        start_sample: samples of ``start_epoch`` that all processes together have seen, which are skipped; None: those
            of ``start_batch`` batches of the current size.

    Attributes:
        equal: whether to leave out the last batch if it is smaller, and is not the only one.

    Raises:
        ValueError: there are fewer than two samples for each process.
    """

    equal = False

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_epoch: int = 0,
        start_batch: int = 0,
        start_sample: int | None = None,
    ) -> None:
        self.count, self.batch_size = count, batch_size
        self.rank, self.world_size = rank, world_size
        if min(batch_size, -(-count // world_size)) < 2:
            raise ValueError(
                f"{count} training images in batches of {batch_size} for each of {world_size} process(es): every "
                "process needs at least two images per batch, because batch norm cannot train on one"
            )
        self.epoch = self.start_epoch = start_epoch
        self.start_batch = start_batch
        self.start_sample = start_batch * batch_size * world_size if start_sample is None else start_sample
        self._streams = RandomStreams(seed)

    @property
    def sampler(self) -> "EpochBatchSampler":
        """This object, because Lightning calls ``set_epoch`` on the batch sampler's ``sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration.

        Args:
            epoch: epoch, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        first_batch, first_sample = self._done()
        full, rest = divmod(self._share(first_sample), self.batch_size)
        leaves_out = self.equal and self._share(0) >= self.batch_size
        return first_batch + full + (rest > 1 and not leaves_out)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        first_batch, first_sample = self._done()
        batches = len(self) - first_batch
        order = self._order(epoch, first_sample)
        for batch in range(batches):
            samples = order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            yield [(epoch, sample) for sample in samples]

    def _done(self) -> tuple[int, int]:
        """Return the batches of each process, and the samples of all processes, that are done in this epoch."""
        return (self.start_batch, self.start_sample) if self.epoch == self.start_epoch else (0, 0)

    def _share(self, first: int) -> int:
        """Return the number of samples per process from ``first`` on."""
        return -(-max(0, self.count - first) // self.world_size)

    def _order(self, epoch: int, first: int) -> np.ndarray:
        """Return the samples of this process in one epoch, from position ``first`` of the shuffled order on."""
        shuffled = self._streams.shuffled(self.count, epoch)
        share = self._share(first)
        mine = shuffled[first + self.rank :: self.world_size]
        if len(mine) == share:
            return mine.copy()  # so that the other processes' part is freed
        last = first + self.rank + self.world_size * (share - 1)
        return np.append(mine, shuffled[last % self.count])


class ShardedBatchSampler(Sampler[list[int]]):
    """Batches of one process's consecutive share of N samples, in order.

    All processes get the same number of batches of the same sizes: the last sample is repeated where needed.

    Args:
        count: number of samples N.
        batch_size: samples per batch of this process.
        rank: of this process.
        world_size: number of processes W.
    """

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        share = -(-count // world_size)
        self.samples = [min(sample, count - 1) for sample in range(rank * share, (rank + 1) * share)]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self.samples), self.batch_size):
            yield self.samples[first : first + self.batch_size]
