"""The backbone as a textbook writes it: PyTorch's own PReLU, pooling over single pixels, planes in memory."""

import copy

from torch import nn

from adaface.models.backbone import Backbone
from adaface.models.iresnet import Subsample
from adaface.models.layers import PReLU


def textbook(model: Backbone) -> Backbone:
    """Return a copy with the same weights in PyTorch's own layers.

    Args:
        model: not changed.
    """
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Subsample):
                parent.register_module(name, nn.MaxPool2d(1, layer.stride))
            elif isinstance(layer, PReLU):
                plain = nn.PReLU(layer.num_parameters)
                plain.load_state_dict(layer.state_dict())
                parent.register_module(name, plain.train(layer.training))
    return model
