"""The IR-ResNets: residual networks for faces, with and without squeeze-excitation.

Sources: He et al., "Deep Residual Learning" (CVPR 2016); Deng et al., "ArcFace" (CVPR 2019, section
3.2.2: the "improved residual" block, no activation after the sum, and the BN-dropout-linear-BN output); Hu et al.,
"Squeeze-and-Excitation Networks" (CVPR 2018). State-dict keys are those of the official AdaFace code, so the published
weights load.

Differs from the official code: the embedding is normalized in float32 under autocast; names and shapes are checked;
shortcuts subsample instead of max pooling over single pixels, with the same result.

``ir_mini`` is not from a paper. It is for CPUs, demos and tests: the same blocks, one per stage, and an input layer of
stride 2, since layers at 112x112 take more time than their arithmetic suggests. It has
5.5 million parameters, 77 million multiply-accumulates an image (ir_18: 24 and 2,597). Forward and backward on one
CPU core, channels last, take 1/20 of ir_18's time (11 against 225 ms an image in batches of 8; medians of 5
interleaved repeats).
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adaface.models.backbone import EMBEDDING_SIZE, IMAGE_SIZE, Backbone, Stage
from adaface.models.layers import PReLU

_DROPOUT = 0.4
_SE_REDUCTION = 16


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from all channel means (Hu et al., CVPR 2018), without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // _SE_REDUCTION, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // _SE_REDUCTION, channels, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, channels, H, W) by gates (B, channels, 1, 1)."""
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))


class Subsample(nn.Module):
    """Keep every ``stride``-th pixel, as max pooling over single pixels does, without looking for their maximum."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, channels, H / stride, W / stride)."""
        if self.stride == 1:
            return x
        if torch.compiler.is_compiling():
            return x[:, :, :: self.stride, :: self.stride]
        return _EveryNth.apply(x, self.stride)


class _EveryNth(torch.autograd.Function):
    """Slicing whose gradient keeps the memory layout of its input; PyTorch's is planar and slows down later layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.shape, ctx.stride = x.shape, stride
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if is_last else torch.contiguous_format
        return x[:, :, ::stride, ::stride]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=ctx.layout).zero_()
        whole[:, :, :: ctx.stride, :: ctx.stride] = gradient
        return whole, None


class ImprovedResidualBlock(nn.Module):
    """A residual block without activation after the sum.

    Args:
        channels_in: channels of the input.
        width: channels of the output.
        stride: of the last convolution and of the shortcut.
        bottleneck: 1x1, 3x3, 1x1 convolutions in place of two 3x3.
        squeeze_excite: append squeeze-excitation to the residual branch.
    """

    def __init__(
        self, channels_in: int, width: int, stride: int, *, bottleneck: bool = False, squeeze_excite: bool = False
    ) -> None:
        super().__init__()
        if channels_in == width:
            self.shortcut_layer: nn.Module = Subsample(stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        branch = _bottleneck_branch if bottleneck else _basic_branch
        self.res_layer = nn.Sequential(*branch(channels_in, width, stride))
        if squeeze_excite:
            self.res_layer.add_module("se_block", SqueezeExcitation(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, width, H / stride, W / stride)."""
        return self.res_layer(x).add_(self.shortcut_layer(x))


def _basic_branch(channels_in: int, width: int, stride: int) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(channels_in),
        nn.Conv2d(channels_in, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        PReLU(width),
        nn.Conv2d(width, width, 3, stride, 1, bias=False),
        nn.BatchNorm2d(width),
    ]


def _bottleneck_branch(channels_in: int, width: int, stride: int) -> list[nn.Module]:
    narrow = width // 4
    return [
        nn.BatchNorm2d(channels_in),
        nn.Conv2d(channels_in, narrow, 1, bias=False),
        nn.BatchNorm2d(narrow),
        PReLU(narrow),
        nn.Conv2d(narrow, narrow, 3, 1, 1, bias=False),
        nn.BatchNorm2d(narrow),
        PReLU(narrow),
        nn.Conv2d(narrow, width, 1, stride, bias=False),
        nn.BatchNorm2d(width),
    ]


@dataclass(frozen=True)
class Architecture:
    """Sizes of one IR-ResNet.

    Attributes:
        units: blocks in each of the four stages; the first of a stage has its stride.
        widths: channels of each stage.
        stem_width: channels of the input layer.
        stem_stride: stride of the input layer.
        stage_strides: stride of each stage.
        bottleneck: bottleneck blocks in place of basic ones.
        squeeze_excite: blocks with squeeze-excitation.
    """

    units: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem_width: int = 64
    stem_stride: int = 1
    stage_strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    bottleneck: bool = False
    squeeze_excite: bool = False


class ImprovedResNet(Backbone):
    """Input layer, four stages of improved residual blocks, and the output layer.

    Args:
        architecture: its sizes.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, a.stem_width, 3, a.stem_stride, 1, bias=False),
            nn.BatchNorm2d(a.stem_width),
            PReLU(a.stem_width),
        )
        # the official order of the state dict: input, output, body
        side = IMAGE_SIZE // a.stem_stride
        for stride in a.stage_strides:
            side = -(-side // stride)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(a.widths[-1]),
            nn.Dropout(_DROPOUT),
            nn.Flatten(),
            nn.Linear(a.widths[-1] * side * side, EMBEDDING_SIZE),
            nn.BatchNorm1d(EMBEDDING_SIZE, affine=False),
        )
        self.body = nn.Sequential(*_blocks(a))
        self._units = a.units
        self.apply(_initialize)

    def features(self, images: Tensor) -> Tensor:
        """Map (B, 3, 112, 112) to (B, 512)."""
        x = self.input_layer(images)  # (B, stem width, 112, 112)
        for block in self.body:
            x = block(x)  # at last (B, last width, 7, 7)
        return self.output_layer(x)  # (B, 512)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The input layer, the blocks of the four stages, the output layer."""
        blocks = iter(self.body)
        return (self.input_layer,), *(tuple(islice(blocks, units)) for units in self._units), (self.output_layer,)


def _blocks(a: Architecture) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    channels = a.stem_width
    for width, units, stage_stride in zip(a.widths, a.units, a.stage_strides, strict=True):
        for unit in range(units):
            stride = stage_stride if unit == 0 else 1
            blocks.append(
                ImprovedResidualBlock(channels, width, stride, bottleneck=a.bottleneck, squeeze_excite=a.squeeze_excite)
            )
            channels = width
    return blocks


def _initialize(module: nn.Module) -> None:
    """Kaiming-normal (fan out, ReLU) for convolutions and the linear layer; batch norms start at 1 and 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
