"""The backbones by name: what ``build_model`` builds, and how much arithmetic a network takes."""

import copy
import functools
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adaface.models.backbone import IMAGE_SIZE, Backbone
from adaface.models.iresnet import Architecture, ImprovedResNet
from adaface.models.mobilefacenet import MobileFaceNet
from adaface.models.names import TIMM_PREFIX, unknown_architecture
from adaface.models.timm_backbone import build_timm, check_timm_name

_DEEP_WIDTHS = (256, 512, 1024, 2048)
ARCHITECTURES: dict[str, Callable[[], Backbone]] = {
    "ir_18": partial(ImprovedResNet, Architecture((2, 2, 2, 2))),
    "ir_34": partial(ImprovedResNet, Architecture((3, 4, 6, 3))),
    "ir_50": partial(ImprovedResNet, Architecture((3, 4, 14, 3))),
    "ir_101": partial(ImprovedResNet, Architecture((3, 13, 30, 3))),
    "ir_152": partial(ImprovedResNet, Architecture((3, 8, 36, 3), _DEEP_WIDTHS, bottleneck=True)),
    "ir_200": partial(ImprovedResNet, Architecture((3, 24, 36, 3), _DEEP_WIDTHS, bottleneck=True)),
    "ir_se_50": partial(ImprovedResNet, Architecture((3, 4, 14, 3), squeeze_excite=True)),
    "ir_se_101": partial(ImprovedResNet, Architecture((3, 13, 30, 3), squeeze_excite=True)),
    "ir_se_152": partial(
        ImprovedResNet, Architecture((3, 8, 36, 3), _DEEP_WIDTHS, bottleneck=True, squeeze_excite=True)
    ),
    "ir_se_200": partial(
        ImprovedResNet, Architecture((3, 24, 36, 3), _DEEP_WIDTHS, bottleneck=True, squeeze_excite=True)
    ),
    # half the resolution from the first layer on, and 7x7 at the end as in the others
    "ir_mini": partial(
        ImprovedResNet, Architecture((1, 1, 1, 1), (24, 48, 96, 192), 24, stem_stride=2, stage_strides=(2, 2, 2, 1))
    ),
    "mobilefacenet": MobileFaceNet,
}


def check_architecture(name: str) -> None:
    """Raise an error for a name that ``build_model`` does not take.

    Args:
        name: name of an architecture.

    Raises:
        ValueError: an unknown name; the message has the nearest one, and lists those of ``ARCHITECTURES``.
        RuntimeError: a network of timm, which is not installed.
    """
    if name.startswith(TIMM_PREFIX):
        check_timm_name(name)
    elif name not in ARCHITECTURES:
        raise unknown_architecture(name, tuple(ARCHITECTURES))


@functools.cache
def expected_shapes(arch: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of an architecture's weights by key.

    Args:
        arch: a name that ``build_model`` takes.

    Raises:
        ValueError: unknown architecture.
        RuntimeError: a network of timm, which is not installed.
    """
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in build_model(arch).state_dict().items()}
    return MappingProxyType(shapes)


def build_model(model_name: str) -> Backbone:
    """Build a network with random weights.

    Args:
        model_name: a key of ``ARCHITECTURES``, or ``timm:<name>`` (``models/timm_backbone.py``).

    Raises:
        ValueError: an unknown name; the message has the nearest one, and lists those of ``ARCHITECTURES``.
        RuntimeError: a network of timm, which is not installed.
    """
    check_architecture(model_name)
    return build_timm(model_name) if model_name.startswith(TIMM_PREFIX) else ARCHITECTURES[model_name]()


def count_macs(model: nn.Module) -> int:
    """Return the multiply-accumulates of convolutions, linear layers and attention for one image.

    Args:
        model: a network of ``build_model``; not changed.
    """
    without_storage = copy.deepcopy(model).to("meta").eval()
    dtype = next(without_storage.parameters()).dtype
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        without_storage(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta", dtype=dtype))
    return counter.get_total_flops() // 2
