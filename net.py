"""The backbones, under the official import path: ``import net; net.build_model("ir_50")``.

The code is in ``adaface/models/``: the networks in ``models/iresnet.py``, their names in ``models/registry.py``.
"""

from adaface.models.input_format import normalize_images as normalize_images
from adaface.models.iresnet import Architecture as Architecture
from adaface.models.iresnet import ImprovedResidualBlock as ImprovedResidualBlock
from adaface.models.iresnet import ImprovedResNet as ImprovedResNet
from adaface.models.iresnet import SqueezeExcitation as SqueezeExcitation
from adaface.models.registry import ARCHITECTURES as ARCHITECTURES
from adaface.models.registry import build_model as build_model
from adaface.models.registry import check_architecture as check_architecture
from adaface.models.registry import count_macs as count_macs
