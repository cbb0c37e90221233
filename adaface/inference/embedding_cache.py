"""Embed a list of images with a model, in one or several processes, and cache the embeddings in a file.

There is one file (`embedding_table.py`) per model and list of images.
"""

import hashlib
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor

from adaface.config.choices import MOST_UNREADABLE
from adaface.data.image_list import ImageList, NoFaceError
from adaface.inference.embedder import FUSED, Embedder
from adaface.inference.embedding_table import (
    DONE,
    FACELESS,
    TO_DO,
    UNREADABLE,
    check_rows,
    fill_again,
    load_or_fill,
    open_table,
    reopen_table,
)
from adaface.metrics.outcome import Embedded
from adaface.system.command_line import mark_incomplete
from adaface.system.devices import divide_threads
from adaface.system.files import make_writable_folder
from adaface.system.interrupt import STOP_SIGNALS, stop_signals_held
from adaface.system.progress_bar import progress_bar
from adaface.system.threads import in_order, usable_cores

_POLL_SEC = 0.2
_SHOWN = 5
_KEY_LETTERS = 24
_WORTH_PROCESSES = 1000  # images that are tried again; for fewer, no processes are started
_LONGEST_NAME = 60  # file systems limit names to 255 bytes


@dataclass(frozen=True)
class ModelFile:
    """A model file, loaded by each process.

    Attributes:
        path: checkpoint or ONNX file.
        arch: architecture, if the file does not store it.
        accelerator: ``cpu`` or ``gpu``.
        color: ``rgb`` or ``bgr``, the color order of the network in weights of another program.
    """

    path: str
    arch: str | None = None
    accelerator: str = "cpu"
    color: str | None = None

    def load(self, rank: int = 0) -> Embedder:
        """Load the model onto this process's device.

        Args:
            rank: rank of the process.

        Raises:
            ValueError: the file is not a model.
        """
        device = f"cuda:{rank % max(torch.cuda.device_count(), 1)}" if self.accelerator == "gpu" else "cpu"
        return Embedder.load(self.path, self.arch, device, self.color)


class CachedEmbedding:
    """Embed lists of images with one model; protocols take it as their ``embed``.

    Args:
        model: model file.
        folder: cache folder; None disables the cache.
        processes: number of processes.
        batch_size: batch size of each process.
        most_unreadable: largest allowed share of unreadable images, in [0, 1].

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
        """Embed all images of a list, or those that could not be read before if the others are cached.

        Args:
            images: read in threads, in order.
            view: one of ``inference.embedder.VIEWS``.

        Returns:
            Their embeddings; if cached, they are memory-mapped from the file.

        Raises:
            ValueError: more images than allowed are unreadable (the message names the first ones), or embeddings are
                not finite.
            RuntimeError: a process died, or its embeddings are not finite.
            MemoryError: there was no memory for an image.
            OSError: the cache cannot be written.
        """
        with _cache_folder(self._folder) as folder:
            identity = f"{self.embedder.fingerprint}\0{view}\0{images.fingerprint()}"
            key = hashlib.sha256(identity.encode()).hexdigest()[:_KEY_LETTERS]
            name = re.sub(r"[^A-Za-z0-9_-]", "_", images.name)[:_LONGEST_NAME]
            file = folder / f"{name}-{key}.npy"
            is_kept, fill = file.is_file(), partial(self._embed_all, images, view)
            table = load_or_fill(file, _table_shape(images, self.embedder), fill, mapped=self._folder is not None)
            check_rows(table, file)
            if is_kept and (table[:, -1] == UNREADABLE).any():
                fill_again(file, partial(self._embed_rest, images, view))  # the table, which is mapped, shows it
        readable = table[:, -1] == DONE
        self._check_unreadable(images, readable)
        if not readable.all():
            mark_incomplete()
        return Embedded(table[:, :-2], table[:, -2:-1], readable)

    def _embed_all(self, images: ImageList, view: str, part: Path) -> None:
        open_table(part, _table_shape(images, self.embedder))
        self._embed_rest(images, view, part)

    def _embed_rest(self, images: ImageList, view: str, part: Path) -> None:
        """Fill the rows of an existing table that are to do, and of what could not be read."""
        table = reopen_table(part)
        left = np.flatnonzero(np.isin(table[:, -1], (TO_DO, UNREADABLE)))
        are_few = len(left) < _WORTH_PROCESSES and not (table[:, -1] == TO_DO).any()
        with progress_bar(total=len(images), initial=len(images) - len(left), desc=images.name, unit=" images") as bar:
            if self._processes == 1 or are_few:
                for done in _embed_some(self.embedder, images, view, table, left, self._batch_size, usable_cores()):
                    bar.update(done)
            else:
                self._embed_in_processes(images, view, part, left, bar)
        table.flush()

    def _embed_in_processes(self, images: ImageList, view: str, part: Path, left: np.ndarray, bar: Any) -> None:
        done = torch.zeros(self._processes, dtype=torch.int64).share_memory_()
        parts = np.array_split(left, self._processes)
        arguments = (self._model, images, view, str(part), parts, self._batch_size, done)
        # before the signals are held: the tracker ignores them itself, but where the first process starts it, Python
        # unblocks them in this process (bpo-33613)
        resource_tracker.ensure_running()
        with ExitStack() as stack:
            with stop_signals_held():  # one that arrives while a process starts would end it with a traceback
                # daemons: if not all of them can be started, the end of this process ends the others
                context = torch.multiprocessing.spawn(
                    _process, arguments, nprocs=self._processes, join=False, daemon=True
                )
                stack.callback(_end, context.processes)
            ended = False
            while not ended:
                ended = _have_ended(context)
                bar.update(len(images) - len(left) + int(done.sum()) - bar.n)

    def _check_unreadable(self, images: ImageList, readable: np.ndarray) -> None:
        bad = np.flatnonzero(~readable)
        if len(bad) <= self._most_unreadable * len(readable):
            return
        reasons = [reason for index in bad[:_SHOWN] if (reason := _reason(images, int(index)))]
        raise ValueError(
            f"{len(bad):,} of {len(readable):,} images of {images.name} cannot be read "
            f"({100 * len(bad) / len(readable):.3g} %, {100 * self._most_unreadable:g} % are allowed, set by "
            f"--most_unreadable): {_joined(reasons, len(bad) > _SHOWN)}"
        )


@contextmanager
def _cache_folder(folder: Path | None) -> Iterator[Path]:
    """Yield the folder, created if necessary, or a temporary folder for None."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="adaface_") as temporary:
            yield Path(temporary)
    else:
        make_writable_folder(folder, "--cache")
        yield folder


def _table_shape(images: ImageList, embedder: Embedder) -> tuple[int, int]:
    """Return (N, D + 2): of each image the embedding, its norm, and its state."""
    return len(images), embedder.embedding_size + 2


def _have_ended(context: torch.multiprocessing.ProcessContext) -> bool:
    """Wait for a moment, and return whether all processes have done their part; raise if one has failed."""
    try:
        return bool(context.join(timeout=_POLL_SEC))
    except torch.multiprocessing.ProcessRaisedException as error:
        last = str(error).strip().splitlines()[-1]  # of a traceback
        kind, _, message = last.partition(": ")
        raise (MemoryError(message) if kind.endswith("MemoryError") else RuntimeError(last)) from error
    except torch.multiprocessing.ProcessExitedException as error:
        raise RuntimeError(f"a process that embeds images died ({error}); run the same command to continue") from error


def _end(processes: Sequence[BaseProcess]) -> None:
    """End the processes that still run, after an error or Ctrl-C; what they have written is complete."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _process(
    rank: int,
    model: ModelFile,
    images: ImageList,
    view: str,
    part: str,
    parts: list[np.ndarray],
    batch_size: int,
    done: Tensor,
) -> None:
    """Embed one part of the images, in a process of its own.

    Both signals have been held since its start. A terminal sends Ctrl-C to this process too, but it is the parent that
    ends it; PyTorch sends SIGINT as well if the parent dies, which is noticed after each batch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    parent = multiprocessing.parent_process()  # not os.getppid(): it may have died during the imports
    divide_threads(len(parts))
    embedder = model.load(rank)
    table = reopen_table(Path(part))
    threads = max(1, usable_cores() // len(parts))
    for count in _embed_some(embedder, images, view, table, parts[rank], batch_size, threads):
        done[rank] += count
        if parent is not None and os.getppid() != parent.pid:  # it has died
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
    """Fill the rows of some images, and yield their number after each batch."""

    def read(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [_read(images, int(index)) for index in chosen]
        pictures = [picture for _, picture in found if picture is not None]
        return np.array([state for state, _ in found]), np.stack(pictures) if pictures else np.empty(0)

    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    for chosen, (states, pictures) in zip(
        batches, in_order(read, batches, threads=threads, ahead=threads + 2), strict=True
    ):
        if len(pictures):
            embeddings, norms = embedder.embed(pictures, batch_size, view=view)
            table[chosen[states == DONE], :-1] = np.concatenate([embeddings, norms], axis=1)
        table[chosen, -1] = states
        yield len(chosen)


def _read(images: ImageList, index: int) -> tuple[int, np.ndarray | None]:
    """Return the state of an image, and its pixels if it is read. A lack of memory is not the image's fault."""
    try:
        return DONE, images.read(index)
    except NoFaceError:
        return FACELESS, None
    except ValueError:
        return UNREADABLE, None


def _joined(reasons: list[str], are_more: bool) -> str:
    """Join reasons, an advice that all of them end with once; there are none if the images can be read by now."""
    if not reasons:
        return "by now the first ones can be: run the same command again"
    parts = [reason.rpartition(": ") for reason in reasons]
    more = "; ..." if are_more else ""
    if len(reasons) > 1 and len({advice for _, _, advice in parts}) == 1 and all(fact for fact, _, _ in parts):
        return f"{'; '.join(fact for fact, _, _ in parts)}{more}: {parts[0][2]}"
    return "; ".join(reasons) + more


def _reason(images: ImageList, index: int) -> str:
    try:
        images.read(index)
    except ValueError as error:
        return str(error)
    return ""
