"""A short training with each margin on drawn faces: each learns to tell people apart whom it has never seen."""

import json
from pathlib import Path

import numpy as np
import pytest

import main
from adaface.commands import convert
from adaface.commands.demo_baseline import raw_pixel_baseline
from adaface.demo.dataset import write_demo_data
from adaface.heads.margins import HEADS

OPTIONS = {"adaface": "--m 0.4 --h 0.333", "cosface": "--m 0.35"}  # the others' defaults are their papers'
SMALL = (
    "--train_data_path faces/imgs --val_data_path faces --gpus 0 --num_workers 1 --arch ir_mini --batch_size 32 "
    "--epochs 6 --lr 0.1 --lr_milestones 3,5"
)
CHANCE = 50.0


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_demo_data(folder, identities=40, images_per_identity=16, pairs=60, seed=3)
    assert convert.main(["--rec_path", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_short_training_beats_chance_and_pixels_by_far(name: str, faces: Path, tmp_path: Path) -> None:
    words = [*SMALL.split(), "--data_root", str(faces.parent), "--output_dir", str(tmp_path)]
    assert main.main([*words, "--head", name, *OPTIONS.get(name, "").split()]) == 0
    (results,) = tmp_path.glob("*/results.json")
    accuracy = np.mean([row["accuracy"] for row in json.loads(results.read_text())["sets"]])
    pixels = np.mean(list(raw_pixel_baseline(faces)[0].values()))
    print(f"{name}: {accuracy:.2f} %, raw pixels {pixels:.2f} %")
    assert accuracy > CHANCE + 20
    assert accuracy > pixels + 10
