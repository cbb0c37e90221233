"""Find the weights of a network in what other programs saved: in a part of the file, or in a part of a part.

A file of this project or of the official code has them as ``state_dict``, and is left as it is. Of other files, the
part with a usual name is taken, such as ``model``; without one, the only part with the keys of a known network,
whatever it is called. Which one is meant is never guessed.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adaface.models import registry

FOUND_IN = "found_in"  # key next to the state dict of other programs' files: name of the part
OTHERS = "other_parts"  # key beside it: names of the parts with a known network that were not taken
WHOLE = "the file itself"
_USUAL = ("model", "backbone", "model_state_dict", "net", "network", "module", "weights", "params", "state_dict")
_FEWEST_WEIGHTS = 10  # of a network
_DEEPEST = 3
_LONGEST_LIST = 10  # a list of networks, not of numbers
_LONGEST_NAME = 60


def with_state_dict(loaded: Any, path: Path) -> Any:
    """Return the weights of other programs' files as ``state_dict``, with ``found_in``; other contents unchanged.

    Args:
        loaded: content of a file.
        path: the file, for the message.

    Raises:
        ValueError: several parts hold a known network, and none has a usual name.
    """
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if isinstance(state, dict) and not any(map(_is_weights, state.values())):
        return loaded
    networks = find_networks(loaded)
    name, part = _under_usual_name(loaded)
    if part is None and len(networks) > 1:
        raise ValueError(
            f"{path} holds several networks, {_listed(networks)}: save the weights of one of them alone, with "
            "torch.save"
        )
    if part is None and networks:
        name, part = next(iter(networks.items()))
    elif part is None and _is_weights(loaded):
        name, part = WHOLE, loaded
    if part is None:
        return loaded
    weights = {key: value for key, value in part.items() if isinstance(key, str) and isinstance(value, Tensor)}
    others = [other for other, network in networks.items() if network is not part]
    return {"state_dict": weights, FOUND_IN: name, OTHERS: others}


def find_networks(loaded: Any) -> dict[str, dict[Any, Any]]:
    """Return the parts that hold a known network by their names, such as ``checkpoint.model``; each object once.

    Args:
        loaded: content of a file.
    """
    seen: set[int] = set()
    return {name or WHOLE: part for name, part in _parts(loaded, "", _DEEPEST, seen) if _is_network(part)}


def describe_part(checkpoint: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of the part that was taken, and those of the others, as text; empty if there are none.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
    """
    name, others = checkpoint.get(FOUND_IN, "state_dict"), checkpoint.get(OTHERS, [])
    if FOUND_IN not in checkpoint:
        others = [other for other in find_networks(checkpoint) if other != "state_dict"]
    if not isinstance(name, str) or not isinstance(others, list):  # the file itself can have such keys
        return "", ""
    whole = name in (WHOLE, "safetensors", "state_dict")
    return "" if whole else f"`{_short(name)}`", _listed(others)


@functools.cache
def first_keys() -> frozenset[str]:
    """Return the first key of the weights of each known network."""
    return frozenset(next(iter(registry.expected_shapes(name))) for name in registry.ARCHITECTURES)


def prefix_of(key: str) -> str | None:
    """Return what stands in front of a first key, such as ``model.``; None if it is another key.

    Args:
        key: of a state dict.
    """
    return next((key.removesuffix(first) for first in first_keys() if key == first or key.endswith("." + first)), None)


def _parts(loaded: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[str, dict[Any, Any]]]:
    if id(loaded) in seen or not isinstance(loaded, (dict, list, tuple)):
        return
    seen.add(id(loaded))
    if isinstance(loaded, dict):
        yield name, loaded
    items = loaded.items() if isinstance(loaded, dict) else enumerate(loaded[:_LONGEST_LIST])
    for key, part in items if depth else ():
        yield from _parts(part, f"{name}.{_short(key)}".lstrip("."), depth - 1, seen)


def _under_usual_name(loaded: Any) -> tuple[str, dict[Any, Any] | None]:
    for name in _USUAL if isinstance(loaded, dict) else ():
        part = loaded.get(name)
        inner = {f"{name}.{other}": part.get(other) for other in _USUAL} if isinstance(part, dict) else {}
        found = next((item for item in {name: part, **inner}.items() if _is_weights(item[1])), None)
        if found is not None:
            return found
    return "", None


def _is_weights(part: Any) -> bool:
    if not isinstance(part, dict) or len(part) < _FEWEST_WEIGHTS:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in part.items())


def _is_network(part: dict[Any, Any]) -> bool:
    keys = [key for key, value in part.items() if isinstance(key, str) and isinstance(value, Tensor)]
    return len(keys) >= _FEWEST_WEIGHTS and any(prefix_of(key) is not None for key in keys)


def _short(name: object) -> str:
    return " ".join(str(name)[:_LONGEST_NAME].split())


def _listed(names: Any) -> str:
    return ", ".join(f"`{_short(name)}`" for name in list(names)[:_LONGEST_LIST])
