import pytest

from adaface.alignment.landmark_file import read_landmarks

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
