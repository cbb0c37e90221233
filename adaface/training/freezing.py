"""Train a part of a pretrained backbone: frozen stages, frozen batch norms, lower learning rates towards the input.

Frozen parameters have no gradient and are not updated; frozen batch norms use their stored statistics and do not update
them. Frozen modules therefore do not change at all.

Source: fewer trained layers, and a learning rate that decreases by a factor per stage towards the input, as in Howard
and Ruder, "Universal Language Model Fine-tuning" (ACL 2018, arXiv 1801.06146, "discriminative fine-tuning"), and the
recipes of BEiT (arXiv 2106.08254): the factor counts from the output layer, which has the full learning rate, like the
head.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from adaface.models.backbone import Backbone


def check_stages(network: Backbone) -> None:
    """Raise ValueError if a network has no stages.

    Args:
        network: the network.
    """
    try:
        _ = network.stages
    except NotImplementedError as error:
        raise ValueError(
            f"{type(network).__name__} does not define stages: omit --freeze_stages and --layer_lr_decay, or use "
            "another --arch"
        ) from error


def freeze(network: Backbone, stages: int, *, batch_norm: bool) -> None:
    """Freeze parameters; call this before the optimizer is built.

    Args:
        network: changed in place.
        stages: freeze the input layer and this number of stages; 0 freezes none.
        batch_norm: freeze all batch norms.

    Raises:
        ValueError: more stages than the network has.
    """
    if stages:
        check_stages(network)
        body = len(network.stages) - 2
        if stages > body:
            raise ValueError(f"--freeze_stages {stages}, but the network has {body} stages: give 0 to {body}")
        for group in network.stage_parameters()[: 1 + stages]:
            for parameter in group:
                parameter.requires_grad_(False)
    for module in frozen_modules(network, 0, batch_norm=batch_norm):
        module.requires_grad_(False)


def frozen_modules(network: Backbone, stages: int, *, batch_norm: bool) -> Iterator[nn.Module]:
    """Yield the modules that ``freeze`` freezes, and that must stay in evaluation mode.

    Args:
        network: the network as it is now; its batch norms may have been replaced by synchronized ones.
        stages: as in ``freeze``.
        batch_norm: as in ``freeze``.
    """
    if stages:
        for stage in network.stages[: 1 + stages]:
            yield from stage
    if batch_norm:
        yield from (module for module in network.modules() if isinstance(module, _BatchNorm))


def learning_rate_scales(network: Backbone, decay: float) -> dict[nn.Parameter, float]:
    """Return the learning rate factor of each parameter: 1 in the output layer, times ``decay`` per stage before it.

    Args:
        network: a network with stages, unless ``decay`` is 1.
        decay: in (0, 1].

    Raises:
        ValueError: the network does not define stages.
    """
    if decay == 1:
        return dict.fromkeys(network.parameters(), 1.0)
    check_stages(network)
    groups = reversed(network.stage_parameters())
    return {parameter: decay**distance for distance, group in enumerate(groups) for parameter in group}
