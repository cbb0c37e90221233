"""Batch norms of a trained network folded into the convolutions before them: fewer passes over memory at inference."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_FOLDABLE = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy for inference, in which each batch norm that follows a convolution is a part of it.

    Args:
        model: a network whose ``nn.Sequential`` parts hold convolutions followed by batch norms; not changed. Layers
            of classes that are derived from these stay as they are: they may compute something else.

    Returns:
        The copy, in evaluation mode, without gradients; its outputs differ by rounding alone (1e-6 of unit
        embeddings in float32). Batch norms before a convolution stay: its zero padding comes after them.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for sequence in [module for module in folded.modules() if type(module) is nn.Sequential]:
            for place, (layer, following) in enumerate(zip(list(sequence), list(sequence)[1:], strict=False)):
                if type(layer) is nn.Conv2d and isinstance(following, _FOLDABLE) and type(following) in _FOLDABLE:
                    sequence[place] = fuse_conv_bn_eval(layer, following)
                    sequence[place + 1] = nn.Identity()
    return folded
