"""The degradation of ``--degrade blur``: faces as seen by a surveillance camera or in an out-of-focus photograph.

The steps follow those of a camera: the lens is out of focus (Gaussian blur), the face moves while the shutter is open
(motion blur, any direction), it is small in the image (downsampling), the image is compressed (JPEG with chroma
subsampling), and an aligner enlarges the face to 112x112 again. The amount of each step is drawn for each image,
uniformly between zero and the maximum below, times the strength.

The degradation of an image depends only on the seed and the index of the image, not on the order of reading or the
process. For one image, all amounts grow with the strength; 0 changes nothing, 1 is ``--degrade blur``.

Source: this project. It is fixed: a change needs a new ``VERSION``, so that cached embeddings are not mixed up. The
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
SMALLEST_FACE_PX = 20  # TinyFace's mean face is 20 x 16 px
FACE_PX = 112
DOWN_SAMPLING = FACE_PX / SMALLEST_FACE_PX
# A Gaussian halves the contrast at 0.1874 / sigma cycles per pixel; the finest detail of a 20 px face is 10 cycles.
DEFOCUS_SIGMA_PX = 2.1
# A person who walks across the view (1.4 m/s) moves 23 mm in 1/60 s; the eyes, 63 mm apart, are 35.2 px apart here.
MOTION_PX = 13.0
JPEG_QUALITY = 30  # of the small image, as of a recorder that saves space: blocks are visible
SAMPLE_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_BEST_JPEG_QUALITY = 100
_DRAWS = 5  # random numbers of an image


def degrade(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Degrade one face.

    Args:
        image: (H, W, 3) uint8 BGR, normally 112x112; not changed.
        rng: random generator; the same number of draws is taken at each strength.
        strength: in [0, 1]; 0 changes nothing.

    Returns:
        (H, W, 3) uint8 BGR, a new array.

    Raises:
        ValueError: the strength is out of range.
    """
    _check_strength(strength)
    focus, motion, angle, size, compression = rng.random(_DRAWS).tolist()
    if strength == 0:
        return image.copy()
    height, width = image.shape[:2]
    image = defocus(image, strength * focus * DEFOCUS_SIGMA_PX)
    image = move(image, strength * motion * MOTION_PX, angle * math.pi)
    # uniform in the exponent: from 112 to 56 px loses as much as from 40 to 20
    factor = DOWN_SAMPLING ** (strength * size)
    small_size = max(1, round(width / factor)), max(1, round(height / factor))
    small = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA)
    quality = round(_BEST_JPEG_QUALITY - strength * compression * (_BEST_JPEG_QUALITY - JPEG_QUALITY))
    return cv2.resize(compress(small, quality), (width, height), interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True)
class DegradedImages:
    """A list of images, each degraded when it is read.

    Attributes:
        images: list of images.
        seed: random seed of the degradation, 0 or more.
        strength: strength of the degradation, in [0, 1].

    Raises:
        ValueError: seed or strength is out of range.
    """

    images: ImageList
    seed: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_strength(self.strength)
        if self.seed < 0:
            raise ValueError(f"the seed of a degradation must be an integer from 0, got {self.seed}")

    @property
    def name(self) -> str:
        """Name of the list, with "blurred" appended."""
        return f"{self.images.name} blurred"

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        """Return one image, degraded.

        Raises:
            ValueError: the image cannot be read.
        """
        return degrade(self.images.read(index), image_generator(self.seed, index), self.strength)

    def fingerprint(self) -> str:
        """Return a text that identifies the images and their degradation."""
        return f"{self.images.fingerprint()} blur {VERSION} seed {self.seed} strength {self.strength!r}"


def image_generator(seed: int, index: int) -> np.random.Generator:
    """Return the random generator of one image of a list.

    Args:
        seed: random seed of the degradation, 0 or more.
        index: index of the image.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def draw_samples(
    images: ImageList, path: str | Path, *, seed: int, count: int = 6, strengths: Sequence[float] = SAMPLE_STRENGTHS
) -> None:
    """Plot some faces (rows) at several strengths (columns).

    Args:
        images: images before degradation; faces are chosen evenly from the whole list.
        path: PNG file to write.
        seed: random seed of the degradation, as in ``DegradedImages``.
        count: maximum number of rows.
        strengths: strengths of the columns, in [0, 1].

    Raises:
        ValueError: there are no images, or one cannot be read.
    """
    if not len(images):
        raise ValueError(f"{images.name} contains no images to show")
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
        raise ValueError(f"the strength of a degradation must be in [0, 1], got {strength}")
