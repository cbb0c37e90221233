"""A moving average of the backbone's weights, smoother than the weights of a single step; it is what is evaluated.

After each optimizer step ``average += (1 - decay) * (weights - average)``, including batch-norm statistics. In the
first steps the decay is lower, (1 + n) / (10 + n) after n steps, so that the random initial weights are soon forgotten.
The average does not affect training, which has the same bits without it.

In a checkpoint ``model.*`` is the average, because its accuracy was measured and because every program that reads the
checkpoint should get it. The weights to resume from are stored with it, under ``adaface``.

Sources: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992); the smaller decay of the
first steps is TensorFlow's ``ExponentialMovingAverage(num_updates=...)``.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

_TRAINED, _UPDATES = "trained_weights", "averaged_steps"
_PREFIX = "model."


class WeightAverage:
    """A network whose weights are the moving average of another network's.

    Args:
        model: the network to average; the average starts as a copy, on its device.
        decay: weight of the previous average in a step, in (0, 1).

    Attributes:
        model: the average, without gradients.
        updates: number of averaged steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._averaged: nn.Module | None = None
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights after a step.

        Args:
            model: of the same architecture, on the same device. Its tensors are looked up once: it must keep them.
        """
        if self._averaged is not model:  # walking over the modules of a deep network takes longer than the update
            self._averaged, self._pairs = model, _pairs_by_dtype(self.model, model)
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for averages, weights in self._pairs:
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, weights, share)
            else:  # batch norm's number of batches
                torch._foreach_copy_(averages, weights)
        self.updates += 1


def _pairs_by_dtype(average: nn.Module, model: nn.Module) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return the tensors of both networks in the same order, those of each dtype in lists of their own."""
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    of_average, of_model = ([*one.parameters(), *one.buffers()] for one in (average, model))
    for averaged, weights in zip(of_average, of_model, strict=True):
        lists = pairs.setdefault(averaged.dtype, ([], []))
        lists[0].append(averaged)
        lists[1].append(weights)
    return list(pairs.values())


def put_into(checkpoint: dict[str, Any], average: WeightAverage) -> None:
    """Store the average as the model of a checkpoint, and the weights to resume from next to it.

    Args:
        checkpoint: of Lightning, with an ``adaface`` part; changed in place.
        average: of the backbone.
    """
    state = checkpoint["state_dict"]
    checkpoint["adaface"][_TRAINED] = {key: value for key, value in state.items() if key.startswith(_PREFIX)}
    checkpoint["adaface"][_UPDATES] = average.updates
    averaged = {f"{_PREFIX}{key}": value for key, value in average.model.state_dict().items()}
    # in the official order of the state dict; not in place, because the dictionary belongs to the caller
    checkpoint["state_dict"] = {key: averaged.get(key, value) for key, value in state.items()}


def take_from(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], int] | None:
    """Restore the weights to resume from as the model of a checkpoint.

    Args:
        checkpoint: a loaded checkpoint; changed in place.

    Returns:
        The average, with keys of the backbone, and its number of steps; None if the checkpoint has none.

    Raises:
        ValueError: the weights to resume from do not match the average.
    """
    trained, updates = (checkpoint["adaface"].pop(name, None) for name in (_TRAINED, _UPDATES))
    if trained is None:
        return None
    state = checkpoint["state_dict"]
    averaged = {key: value for key, value in state.items() if key.startswith(_PREFIX)}
    fits = (
        isinstance(trained, dict)
        and isinstance(updates, int)
        and updates >= 0
        and list(trained) == list(averaged)
        and all(isinstance(value, Tensor) and value.shape == averaged[key].shape for key, value in trained.items())
    )
    if not fits:
        raise ValueError(
            f"the checkpoint's averaged weights do not fit its `{_TRAINED}`: it is damaged; use another one, or start "
            "a new run with --start_from_model_statedict"
        )
    checkpoint["state_dict"] = {**state, **trained}
    return {key.removeprefix(_PREFIX): value for key, value in averaged.items()}, updates
