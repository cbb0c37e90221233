"""The README's pictures are what their scripts draw now."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from adaface.augmentation.more import MORE_AUGMENTATIONS
from docs import draw_architecture, draw_augmentations

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("script", [draw_architecture, draw_augmentations], ids=lambda script: script.PICTURE.stem)
def test_a_picture_of_the_readme_is_what_its_script_draws(script, tmp_path):
    script.draw(tmp_path / "picture.png")
    drawn, kept = (cv2.imread(str(path)).astype(int) for path in (tmp_path / "picture.png", script.PICTURE))
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 1, f"draw it anew: python -m docs.{script.__name__.rpartition('.')[2]}"
    shown = f"docs/{script.PICTURE.name}"
    assert f"]({shown})" in (ROOT / "README.md").read_text(encoding="utf-8"), f"the README does not show {shown}"


def test_every_augmentation_is_shown_and_does_something():
    shown = draw_augmentations.augmentations()
    assert set(MORE_AUGMENTATIONS) < set(shown)
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    for change in shown.values():
        assert not np.array_equal(change(face, np.random.default_rng(1)), face)


def test_the_architecture_names_rooms_that_are_there():
    rooms = {room.strip() for box in draw_architecture.BOXES.values() for room in box.rooms.split(",")}
    assert not [room for room in rooms if not any((base / room).exists() for base in (ROOT, ROOT / "adaface"))]
    assert {end for arrow in draw_architecture.ARROWS for end in arrow[:2]} == set(draw_architecture.BOXES)
