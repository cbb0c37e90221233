"""What a network wants as its input: the order of colours, and what grey levels become."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaface.models.backbone import IMAGE_SIZE


def normalize_images(
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = True,
    mean: float = 127.5,
    std: float = 127.5,
) -> Tensor:
    """Turn uint8 images into the network's input, on whatever device they are.

    Args:
        images: (B, 112, 112, 3) uint8 BGR.
        dtype: floating type of the result.
        channels_last: leave the memory as it is; False: one plane after the other, for a network in that layout.
        mean: subtracted from the grey levels 0 to 255.
        std: what the difference is divided by.

    Returns:
        (B, 3, 112, 112), in [-1, 1] unless mean or std say otherwise.
    """
    exact = torch.promote_types(dtype, torch.float32)  # a 16-bit division would lose the last grey levels
    images = images.permute(0, 3, 1, 2)
    images = images if channels_last else images.contiguous()
    return images.to(exact).div_(std).sub_(mean / std).to(dtype)


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
            channels_last: as of ``normalize_images``.
        """
        return normalize_images(images, channels_last=channels_last, mean=self.mean, std=self.std)
