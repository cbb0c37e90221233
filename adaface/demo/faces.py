"""Draw an aligned 112x112 face from a person and a scene, without any data set.

The features of a person (`person.Identity`) are continuous and many-dimensional, so a network has to learn a metric and
cannot memorize a list. Scene (`person.Scene`) and camera (`camera.py`) change the pixels more than the person does.
Everything is drawn with OpenCV polygons, from back to front.
"""

import cv2
import numpy as np

from adaface.demo.person import EYE_Y, HEAD_TOP, SIDE_PX, Identity, Painter, Scene, bgr, circle, curve, moved

_ANGLES = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)


def draw_face(person: Identity, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw one aligned crop of a person.

    Args:
        person: features of the person.
        scene: pose, expression, age, accessories.
        rng: random generator of the rest: background, clothes, positions of objects.

    Returns:
        (112, 112, 3) uint8 BGR.
    """
    painter = Painter(_background(rng), person, scene)
    _paint_behind(painter, rng)
    _paint_skin(painter, rng)
    _paint_eyes(painter)
    _paint_nose_and_mouth(painter)
    _paint_hair(painter)
    _paint_accessories(painter, rng)
    return painter.image


def _soft_colors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return random colors (count, 3), float32, of any lightness and moderate saturation."""
    colors = rng.uniform(20, 240, (count, 3))
    return (0.65 * colors + 0.35 * colors.mean(axis=1, keepdims=True)).astype(np.float32)


def _background(rng: np.random.Generator) -> np.ndarray:
    """Draw a plain wall with a gradient and a few shapes on it."""
    corners = _soft_colors(rng, 4).reshape(2, 2, 3)
    image = cv2.resize(corners, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    for _ in range(rng.integers(0, 5)):
        x, y, width, height = rng.uniform((0, 0, 10, 10), (112, 112, 50, 50))
        shape = circle(4 if rng.random() < 0.5 else 16) * (width, height) + (x, y)
        color = bgr(_soft_colors(rng, 1)[0])
        cv2.fillPoly(image, [np.round(shape).astype(np.int32)], color, cv2.LINE_AA)
    return image


def _outline(person: Identity) -> np.ndarray:
    """Return the contour of the face (48, 2) in head coordinates."""
    cos, sin = np.cos(_ANGLES), np.sin(_ANGLES)
    exponent = np.where(sin > 0, person.jaw, 0.85)
    x = person.half_width * np.sign(cos) * np.abs(cos) ** exponent
    y = np.where(sin > 0, person.chin, HEAD_TOP - 8) * sin
    return np.column_stack([x, y])


def _hair_contour(person: Identity) -> np.ndarray:
    """Return the outer contour of the hair (48, 2) in head coordinates."""
    radius = person.hair_volume * (1 + max(person.curl, 0) * np.sin(11 * _ANGLES))
    width, top = person.half_width + 1.5, HEAD_TOP - 7
    return np.column_stack([width * radius * np.cos(_ANGLES), top * radius * np.sin(_ANGLES) - 1])


def _paint_behind(painter: Painter, rng: np.random.Generator) -> None:
    """Paint the hair behind the head, the neck, the clothes and the ears."""
    person = painter.person
    if person.hair_length > 0 and person.baldness < 0:
        width = (person.half_width + 2) * person.hair_volume
        end = person.hair_length
        sides = [(-width, -8), (width, -8), (width + 3, end * 0.6), (width - 3, end)]
        painter.fill(painter.place_outline([*sides, (-width + 3, end), (-width - 3, end * 0.6)]), painter.hair * 0.8)
    neck = [(-17, 30), (17, 30), (21, 80), (-21, 80)]
    painter.fill(painter.place_outline(neck), person.skin * 0.82)
    cloth = _soft_colors(rng, 1)[0]
    painter.fill(painter.place_outline([(-16, 56), (16, 56), (60, 66), (70, 90), (-70, 90), (-60, 66)]), cloth)
    for side in (-1, 1):
        if side * painter.scene.yaw < 0.45:  # a head that turns to one side hides the ear of that side
            center = (side * (person.half_width + 0.5) - painter._lean[0] * 10, -2)
            ear = np.array(center) + circle(14) * (person.ear_size * 0.6, person.ear_size)
            painter.fill(painter.place_outline(ear), person.skin * 0.9)


def _paint_skin(painter: Painter, rng: np.random.Generator) -> None:
    """Paint the face, its marks, the beard and the wrinkles."""
    person, scene = painter.person, painter.scene
    outline = _outline(person)
    painter.fill(painter.place_outline(outline), person.skin)
    for side in (-1, 1):
        flush = person.skin + person.blush * (np.array([90, 80, 225]) - person.skin)
        cheek = np.array([side * 23.0, 14.0]) + circle(16) * (7.5, 5.5)
        painter.fill(painter.place(cheek), flush)
    if person.beard > 0:
        _paint_beard(painter, outline)
    marks = np.random.Generator(np.random.Philox(key=int(person.mark_x * 1e6) & 0xFFFFFFFF))
    for x, y in marks.uniform((-26, 0), (26, 16), (max(0, int(person.freckles)), 2)):
        painter.dot((x, y), 0.9, person.skin * 0.72)
    if person.mark_size > 0:
        painter.dot((person.mark_x, person.mark_y), person.mark_size, person.skin * 0.4)
    if scene.age > 0.35:
        dark = person.skin * (1 - 0.3 * scene.age)
        for row in range(int(1 + 2 * scene.age)):
            y = -24.0 - 5 * row
            painter.line(painter.place(curve((-14, y), (0, y - 3 + rng.normal()), (14, y))), dark, 1)
        for side in (-1, 1):
            fold = curve((side * 9, 13), (side * 19, 20), (side * 20, 33))
            painter.line(painter.place(fold), dark, 1)
            for slope in (-3, 2):
                crow = [(side * 28, EYE_Y), (side * 33, EYE_Y + slope)]
                painter.line(painter.place(crow), dark, 1)


def _paint_beard(painter: Painter, outline: np.ndarray) -> None:
    """Cover the jaw up to the height of the person's beard."""
    person = painter.person
    top = 26 - 26 * person.beard
    jaw = outline[outline[:, 1] > top]
    edge = person.half_width * 0.9
    inner = curve((-edge, top), (0, 66 - 32 * person.beard), (edge, top))
    inner_px = painter.place(inner)
    shape = np.concatenate([painter.place_outline(jaw), inner_px])
    color = 0.75 * painter.hair + 0.25 * person.skin
    painter.fill(shape, color)


def _paint_eyes(painter: Painter) -> None:
    """Paint eyes and brows."""
    person, scene = painter.person, painter.scene
    width, opening = person.eye_width, person.eye_height * scene.eyes_open
    for side in (-1, 1):
        center = np.array([side * 17.6, EYE_Y])
        inner, outer = moved(center, -side * width, 0.8), moved(center, side * width, -person.eye_slant)
        upper = curve(inner, moved(center, 0, -2 * opening), outer)
        lower = curve(outer, moved(center, 0, 1.6 * opening), inner)
        lid = painter.place(upper)
        shadow = curve(inner, moved(center, 0, -2.7 * person.eye_height), outer)
        painter.fill(painter.place(shadow), person.skin * 0.86)
        if scene.eyes_open > 0.3:
            painter.fill(np.concatenate([lid, painter.place(lower)]), (244, 246, 248))
            pupil = (center[0] + 2.2 * scene.gaze, EYE_Y - 0.5)
            size = min(person.iris_size, 1.1 * opening)
            painter.dot(pupil, size, person.iris)
            painter.dot(pupil, size * 0.5, (20, 18, 18))
            painter.dot((pupil[0] + 1, pupil[1] - 1), 0.7, (255, 255, 255))
        painter.line(lid, (36, 30, 32), person.lash)
        height = EYE_Y - person.brow_gap - 3 * scene.brow_raise
        start = np.array([side * (17.6 - person.brow_length * 0.9), height + person.brow_slant])
        end = np.array([side * (17.6 + person.brow_length), height - person.brow_slant])
        middle = np.array([side * 19.0, height - 2 * person.brow_arch])
        thick = person.brow_width
        top = curve(moved(start, 0, -thick / 2), moved(middle, 0, -thick), end)
        brow = np.concatenate([top, curve(end, middle, moved(start, 0, thick / 2))])
        painter.fill(painter.place(brow), painter.brow)


def _paint_nose_and_mouth(painter: Painter) -> None:
    """Paint nose, lips and moustache."""
    person, scene = painter.person, painter.scene
    tip, wing = 10.5 + person.nose_length, person.nose_width
    bridge = painter.place([(-person.nose_bridge, -8), (person.nose_bridge, -8)], 2.0)
    base = painter.place(curve((wing, tip), (0, tip + 7), (-wing, tip)), 7.0)
    painter.fill(np.concatenate([bridge, base]), person.skin * person.nose_tone)
    painter.line(base, person.skin * 0.6, 1)
    mouth, half = 31.0 + person.mouth_y, person.mouth_width * (1 + 0.12 * scene.smile)
    corner = mouth - 3.0 * scene.smile
    gap = 5.0 * scene.mouth_open
    lips = 0.65 * person.lips + 0.35 * person.skin
    left, right = (-half, corner), (half, corner)
    top = curve(left, (0, mouth + scene.smile - 2.2 * person.lip_upper), right)
    bottom = curve(right, (0, mouth + 3 * scene.smile + 2 * gap + 2.2 * person.lip_lower), left)
    painter.fill(painter.place(np.concatenate([top, bottom]), 2.0), lips)
    over = curve(left, (0, mouth + 2 * scene.smile - 0.5), right)
    under = curve(right, (0, mouth + 2 * scene.smile + 2 * gap), left)
    if scene.mouth_open > 0.15:
        painter.fill(painter.place(np.concatenate([over, under]), 2.0), (40, 30, 70))
        teeth = curve(right, (0, mouth + 2 * scene.smile + 0.8 * gap), left)
        painter.fill(painter.place(np.concatenate([over, teeth]), 2.0), (236, 240, 244))
    else:
        painter.line(painter.place(over, 2.0), lips * 0.55, 1)
    if person.moustache > 0:
        y = mouth - 2.2 * person.lip_upper - 0.5
        shape = [(-half, y + 4), (0, y - 2 * person.moustache), (half, y + 4), (0, y + 1)]
        painter.fill(
            painter.place(np.concatenate([curve(*shape[:3]), curve(shape[2], shape[3], shape[0])]), 3.0),
            0.85 * painter.hair + 0.15 * person.skin,
        )


def _paint_hair(painter: Painter) -> None:
    """Paint the hair in front: from the outer contour down to the fringe on either side of the parting."""
    person = painter.person
    if person.baldness > 0:
        return
    contour = _hair_contour(person)
    if person.bun > 3:
        bun = np.array([0.0, -HEAD_TOP * person.hair_volume]) + circle(16) * (person.bun, person.bun * 0.8)
        painter.fill(painter.place_outline(bun), painter.hair * 0.9)
    top = contour[contour[:, 1] < 0]
    order = np.argsort(np.arctan2(top[:, 1], top[:, 0]))  # left to right over the crown
    temple = person.half_width - 1.0
    part = (person.parting * temple, person.hairline)
    left = curve((-temple, 0), (-temple * 0.9, person.hairline + person.fringe_left), part)
    right = curve(part, (temple * 0.9, person.hairline + person.fringe_right), (temple, 0))
    fringe = painter.place(np.concatenate([left, right]))
    painter.fill(np.concatenate([painter.place_outline(top[order]), fringe[::-1]]), painter.hair)
    crown = painter.place([part, (part[0] * 0.7, part[1] - 14)])
    painter.line(crown, painter.hair * 0.84, 1)


def _paint_accessories(painter: Painter, rng: np.random.Generator) -> None:
    """Paint glasses, a hat and an object in front of the face."""
    scene = painter.scene
    if scene.glasses:
        frame, size = rng.uniform(10, 120, 3), rng.uniform(8.5, 11.5)
        for side in (-1, 1):
            rim = np.array([side * 17.6, EYE_Y]) + circle(20) * (size, size * 0.85)
            rim_px = painter.place(rim, 4.0)
            painter.line(np.concatenate([rim_px, rim_px[:1]]), frame, 1)
        bridge = [(-17.6 + size, EYE_Y), (17.6 - size, EYE_Y)]
        painter.line(painter.place(bridge, 6.0), frame, 1)
    if scene.hat:
        color, brim = _soft_colors(rng, 1)[0], rng.uniform(-36, -26)
        width = painter.person.half_width + 7
        cap = [(-width, brim), (-width + 4, -58), (0, -70), (width - 4, -58), (width, brim)]
        painter.fill(painter.place_outline(cap), color)
        painter.line(painter.place_outline([(-width - 3, brim), (width + 3, brim)]), color * 0.7, 4)
    if scene.occlusion > 0:
        size = scene.occlusion * SIDE_PX / 2
        center = rng.uniform(10, 102, 2)
        stretch = rng.uniform(0.6, 1.5)
        shape = circle(4 if rng.random() < 0.5 else 18) * (size * stretch, size / stretch)
        painter.fill(center + shape, _soft_colors(rng, 1)[0])
