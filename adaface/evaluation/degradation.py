"""The degradation of ``--degrade blur``: faces as from a surveillance camera or an out-of-focus photograph.

In the order in which a camera does it: the lens is out of focus (Gaussian blur), the face moves while the shutter is
open (motion blur, any direction), it is small in the picture (down-sampling), the picture is compressed (JPEG, with
colours at half the resolution at each quality, as cameras do), and an aligner enlarges the face to 112x112 again. Each
image gets its own amount of each, uniform between none and the maximum below, times the strength.

An image's degradation depends on (seed, its place in the list) and nothing else: not on the order of reading, not on
the process. For one image everything grows with the strength; 0 changes nothing, 1 is ``--degrade blur``.

Source: none, it is ours, and fixed: a change of it is a new ``VERSION``, so that kept embeddings are not mixed up. The
size of 20 px is the mean face of TinyFace (Cheng, Zhu and Gong, "Low-resolution face recognition", ACCV 2018).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from adaface.augmentation.camera import compress, defocus, move
from adaface.data.image_list import ImageList
from adaface.reporting.style import DPI, save_figure

VERSION = 1
DEGRADATIONS = ("blur",)
SMALLEST_FACE_PX = 20  # TinyFace's mean face is 20 x 16 px
FACE_PX = 112
DOWN_SAMPLING = FACE_PX / SMALLEST_FACE_PX
# A Gaussian halves the contrast at 0.1874 / sigma cycles per pixel; the finest detail of a 20 px face is 10 cycles.
DEFOCUS_SIGMA_PX = 2.1
# A person who walks across the view (1.4 m/s) moves 23 mm in 1/60 s; the eyes, 63 mm apart, are 35.2 px apart here.
MOTION_PX = 13.0
JPEG_QUALITY = 30  # of the small picture, as of a recorder that saves room: its blocks are plain to see
SAMPLE_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_BEST_JPEG_QUALITY = 100
_DRAWS = 5  # numbers of an image


def degrade(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Degrade one face.

    Args:
        image: (H, W, 3) uint8 BGR, normally 112x112; not changed.
        rng: where all randomness comes from; as many numbers are drawn at each strength.
        strength: in [0, 1]; 0 changes nothing.

    Returns:
        (H, W, 3) uint8 BGR, a new array.

    Raises:
        ValueError: another strength.
    """
    _check_strength(strength)
    focus, motion, angle, size, compression = rng.random(_DRAWS).tolist()
    if strength == 0:
        return image.copy()
    height, width = image.shape[:2]
    image = defocus(image, strength * focus * DEFOCUS_SIGMA_PX)
    image = move(image, strength * motion * MOTION_PX, angle * math.pi)
    # the exponent is what grows evenly: from 112 to 56 px takes as much from a face as from 40 to 20
    factor = DOWN_SAMPLING ** (strength * size)
    small_size = max(1, round(width / factor)), max(1, round(height / factor))
    small = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA)
    quality = round(_BEST_JPEG_QUALITY - strength * compression * (_BEST_JPEG_QUALITY - JPEG_QUALITY))
    return cv2.resize(compress(small, quality), (width, height), interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True)
class DegradedImages:
    """A list of images, each degraded when it is read.

    Attributes:
        images: the list.
        seed: with an image's place in the list it decides how that image is degraded; 0 or more.
        strength: in [0, 1].

    Raises:
        ValueError: another seed or strength.
    """

    images: ImageList
    seed: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_strength(self.strength)
        if self.seed < 0:
            raise ValueError(f"the seed of a degradation is a whole number from 0 on, got {self.seed}")

    @property
    def name(self) -> str:
        """Name of the list, and that it is blurred."""
        return f"{self.images.name} blurred"

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        """Return one image, degraded.

        Raises:
            ValueError: it cannot be read.
        """
        return degrade(self.images.read(index), image_generator(self.seed, index), self.strength)

    def fingerprint(self) -> str:
        """Return a text that changes where the images or their degradation do."""
        return f"{self.images.fingerprint()} blur {VERSION} seed {self.seed} strength {self.strength!r}"


def image_generator(seed: int, index: int) -> np.random.Generator:
    """Return the generator of one image of a list.

    Args:
        seed: of the degradation, 0 or more.
        index: place of the image.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def draw_samples(
    images: ImageList, path: str | Path, *, seed: int, count: int = 6, strengths: Sequence[float] = SAMPLE_STRENGTHS
) -> None:
    """Draw some faces, a row each, at several strengths, a column each.

    Args:
        images: not degraded; faces are taken evenly from the whole list.
        path: PNG to write.
        seed: of the degradation: the faces are degraded as ``DegradedImages`` does it.
        count: most rows.
        strengths: of the columns, in [0, 1].

    Raises:
        ValueError: no images, or one that cannot be read.
    """
    if not len(images):
        raise ValueError(f"{images.name} holds no images to show")
    chosen = sorted(set(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int).tolist()))
    figure = Figure(figsize=(1.3 * len(strengths) + 0.2, 1.3 * len(chosen) + 0.7), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(chosen), len(strengths), squeeze=False)
    for row, index in zip(grid, chosen, strict=True):
        for axes, strength in zip(row, strengths, strict=True):
            picture = DegradedImages(images, seed, strength).read(index)
            axes.imshow(picture[..., ::-1], interpolation="nearest")  # matplotlib takes RGB
            axes.set_axis_off()
    for axes, strength in zip(grid[0], strengths, strict=True):
        axes.set_title("clear" if strength == 0 else f"strength {strength:g}", fontsize=10)
    figure.suptitle(f"{images.name}: --degrade blur, seed {seed}", fontsize=11, fontweight="bold")
    save_figure(figure, path)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"the strength of a degradation is a number in [0, 1], got {strength}")
