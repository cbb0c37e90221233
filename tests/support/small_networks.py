"""IR-ResNets so small that a test builds and runs one at once."""

from adaface.models.iresnet import Architecture

TINY = {
    "basic": Architecture((1, 2, 1, 1), (8, 12, 16, 24), 8, stem_stride=2),
    "bottleneck with squeeze-excitation": Architecture(
        (2, 1, 1, 1), (16, 32, 32, 48), 8, stem_stride=2, bottleneck=True, squeeze_excite=True
    ),
}
