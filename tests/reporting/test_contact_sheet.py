import cv2
import numpy as np

from adaface.reporting.contact_sheet import Section, draw_sheet, tiled


def plain(*color: int) -> np.ndarray:
    return np.full((112, 112, 3), color, np.uint8)


def test_a_grid_is_filled_row_by_row():
    grid = tiled([plain(1, 2, 3), plain(4, 5, 6), plain(7, 8, 9)], 2)
    assert grid.shape == (228, 228, 3)
    assert [grid[top, left].tolist() for top, left in ((0, 0), (111, 225), (114, 0), (114, 114))] == [
        [1, 2, 3], [4, 5, 6], [7, 8, 9], [255, 255, 255],
    ]  # fmt: skip
    assert (grid[112:114] == 255).all()


def test_red_faces_are_red_under_their_title(tmp_path):
    red, blue = plain(0, 0, 255), plain(255, 0, 0)  # BGR
    draw_sheet([Section("person 1: 21 faces", [red] * 21), Section("in no group: 1 face", [blue])], tmp_path / "x.png")
    sheet = cv2.imread(str(tmp_path / "x.png"))
    assert sheet.shape == (24 + 2 * 66 + 24 + 66, 20 * 66, 3)
    assert (sheet[24, 0] == (0, 0, 255)).all() and (sheet[24 + 66, 0] == (0, 0, 255)).all()
    assert (sheet == (0, 0, 255)).all(-1).sum() == 21 * 64 * 64
    assert (sheet == (255, 0, 0)).all(-1).sum() == 64 * 64
    for title in (sheet[:24], sheet[156:180]):
        assert 100 < (title < 128).all(-1).sum() < 2000, "the text"
