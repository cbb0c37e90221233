"""Parameters of a synthetic person and of a scene, and a head that can be rotated.

A head is an ellipsoid, and a face is a set of points on it. It is rotated, projected and mapped to the five landmarks
of the ArcFace template by the least-squares similarity transform, as a face aligner does. `faces.py` draws on it.

All functions are deterministic: random choices come from the generators that are passed in. Lengths are in pixels of
the 112x112 crop, angles in radians, colors BGR from 0 to 255. Head coordinates have x to the right, y down and their
origin in the middle of the frontal face.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, get_type_hints

import cv2
import numpy as np

SIDE_PX = 112
LANDMARKS_PX = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)  # ArcFace template: eyes, nose tip, mouth corners

EYE_Y = -9.5  # eyes, from the center of the head
HEAD_TOP, _HEAD_DEPTH = 52.0, 40.0
_SUBPIXEL_BITS = 4
_CURVE = np.linspace(0.0, 1.0, 9)
_BEZIER = np.stack([(1 - _CURVE) ** 2, 2 * _CURVE * (1 - _CURVE), _CURVE**2], axis=1)  # (9, 3)
_PALETTES = {  # BGR anchors; a person's color lies between two neighbors
    "skin": [(208, 224, 250), (176, 204, 244), (146, 182, 230), (110, 152, 204), (76, 112, 166), (48, 70, 112)],
    "hair": [(28, 24, 26), (34, 46, 70), (48, 78, 122), (36, 66, 166), (60, 130, 214), (128, 196, 238)],
    "iris": [(36, 52, 84), (44, 84, 128), (60, 128, 116), (96, 150, 70), (190, 142, 62), (186, 176, 152)],
    "lips": [(96, 104, 196), (120, 120, 214), (84, 76, 170), (110, 84, 208), (70, 62, 128)],
}
_GRAY = np.array([206.0, 206.0, 206.0])


@dataclass(frozen=True)
class Identity:
    """Features of a person: lengths in pixels, fractions from 0 to 1, colors (3,) BGR.

    The annotation of each is the range of its uniform distribution, or its palette.
    """

    skin: Annotated[np.ndarray, "skin"]
    hair: Annotated[np.ndarray, "hair"]
    iris: Annotated[np.ndarray, "iris"]
    lips: Annotated[np.ndarray, "lips"]
    half_width: Annotated[float, 33, 43]
    chin: Annotated[float, 42, 54]
    jaw: Annotated[float, 0.5, 1.15]  # exponent of the lower outline: square to pointed
    ear_size: Annotated[float, 5, 10]
    hairline: Annotated[float, -37, -22]  # y of the fringe at the parting
    parting: Annotated[float, -0.6, 0.6]
    fringe_left: Annotated[float, -12, 14]  # how far the hair falls on the forehead on either side
    fringe_right: Annotated[float, -12, 14]
    hair_volume: Annotated[float, 1.03, 1.24]
    hair_length: Annotated[float, -60, 66]  # y where the hair ends behind the head; below 0: short hair
    curl: Annotated[float, -0.03, 0.06]  # fraction of the radius; below 0: straight hair
    bun: Annotated[float, -22, 13]  # radius; below 0: none
    baldness: Annotated[float, -10, 1.2]  # above 0: bald head
    eye_width: Annotated[float, 6.0, 9.2]
    eye_height: Annotated[float, 2.6, 5.4]
    eye_slant: Annotated[float, -1.8, 2.2]
    iris_size: Annotated[float, 2.5, 3.7]
    lash: Annotated[float, 0.6, 2.6]
    brow_gap: Annotated[float, 7.5, 12.5]
    brow_length: Annotated[float, 6.5, 10.5]
    brow_width: Annotated[float, 1.2, 5.0]
    brow_arch: Annotated[float, -0.8, 4.0]
    brow_slant: Annotated[float, -2.2, 1.4]
    brow_shade: Annotated[float, 0.45, 0.95]
    nose_length: Annotated[float, -3.0, 3.5]
    nose_width: Annotated[float, 4.0, 9.5]
    nose_bridge: Annotated[float, 1.0, 3.4]
    nose_tone: Annotated[float, 0.85, 1.08]
    mouth_width: Annotated[float, 10, 17]
    mouth_y: Annotated[float, -2.5, 2.5]
    lip_upper: Annotated[float, 1.0, 3.6]
    lip_lower: Annotated[float, 1.4, 5.0]
    beard: Annotated[float, -2.0, 1.0]  # above 0: fraction of the cheek that it covers
    moustache: Annotated[float, -6.0, 4.0]  # thickness; below 0: none
    freckles: Annotated[float, -14, 12]  # number; below 0: none
    blush: Annotated[float, 0.0, 0.4]
    mark_x: Annotated[float, -26, 26]
    mark_y: Annotated[float, 8, 36]
    mark_size: Annotated[float, -1.6, 2.2]  # radius of a birthmark; below 0: none


@dataclass(frozen=True)
class Scene:
    """Features that differ between pictures of a person: angles in radians, lengths in px, fractions from 0 to 1."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)  # error of the aligner
    zoom: float = 1.0
    smile: float = 0.0  # -1 sad to 1 happy
    mouth_open: float = 0.0
    eyes_open: float = 1.0
    brow_raise: float = 0.0
    gaze: float = 0.0  # -1 to 1
    age: float = 0.0  # gray hair, wrinkles
    glasses: bool = False
    hat: bool = False
    occlusion: float = 0.0  # fraction of the side that an object covers


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw the features of a person at random, independently of each other.

    Args:
        rng: random generator of the person.
    """
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(Identity, include_extras=True).items():
        if hint.__origin__ is float:
            values[name] = float(rng.uniform(*hint.__metadata__))
        else:
            anchors = np.array(_PALETTES[hint.__metadata__[0]], float)
            place = rng.uniform(0, len(anchors) - 1)
            color = anchors[int(place)] + place % 1 * (anchors[int(place) + 1] - anchors[int(place)])
            values[name] = np.clip(color * rng.uniform(0.92, 1.08, 3), 0, 255)
    return Identity(**values)


def draw_scene(
    yaw_deg: tuple[float, float],
    pitch_deg: float,
    age: tuple[float, float],
    hidden_prob: float,
    rng: np.random.Generator,
) -> Scene:
    """Draw a scene at random.

    Args:
        yaw_deg: range of the yaw of the head, to either side.
        pitch_deg: largest pitch of the head, up or down.
        age: range of the age, from 0 to 1.
        hidden_prob: probability of each of glasses, a hat, and an object in front of the face.
        rng: random generator of the picture.
    """
    pitch = math.radians(pitch_deg)
    hidden = rng.random(3) < hidden_prob
    return Scene(
        yaw=math.radians(rng.uniform(*yaw_deg)) * (1 if rng.random() < 0.5 else -1),
        pitch=rng.uniform(-pitch, pitch),
        roll=rng.normal(0, 0.05),
        shift=(rng.normal(0, 1.5), rng.normal(0, 1.5)),
        zoom=math.exp(rng.normal(0, 0.04)),
        smile=rng.uniform(-0.8, 1),
        mouth_open=max(0.0, rng.uniform(-1, 1)),
        eyes_open=0.1 if rng.random() < 0.05 else rng.uniform(0.6, 1.1),
        brow_raise=rng.uniform(-0.6, 1),
        gaze=rng.uniform(-1, 1),
        age=rng.uniform(*age),
        glasses=bool(hidden[0]),
        hat=bool(hidden[1]),
        occlusion=rng.uniform(0.25, 0.5) if hidden[2] else 0.0,
    )


class Painter:
    """A canvas with a rotated head: converts points in head coordinates to pixels, and draws polygons."""

    def __init__(self, image: np.ndarray, person: Identity, scene: Scene) -> None:
        self.image, self.person, self.scene = image, person, scene
        cos_yaw, sin_yaw = np.cos(scene.yaw), np.sin(scene.yaw)
        cos_pitch, sin_pitch = np.cos(scene.pitch), np.sin(scene.pitch)
        self._turn = np.array(
            [[cos_yaw, 0.0, sin_yaw], [sin_yaw * sin_pitch, cos_pitch, -cos_yaw * sin_pitch]]
        )  # orthographic: (x, y, z) -> (x, y); z points to the viewer
        self._lean = np.array([sin_yaw, -sin_pitch])
        self._similarity = np.eye(2)
        self._offset = np.zeros(2)
        self._align()
        gray = 0.65 * np.clip(scene.age * 1.2 - 0.2, 0, 1)
        self.hair = person.hair + gray * (_GRAY - person.hair)
        self.brow = self.hair * person.brow_shade

    def _align(self) -> None:
        """Map the rotated landmarks to the template, then add an alignment error and the remaining roll."""
        mouth_y = 31.0 + self.person.mouth_y
        points = [(-17.6, EYE_Y), (17.6, EYE_Y), (0, 10.5), (-14.6, mouth_y), (14.6, mouth_y)]
        source = self.place(points, np.array([0, 0, 9, 0, 0]))
        mean, target_mean = source.mean(axis=0), LANDMARKS_PX.mean(axis=0)
        source, target = source - mean, LANDMARKS_PX - target_mean
        a = (source * target).sum()
        b = (source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0]).sum()
        factor = complex(a, b) / (source**2).sum() * self.scene.zoom * np.exp(1j * self.scene.roll)
        self._similarity = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
        self._offset = target_mean + self.scene.shift - self._similarity @ mean

    def place(self, points: Sequence[Any] | np.ndarray, lift: np.ndarray | float = 0.0) -> np.ndarray:
        """Convert points (N, 2) on the face, `lift` pixels above its surface, to crop pixels (N, 2)."""
        xy = np.asarray(points, float)
        radius_sq = (xy[:, 0] / (self.person.half_width + 3)) ** 2 + (xy[:, 1] / HEAD_TOP) ** 2
        z = _HEAD_DEPTH * np.sqrt(np.maximum(1 - radius_sq, 0)) + lift
        turned = xy @ self._turn[:, :2].T + z[:, None] * self._turn[:, 2]
        return turned @ self._similarity.T + self._offset

    def place_outline(self, points: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Convert points (N, 2) of the outline to crop pixels: its width is kept, but the chin leans forward."""
        xy = np.asarray(points, float)
        z = np.interp(xy[:, 1], [-60, -20, 45], [0, 8, 24])
        return (xy + z[:, None] * self._lean) @ self._similarity.T + self._offset

    def fill(self, points_px: np.ndarray, color: Any) -> None:
        """Fill a polygon (N, 2) given in crop pixels."""
        fixed = np.round(points_px * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], bgr(color), cv2.LINE_AA, _SUBPIXEL_BITS)

    def line(self, points_px: np.ndarray, color: Any, width_px: float) -> None:
        """Draw an open line (N, 2) given in crop pixels."""
        fixed = np.round(points_px * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        width = max(1, round(width_px))
        cv2.polylines(self.image, [fixed], False, bgr(color), width, cv2.LINE_AA, _SUBPIXEL_BITS)

    def dot(self, point: tuple[float, float], radius_px: float, color: Any) -> None:
        """Fill a circle around a point of the face."""
        x, y = self.place([point])[0]
        self.fill(np.array([x, y]) + radius_px * circle(12), color)


def bgr(color: Any) -> tuple[float, float, float]:
    """Return a color as a tuple for OpenCV, clipped to [0, 255]."""
    blue, green, red = (min(max(float(value), 0.0), 255.0) for value in color)
    return blue, green, red


@lru_cache
def circle(count: int) -> np.ndarray:
    """Return `count` points (count, 2) on the unit circle; the array is shared, do not modify it."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([np.cos(angles), np.sin(angles)])


def moved(point: np.ndarray, right: float, down: float) -> tuple[float, float]:
    """Return a point, shifted."""
    return point[0] + right, point[1] + down


def curve(start: Any, control: Any, end: Any) -> np.ndarray:
    """Return points (9, 2) on a quadratic Bezier curve."""
    return _BEZIER @ np.array([start, control, end], float)
