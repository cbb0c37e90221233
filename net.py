"""The backbones, under the official import path: ``import net; net.build_model("ir_50")``.

The code is in ``adaface/models/``: the networks in ``iresnet.py``, their names in ``registry.py``.
"""

from input_format import normalize_images as normalize_images
from iresnet import Architecture as Architecture
from iresnet import ImprovedResidualBlock as ImprovedResidualBlock
from iresnet import ImprovedResNet as ImprovedResNet
from iresnet import SqueezeExcitation as SqueezeExcitation
from registry import ARCHITECTURES as ARCHITECTURES
from registry import build_model as build_model
from registry import check_architecture as check_architecture
from registry import count_macs as count_macs
