"""What a network wants as its input: the order of colours, and what grey levels become."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from backbone import IMAGE_SIZE
from net import normalize_images


@dataclass(frozen=True)
class InputFormat:
    """What a network wants as its input.

    Attributes:
        color: ``BGR`` or ``RGB``.
        mean: subtracted from the grey levels 0 to 255.
        std: what the difference is divided by.
    """

    color: str = "BGR"
    mean: float = 127.5
    std: float = 127.5

    @classmethod
    def of(cls, metadata: Any, path: str | Path) -> "InputFormat":
        """Return the format that a model file tells of.

        Args:
            metadata: with ``color``, ``size``, ``mean``, ``std``; what is absent is as in the official code.
            path: the file, for the message.

        Raises:
            ValueError: a format that no network of ours has.
        """
        if not isinstance(metadata, Mapping):
            raise ValueError(f"{path} tells of its images {metadata!r}, expected color, size, mean and std by name")
        found = cls(metadata.get("color", cls.color), metadata.get("mean", cls.mean), metadata.get("std", cls.std))
        size = metadata.get("size", [IMAGE_SIZE, IMAGE_SIZE])
        numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (found.mean, found.std))
        if (
            found.color not in ("BGR", "RGB")
            or not numbers
            or found.std == 0
            or size not in ([IMAGE_SIZE, IMAGE_SIZE], (IMAGE_SIZE, IMAGE_SIZE))
        ):
            raise ValueError(
                f"{path} wants images that are not known here: color {found.color!r}, size {size!r}, mean "
                f"{found.mean!r}, std {found.std!r}; expected color BGR or RGB, size [{IMAGE_SIZE}, {IMAGE_SIZE}], and "
                "numbers for mean and std"
            )
        return found

    def normalized(self, images: Tensor, *, channels_last: bool = True) -> Tensor:
        """Turn (B, 112, 112, 3) uint8 in the network's colour order into its input, (B, 3, 112, 112) float32.

        Args:
            images: on whatever device they are.
            channels_last: as of ``net.normalize_images``.
        """
        return normalize_images(images, channels_last=channels_last, mean=self.mean, std=self.std)
