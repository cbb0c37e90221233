"""Files that an earlier version has written (commit 673588e) go on working: checkpoint, run folder, sidecar, recipe.

`golden/earlier` holds drawn faces, a recipe, the folder of a run that was stopped in the second of its two epochs, and
in `expected.npz` the weights with which that version resumed and ended it.
"""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import main
from adaface.config.parsing import read_recipe
from adaface.data.sources.records import RecordSource
from adaface.demo.dataset import write_demo_data
from adaface.inference.embedder import load_pretrained_model
from adaface.records import sidecar

EARLIER = Path(__file__).parent / "golden" / "earlier"
MADE = 1_700_000_000  # when the records were made: sidecars go by it


@pytest.fixture
def earlier(tmp_path, monkeypatch) -> Path:
    """Copy of the earlier version's folder, in which it was started."""
    pytest.importorskip("timm", reason="the earlier run trained a network of timm")
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER, folder)
    for name in ("train.rec", "train.idx"):
        os.utime(folder / "faces" / name, (MADE, MADE))
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)
    return folder


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in torch.load(checkpoint, weights_only=True)["state_dict"].items()}


def test_a_run_stopped_inside_an_epoch_is_resumed_to_the_same_bits(earlier, capsys):
    expected = dict(np.load("expected.npz"))
    assert main.main(["--resume_from_checkpoint", "run/last.ckpt"]) == 0
    assert "epoch 2/2 batch 4/4" in capsys.readouterr().out
    resumed = weights(earlier / "run" / "last.ckpt")
    assert list(resumed) == list(expected)
    assert main.main(["--config", "recipe.yaml", "--run_folder", "uninterrupted"]) == 0
    whole = weights(earlier / "uninterrupted" / "last.ckpt")
    for name, value in expected.items():
        np.testing.assert_allclose(resumed[name], value, rtol=0.02, atol=0.02)  # on any processor
        assert resumed[name].dtype == value.dtype
    if all(np.array_equal(whole[name], value) for name, value in expected.items()):  # this processor rounds as that one
        assert all(np.array_equal(resumed[name], value) for name, value in expected.items())


def test_its_checkpoint_embeds_the_same(earlier):
    model = load_pretrained_model(None, "run/last.ckpt")
    images = torch.zeros(2, 3, 112, 112).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeddings, norms = model(images)
    assert embeddings.shape == (2, 512)
    assert norms.shape == (2, 1)
    kept = {name.removeprefix("model."): value for name, value in weights(earlier / "run" / "last.ckpt").items()}
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), kept[name])


def test_its_sidecars_are_used(earlier):
    stamp = sidecar.take_stamp(earlier / "faces" / "train.rec", earlier / "faces" / "train.idx")
    index = sidecar.load(stamp, "index")
    order = sidecar.load(stamp, "order")
    source = RecordSource(earlier / "faces" / "train.rec")
    np.testing.assert_array_equal(source.labels, order["labels"])
    np.testing.assert_array_equal(index["keys"], np.arange(37))  # the header, 30 images, 6 people's ranges
    assert source._shared, "the order was mapped from the sidecar, not made again"
    again = earlier.parent / "again"
    write_demo_data(again, identities=6, images_per_identity=5, pairs=20, seed=3)
    drawn = RecordSource(again / "train.rec")
    for sample in range(len(source)):
        a, b = (cv2.imdecode(np.frombuffer(s.read(sample), np.uint8), cv2.IMREAD_COLOR) for s in (source, drawn))
        np.testing.assert_array_equal(a, b)


def test_its_recipe_is_read():
    values = read_recipe(EARLIER / "recipe.yaml")
    assert values["arch"] == "timm:test_efficientnet"
    assert values["lr_milestones"] == (1,)
    assert values["checkpoint_every_steps"] == 2
