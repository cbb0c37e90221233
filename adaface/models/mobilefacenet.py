"""MobileFaceNet: a network for phones and CPUs, a million parameters.

Source: Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices" (CCBR
2018, arXiv 1804.07573), table 1: inverted residuals (Sandler et al., MobileNetV2, CVPR 2018) with PReLU, and in place
of global pooling a depthwise convolution over the whole 7x7 map (GDConv), which learns what each place is worth.
Differs from the paper: embeddings of 512 numbers, not 128, through a batch norm without scale, as in the other
backbones here, so that AdaFace's norms mean the same.
"""

from torch import Tensor, nn

from adaface.models.backbone import EMBEDDING_SIZE, Backbone, Stage
from adaface.models.layers import PReLU

_STEM_WIDTH = 64
_LAST_WIDTH = 512
_LAST_SIDE = 7  # of the map, after four halvings of 112
# (expansion, width, blocks, stride of the first) as in table 1; a stage begins where the map is halved
_STAGES = (
    ((2, 64, 5, 2),),
    ((4, 128, 1, 2), (2, 128, 6, 1)),
    ((4, 128, 1, 2), (2, 128, 2, 1)),
)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; a shortcut where input and output have one shape.

    Args:
        channels_in: channels of the input.
        width: channels of the output.
        stride: of the depthwise convolution.
        expansion: channels inside, as a multiple of those of the input.
    """

    def __init__(self, channels_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = expansion * channels_in
        self.branch = nn.Sequential(
            *_convolution(channels_in, inside, 1),
            PReLU(inside),
            *_convolution(inside, inside, 3, stride, groups=inside),
            PReLU(inside),
            *_convolution(inside, width, 1),
        )
        self.has_shortcut = stride == 1 and channels_in == width

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, width, H / stride, W / stride)."""
        return x + self.branch(x) if self.has_shortcut else self.branch(x)


def _convolution(channels_in: int, width: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, up to its stride, and its batch norm."""
    return [
        nn.Conv2d(channels_in, width, side, stride, side // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
    ]


class MobileFaceNet(Backbone):
    """Input layer, three stages of inverted residuals, and the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            *_convolution(3, _STEM_WIDTH, 3, 2),
            PReLU(_STEM_WIDTH),
            *_convolution(_STEM_WIDTH, _STEM_WIDTH, 3, groups=_STEM_WIDTH),
            PReLU(_STEM_WIDTH),
        )
        self.body = nn.ModuleList()
        channels = _STEM_WIDTH
        for stage in _STAGES:
            blocks = nn.Sequential()
            for expansion, width, count, stride in stage:
                for number in range(count):
                    blocks.append(InvertedResidual(channels, width, stride if number == 0 else 1, expansion))
                    channels = width
            self.body.append(blocks)
        self.output_layer = nn.Sequential(
            *_convolution(channels, _LAST_WIDTH, 1),
            PReLU(_LAST_WIDTH),
            nn.Conv2d(_LAST_WIDTH, _LAST_WIDTH, _LAST_SIDE, groups=_LAST_WIDTH, bias=False),  # GDConv
            nn.BatchNorm2d(_LAST_WIDTH),
            nn.Flatten(),
            nn.Linear(_LAST_WIDTH, EMBEDDING_SIZE, bias=False),
            nn.BatchNorm1d(EMBEDDING_SIZE, affine=False),
        )
        self.apply(_initialize)

    def features(self, images: Tensor) -> Tensor:
        """Map (B, 3, 112, 112) to (B, 512)."""
        x = self.input_layer(images)  # (B, 64, 56, 56)
        for blocks in self.body:
            x = blocks(x)  # at last (B, 128, 7, 7)
        return self.output_layer(x)  # (B, 512)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The input layer, the blocks of each resolution, the output layer."""
        return (self.input_layer,), *(tuple(blocks.children()) for blocks in self.body), (self.output_layer,)


def _initialize(module: nn.Module) -> None:
    """Kaiming-normal (ReLU): fan out of each group for convolutions, fan in for the linear layer."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.weight.numel() // module.in_channels
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
