"""Training on one GPU: whole steps, heads and input, against a plain loop that does what arcface_torch's does.

    python -m bench gpu

Each row has images/s, MFU (operations of the products of a step, by those that a large product of the same dtype
reaches on this device in this run), and the peak memory on the device. The baseline does what `train_v2.py` does
(`bench/_gpu_steps.py`). A step is the training module's: forward, loss, backward, loss scaling, clipping, SGD. The
loop of Lightning around it and the copy of the images to the device are not in it.

Where both sides do not fit into the memory at once, each is built anew before its one turn; a side that does not fit
alone says so. The run ends within 9 minutes: a row that would take longer than what is left is left out, and says so.

Without a GPU, the same code runs on the CPU with tiny sizes. Its figures are no claim, and are not kept.
"""

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F

from adaface.augmentation.paper import Augmenter
from adaface.data.datasets import TrainingDataset
from adaface.system.devices import peak_memory
from bench._drawn_faces import encoded_faces
from bench._gpu_steps import HALF, OurStep, PlainLoop, Work
from bench.augmented_samples import Encoded, decode_all, our_batches, pillow_batches
from bench.timing import RESULTS, Side, compare, not_compared, options, report, table

_BUDGET_SEC = 500.0
_WINDOW_SEC = 0.4  # of one run of a side
_MOST_STEPS = 50
_WARM_UP_STEPS = 4
_TRAINING_CLASSES = 85_742  # of the whole steps: MS1MV2
_TARGET = 1.0
_TOLERANCE, _TOLERANCE_SAMPLED = 0.02, 0.2  # of the loss; the sides sample other classes
_PRODUCT = 8192  # rows and columns of the large matrices
_NAMES = ("a loop as train_v2.py", "here")
_MAKERS: dict[str, Callable[..., Callable[[], Tensor]]] = dict(zip(_NAMES, (PlainLoop, OurStep), strict=True))


class DoesNotFitError(Exception):
    """A side needs more memory than the device has; the argument is its name."""


class Stage:
    """The two sides of a row on the device: both at once, or, where they do not fit, one after the other.

    Args:
        work: of the row.
        device: where.

    Attributes:
        steps: of one run.
        together: whether both sides fit on the device at once.
        peak_bytes: on the device, by side, with the weights; of a GPU only.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.work, self.device = work, device
        self.steps, self.together = 0, True
        self.peak_bytes: dict[str, float] = {}
        self._built: dict[str, Callable[[], Tensor]] = {}

    def ready(self, name: str) -> None:
        """Build a side if it is not on the device.

        Raises:
            DoesNotFitError: nothing else is on the device, and it does not fit.
        """
        if name in self._built or self._build(name):
            return
        self.together = False
        self.clear()  # removes the other side
        if not self._build(name):
            self.clear()
            raise DoesNotFitError(name)

    def run(self, name: str) -> Tensor:
        """Take the steps of one run; return the last loss."""
        for _ in range(self.steps):
            loss = self._built[name]()
        self._wait()
        return loss.float().cpu()

    def clear(self) -> None:
        """Remove both sides from the device."""
        self._built.clear()
        gc.collect()
        if self.work.compile:
            torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _build(self, name: str) -> bool:
        """Build and warm up; return whether everything on the device fits."""
        cuda = self.device.type == "cuda"
        try:
            before = torch.cuda.memory_allocated() if cuda else 0
            self._built[name] = side = _MAKERS[name](self.work, self.device)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            for _ in range(_WARM_UP_STEPS if cuda else 1):
                side()
            self._wait()
            if cuda:
                self.peak_bytes[name] = peak_memory("cuda") - before
            for other in self._built.values():  # with the memory of both
                other()
            self._wait()
            self.steps = self.steps or self._steps_of_a_run(side)
        except torch.OutOfMemoryError:
            self._built.pop(name, None)
            return False
        return True

    def _steps_of_a_run(self, side: Callable[[], Tensor]) -> int:
        started = time.perf_counter()
        side()
        self._wait()
        most = _MOST_STEPS if self.device.type == "cuda" else 1
        return max(1, min(most, round(_WINDOW_SEC / (time.perf_counter() - started))))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(work: Work, device: torch.device, row: str, peak: float, repeats: int) -> dict[str, Any]:
    """Measure one row.

    Args:
        work: of both sides.
        device: where.
        row: its words in the table.
        peak: operations per second of a large product in the dtype of the work.
        repeats: runs of each side.

    Returns:
        What ``timing.compare`` or ``timing.not_compared`` returns, with words for the table.
    """
    stage = Stage(work, device)
    fits = {}
    for name in _NAMES:
        try:
            stage.ready(name)
            fits[name] = True
        except DoesNotFitError:
            fits[name] = False
    sides = [Side(name, partial(stage.run, name), before=partial(stage.ready, name)) for name in _NAMES if fits[name]]
    tolerance = _TOLERANCE if (work.sample_rate or 1.0) == 1.0 else _TOLERANCE_SAMPLED
    described: dict[str, dict[str, Any]] = {name: {"name": name, "shown": "does not fit in memory"} for name in _NAMES}
    result = not_compared(row, *described.values(), target=_TARGET)
    if sides:
        result_of_sides = compare(
            row, sides[0], sides[-1], count=work.batch_size * stage.steps, unit="images", target=_TARGET,
            check=partial(same_loss, tolerance=tolerance), repeats=repeats if stage.together else 1,
        )  # fmt: skip
        for side in (result_of_sides["baseline"], result_of_sides["candidate"]):
            if device.type == "cuda":
                side["peak_mb"] = stage.peak_bytes[side["name"]] / 1e6
            steps_per_sec = side["per_sec"] / work.batch_size
            side["mfu"] = steps_per_sec * work.operations / peak
            side["shown"] = f"{side['per_sec']:,.0f} images/s, MFU {side['mfu']:.0%}, {_memory(side['peak_mb'])}"
            described[side["name"]] = side
        if len(sides) == len(_NAMES):
            result = result_of_sides
        else:
            result = not_compared(row, *described.values(), target=_TARGET)
    stage.clear()
    return result


def _memory(peak_mb: float | None) -> str:
    return "memory unknown" if peak_mb is None else f"{peak_mb / 1e3:.1f} GB"


def same_loss(baseline: Tensor, candidate: Tensor, *, tolerance: float) -> dict[str, Any]:
    """Raise unless the losses agree."""
    difference = abs(float(candidate / baseline) - 1)
    if not difference < tolerance:
        raise AssertionError(f"the losses are {float(baseline):.4f} and {float(candidate):.4f}")
    return {"difference of the loss": f"{difference:.1e}"}


def product_peak(precision: str, device: torch.device, size: int) -> float:
    """Return the operations per second of the product of two large square matrices, the best of several runs.

    Args:
        precision: a key of ``HALF``.
        device: where.
        size: rows and columns.
    """
    a, b = (torch.randn(size, size, device=device, dtype=HALF[precision]) for _ in range(2))
    products, best = 10, float("inf")
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return products * 2.0 * size**3 / best


def works(quick: bool) -> Iterator[Work]:
    """Yield the rows in the order in which they are measured: those that compile last, since they take longest.

    Args:
        quick: tiny ones, for a CPU.
    """
    classes = (2_000,) if quick else (85_742, 617_970, 2_059_906)
    size = 4 if quick else 128
    for C in classes:
        for rate in (None, 1.0, 0.1):
            yield Work(None, size, C, "16", sample_rate=rate)
    archs, sizes = (("ir_mini",), (4,)) if quick else (("ir_50", "ir_18", "ir_101"), (128, 512))
    for precision in HALF:
        for batch_size in sizes:
            for arch in archs:
                yield Work(arch, batch_size, 1_000 if quick else _TRAINING_CLASSES, precision)
    if not quick:  # compiling takes minutes on a CPU: bench.training_step measures it there
        for batch_size in sizes:
            for arch in ("ir_18", "ir_50", "ir_101"):
                yield Work(arch, batch_size, _TRAINING_CLASSES, "bf16", compile=True)


class RowTimes:
    """Seconds that a row may take: for each kind in proportion to its size, by a guess until one was measured."""

    def __init__(self) -> None:
        self._per_unit = {"head": 1.5, "step": 0.3, "compiled": 4.0}

    def expected(self, work: Work) -> float:
        """Return the seconds that a row may take."""
        kind, size = self._kind(work)
        return self._per_unit[kind] * size

    def note(self, work: Work, seconds: float) -> None:
        """Note what a row took; the next ones of its kind are expected to be as slow for their size."""
        kind, size = self._kind(work)
        self._per_unit[kind] = seconds / size

    @staticmethod
    def _kind(work: Work) -> tuple[str, float]:
        if work.arch is None:
            return "head", max(1.0, work.classes / 1e5)
        layers = work.arch.rpartition("_")[2]
        return "compiled" if work.compile else "step", float(layers) if layers.isdigit() else 1.0


# input


def train_v2_batches(images: list[bytes]) -> list[Tensor]:
    """Decode, mirror and normalize as the data set of `train_v2.py` does; the last batch (B, 3, 112, 112) alone."""
    batch = []
    for encoded in images:
        pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        image = Image.fromarray(pixels)
        if random.random() < 0.5:
            image = F.hflip(image)
        batch.append(F.normalize(F.to_tensor(image), [0.5] * 3, [0.5] * 3))
    return [torch.stack(batch)]


def measure_input(device_name: str, quick: bool, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of decoding and of input samples on one core."""
    threads, count = torch.get_num_threads(), 40 if quick else 1_024
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    images = encoded_faces(count)
    started = time.perf_counter()
    decode_all(images)
    decoded = f"{count / (time.perf_counter() - started):,.0f} images/s"
    for row, baseline, prob in (
        ("mirrored", Side("as train_v2.py", partial(train_v2_batches, images)), 0.0),
        ("the paper's augmentations", Side("as the official pipeline", partial(pillow_batches, images)), 0.2),
    ):
        dataset = TrainingDataset(Encoded(images), Augmenter(prob, prob, prob), seed=0)
        result = compare(
            f"{device_name}: input of one core, {row}", baseline,
            Side(_NAMES[1], partial(our_batches, dataset)), count=count, unit="images", target=_TARGET,
            check=lambda *_: {}, repeats=repeats,
        )  # fmt: skip
        for side in (result["baseline"], result["candidate"]):
            side["shown"] = f"{side['per_sec']:,.0f} images/s"
        result["details"]["decoding alone by OpenCV"] = decoded
        yield result
    torch.set_num_threads(threads)


def main() -> int:
    """Measure and report; return the exit status."""
    started, chosen = time.monotonic(), options(__doc__)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    quick = chosen.quick or not on_gpu
    name = torch.cuda.get_device_name() if on_gpu else "CPU, no claim"
    output = chosen.output if on_gpu or chosen.output != RESULTS else None
    if not on_gpu:
        print("there is no CUDA GPU: tiny sizes on the CPU, whose figures are no claim and are not kept", flush=True)
    torch.backends.cudnn.benchmark = True  # as train_v2.py
    results: list[dict[str, Any]] = []

    def add(result: dict[str, Any]) -> None:
        if on_gpu:
            versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
            result["machine"] |= {"gpu": name, **versions, "operations_per_sec_of_products": peaks}
        results.append(result)
        report(result, __file__, output)

    peaks = {precision: product_peak(precision, device, 256 if quick else _PRODUCT) for precision in HALF}
    print(", ".join(f"{peak / 1e12:.3g} TFLOP/s in a large {dtype} product" for dtype, peak in peaks.items()))
    for result in measure_input(name, quick, chosen.repeats):
        add(result)
    times = RowTimes()
    for work in works(quick):
        row, began = f"{name}: {work.row}", time.monotonic()
        if began - started + times.expected(work) > _BUDGET_SEC:
            late = ({"name": side, "shown": "left out: no time"} for side in _NAMES)
            add(not_compared(row, *late, target=_TARGET))
            continue
        try:
            add(measure(work, device, row, peaks[work.precision], chosen.repeats))
        except Exception as error:  # one row must not cost the others; the exit status tells
            failed = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            add(not_compared(row, *({"name": side, "shown": failed} for side in _NAMES), target=_TARGET))
        times.note(work, time.monotonic() - began)
    print(f"{time.monotonic() - started:.0f} s in all", flush=True)
    if output != RESULTS:  # `python -m bench` prints the table of those that are kept
        print("\n".join(table(results)))
    return int(any("failed" in result["baseline"].get("shown", "") for result in results))


if __name__ == "__main__":
    sys.exit(main())
