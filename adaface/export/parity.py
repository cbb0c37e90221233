"""Check on real images that an exported file computes the same as PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adaface.export.network import OnnxNetwork
from adaface.models.backbone import Backbone
from adaface.models.input_format import InputFormat

LEAST_COSINE = 0.99999
MOST_NORM_DIFFERENCE = 1e-3  # relative to the norm
SEVERAL = 8


@dataclass(frozen=True)
class Parity:
    """Differences between the outputs of two networks.

    Attributes:
        images: number of images compared.
        batch_sizes: batch sizes that were compared.
        least_cosine: smallest cosine between the two embeddings of an image.
        mean_cosine: mean of these cosines.
        embedding_difference: largest absolute difference of a component of the unit embeddings.
        norm_difference: largest relative difference of a norm.
    """

    images: int
    batch_sizes: tuple[int, ...]
    least_cosine: float
    mean_cosine: float
    embedding_difference: float
    norm_difference: float

    def line(self) -> str:
        """Return a summary in one line."""
        sizes = " and ".join(map(str, self.batch_sizes))
        return (
            f"{self.images} images in batches of {sizes}: cosine {self.least_cosine:.7f} at least, "
            f"{self.mean_cosine:.7f} on average; embeddings differ by at most {self.embedding_difference:.1e}, norms "
            f"by {self.norm_difference:.1e} relative"
        )

    def check(self) -> None:
        """Raise ValueError if the networks differ by more than rounding.

        Raises:
            ValueError: with the differences.
        """
        # written so that NaN fails too
        if not (self.least_cosine >= LEAST_COSINE and self.norm_difference <= MOST_NORM_DIFFERENCE):
            raise ValueError(
                f"the outputs of the export differ from PyTorch's ({self.line()}; expected a cosine of at least "
                f"{LEAST_COSINE} and norms within {MOST_NORM_DIFFERENCE:g}). No file was written. Weights that are "
                "not finite, after a training that diverged, are a common cause"
            )


@torch.inference_mode()
def compare_with_pytorch(
    model: Backbone, exported: OnnxNetwork, images: np.ndarray, input_format: InputFormat
) -> Parity:
    """Embed images with both networks, one at a time and in batches.

    Args:
        model: the network that was exported, in evaluation mode, as it was loaded.
        exported: its export.
        images: (N, 112, 112, 3) uint8, in the networks' color order, N at least 1.
        input_format: input that the network expects; the export uses its own metadata.
    """
    parts = [model(input_format.normalized(torch.from_numpy(batch))) for batch in _batches(images, SEVERAL)]
    expected = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
    return _parity(exported, images, expected[0], expected[1])


def compare_networks(reference: OnnxNetwork, other: OnnxNetwork, images: np.ndarray) -> Parity:
    """Embed images with two exported networks.

    Args:
        reference: the reference.
        other: the network to compare, such as its INT8 version.
        images: (N, 112, 112, 3) uint8, in the networks' color order, N at least 1.
    """
    expected = [np.concatenate(part) for part in zip(*map(reference, _batches(images, SEVERAL)), strict=True)]
    return _parity(other, images, expected[0], expected[1])


def _batches(images: np.ndarray, size: int) -> Sequence[np.ndarray]:
    return [np.ascontiguousarray(images[start : start + size]) for start in range(0, len(images), size)]


def _parity(network: OnnxNetwork, images: np.ndarray, embeddings: np.ndarray, norms: np.ndarray) -> Parity:
    """Compare a network with the outputs of another one: (N, D) and (N, 1)."""
    sizes = (1, SEVERAL) if len(images) > 1 else (1,)
    cosines, of_embeddings, of_norms = [], [], []
    reference = embeddings.astype(np.float64)
    for size in sizes:
        outputs = [np.concatenate(part) for part in zip(*map(network, _batches(images, size)), strict=True)]
        vectors = outputs[0].astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
        cosines.append((vectors * reference).sum(axis=1) / lengths)  # (N,)
        of_embeddings.append(np.abs(vectors - reference).max())
        of_norms.append(np.abs(outputs[1] / norms - 1).max())
    every = np.concatenate(cosines)
    return Parity(
        images=len(images),
        batch_sizes=sizes,
        least_cosine=float(every.min()),
        mean_cosine=float(every.mean()),
        embedding_difference=float(np.max(of_embeddings)),
        norm_difference=float(np.max(of_norms)),
    )
