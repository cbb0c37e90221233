"""What CONTRIBUTING.md shows is code that works."""

import re
import textwrap
from pathlib import Path

import torch

import net
from architecture_table import rows
from backbone import Backbone
from inference import load_pretrained_model
from train_val import FaceRecognitionModule

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
