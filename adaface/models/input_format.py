"""The input format of a network: color order and normalization."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaface.models.backbone import IMAGE_SIZE

_LARGEST = 1e6  # of mean and std; no gray level is above 255


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
        channels_last: keep the memory layout; False: copy to contiguous planes, for a network in that layout.
        mean: subtracted from the gray levels 0 to 255.
        std: what the difference is divided by.

    Returns:
        (B, 3, 112, 112), in [-1, 1] unless mean or std say otherwise.
    """
    exact = torch.promote_types(dtype, torch.float32)  # a 16-bit division would lose the last gray levels
    images = images.permute(0, 3, 1, 2)
    images = images if channels_last else images.contiguous()
    return images.to(exact).div_(std).sub_(mean / std).to(dtype)


@dataclass(frozen=True)
class InputFormat:
    """The input format of a network.

    Attributes:
        color: ``BGR`` or ``RGB``.
        mean: subtracted from the gray levels 0 to 255.
        std: what the difference is divided by.
    """

    color: str = "BGR"
    mean: float = 127.5
    std: float = 127.5

    @classmethod
    def of(cls, metadata: Any, path: str | Path) -> "InputFormat":
        """Return the format stored in a model file.

        Args:
            metadata: with ``color``, ``size``, ``mean``, ``std``; missing values are those of the official code.
            path: the file, for the message.

        Raises:
            ValueError: a format that is not supported.
        """
        if not isinstance(metadata, Mapping):
            raise ValueError(f"{path} has the input format {metadata!r}, expected color, size, mean and std by name")
        input_format = cls(
            metadata.get("color", cls.color), metadata.get("mean", cls.mean), metadata.get("std", cls.std)
        )
        size = metadata.get("size", [IMAGE_SIZE, IMAGE_SIZE])
        numbers = all(
            isinstance(number, int | float) and -_LARGEST < number < _LARGEST  # 1e400 is a number in JSON
            for number in (input_format.mean, input_format.std)
        )
        if (
            input_format.color not in ("BGR", "RGB")
            or not numbers
            or input_format.std == 0
            or size not in ([IMAGE_SIZE, IMAGE_SIZE], (IMAGE_SIZE, IMAGE_SIZE))
        ):
            raise ValueError(
                f"{path} has an unsupported input format: color {input_format.color!r}, size {size!r}, mean "
                f"{input_format.mean!r}, std {input_format.std!r}; expected color BGR or RGB, "
                f"size [{IMAGE_SIZE}, {IMAGE_SIZE}], and numbers for mean and std"
            )
        return input_format

    def normalized(self, images: Tensor, *, channels_last: bool = True) -> Tensor:
        """Turn (B, 112, 112, 3) uint8 in the network's color order into its input, (B, 3, 112, 112) float32.

        Args:
            images: on whatever device they are.
            channels_last: as of ``normalize_images``.
        """
        return normalize_images(images, channels_last=channels_last, mean=self.mean, std=self.std)
