"""The camera of the synthetic faces: light, print, lens, sensor noise and JPEG compression, applied to a drawing.

`faces.py` draws a person in a scene; this module then applies effects that depend on neither. Lengths are in pixels of
the crop, angles in radians.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from adaface.augmentation.camera import compress

_MIDDLE_GRAY = 118.0
_SEPIA = np.array([0.80, 0.97, 1.10], np.float32)  # BGR
_LENS_BLUR_PX = 0.5  # polygons have harder edges than any photograph


@dataclass(frozen=True)
class Camera:
    """Parameters of taking and storing a picture. The defaults change almost nothing."""

    light_angle: float = 0.0  # direction of the light
    light_strength: float = 0.0  # 0: uniform light; 1: the far border is black
    exposure: float = 1.0
    contrast: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of blue, green, red
    faded: float = 0.0  # 0: original colors; 1: a sepia print
    blur_px: float = 0.0
    low_res_share: float = 1.0  # side of the original, as a fraction of the side of the crop
    noise: float = 0.0  # standard deviation, of 255
    jpeg_quality: int = 95  # of an earlier compression; 95 or more: none


def draw_camera(wear: float, faded: tuple[float, float], rng: np.random.Generator) -> Camera:
    """Draw light, print, lens and compression.

    Args:
        wear: from 0 (clean) to 1 (dark, blurred, noisy and compressed).
        faded: range of the fading of the print, from 0 to 1.
        rng: random generator of the picture.

    Returns:
        The camera.
    """
    blue, green, red = np.exp(rng.normal(0, 0.03 + 0.06 * wear, 3))
    return Camera(
        light_angle=rng.uniform(0, 2 * math.pi),
        light_strength=rng.uniform(0, 0.3 + 0.4 * wear),
        exposure=math.exp(rng.uniform(-0.15 - 0.25 * wear, 0.15 + 0.1 * wear)),
        contrast=rng.uniform(1 - 0.4 * wear, 1.1),
        cast=(blue, green, red),
        faded=rng.uniform(*faded),
        blur_px=rng.uniform(0, 1.6 * wear) if rng.random() < 0.6 else 0.0,
        low_res_share=rng.uniform(1 - 0.7 * wear, 1) if rng.random() < wear else 1.0,
        noise=rng.uniform(0, 9 * wear),
        jpeg_quality=int(rng.uniform(25, 95)) if rng.random() < wear else 95,
    )


def photograph(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Apply a camera to a drawing.

    Args:
        image: (H, H, 3) uint8 BGR.
        camera: light, lens and storage.
        rng: random generator of the sensor noise.

    Returns:
        (H, H, 3) uint8 BGR; `image` is not changed.
    """
    side = len(image)
    grid = np.linspace(-1, 1, side, dtype=np.float32)
    across = np.cos(camera.light_angle) * grid[None, :] + np.sin(camera.light_angle) * grid[:, None]
    light = camera.exposure * (1 + camera.light_strength * across)
    picture = image * light.astype(np.float32)[..., None] * np.array(camera.cast, np.float32)
    if camera.faded > 0:
        sepia = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None] * _SEPIA
        picture += camera.faded * (sepia - picture)
    picture = _MIDDLE_GRAY + camera.contrast * (picture - _MIDDLE_GRAY)
    small_side = int(side * camera.low_res_share)
    if small_side < side:
        small = cv2.resize(picture, (small_side, small_side), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)
    picture = cv2.GaussianBlur(picture, (0, 0), _LENS_BLUR_PX + camera.blur_px)
    if camera.noise > 0:
        picture += camera.noise * rng.standard_normal((side, side, 1), dtype=np.float32)  # film grain is gray
    result = cv2.convertScaleAbs(np.maximum(picture, 0))  # rounds, then saturates at 255
    if camera.jpeg_quality < 95:
        result = compress(result, camera.jpeg_quality)
    return result
