"""IR-ResNets so small that a test builds and runs one at once."""

import contextlib
from collections.abc import Iterator
from functools import partial

from adaface.models.iresnet import Architecture, ImprovedResNet
from adaface.models.registry import ARCHITECTURES

TINY = {
    "basic": Architecture((1, 2, 1, 1), (8, 12, 16, 24), 8, stem_stride=2),
    "bottleneck with squeeze-excitation": Architecture(
        (2, 1, 1, 1), (16, 32, 32, 48), 8, stem_stride=2, bottleneck=True, squeeze_excite=True
    ),
}
TRAINED = "ir_tiny"  # ir_mini with a tenth of its weights: a checkpoint with momentum takes 4 MB in place of 44


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Let the commands that are called in this process know the architecture ``TRAINED``."""
    ARCHITECTURES[TRAINED] = partial(
        ImprovedResNet, Architecture((1, 1, 1, 1), (8, 8, 16, 16), 8, stem_stride=2, stage_strides=(2, 2, 2, 1))
    )
    try:
        yield
    finally:
        del ARCHITECTURES[TRAINED]
