"""What CONTRIBUTING.md shows is code that works."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import convert
import data
import main
import net
from architecture_table import rows
from backbone import Backbone
from demo_data import write_demo_data
from folder_source import FolderSource
from inference import load_pretrained_model
from train_val import FaceRecognitionModule
from training_source import fingerprint_of

ROOT = Path(__file__).resolve().parents[1]


def blocks_of(section: str) -> list[str]:
    """The Python blocks of a section of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return [
        textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", part[1], re.MULTILINE | re.DOTALL)
    ]


def test_a_backbone_that_follows_the_steps_is_trained_saved_and_loaded(monkeypatch, tmp_path):
    (code,) = blocks_of("How to add a backbone")
    module: dict[str, object] = {}
    exec(compile(code, "plain_net.py", "exec"), module)
    plain_net = module["PlainNet"]
    assert issubclass(plain_net, Backbone)
    monkeypatch.setitem(net.ARCHITECTURES, "plain_net", plain_net)
    torch.manual_seed(0)
    training = FaceRecognitionModule(arch="plain_net", class_num=5, metadata={"config": {"arch": "plain_net"}})
    training.model.gradient_checkpointing = True
    optimizer = training.configure_optimizers()["optimizer"]
    images = torch.randint(0, 256, (10, 112, 112, 3), dtype=torch.uint8)
    losses = []
    for _ in range(4):
        loss = training.head.loss(*training(images), torch.arange(10) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, *_ in rows(["plain_net"])] == ["plain_net"]
    torch.save({"state_dict": training.state_dict(), "adaface": training.metadata}, tmp_path / "model.ckpt")
    loaded = load_pretrained_model(None, tmp_path / "model.ckpt")
    assert isinstance(loaded, plain_net)
    faces = torch.zeros(1, 3, 112, 112)
    assert torch.equal(loaded(faces)[0], training.model.eval()(faces)[0])
    assert [len(stage) for stage in loaded.stages] == [1, 3, 1]


def test_a_source_that_follows_the_steps_trains_as_the_folder_of_the_same_images(monkeypatch, tmp_path):
    (code,) = blocks_of("How to add a data set")
    module: dict[str, object] = {}
    exec(compile(code, "listed_source.py", "exec"), module)
    write_demo_data(tmp_path / "faces", identities=4, images_per_identity=4, pairs=10, seed=1)
    assert convert.main(["--rec_path", str(tmp_path / "faces"), "--make_image_files"]) == 0
    folder = FolderSource(tmp_path / "faces" / "imgs")
    listing = tmp_path / "faces" / "images.csv"
    rows = [folder.describe(index).partition(",")[0] for index in range(len(folder))]
    lines = [f"{Path(row).relative_to(tmp_path / 'faces')},{Path(row).parent.name}" for row in rows]
    listing.write_text("\n".join(["path,person", *lines]))
    listed = module["ListedSource"](listing)
    assert fingerprint_of(listed) == fingerprint_of(folder)
    assert np.array_equal(listed.labels, folder.labels) and listed.label(5) == folder.label(5)

    losses = []
    for source in (folder, listed):
        monkeypatch.setattr(data, "open_training_source", lambda *_, source=source, **__: source)
        words = ["--data_root", str(tmp_path), "--train_data_path", "faces", "--val_data_path", "none", "--gpus", "0"]
        words += ["--arch", "ir_mini", "--batch_size", "8", "--num_workers", "0", "--epochs", "1"]
        run = tmp_path / f"run{len(losses)}"
        assert main.main([*words, "--run_folder", str(run)]) == 0
        metrics = pd.read_csv(next((run / "metrics").glob("version_*/metrics.csv")))
        losses.append(metrics["train_loss"].dropna().tolist())
    assert losses[0] == losses[1] and losses[0]

    listing.write_text("file,who\na.png,b\n")
    with pytest.raises(ValueError, match="expected a CSV with the columns path and person"):
        module["ListedSource"](listing)
