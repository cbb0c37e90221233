"""The three augmentations of AdaFace training, and the flip, on uint8 BGR faces.

In this order, each with its own probability: crop (what is outside turns black, nothing is resized), low
resolution, photometric (brightness, contrast and saturation in random order), those of ``augmentation/more.py`` that
are enabled; then a horizontal flip.

Source: AdaFace (Kim, Jain, Liu, CVPR 2022), section 4.1; crop parameters of torchvision's `RandomResizedCrop`,
photometric arithmetic of Pillow's `ImageEnhance`.
Differences: the official code works on RGB Pillow images with global random state; this works on BGR arrays with
an explicit generator and costs a fraction of the time. Crop and low resolution give the same pixels for the same
parameters; photometric operations differ by one gray level in about one of a thousand values, where OpenCV's fixed
point or float32 lies on the other side of a rounding edge than Pillow's.
"""

import itertools
import math
from collections.abc import Mapping

import cv2
import numpy as np

from adaface.augmentation.more import MORE_AUGMENTATIONS

CROP_AREA = (0.2, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
LOW_RES_SCALE = (0.2, 1.0)
PHOTOMETRIC_FACTOR = (0.5, 1.5)
INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
_LOG_ASPECT = (math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1]))
_ORDERS = tuple(itertools.permutations(range(3)))
_CROP_TRIES = 10
# Pillow cuts fractions off, `cv2.addWeighted` rounds to the nearest: half a level less, and a little more so that
# whole numbers stay what they are (far above float32's error at 255, far below what a picture shows).
_CUT_OFF = -0.5 + 1e-4


class Augmenter:
    """Random augmentation of one face; the result depends on the image and the generator alone.

    Args:
        crop_prob: probability of the crop, in [0, 1].
        low_res_prob: probability of the low-resolution augmentation, in [0, 1].
        photometric_prob: probability of the photometric augmentation, in [0, 1].
        flip_prob: probability of the horizontal flip, in [0, 1].
        more: probabilities of the names in ``augmentation.more.MORE_AUGMENTATIONS``; 0 by default.

    Raises:
        ValueError: a probability is outside [0, 1].
        KeyError: there is no augmentation of such a name.
    """

    def __init__(
        self,
        crop_prob: float,
        low_res_prob: float,
        photometric_prob: float,
        flip_prob: float = 0.5,
        more: Mapping[str, float] | None = None,
    ) -> None:
        self.crop_prob = crop_prob
        self.low_res_prob = low_res_prob
        self.photometric_prob = photometric_prob
        self.flip_prob = flip_prob
        more = more or {}
        for name, value in {**vars(self), **{f"{name}_prob": value for name, value in more.items()}}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability: expected a number in [0, 1], got {value}")
        if unknown := set(more) - set(MORE_AUGMENTATIONS):
            raise KeyError(f"there are no augmentations {sorted(unknown)}, only {', '.join(MORE_AUGMENTATIONS)}")
        self.more = (
            [(change, more.get(name, 0.0)) for name, change in MORE_AUGMENTATIONS.items()] if any(more.values()) else []
        )

    def __call__(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 BGR, normally 112x112; not changed.
            rng: where all randomness comes from.
            out: (H, W, 3) uint8, C-contiguous: where the result is to lie, such as a place in a batch.

        Returns:
            (H, W, 3) uint8 BGR, C-contiguous: ``out``; without it ``image`` itself where nothing was drawn.
        """
        # Always four draws, so that one probability does not shift the others' randomness.
        do_crop, do_low_res, do_photometric, do_flip = rng.random(4).tolist()
        height, width = image.shape[:2]
        if do_crop < self.crop_prob:
            image = crop(image, *draw_crop(height, width, rng), out)
        if do_low_res < self.low_res_prob:
            image = low_resolution(image, *draw_low_resolution(height, rng), out)
        if do_photometric < self.photometric_prob:
            image = photometric(image, *draw_photometric(rng), out)
        if self.more:  # no draws without them, so that runs of versions before them can be reproduced
            for (change, probability), number in zip(self.more, rng.random(len(self.more)).tolist(), strict=True):
                if number < probability:
                    image = change(image, rng)
        if do_flip < self.flip_prob:
            return cv2.flip(image, 1, dst=out)
        if out is None:
            return image
        if image is not out:
            out[...] = image
        return out


def _between(interval: tuple[float, float], number: float) -> float:
    """Map a number in [0, 1) to an interval. One call for several numbers costs a tenth of one call for each."""
    return interval[0] + (interval[1] - interval[0]) * number


# --- crop -----------------------------------------------------------------------------------------------------


def draw_crop(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a rectangle as torchvision's ``RandomResizedCrop.get_params`` does.

    Args:
        height: of the image, px.
        width: of the image, px.
        rng: source of randomness.

    Returns:
        Top, left, height and width of the rectangle, px: area fraction U(0.2, 1), log-uniform aspect in [3/4, 4/3];
        after ten rectangles that do not fit, the largest one in the center with an allowed aspect.
    """
    numbers = iter(rng.random(2 * _CROP_TRIES + 2).tolist())
    for _ in range(_CROP_TRIES):
        area = height * width * _between(CROP_AREA, next(numbers))
        aspect = math.exp(_between(_LOG_ASPECT, next(numbers)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(next(numbers) * (height - crop_height + 1))
            left = int(next(numbers) * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, CROP_ASPECT[0]), CROP_ASPECT[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def crop(image: np.ndarray, top: int, left: int, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """Keep a rectangle where it is and turn the rest black.

    Args:
        image: (H, W, 3) uint8.
        top: first row kept.
        left: first column kept.
        height: rows kept.
        width: columns kept.
        out: like ``image``, but not the same, where the result is to lie.

    Returns:
        (H, W, 3) uint8: ``out``, else a new array.
    """
    result = np.empty_like(image) if out is None else out
    result[...] = 0
    rows, columns = slice(top, top + height), slice(left, left + width)
    result[rows, columns] = image[rows, columns]
    return result


# --- low resolution -------------------------------------------------------------------------------------------


def draw_low_resolution(side: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw how far, and how, an image is shrunk and enlarged.

    Args:
        side: of the image, px.
        rng: source of randomness.

    Returns:
        Side of the small image int(U(0.2, 1) * side) px, and two OpenCV interpolations: down and up.
    """
    scale, down, up = rng.random(3).tolist()
    kinds = len(INTERPOLATIONS)
    return (
        int(_between(LOW_RES_SCALE, scale) * side),
        INTERPOLATIONS[int(down * kinds)],
        INTERPOLATIONS[int(up * kinds)],
    )


def low_resolution(
    image: np.ndarray, side: int, interpolation_down: int, interpolation_up: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Shrink an image to a small square and enlarge it to its size again.

    Args:
        image: (H, W, 3) uint8.
        side: of the small image, px.
        interpolation_down: OpenCV interpolation for shrinking.
        interpolation_up: OpenCV interpolation for enlarging.
        out: like ``image``, or ``image`` itself, where the result is to lie.

    Returns:
        (H, W, 3) uint8: ``out``, else a new array.
    """
    small = cv2.resize(image, (side, side), interpolation=interpolation_down)
    return cv2.resize(small, (image.shape[1], image.shape[0]), dst=out, interpolation=interpolation_up)


# --- photometric ----------------------------------------------------------------------------------------------


def draw_photometric(rng: np.random.Generator) -> tuple[list[int], list[float]]:
    """Draw the order of the three photometric operations and their factors.

    Args:
        rng: source of randomness.

    Returns:
        Order, a permutation of 0 brightness, 1 contrast, 2 saturation; factors U(0.5, 1.5) of those three.
    """
    order, *factors = rng.random(4).tolist()
    return list(_ORDERS[int(order * len(_ORDERS))]), [_between(PHOTOMETRIC_FACTOR, factor) for factor in factors]


def photometric(image: np.ndarray, order: list[int], factors: list[float], out: np.ndarray | None = None) -> np.ndarray:
    """Change brightness, contrast and saturation in a given order.

    Args:
        image: (H, W, 3) uint8 BGR.
        order: permutation of 0 brightness, 1 contrast, 2 saturation.
        factors: of brightness, contrast and saturation, in this order; 1 changes nothing.
        out: like ``image``, or ``image`` itself, where the result is to lie.

    Returns:
        (H, W, 3) uint8 BGR: ``out``, else a new array.
    """
    out = np.empty_like(image) if out is None else out
    for operation in order:
        image = _PHOTOMETRIC[operation](image, factors[operation], out)
    return image


def brightness(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blend with black, as Pillow's ``ImageEnhance.Brightness``.

    Args:
        image: (H, W, 3) uint8.
        factor: 0 is black, 1 the image, above 1 brighter.
        out: like ``image``, or ``image`` itself, where the result is to lie.

    Returns:
        (H, W, 3) uint8: ``out``, else a new array.
    """
    return cv2.addWeighted(image, factor, image, 0, _CUT_OFF, dst=out)


def contrast(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blend with the rounded mean of the grayscale image, as Pillow's ``ImageEnhance.Contrast``.

    Args:
        image: (H, W, 3) uint8 BGR.
        factor: 0 is uniform gray, 1 the image, above 1 more contrast.
        out: like ``image``, or ``image`` itself, where the result is to lie.

    Returns:
        (H, W, 3) uint8 BGR: ``out``, else a new array.
    """
    mean = int(cv2.mean(gray(image))[0] + 0.5)
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor) + _CUT_OFF, dst=out)


def saturation(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blend with the grayscale image, as Pillow's ``ImageEnhance.Color``.

    Args:
        image: (H, W, 3) uint8 BGR.
        factor: 0 is gray, 1 the image, above 1 more color.
        out: like ``image``, or ``image`` itself, where the result is to lie.

    Returns:
        (H, W, 3) uint8 BGR: ``out``, else a new array.
    """
    gray_bgr = cv2.cvtColor(gray(image), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, factor, gray_bgr, 1 - factor, _CUT_OFF, dst=out)


def gray(image: np.ndarray) -> np.ndarray:
    """Return the ITU-R 601 luma; Pillow's is (19595 R + 38470 G + 7471 B + 32768) / 65536, cut off.

    Args:
        image: (H, W, 3) uint8 BGR.

    Returns:
        (H, W) uint8.
    """
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


_PHOTOMETRIC = (brightness, contrast, saturation)
