import re
import struct

import numpy as np
import pytest
from PIL import Image

from adaface.alignment.landmark_file import check_landmarks, read_landmarks
from adaface.alignment.warp import ARCFACE_TEMPLATE

POINTS = "1 2 5 2 3 4 1.5 6 4.5 7"


def test_lines_with_a_score_several_for_a_file(tmp_path):
    path = tmp_path / "ijb.txt"
    path.write_text(f"a/1.jpg {POINTS} 0.75\n\n./b.jpg {POINTS} 1\na/1.jpg {POINTS.replace('7', '8')} 0.5\n")
    faces = read_landmarks(path)
    assert list(faces) == ["a/1.jpg", "b.jpg"]
    first, second = faces["a/1.jpg"]
    assert first.landmarks.tolist() == [[1, 2], [5, 2], [3, 4], [1.5, 6], [4.5, 7]]
    assert first.box == (1, 2, 5, 7)
    assert (first.score, second.score, second.box[3]) == (0.75, 0.5, 8)


def test_lines_without_a_score(tmp_path):
    path = tmp_path / "lfw.txt"
    path.write_text(f"a.jpg {POINTS}\nb.jpg {POINTS}\n")
    assert [faces[0].score for faces in read_landmarks(path).values()] == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a.jpg {POINTS} 1\nb.jpg 1 2\n", "line 2: got 3 fields, expected 12"),
        (f"a.jpg {POINTS}\nb.jpg {POINTS.replace('7', 'seven')}\n", "line 2: y5 must be a number, got 'seven'"),
        (f"a.jpg {POINTS}\nb.jpg {POINTS.replace('7', 'nan')}\n", "line 2: y5 must be a number, got 'nan'"),
        ("\n", "lists no faces"),
    ],
)
def test_files_that_are_refused(text, message, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_landmarks(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file; expected landmarks"):
        read_landmarks(tmp_path)


def landmarks_of_a_set(folder, size=(300, 400), orientation=1):
    """24 photographs of a size, stored as EXIF says, and a face near the middle of each, in px of 300x400."""
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = size[::-1] if orientation >= 5 else size
    suffixes = ("jpg", "png", "tif", "webp")
    paths = [folder / f"{number}.{suffixes[number % 4]}" for number in range(24)]
    for path in paths:
        Image.new("RGB", stored, "gray").save(path, exif=exif)
    shifts = np.random.default_rng(0).uniform(-60, 60, (24, 1, 2))
    return paths, ARCFACE_TEMPLATE * 1.2 + (83, 80) + shifts  # most faces of photographs are above the middle


def test_a_set_of_upright_faces_near_the_middle(tmp_path):
    for orientation in (1, 6, 3):
        paths, landmarks = landmarks_of_a_set(tmp_path, orientation=orientation)
        assert check_landmarks(tmp_path, paths, landmarks) == []
        assert check_landmarks(tmp_path, [*paths, tmp_path / "absent.jpg"], landmarks[[*range(24), 0]]) == []


def test_a_header_that_asks_for_exabytes_is_left_out(tmp_path):
    """Pillow would reserve them before it finds that the file ends."""
    paths, landmarks = landmarks_of_a_set(tmp_path)
    start = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s4sI", 16, b"ftyp", b"jp2 ", 0)
    (tmp_path / "huge.jp2").write_bytes(start + struct.pack(">I4sQ", 1, b"jp2h", 2**62) + bytes(50))
    assert check_landmarks(tmp_path, [*paths, tmp_path / "huge.jp2"], landmarks[[*range(24), 0]]) == []


@pytest.mark.parametrize(
    ("scale", "change", "message"),
    [
        (2, lambda points: points, "have another scale than the landmark file: the middle of the landmarks is at 2"),
        (0.5, lambda points: points, "have another scale than the landmark file"),
        (
            1,
            lambda points: points[:, ::-1],
            r"are turned by 180 degrees \(median of 24 faces\), expected 0: are the points",
        ),
        (1, lambda points: (300, 400) - points, "are turned by 180 degrees"),
        (1, lambda points: (0, 300) + points[..., ::-1] * (1, -1), "are turned by 90 degrees"),
        (1, lambda points: points[:, [0, 1, 3, 2, 4]], "in most of 24 faces in .*, the nose is not between the eyes"),
        (1, lambda points: points[:, [0, 2, 1, 3, 4]], "the nose is not between the eyes and the mouth"),
        (1, lambda points: points.transpose(0, 2, 1).reshape(-1, 5, 2), "x and y of each together"),
    ],
    ids=["enlarged", "shrunk", "reverse order", "upside down", "not upright", "mouth first", "nose second", "all x"],
)
def test_a_set_of_other_images_or_in_another_order(scale, change, message, tmp_path):
    paths, landmarks = landmarks_of_a_set(tmp_path, (int(300 * scale), int(400 * scale)))
    with pytest.raises(ValueError, match=message):
        check_landmarks(tmp_path, paths, change(landmarks))
    (note,) = check_landmarks(tmp_path, paths[:19], change(landmarks)[:19])  # too few to tell
    assert re.search(f"^perhaps .*{message.replace('24', '19')}", note)


WRONG_Y = "the y of the landmark file does not fit the images in .*: (2|3)[0-9] % of the aligned faces lie beyond the "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda points: (points - (0, 85)) * (1, 0.4), WRONG_Y + "upper edge"),
        (lambda points: points - (0, 120), WRONG_Y + "upper edge"),
        (lambda points: points - (0, -240), WRONG_Y + "lower edge"),
        (lambda points: points - (-110, 0), WRONG_Y.replace("y of", "x of") + "right edge"),
    ],
    ids=["y at another scale", "too high", "too low", "too far to the right"],
)
def test_a_set_with_one_wrong_coordinate(change, message, tmp_path):
    paths, landmarks = landmarks_of_a_set(tmp_path)
    with pytest.raises(ValueError, match=message):
        check_landmarks(tmp_path, paths, change(landmarks))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda points: points - (0, 95), "1. % of the aligned faces lie beyond the upper edge of the image, expected"),
        (lambda points: (points - (0, -40)) * (0.5, 1), "the middle of the landmarks is at 2. % of the width"),
    ],
)
def test_a_note_on_one_coordinate(change, note, tmp_path):
    paths, landmarks = landmarks_of_a_set(tmp_path)
    (told,) = check_landmarks(tmp_path, paths, change(landmarks))
    assert re.search(note, told)


def test_profiles_and_faces_that_look_down(tmp_path):
    """In a full profile the eyes and the corners of the mouth coincide, and the nose is far in front of them."""
    paths, _ = landmarks_of_a_set(tmp_path)
    profile = np.array([(150, 150), (151, 150), (190, 190), (155, 225), (156, 225)], float)
    down = np.array([(115, 175), (185, 175), (150, 215), (120, 226), (180, 226)], float)
    assert check_landmarks(tmp_path, paths, np.repeat([profile], 24, axis=0)) == []
    assert check_landmarks(tmp_path, paths, np.repeat([down], 24, axis=0)) == []


@pytest.mark.parametrize(
    ("size", "shift"),
    [((112, 112), (0, 0)), ((96, 112), (-8, 0)), ((76, 80), (-18, -32)), ((80, 100), (-16, -10)), ((112, 300), (0, 0))],
    ids=["aligned", "SphereFace", "from brow to chin", "a tight box", "a portrait"],
)
def test_crops_that_faces_fill_are_right(size, shift, tmp_path):
    paths, _ = landmarks_of_a_set(tmp_path, size)
    assert check_landmarks(tmp_path, paths, np.repeat([ARCFACE_TEMPLATE + shift], 24, axis=0)) == []
