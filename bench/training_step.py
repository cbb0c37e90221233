"""One training step (forward, loss, backward, SGD) with 10,000 classes, against the plain eager one.

    python -m bench.training_step

The baseline is the textbook's: PyTorch's own layers in its own layout, the margin written out over the whole (B, C)
matrix, SGD without options. Below, each option of a step is measured against our defaults: one that is not at least
as fast there is off by default on a CPU.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaface.config.options import DeviceOptions, HeadOptions, OptimizerOptions
from adaface.models.input_format import normalize_images
from adaface.training.execution import configure_backbone
from adaface.training.module import FaceRecognitionModule
from bench._textbook_net import textbook
from bench.head import WrittenOutHead
from bench.timing import Side, compare, options, report

_CLASSES = 10_000
_LR = 1e-6  # the weights stay what they are, so that every step is the same work
_TOLERANCE, _TOLERANCE_BF16 = 1e-4, 0.1


class Problem:
    """A network with its head, and one batch.

    Args:
        arch: name of the network.
        batch_size: B.
        classes: C.
    """

    def __init__(self, arch: str, batch_size: int, classes: int) -> None:
        torch.manual_seed(0)
        self.module = FaceRecognitionModule(arch, classes, HeadOptions(m=0.4, h=0.333), OptimizerOptions(lr=_LR))
        for layer in self.module.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0  # so that the losses can be compared
        self.images = torch.randint(0, 256, (batch_size, 112, 112, 3), dtype=torch.uint8)
        self.labels = torch.randint(0, classes, (batch_size,))

    def plain(self) -> Callable[[], Tensor]:
        """Return the baseline's step, which returns its loss."""
        model = textbook(self.module.model)
        head = WrittenOutHead(self.module.head.kernel.detach())
        sgd = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=_LR, momentum=0.9, weight_decay=5e-4)

        def step() -> Tensor:
            loss = head.loss(*model(normalize_images(self.images, channels_last=False)), self.labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            return loss.detach()

        return step

    def ours(self, *, bf16: bool = False, **given: Any) -> Callable[[], Tensor]:
        """Return the step of the training module, with some device options."""
        module = copy.deepcopy(self.module)
        configure_backbone(module, DeviceOptions(**given), accelerator="cpu", processes=1, batch_size=len(self.images))
        sgd = module.configure_optimizers()["optimizer"]

        def step() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = module.head.loss(*module(self.images), self.labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            return loss.detach()

        return step


def same_loss(baseline: Tensor, candidate: Tensor, *, tolerance: float) -> dict[str, Any]:
    """Raise unless the losses of the first step agree."""
    difference = abs(float(candidate / baseline) - 1)
    if not difference < tolerance:
        raise AssertionError(f"the losses differ by {difference:.1e} of their size")
    return {"difference of the loss": f"{difference:.1e}"}


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    small, large = (("ir_mini", 2), ("ir_mini", 3)) if chosen.quick else (("ir_mini", 64), ("ir_50", 8))
    classes = 100 if chosen.quick else _CLASSES
    problems = {size: Problem(*size, classes) for size in (large, small)}

    def measure(
        size: tuple[str, int], row: str, baseline: Side, candidate: Side, target: float, tolerance: float = _TOLERANCE
    ) -> None:
        result = compare(
            f"training step, {size[0]} B={size[1]}, C={classes:,}{row}", baseline, candidate, count=size[1],
            unit="images", target=target, check=partial(same_loss, tolerance=tolerance), repeats=chosen.repeats,
        )  # fmt: skip
        report({**result, "details": {**result["details"], **notes}}, __file__, chosen.output)

    notes: dict[str, Any] = {}
    for size, target in ((large, 1.1), (small, 1.5)):
        measure(size, "", Side("plain", problems[size].plain()), Side("defaults", problems[size].ours()), target)
    plain, compiled = problems[small].plain(), problems[small].ours(compile=True)
    plain()  # as many steps as the other: AdaFace's statistics move
    started = time.perf_counter()
    compiled()
    notes["first step"] = f"{time.perf_counter() - started:.0f} s"
    measure(small, ", --compile", Side("plain", plain), Side("compiled", compiled), 1.5)
    notes.clear()
    for row, given in (
        ("--channels_last on", {"channels_last": "on"}),
        ("--precision bf16-mixed", {"bf16": True}),
        ("--gradient_checkpointing", {"gradient_checkpointing": True}),
        ("--head_memory small", {"head_memory": "small"}),
    ):
        ours, candidate = (
            Side(name, problems[small].ours(**words)) for name, words in (("defaults", {}), (row, given))
        )
        tolerance = _TOLERANCE_BF16 if "bf16" in given else _TOLERANCE
        measure(small, f", {row} against defaults", ours, candidate, 1, tolerance)


if __name__ == "__main__":
    main()
