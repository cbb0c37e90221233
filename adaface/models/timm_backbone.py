"""Any network of timm as a backbone: ``--arch timm:vit_small_patch16_224``, ``--arch timm:convnext_tiny@112``.

timm (PyTorch Image Models, Wightman; ``pip install timm``) has a thousand image networks with different input sizes,
color orders and normalizations. The conversion is part of the network: like the other backbones it takes BGR, 112x112,
``x / 127.5 - 1``. Its pooled features are mapped by a linear layer and a batch norm to the 512 numbers whose length is
AdaFace's norm.

``@SIDE`` sets the input size to SIDE x SIDE pixels instead of the network's default: enlarging a face of 112 pixels to
224 adds no information and takes four times the computation. Weights are random; nothing is downloaded.
"""

import importlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaface.models.backbone import EMBEDDING_SIZE, IMAGE_SIZE, Backbone, Stage
from adaface.models.names import TIMM_PREFIX
from adaface.system.command_line import nearest
from adaface.system.devices import TORCH_PAIR, import_torchvision

_NAME = re.compile(r"timm:([\w.-]+?)(?:@(\d+))?")
_SMALLEST_SIDE, _LARGEST_SIDE = 32, 1024
_NEAREST = 3


class TimmBackbone(Backbone):
    """A network of timm between the project's input and its embeddings.

    Args:
        net: of timm, without a classifier: (B, 3, side, side) to (B, width).
        width: of its features.
        side: pixels of the images that it takes.
        mean: of its images, of three channels RGB in [0, 1].
        std: what it divides them by.
    """

    random_blocks = True  # some have stochastic depth or dropout
    net: Any
    _scale: Tensor
    _shift: Tensor

    def __init__(self, net: nn.Module, width: int, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.side = side
        # maps x in [-1, 1] via (x + 1) / 2 in [0, 1]; not in the state dict: constants given by the name
        means, stds = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("_scale", (0.5 / stds).view(3, 1, 1), persistent=False)
        self.register_buffer("_shift", ((0.5 - means) / stds).view(3, 1, 1), persistent=False)
        self.net = net
        self._stage_names = _stage_names(net)
        self.output_layer = nn.Sequential(
            nn.Linear(width, EMBEDDING_SIZE, bias=False), nn.BatchNorm1d(EMBEDDING_SIZE, affine=False)
        )

    def features(self, images: Tensor) -> Tensor:
        """Map (B, 3, 112, 112) BGR to (B, 512)."""
        x = images.flip(1) * self._scale + self._shift  # RGB
        if self.side != IMAGE_SIZE:
            x = F.interpolate(
                x, (self.side, self.side), mode="bilinear", antialias=self.side < IMAGE_SIZE
            )  # (B, 3, side, side)
        return self.output_layer(self.net(x))  # (B, width) to (B, 512)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The groups of timm's own ``group_matcher``, and the output layer; without one, the network's children."""
        groups = (tuple(self.net.get_submodule(name) for name in names) for names in self._stage_names)
        return *groups, (self.output_layer,)


def _stage_names(net: Any) -> list[list[str]]:
    """Return the names of a network's blocks by stage: the largest modules whose parameters are of one group."""
    if not hasattr(net, "group_matcher"):
        return [[name] for name, child in net.named_children() if list(child.parameters())]
    group_parameters = importlib.import_module("timm.models").group_parameters
    stage_of, block_of = (
        group_parameters(net, net.group_matcher(coarse=coarse), reverse=True) for coarse in (True, False)
    )
    stages: dict[int, list[str]] = {}
    for stage, name in _of_one_group(net, {name: (stage_of[name], block_of[name]) for name in stage_of}, ""):
        stages.setdefault(stage, []).append(name)
    return [stages[number] for number in sorted(stages)]


def _of_one_group(module: nn.Module, groups: dict[str, tuple[int, int]], prefix: str) -> Iterator[tuple[int, str]]:
    """Yield stage and name of the largest modules whose parameters are of one stage and block."""
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        child_groups = {group for parameter, group in groups.items() if parameter.startswith(f"{name}.")}
        if len(child_groups) > 1:
            yield from _of_one_group(child, groups, f"{name}.")
        elif child_groups:
            yield child_groups.pop()[0], name


def check_timm_name(name: str) -> None:
    """Raise an error for a name that ``build_timm`` does not take.

    Args:
        name: ``timm:<name>`` or ``timm:<name>@<side>``.

    Raises:
        ValueError: no such network in timm; the nearest are named.
        RuntimeError: timm is not installed.
    """
    _parse(name)


def build_timm(name: str) -> TimmBackbone:
    """Build a network of timm with random weights.

    Args:
        name: ``timm:<name>`` or ``timm:<name>@<side>``.

    Raises:
        ValueError: no such network in timm (the nearest are named), or one that cannot be a backbone.
        RuntimeError: timm is not installed.
    """
    timm_name, side = _parse(name)
    net, side = _create(name, timm_name, side)
    config = net.pretrained_cfg
    return TimmBackbone(net, _feature_width(name, net, side), side, tuple(config["mean"]), tuple(config["std"]))


def _timm() -> Any:
    try:
        import_torchvision()
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"--arch {TIMM_PREFIX}<name> needs the package timm: pip install timm {TORCH_PAIR}"
        ) from error


def _parse(name: str) -> tuple[str, int | None]:
    """Return timm's own name of a network and the requested side."""
    timm = _timm()
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a network of timm: expected timm:<name> or timm:<name>@<side in pixels>")
    timm_name, side = match[1], int(match[2]) if match[2] else None
    if not timm.is_model(timm_name):
        known = (f"{TIMM_PREFIX}{one}" for one in timm.list_models())
        hint = nearest(f"{TIMM_PREFIX}{timm_name}", known, count=_NEAREST, always="timm.list_models() lists all")
        raise ValueError(f"timm {timm.__version__} has no network {timm_name!r}; {hint}")
    if side is not None and not _SMALLEST_SIDE <= side <= _LARGEST_SIDE:
        raise ValueError(f"{name}: images of {side} pixels, expected {_SMALLEST_SIDE} to {_LARGEST_SIDE}")
    return timm_name, side


def _create(name: str, timm_name: str, side: int | None) -> tuple[Any, int]:
    """Return a network without a classifier, and the side of its images."""
    timm = _timm()
    try:
        config = timm.get_pretrained_cfg(timm_name)
        fixed = config is not None and config.fixed_input_size
        size = {"img_size": side} if side is not None and fixed else {}  # of position embeddings and windows
        net = timm.create_model(timm_name, pretrained=False, num_classes=0, **size)
    except Exception as error:  # of many kinds: each network has its own conditions
        raise ValueError(f"timm cannot build {name}: {_first_line(error)}; leave @<side> out, or change it") from error
    return net, side or net.pretrained_cfg["input_size"][-1]


def _feature_width(name: str, net: nn.Module, side: int) -> int:
    """Return the length of a network's feature vector, found by embedding an image."""
    training, parameter = net.training, next(net.parameters())
    try:
        with torch.no_grad():
            features = net.eval()(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))
    except Exception as error:  # of many kinds: a map that becomes too small, tokens that do not fit
        raise ValueError(
            f"{name} does not support images of {side}x{side}: {_first_line(error)}; give another @<side>"
        ) from error
    finally:
        net.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(
            f"{name} cannot be a backbone: it does not return one feature vector per image; choose another network"
        )
    return features.shape[1]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
