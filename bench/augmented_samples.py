"""Augmented training samples in one process, probabilities 0.2 each, against Pillow and torchvision; and decoding.

    python -m bench.augmented_samples

Both sides start from the same encoded images and end with a batch in memory. The baseline is the official pipeline:
decoded by Pillow, flipped and cropped by torchvision, shrunk and enlarged by OpenCV, brightness, contrast and
saturation by Pillow, then a normalised float32 tensor. The second row compares with bare decoding by OpenCV, the most
that any pipeline that decodes could reach; there the ratio is below 1.
"""

import io
import random
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as F

from adaface.augmentation.paper import CROP_ASPECT, INTERPOLATIONS, LOW_RES_SCALE, Augmenter
from adaface.data.datasets import TrainingDataset, start_worker
from bench._drawn_faces import encoded_faces
from bench.timing import Side, compare, options, report

_PROB = 0.2
_BATCH = 128
_CROP_AREA = (0.2, 1.0)


class Encoded:
    """Encoded images in memory as a source of training samples, all of one class."""

    def __init__(self, images: list[bytes]) -> None:
        self.images, self.labels = images, np.zeros(len(images), np.int64)
        self.class_names, self.location = ["0"], "memory"

    def __len__(self) -> int:
        return len(self.images)

    def label(self, index: int) -> int:
        """Return the class of one of them."""
        return int(self.labels[index])

    def read(self, index: int) -> bytes:
        """Return one of them."""
        return self.images[index]

    def describe(self, index: int) -> str:
        """Name one of them."""
        return str(index)


def pillow_sample(encoded: bytes, prob: float) -> Tensor:
    """Return one sample (3, 112, 112) float32 in [-1, 1], as the official pipeline makes it."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    if random.random() < 0.5:
        image = F.hflip(image)
    if random.random() < prob:
        top, left, height, width = RandomResizedCrop.get_params(image, list(_CROP_AREA), list(CROP_ASPECT))
        pixels = np.array(image)
        black = np.zeros_like(pixels)
        black[top : top + height, left : left + width] = pixels[top : top + height, left : left + width]
        image = Image.fromarray(black)
    if random.random() < prob:
        side = int(random.uniform(*LOW_RES_SCALE) * image.height)
        small = cv2.resize(np.array(image), (side, side), interpolation=random.choice(INTERPOLATIONS))
        image = Image.fromarray(cv2.resize(small, image.size, interpolation=random.choice(INTERPOLATIONS)))
    if random.random() < prob:
        image = ColorJitter(0.5, 0.5, 0.5, 0)(image)
    return F.normalize(F.to_tensor(image), [0.5] * 3, [0.5] * 3)


def pillow_batches(images: list[bytes], prob: float = _PROB) -> list[Tensor]:
    """Return all samples in batches (B, 3, 112, 112); the last one alone is kept."""
    for first in range(0, len(images), _BATCH):
        batch = torch.stack([pillow_sample(image, prob) for image in images[first : first + _BATCH]])
    return [batch]


def our_batches(dataset: TrainingDataset) -> list[Tensor]:
    """Return all samples in batches (B, 112, 112, 3); the last one alone is kept."""
    for first in range(0, len(dataset), _BATCH):
        batch, _ = dataset.__getitems__([(0, i) for i in range(first, min(first + _BATCH, len(dataset)))])
    return [batch]


def decode_all(images: list[bytes]) -> None:
    """Decode and do nothing else."""
    for image in images:
        cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)


def same_work(images: list[bytes], *_: Any) -> dict[str, Any]:
    """Raise unless both pipelines give the same pixels where nothing is drawn but the flip."""
    plain = our_batches(TrainingDataset(Encoded(images), Augmenter(0, 0, 0), seed=0))[0]
    theirs = pillow_batches(images, 0.0)[0]
    ours = plain.flip(3).permute(0, 3, 1, 2) / 127.5 - 1  # RGB
    either = torch.minimum((ours - theirs).abs().amax((1, 2, 3)), (ours.flip(3) - theirs).abs().amax((1, 2, 3)))
    difference = float(either.max()) * 127.5
    if difference > 2:  # two JPEG decoders
        raise AssertionError(f"the pipelines differ by {difference:.1f} grey levels without augmentation")
    return {"largest difference without augmentation, grey levels": round(difference, 2)}


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    count = 40 if chosen.quick else 6_000
    start_worker(0)  # as a data worker works: no threads in OpenCV
    torch.set_num_threads(1)
    images = encoded_faces(count)
    dataset = TrainingDataset(Encoded(images), Augmenter(_PROB, _PROB, _PROB), seed=0)
    ours = Side("TrainingDataset, uint8", partial(our_batches, dataset))
    for row, baseline, target, check in (
        ("augmented samples", Side("Pillow and torchvision, float32", partial(pillow_batches, images)), 4, same_work),
        ("augmented samples / decoded images", Side("bare decoding, OpenCV", partial(decode_all, images)), 0.55, None),
    ):
        result = compare(
            f"{row}, {count:,} images", baseline, ours, count=count, unit="images", target=target,
            check=partial(check, images) if check else lambda *_: {}, repeats=chosen.repeats,
        )  # fmt: skip
        report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
