"""The experiment behind the figures of docs/finetuning.md."""

import pandas as pd
import pytest

from bench import finetune_gain


def test_people_are_in_one_part_each_whatever_their_order():
    people = [f"person {number}" for number in range(40)]
    parts = finetune_gain.split(people)
    assert {name: len(part) for name, part in parts.items()} == {"pretraining": 20, "finetuning": 12, "test": 8}
    assert sorted(name for part in parts.values() for name in part) == sorted(people)
    assert finetune_gain.split(people[::-1]) == parts


def test_parts_are_folders_of_links_and_made_once(tmp_path):
    for number in range(10):
        (tmp_path / "imgs" / str(number)).mkdir(parents=True)
    for _ in range(2):
        finetune_gain.link(tmp_path / "imgs", tmp_path / "parts")
    found = {path.name: sorted(entry.name for entry in path.iterdir()) for path in (tmp_path / "parts").iterdir()}
    assert {name: len(people) for name, people in found.items()} == {"pretraining": 5, "finetuning": 3, "test": 2}
    assert all(path.is_dir() and path.is_symlink() for path in (tmp_path / "parts").glob("*/*"))


def test_gains_are_read_and_summed_up(tmp_path):
    header = "model,condition,f1_score,f1_score_difference"
    lines = ["pre,clear,50,", "pre,blurred,40,", "best,clear,51,1", "best,blurred,42,2", "last,clear,53,3"]
    gains = []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.csv"
        file.write_text("\n".join([header, *lines, f"last,blurred,44,{3 + seed}"]))
        gains += finetune_gain._gains(file, seed)
    assert gains[1] == {"seed": 1, "epoch": "last", "clear": 3.0, "blurred": 4.0}
    said = finetune_gain.summary(pd.DataFrame(gains)).splitlines()
    assert said[-2].endswith("points of F1: clear +1.00 (deviation 0.00), blurred +2.00 (deviation 0.00)")
    assert said[-1].endswith("clear +3.00 (deviation 0.00), blurred +4.50 (deviation 0.71)")


@pytest.mark.slow
def test_the_experiment_runs_and_goes_on(tmp_path, capfd, monkeypatch):
    from adaface.commands import convert
    from adaface.demo.dataset import write_demo_data

    write_demo_data(tmp_path / "faces", identities=60, images_per_identity=4, pairs=20, seed=1)
    assert convert.main(["--rec_path", str(tmp_path / "faces")]) == 0
    words = ["finetune_gain", str(tmp_path / "faces" / "imgs"), "--val_data_path", str(tmp_path / "faces")]
    words += ["--output", str(tmp_path / "out"), "--epochs", "1", "--lr_milestones", "", "--num_workers", "0"]
    words += ["--held_out_share", "0.3"]
    monkeypatch.setattr("sys.argv", words)
    for _ in range(2):
        assert finetune_gain.main() == 0
        assert "last epoch, mean of 3 seeds, points of F1: clear " in capfd.readouterr().out
