import json
import sys

import numpy as np
import pytest

from adaface.checkpoints import run_folder
from adaface.data.pair_sets import open_pair_set
from adaface.data.pair_writers import write_memfile
from adaface.reporting.run_report import write_run_report
from tests.reporting.test_report import Page, result
from tests.reporting.test_training import metrics_file

CONFIG = {
    "arch": "ir_18", "head": "adaface", "train_data_path": "faces_emore/imgs", "lr_milestones": [12, 20],
    "evaluate": False, "start_from_model_statedict": "",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run folder as main.py has made it, of the second start of a run."""
    folder = tmp_path / "run_11-24_0"
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["main.py", "--arch", "ir_18"])
    for _ in range(2):
        run_folder.write_config(folder, CONFIG)
        run_folder.write_manifest(folder, CONFIG, "0123abcd", 85742, learning_rate=0.1)
    return folder


def page_of(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_training_from_its_folder(folder, tmp_path):
    metrics_file(folder / "metrics" / "version_0" / "metrics.csv")
    lfw = result("lfw", pairs=20)
    images = np.random.default_rng(0).integers(0, 256, (40, 112, 112, 3), dtype=np.uint8)
    write_memfile(tmp_path, "lfw", images, lfw.issame)
    write_run_report(folder, [lfw], {"lfw": open_pair_set(tmp_path, "lfw")})
    page = page_of(folder)
    assert page.headings == ["verification", "curves", "similarities", "training", "pairs", "options", "manifest"]
    started = "started " + json.loads((folder / "manifest.json").read_text())["started"][:16].replace("T", " ")
    for text in ("run_11-24_0", "ir_18 with adaface, trained on faces_emore/imgs", started, "12, 20", "earlier starts",
                 "data: fingerprint", "0123abcd", "data: classes", "85742", "main.py --arch ir_18"):  # fmt: skip
        assert text in page.text, text
    assert "config: arch" not in page.text  # they are the options
    assert len(page.having("img")) == 2 * (8 + 8)


def test_what_the_numbers_do_not_mean_is_said(folder):
    write_run_report(folder, [], {}, warnings=["the training data has one identity"])
    page = page_of(folder)
    assert "the training data has one identity" in page.text and page.source.count('class="warnings"') == 1


def test_one_epoch_is_no_plural(folder):
    metrics_file(folder / "metrics" / "version_0" / "metrics.csv", epochs=range(1))
    write_run_report(folder, [], {})
    text = page_of(folder).text
    assert "1 epoch" in text and "1 epochs" not in text and "1 validations" not in text


def test_nothing_logged_and_nothing_tested(folder):
    write_run_report(folder, [], {})
    assert page_of(folder).headings == ["options", "manifest"]


def test_an_evaluation_names_its_model(folder):
    run_folder.write_config(folder, {**CONFIG, "evaluate": True, "start_from_model_statedict": "adaface.ckpt"})
    write_run_report(folder, [result()], {})
    assert "ir_18 of adaface.ckpt" in page_of(folder).text
    assert "pairs" not in page_of(folder).headings


def test_a_trial_run_has_tested_the_first_pairs_alone(folder, tmp_path):
    lfw = result("lfw", pairs=8)
    write_memfile(tmp_path, "lfw", np.zeros((40, 112, 112, 3), np.uint8), np.ones(20, bool))
    write_run_report(folder, [lfw], {"lfw": open_pair_set(tmp_path, "lfw")})
    assert len(page_of(folder).having("img")) == 2 * len(lfw.issame)
