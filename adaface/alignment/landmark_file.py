"""Landmarks from a file: one line for each face, as in the files of IJB.

    <file> <x1> <y1> ... <x5> <y5> [<score>]

Separated by blanks; x and y in px of the upright photograph, in the order of ``warp.ARCFACE_TEMPLATE``.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags

from adaface.alignment.detector import Face
from adaface.alignment.warp import outside_of_image, similarity_to_template
from adaface.data.image_header import PILLOW_ERRORS, open_with_pillow
from adaface.system.command_line import counted
from adaface.system.text_table import read_table

_COMPARED = 500  # faces, spread over the set
_FEWEST = 20
_OFF_CENTER = 0.08  # median distance of the faces from the middle, in both directions, that is told
_FAR_OFF_CENTER = 0.15  # and that is refused: crops of twice or half the size have 0.18 and more
_FAR_OFF_ONE_AXIS = 0.18  # that is told, except above the middle: crops of 112x112 have 0.14 below it
_CUT_OFF = 0.08  # median share of the aligned face beyond one edge of the image that is told
_MOST_CUT_OFF = 0.2  # and that is refused
_EDGES = (("left", "right"), ("upper", "lower"))
_TURNED = 60.0  # median angle, in degrees, that is refused
_LEAST_DROP_PX = 2.0  # median, from the eyes to the nose and on to the mouth; 15 in frontal faces and in full profiles
_POINTS = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]


def read_landmarks(path: Path) -> dict[str, list[Face]]:
    """Return the faces of each file; their boxes are the bounding boxes of the five points.

    Args:
        path: text file. If the score is missing in all lines, it is 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed line (the message names file and line), or an empty file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected landmarks: <file> <x1> <y1> ... <x5> <y5> [<score>]")
    columns = {"name": "str", **dict.fromkeys(_POINTS, "float32"), "score": "float32"}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        first = next((line.split() for line in file if line.strip()), [])
    if len(first) == len(columns) - 1:
        del columns["score"]
    faces: dict[str, list[Face]] = defaultdict(list)
    for piece in read_table(path, columns):
        points = piece[_POINTS].to_numpy(np.float64).reshape(-1, 5, 2)
        scores = piece["score"].tolist() if "score" in columns else [1.0] * len(piece)
        for name, landmarks, score in zip(piece["name"], points, scores, strict=True):
            (left, top), (right, bottom) = landmarks.min(axis=0), landmarks.max(axis=0)
            box = (float(left), float(top), float(right), float(bottom))
            faces[Path(name).as_posix()].append(Face(box, landmarks, score))
    if not faces:
        raise ValueError(f"{path} lists no faces")
    return dict(faces)


def check_landmarks(folder: Path, paths: Sequence[Path], landmarks: np.ndarray) -> list[str]:
    """Check that the landmarks of a set have the scale and the direction of its images.

    Most faces are near the middle of an image, upright, and inside of it. Landmarks that were found at a smaller size
    of the images lie inside of them too, but in a corner; if one coordinate is wrong, faces are cut off at an edge; of
    points in reverse order, and of images that were turned later, each single face could be right. So could a face that
    looks far up or down, with its nose as high as its eyes or as low as its mouth; in most faces it is in between.

    Args:
        folder: of the images, for messages.
        paths: N images, one for each face.
        landmarks: (N, 5, 2) x and y in px of the upright image.

    Returns:
        A note if most faces are off the middle; or, of fewer than 20 faces, which may be right, on what is an error of
        more; otherwise nothing.

    Raises:
        ValueError: they are so far from it that the scale is another one, most faces are turned or cut off, or the
            points are in another order.
    """
    places, cuts, angles, drops = [], [], [], []
    for index in np.unique(np.linspace(0, len(paths) - 1, _COMPARED).astype(int)).tolist():
        try:
            matrix = similarity_to_template(landmarks[index])
            size = _upright_size(paths[index])
        except PILLOW_ERRORS:  # counted when it is aligned
            continue
        places.append(landmarks[index].mean(axis=0) / size)
        before, behind = outside_of_image(matrix, *size).mean(axis=1)
        cuts.append(before - behind)  # a face that fills the image is cut off at both edges
        angles.append(abs(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))))
        heights = landmarks[index] @ matrix[1, :2]
        drops.append(min(heights[2] - heights[:2].max(), heights[3:].min() - heights[2]))
    if not angles:
        return []
    try:
        _check_order(folder, float(np.median(angles)), float(np.median(drops)), len(angles))
        return _check_places(folder, np.median(places, axis=0), np.median(cuts, axis=0), len(places))
    except ValueError as error:
        if len(angles) >= _FEWEST:
            raise
        return [f"perhaps {error}"]


def _check_order(folder: Path, angle: float, drop_px: float, count: int) -> None:
    """Check medians of a set: the angle in degrees, and how much lower the nose is than the eyes, and the mouth."""
    faces = counted(count, "face", "faces")
    if angle > _TURNED:
        fault = f"the faces in {folder} are turned by {angle:.0f} degrees (median of {faces}), expected 0"
    elif drop_px < _LEAST_DROP_PX:
        fault = f"in most of {faces} in {folder}, the nose is not between the eyes and the mouth"
    else:
        return
    raise ValueError(
        f"{fault}: are the points of the landmark file in the order left eye, right eye, nose, left and right corner "
        "of the mouth, as the viewer sees them, x and y of each together, and its images upright?"
    )


def _check_places(folder: Path, place: np.ndarray, cut: np.ndarray, count: int) -> list[str]:
    """Check medians of a set: the middles of the faces, and the shares that are cut off at the left and at the top."""
    x, y = place.tolist()
    off = max(min(0.5 - x, 0.5 - y), min(x - 0.5, y - 0.5))  # to the upper left, or to the lower right
    where = f"the middle of the landmarks is at {100 * x:.0f} % of the width and {100 * y:.0f} % of the height"
    if off > _FAR_OFF_CENTER:
        raise ValueError(
            f"the images in {folder} have another scale than the landmark file: {where} (median of "
            f"{count:,} images), expected about 50 %. Use the images that belong to it, at their original size"
        )
    toward = np.where(place < 0.5, cut, -cut)  # (2,) cut off at the edge that the faces are nearer to
    toward[np.abs(place - 0.5) < _OFF_CENTER] = 0
    axis = int(toward.argmax())
    edge = _EDGES[axis][int(place[axis] > 0.5)]
    cut_off = f"{100 * toward[axis]:.0f} % of the aligned faces lie beyond the {edge} edge of the image"
    if toward[axis] > _MOST_CUT_OFF:
        raise ValueError(
            f"the {'xy'[axis]} of the landmark file does not fit the images in {folder}: {cut_off} (median of "
            f"{count:,} images), expected about 0 %. Use the images that belong to it, at their original size"
        )
    if toward[axis] > _CUT_OFF:
        return [f"{cut_off}, expected about 0 %: is the {'xy'[axis]} of the landmark file right?"]
    if off > _OFF_CENTER or max(abs(x - 0.5), y - 0.5) > _FAR_OFF_ONE_AXIS:
        return [f"{where} of the images, expected about 50 %: is this their original size?"]
    return []


def _upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as its header and its EXIF say."""
    image = open_with_pillow(io.BytesIO(path.read_bytes()))  # of a file, Pillow reserves what a damaged header asks for
    stated = image.format != "PNG" or "exif" in image.info  # a PNG without would be decoded
    turned = stated and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size
