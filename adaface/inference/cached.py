"""Embed a list of images with a model, in one or several processes, and cache the embeddings in a file.

The cache is a `.npy` of float32 (N, D + 2) per model and list of images: the embedding, its norm, and whether the
image is still to do (0), done (1) or could not be read (2). The processes write into that file, so that a killed
evaluation resumes where it was.

An unfinished file is called `.<name>.part`; it gets its final name when all rows are filled, so that no incomplete
file is read. One process at a time fills it and holds the lock of that file; others that need the same
file wait, and read it when it is complete.
"""

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor
from tqdm import tqdm

from adaface.data.image_list import ImageList
from adaface.inference.embedder import FUSED, Embedder
from adaface.metrics.outcome import Embedded
from adaface.system.devices import divide_threads
from adaface.system.locks import locked_when_free
from adaface.system.threads import in_order, usable_cores

CACHE = "experiments/embeddings"  # where commands keep embeddings unless told otherwise
MOST_UNREADABLE = 0.001
_TO_DO, _DONE, _UNREADABLE = 0, 1, 2
_POLL_SEC = 0.2
_SHOWN = 5
_KEY_LETTERS = 24
_LONGEST_NAME = 60  # file systems refuse names of more than 255 letters
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class ModelFile:
    """A model as each process loads it.

    Attributes:
        path: checkpoint or ONNX file.
        arch: its architecture, where the file does not tell it.
        accelerator: ``cpu`` or ``gpu``.
    """

    path: str
    arch: str | None = None
    accelerator: str = "cpu"

    def load(self, rank: int = 0) -> Embedder:
        """Load the model onto this process's device.

        Args:
            rank: number of the process.

        Raises:
            ValueError: no model.
        """
        device = f"cuda:{rank % max(torch.cuda.device_count(), 1)}" if self.accelerator == "gpu" else "cpu"
        return Embedder.load(self.path, self.arch, device)


class CachedEmbedding:
    """Embed lists of images with one model; the ``embed`` that protocols are given.

    Args:
        model: where it is.
        folder: what has been embedded is kept there; None keeps nothing.
        processes: at work at a time.
        batch_size: images of one step of a process.
        most_unreadable: share of the images that may be unreadable, in [0, 1].

    Attributes:
        embedder: the model, in this process.
    """

    def __init__(
        self,
        model: ModelFile,
        *,
        folder: Path | None,
        processes: int = 1,
        batch_size: int = 64,
        most_unreadable: float = MOST_UNREADABLE,
    ) -> None:
        self.embedder = model.load()
        self._model, self._folder, self._processes = model, folder, processes
        self._batch_size, self._most_unreadable = batch_size, most_unreadable

    def __call__(self, images: ImageList, view: str = FUSED) -> Embedded:
        """Embed all images of a list.

        Args:
            images: read in threads, in order.
            view: one of ``inference.embedder.VIEWS``.

        Returns:
            Their embeddings; those that were kept are mapped from the file.

        Raises:
            ValueError: more images than allowed cannot be read, the first ones are named; or embeddings that are not
                finite.
            RuntimeError: a process was lost, or has met such embeddings.
            OSError: what is kept cannot be written.
        """
        with _kept_in(self._folder) as folder:
            identity = f"{self.embedder.fingerprint}\0{view}\0{images.fingerprint()}"
            key = hashlib.sha256(identity.encode()).hexdigest()[:_KEY_LETTERS]
            name = re.sub(r"[^A-Za-z0-9_-]", "_", images.name)[:_LONGEST_NAME]
            shape = (len(images), self.embedder.embedding_size + 2)
            table = load_or_fill(
                folder / f"{name}-{key}.npy",
                shape,
                lambda part: self._embed_all(images, view, part, shape),
                mapped=self._folder is not None,
            )
        readable = table[:, -1] == _DONE
        self._check_unreadable(images, readable)
        return Embedded(table[:, :-2], table[:, -2:-1], readable)

    def _embed_all(self, images: ImageList, view: str, part: Path, shape: tuple[int, int]) -> None:
        table = open_table(part, shape)
        left = np.flatnonzero(table[:, -1] == _TO_DO)
        with tqdm(total=shape[0], initial=shape[0] - len(left), desc=images.name, unit="img", disable=None) as bar:
            if self._processes == 1:
                for done in _embed_some(self.embedder, images, view, table, left, self._batch_size, usable_cores()):
                    bar.update(done)
            else:
                self._embed_in_processes(images, view, part, shape, left, bar)
        table.flush()

    def _embed_in_processes(
        self, images: ImageList, view: str, part: Path, shape: tuple[int, int], left: np.ndarray, bar: tqdm
    ) -> None:
        done = torch.zeros(self._processes, dtype=torch.int64).share_memory_()
        parts = np.array_split(left, self._processes)
        arguments = (self._model, images, view, str(part), shape, parts, self._batch_size, done)
        context = torch.multiprocessing.spawn(_process, arguments, nprocs=self._processes, join=False)
        while True:
            try:
                ended = context.join(timeout=_POLL_SEC)
            except torch.multiprocessing.ProcessRaisedException as error:
                raise RuntimeError(str(error).strip().splitlines()[-1]) from error
            except torch.multiprocessing.ProcessExitedException as error:
                raise RuntimeError(
                    f"a process that embeds images was lost ({error}); the same command goes on where it was"
                ) from error
            bar.update(shape[0] - len(left) + int(done.sum()) - bar.n)
            if ended:
                return

    def _check_unreadable(self, images: ImageList, readable: np.ndarray) -> None:
        bad = np.flatnonzero(~readable)
        if len(bad) <= self._most_unreadable * len(readable):
            return
        reasons = [reason for index in bad[:_SHOWN] if (reason := _reason(images, int(index)))]
        raise ValueError(
            f"{len(bad):,} of {len(readable):,} images of {images.name} cannot be used "
            f"({100 * len(bad) / len(readable):.3g} %, {100 * self._most_unreadable:g} % are allowed, "
            f"--most_unreadable changes that): {'; '.join(reasons)}{'; ...' if len(bad) > _SHOWN else ''}"
        )


@contextmanager
def _kept_in(folder: Path | None) -> Iterator[Path]:
    """Yield the folder, made where it is absent, or a temporary one for None."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="adaface_") as temporary:
            yield Path(temporary)
    else:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"the embeddings are kept in {folder}, which is a file: give another --cache")
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _process(
    rank: int,
    model: ModelFile,
    images: ImageList,
    view: str,
    part: str,
    shape: tuple[int, int],
    parts: list[np.ndarray],
    batch_size: int,
    done: Tensor,
) -> None:
    """Embed one part of the images; runs in a process of its own."""
    parent = os.getppid()
    divide_threads(len(parts))
    table = open_table(Path(part), shape)
    threads = max(1, usable_cores() // len(parts))
    for count in _embed_some(model.load(rank), images, view, table, parts[rank], batch_size, threads):
        done[rank] += count
        if os.getppid() != parent:  # nobody waits for this any more
            return


def _embed_some(
    embedder: Embedder,
    images: ImageList,
    view: str,
    table: np.ndarray,
    indices: np.ndarray,
    batch_size: int,
    threads: int,
) -> Iterator[int]:
    """Fill the rows of some images, and yield how many after each batch."""

    def read(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pictures = [_read_or_none(images, int(index)) for index in chosen]
        good = np.array([picture is not None for picture in pictures])
        return good, np.stack([p for p in pictures if p is not None]) if good.any() else np.empty(0)

    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    for chosen, (good, pictures) in zip(
        batches, in_order(read, batches, threads=threads, ahead=threads + 2), strict=True
    ):
        if good.any():
            embeddings, norms = embedder.embed(pictures, batch_size, view=view)
            table[chosen[good], :-1] = np.concatenate([embeddings, norms], axis=1)
        table[chosen, -1] = np.where(good, _DONE, _UNREADABLE)
        yield len(chosen)


def _read_or_none(images: ImageList, index: int) -> np.ndarray | None:
    try:
        return images.read(index)
    except ValueError:
        return None


def _reason(images: ImageList, index: int) -> str:
    try:
        images.read(index)
    except ValueError as error:
        return str(error)
    return ""


def load_or_fill(file: Path, shape: tuple[int, int], fill: Callable[[Path], None], *, mapped: bool) -> np.ndarray:
    """Return a table, filled where it is not there.

    Args:
        file: its final name, in a folder that exists.
        shape: of the table.
        fill: is given the name of the unfinished file, opens it by ``open_table``, and fills it.
        mapped: map it from the file instead of reading it.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be written.
    """
    if not file.is_file():
        _fill(file, shape, fill)
    return _load(file, shape, mapped)


def open_table(part: Path, shape: tuple[int, int]) -> np.memmap:
    """Open the unfinished file of an evaluation that was stopped, or a new one, for writing.

    Args:
        part: the file.
        shape: of the table.

    Raises:
        OSError: there is no space for it.
    """
    with contextlib.suppress(ValueError, EOFError, OSError):  # absent, or killed before its header was whole
        table = np.lib.format.open_memmap(part, mode="r+")
        if table.shape == shape and table.dtype == np.float32:
            return table
    table = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    _reserve(part)
    return table


def _fill(file: Path, shape: tuple[int, int], fill: Callable[[Path], None]) -> None:
    """Fill a table, or wait until another evaluation has."""
    part = file.with_name(f".{file.name}.part")
    note = f"note: another evaluation makes {file.name}; waiting for it"
    with locked_when_free(part, note):
        if file.is_file():  # the other was first
            part.unlink()
            return
        fill(part)
        part.replace(file)


def _load(file: Path, shape: tuple[int, int], mapped: bool) -> np.ndarray:
    try:
        table = np.load(file, mmap_mode="r" if mapped else None)
        content = f"shape {table.shape} of {table.dtype}"
    except (ValueError, EOFError):  # numpy recommends to load without protection: not passed on
        table, content = None, "no whole table"
    if table is None or table.shape != shape or table.dtype != np.float32:
        raise ValueError(f"{file} is damaged ({content}, expected shape {shape} of float32): delete it")
    return table


def _reserve(part: Path) -> None:
    """Take the space of a new file now: where it is missing later, writing into the mapping kills the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    size = part.stat().st_size
    file = os.open(part, os.O_RDWR)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in _NO_SPACE:
            part.unlink()
            raise OSError(
                f"no space for {size / 1e6:.1f} MB of embeddings in {part.parent}: make room, or give another --cache "
                f"({os.strerror(error.errno)})"
            ) from error
    finally:
        os.close(file)
