import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from adaface.commands import demo_baseline
from adaface.commands.demo_baseline import comparison_table, newest_run, raw_pixel_baseline
from adaface.data.pair_pickle import write_bin
from adaface.data.pair_sets import PAPER_SETS
from adaface.demo.dataset import write_demo_data


def test_the_baseline_is_that_of_the_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (20, 7, 7, 3), dtype=np.uint8)

    def png(index: int, gain: float) -> bytes:
        image = cv2.resize(patterns[index], (112, 112), interpolation=cv2.INTER_NEAREST)
        return cv2.imencode(".png", (image * gain).astype(np.uint8))[1].tobytes()

    issame = np.arange(20) % 2 == 0
    images = [png((k // 2 + (k % 2 and not issame[k // 2])) % 20, 1.0 if k % 2 else 0.5) for k in range(40)]
    write_bin(tmp_path / "lfw.bin", images, issame)
    accuracy, kind = raw_pixel_baseline(tmp_path)
    assert accuracy == {"lfw": 100.0}
    assert kind in ("plain", "mean-removed")


def test_the_baseline_covers_the_five_sets_and_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    write_demo_data(folder, identities=2, images_per_identity=1, pairs=10, seed=1)
    accuracy, _ = raw_pixel_baseline(folder)
    assert tuple(accuracy) == PAPER_SETS
    assert all(0 <= value <= 100 for value in accuracy.values())
    with pytest.raises(FileNotFoundError, match="none of agedb_30, cfp_fp"):
        raw_pixel_baseline(tmp_path)


def write_run(folder: Path, sets: dict[str, float], age_sec: int) -> Path:
    folder.mkdir(parents=True)
    rows = [{"set": name, "accuracy": value} for name, value in sets.items()]
    (folder / "results.json").write_text(json.dumps({"sets": rows}))
    os.utime(folder / "results.json", (10**9 - age_sec, 10**9 - age_sec))
    return folder


def test_baseline_and_run_stand_beside_each_other(tmp_path: Path) -> None:
    write_run(tmp_path / "demo_11-23_0", {"lfw": 10.0}, 100)
    write_run(tmp_path / "other_11-23_0", {"lfw": 20.0}, 0)
    newest = write_run(tmp_path / "demo_11-23_1", {"lfw": 95.0, "calfw": 85.0}, 10)
    assert newest_run(tmp_path, "demo") == newest
    lines = comparison_table({"lfw": 60.0, "calfw": 50.0}, "plain", newest).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["lfw", "60.00", "95.00"], ["calfw", "50.00", "85.00"], ["-" * len(lines[0])], ["mean", "55.00", "90.00"],
    ]  # fmt: skip
    alone = comparison_table({"lfw": 60.0}, "plain", None).splitlines()
    assert alone[-1].split() == ["mean", "60.00"]
    with pytest.raises(FileNotFoundError, match="no finished run nothing_"):
        newest_run(tmp_path, "nothing")


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        "{}",
        '{"sets": 3}',
        '{"sets": [{"set": "lfw"}]}',
        '{"sets": [{"set": "lfw", "accuracy": "lfw"}]}',
        f'{{"sets": [{{"set": "lfw", "accuracy": {"9" * 400}}}]}}',
        "[" * 100_000,
    ],
)
def test_results_that_are_none_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json (does not hold the acc|is damaged or not a JSON)"):
        comparison_table({"lfw": 60.0}, "plain", tmp_path)


def test_the_command_line_says_where_the_plots_are(tmp_path: Path, monkeypatch, capsys) -> None:
    write_demo_data(tmp_path / "faces", identities=2, images_per_identity=1, pairs=10, seed=1)
    run = write_run(tmp_path / "runs" / "demo_1", dict.fromkeys(PAPER_SETS, 90.0), 0)
    monkeypatch.setattr(
        sys, "argv", ["commands/demo_baseline.py", str(tmp_path / "faces"), "--runs", str(tmp_path / "runs")]
    )
    assert demo_baseline.main() == 0
    output = capsys.readouterr().out.splitlines()
    assert output[-1] == f"plots, tables and checkpoints: {run}"
    assert output[-2].split()[-1] == "90.00"
    monkeypatch.setattr(sys, "argv", ["commands/demo_baseline.py", str(tmp_path / "nowhere")])
    assert demo_baseline.main() == 2
    assert "none of agedb_30" in capsys.readouterr().err
