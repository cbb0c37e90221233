"""The weights in a checkpoint: finding their architecture, checking that they fit a network, and loading them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaface.checkpoints.files import KERNEL, SHARDED_HEAD
from adaface.checkpoints.parts import FOUND_IN, describe_part, prefix_of
from adaface.config.choices import COLORS
from adaface.models import registry
from adaface.models.registry import expected_shapes

_BACKBONE_PREFIX = "model."
# names that other programs and PyTorch's wrappers put in front of a network's keys
_WRAPPERS = {"", "model", "module", "net", "network", "backbone", "_orig_mod", "encoder", "features"}
_OURS = {"model", "module", "_orig_mod"}  # of this project and the official code, parallel or compiled
_RUNNING_MEAN = "running_mean"
_KEY_OF_INSIGHTFACE = "layer1.0.prelu.weight"
_OF_INSIGHTFACE = ", as of InsightFace's iresnet, whose shortcuts differ, so its weights fit none here"
_SHOWN_KEYS = 5


def backbone_state(checkpoint: dict[str, Any], path: str | Path, color: str | None = None) -> dict[str, Tensor]:
    """Return the backbone's weights of a checkpoint, keys without prefix, of a network that takes BGR.

    Weights that are not stored as ``model.*`` of a ``state_dict``, or are stored below another module of it, as in
    ``model.net.*``, come from another program, whose color order is not known. The weights of an RGB network become
    those of a BGR network with the same embeddings: the input channels of its first convolution are reversed.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        path: its file, for the message.
        color: ``rgb`` or ``bgr``, the color order of another program's network.

    Raises:
        ValueError: no weights of a backbone, or another program's weights without a color order.
    """
    weights, prefix = _without_prefix(checkpoint, path)
    if _is_ours(checkpoint, prefix):
        if color == "rgb":
            raise ValueError(
                f"{path} is a checkpoint of this project or of the official code, which takes BGR: omit --color"
            )
        return weights
    where = f"weights under `{prefix}`" if prefix else "weights without a prefix"
    if color not in COLORS:
        raise ValueError(
            f"{path} has {where} and does not store the color order that its network takes: give --color rgb or "
            "--color bgr (networks of CVLface take RGB)"
        )
    if color == "rgb":
        first = next((key for key, value in weights.items() if value.ndim == 4 and value.shape[1] == 3), None)
        if first is None:
            raise ValueError(f"{path} has no convolution of three input channels, so its color order cannot be changed")
        weights[first] = weights[first].flip(1)  # (out, 3, height, width)
    return weights


def describe_foreign(checkpoint: dict[str, Any], path: str | Path) -> str:
    """Return which weights of another program's file are taken, and what is ignored; empty for a checkpoint of ours.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        path: its file.
    """
    _, prefix = _without_prefix(checkpoint, path)
    if _is_ours(checkpoint, prefix):
        return ""
    taken = _count(checkpoint, prefix)
    ignored = len(checkpoint["state_dict"]) - taken
    part, others = describe_part(checkpoint)
    where = (f"`{prefix}`" if prefix else "no prefix") + (f" of its part {part}" if part else "")
    rest = f"; {ignored} other entries are ignored" if ignored else ""
    rest += f"; the weights in {others} are ignored" if others else ""
    return f"{path}: {taken} weights under {where} are taken{rest}"


def _without_prefix(checkpoint: dict[str, Any], path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Return the backbone's weights without the prefix of their keys, and the prefix."""
    state = checkpoint["state_dict"]
    for prefix in _prefixes(state, path):
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if weights:
            return _with_counters(weights), prefix
    keys = list(state)
    raise ValueError(
        f"{path} has no `model.*` weights; its keys begin with {keys[:_SHOWN_KEYS]}"
        + (_OF_INSIGHTFACE if any(key.endswith(_KEY_OF_INSIGHTFACE) for key in keys) else "")
        + ". `adaface models` lists the networks whose weights are read, under any prefix"
    )


def _is_ours(checkpoint: Mapping[str, Any], prefix: str) -> bool:
    below = prefix.removeprefix(_BACKBONE_PREFIX).rstrip(".")
    ours = prefix.startswith(_BACKBONE_PREFIX) and set(filter(None, below.split("."))) <= _OURS
    return ours and FOUND_IN not in checkpoint


def _count(checkpoint: dict[str, Any], prefix: str) -> int:
    return sum(key.startswith(prefix) for key in checkpoint["state_dict"])


def _with_counters(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the batch counters of batch normalization, which other programs leave out; no output depends on them."""
    means = [key for key in weights if key.endswith(_RUNNING_MEAN)]
    counters = [key.removesuffix(_RUNNING_MEAN) + "num_batches_tracked" for key in means]
    return weights | {key: torch.tensor(0) for key in counters if key not in weights}


def _prefixes(state: Mapping[str, Tensor], path: str | Path) -> list[str]:
    """Return the prefixes under which a known network may be, such as ``model.module.``; ``model.`` is the last one."""
    prefixes = {prefix for prefix in map(prefix_of, state) if prefix is not None}
    found = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
    usual = [prefix for prefix in found if set(prefix.split(".")) <= _WRAPPERS]
    has_model = any(key.startswith(_BACKBONE_PREFIX) for key in state)
    others = [prefix for prefix in found if prefix.startswith(_BACKBONE_PREFIX) or not has_model]
    chosen = usual or others
    if not all(_same_weights(state, chosen[0], prefix) for prefix in chosen[1:]):
        raise ValueError(
            f"{path} holds several networks, under the prefixes {chosen[:_SHOWN_KEYS]}: save the weights of one of "
            "them alone, with torch.save"
        )
    return [*chosen, _BACKBONE_PREFIX]


def _same_weights(state: Mapping[str, Tensor], first: str, second: str) -> bool:
    """Return whether the same network is stored under two prefixes, as by modules that share it."""
    one, other = (
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for prefix in (first, second)
    )
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stored_architecture(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the architecture in a checkpoint's training options; None if there is none.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
    """
    section = checkpoint.get("adaface")
    config = section.get("config") if isinstance(section, Mapping) else None
    arch = config.get("arch") if isinstance(config, Mapping) else None
    return arch if isinstance(arch, str) and arch else None


def find_architecture(checkpoint: dict[str, Any], path: str | Path) -> str:
    """Return the architecture of a checkpoint: the stored one, otherwise the one with the same keys and shapes.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        path: its file, for the message.

    Raises:
        ValueError: no backbone weights, or weights of an unknown architecture.
    """
    weights, prefix = _without_prefix(checkpoint, path)
    architecture = stored_architecture(checkpoint) or identify_architecture(weights)
    if architecture is None:
        nearest, misfit = nearest_architecture(weights)
        raise ValueError(
            f"{path} holds weights of an unknown architecture ({_count(checkpoint, prefix)} entries); the nearest one "
            f"is {nearest}, except for {misfit}. `adaface models` lists the known ones; for a network of timm give "
            "--arch timm:<name>, because it cannot be recognized by its weights"
        )
    return architecture


def key_misfit(weights: dict[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Describe the missing and unexpected entries of a backbone state dict; empty if there are none.

    Args:
        weights: backbone state dict.
        expected: shapes by key.
    """
    missing = [key for key in expected if key not in weights]
    shaped = [key for key in expected if key in weights and tuple(weights[key].shape) != expected[key]]
    extra = [key for key in weights if key not in expected]
    kinds = {"missing": missing, "of another shape": shaped, "unexpected": extra}
    return ", ".join(f"{len(keys)} entries {what} {_first(keys)}" for what, keys in kinds.items() if keys)


def _first(keys: list[str]) -> str:
    return f"({', '.join(keys[:_SHOWN_KEYS])}{', ...' if len(keys) > _SHOWN_KEYS else ''})"


def identify_architecture(weights: dict[str, Tensor]) -> str | None:
    """Return the architecture with the keys and shapes of these weights, or None.

    Args:
        weights: backbone state dict.
    """
    return next((name for name in registry.ARCHITECTURES if not key_misfit(weights, expected_shapes(name))), None)


def nearest_architecture(weights: dict[str, Tensor]) -> tuple[str, str]:
    """Return the architecture that shares the most entries with these weights, and how the others differ.

    Args:
        weights: backbone state dict of an unknown architecture.
    """
    shapes = {(key, tuple(value.shape)) for key, value in weights.items()}
    differing = {name: len(shapes ^ set(expected_shapes(name).items())) for name in registry.ARCHITECTURES}
    nearest = min(differing, key=differing.__getitem__)
    return nearest, key_misfit(weights, expected_shapes(nearest))


def load_backbone(
    model: nn.Module, checkpoint: dict[str, Any], path: str | Path, arch: str, color: str | None = None
) -> None:
    """Load the backbone weights of a checkpoint into ``model``.

    Args:
        model: a network of ``registry.build_model(arch)``; changed in place.
        checkpoint: what ``load_checkpoint`` returned.
        path: its file, for the message.
        arch: its architecture's name, for the message.
        color: as in ``backbone_state``.

    Raises:
        ValueError: the checkpoint has another architecture (which the message names), or other keys.
    """
    weights = backbone_state(checkpoint, path, color)
    misfit = key_misfit(weights, {key: tuple(value.shape) for key, value in model.state_dict().items()})
    if misfit:
        stored = stored_architecture(checkpoint) or identify_architecture(weights)
        if stored not in (None, arch):
            raise ValueError(f"{path} holds weights of {stored}, the run uses --arch {arch}: give --arch {stored}")
        raise ValueError(f"{path} does not hold weights of {arch}: {misfit}")
    own = model.state_dict()
    rounded = [key for key in own if own[key].is_floating_point() and not weights[key].is_floating_point()]
    if rounded:
        raise ValueError(f"{path}: {len(rounded)} weights are integers, expected floats; the first is {rounded[0]}")
    model.load_state_dict(weights)


def head_shape(checkpoint: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the shape (D, C) of the head in a checkpoint folder; None if the head is in the state dict.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
    """
    sharded = checkpoint.get("adaface", {}).get(SHARDED_HEAD)
    return None if sharded is None else tuple(sharded["shape"])


def check_fits(
    checkpoint: dict[str, Any],
    expected: dict[str, tuple[int, ...]],
    path: str | Path,
    sub_centers: int = 1,
    change: str = "",
) -> None:
    """Raise ValueError if the weights of a run to resume do not fit the module.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        expected: shapes of backbone and head, the head's with all classes.
        path: the checkpoint's file, for the message.
        sub_centers: columns of the head for each class.
        change: which classes are gone and new, for the message.
    """
    shapes = {key: tuple(value.shape) for key, value in checkpoint["state_dict"].items()}
    shape = head_shape(checkpoint)
    if shape is not None:
        shapes[KERNEL] = shape
    wrong = [key for key in expected | shapes if expected.get(key) != shapes.get(key)]
    if wrong == [KERNEL] and len(shapes.get(KERNEL, ())) == 2:
        raise ValueError(
            f"{path} has a head of {shapes[KERNEL][1] // sub_centers} classes, the training data has "
            f"{expected[KERNEL][1] // sub_centers}{change and f', {change}'}: resume on the data the run began "
            "with, or start a new run with --start_from_model_statedict"
        )
    if wrong:
        raise ValueError(
            f"{path} does not fit this run: {len(wrong)} entries differ, the first are {wrong[:_SHOWN_KEYS]}; resume "
            "with the --arch and --head it was trained with"
        )
