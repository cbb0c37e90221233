"""What CONTRIBUTING.md shows is code that works."""

import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import main
from adaface.commands import convert
from adaface.commands.list_models import rows
from adaface.data import module as data_module
from adaface.data.sources.base import fingerprint_of
from adaface.data.sources.folder import FolderSource
from adaface.demo.dataset import write_demo_data
from adaface.heads import margins
from adaface.heads.margins import build_head
from adaface.heads.names import MARGINS, Margin
from adaface.heads.partial_fc import build_sharded_head
from adaface.inference.embedder import load_pretrained_model
from adaface.models import registry
from adaface.models.backbone import Backbone
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
    monkeypatch.setitem(registry.ARCHITECTURES, "plain_net", plain_net)
    torch.manual_seed(0)
    training = FaceRecognitionModule("plain_net", 5, metadata={"config": {"arch": "plain_net"}})
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
        monkeypatch.setattr(data_module, "open_training_source", lambda *_, source=source, **__: source)
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


MOST_LINES = 20  # of a margin


@pytest.fixture(autouse=True)
def margins_as_before():
    before = dict(MARGINS)
    yield
    MARGINS.clear()
    MARGINS.update(before)


def written_margin() -> tuple[str, type[margins.Head]]:
    """The code of the margin that CONTRIBUTING.md adds to heads/margins.py, and its class."""
    name, code = blocks_of("How to add a margin")
    MARGINS.update(eval(f"{{{name}}}", {"Margin": Margin}))
    module = dict(vars(margins))
    exec(compile(code, "heads/margins.py", "exec"), module)
    return code, module["LiArcFace"]


def test_a_margin_that_follows_the_steps_is_short_and_learns_dense_and_sharded(monkeypatch):
    code, margin = written_margin()
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) + 1 <= MOST_LINES, "with its line in HEADS"
    monkeypatch.setitem(margins.HEADS, "li_arcface", margin)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    norms, labels = torch.full((12, 1), 20.0), torch.arange(12) % 5
    outcomes = []
    for build in (build_head, build_sharded_head):
        torch.manual_seed(0)
        head = build("li_arcface", 8, 5).double()
        assert head.m == 0.4
        embeddings = F.normalize(features).requires_grad_()
        theta = torch.arccos(embeddings @ F.normalize(head.state_dict()["kernel"], dim=0))
        own = F.one_hot(labels, 5).double()
        expected = F.cross_entropy(64 * (1 - 2 * (theta + 0.4 * own) / math.pi), labels)
        (of_formula,) = torch.autograd.grad(expected, embeddings)
        loss = head.loss(embeddings, norms, labels)
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(embeddings.grad, of_formula, rtol=1e-7, atol=1e-10)
        torch.optim.SGD(head.parameters(), lr=0.1).step()
        assert head.loss(embeddings, norms, labels) < loss
        outcomes.append(head.state_dict()["kernel"])
    torch.testing.assert_close(outcomes[1], outcomes[0])


def test_a_new_margin_is_known_to_the_command_line():
    code, _ = written_margin()
    program = (
        "import sys\n"
        "from adaface.heads import margins\n"
        "from adaface.heads.names import MARGINS, Margin\n"
        f"MARGINS['li_arcface'] = Margin{tuple(MARGINS['li_arcface'])!r}\n"
        "exec(sys.stdin.read(), vars(margins))\n"
        "margins.HEADS['li_arcface'] = margins.LiArcFace\n"
        "from adaface.config import parsing\n"
        "print(parsing.parse(['--head', 'li_arcface', '--m', '0.3'])[0].head.head)\n"
        "parsing.parse(['--help', 'all'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=code, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.stdout.startswith("li_arcface\n"), done.stderr
    line = "Additive margin, linear in the angle: s (1 - 2 (theta + m) / pi)."
    assert f"\n  li_arcface (--m)\n      {line}" in done.stdout


def test_the_hooks_named_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = text.partition("| member of `Head` |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in part.splitlines()[2:]]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(named) == 10
    assert all(hasattr(margins.Head, name) for name in named)


EDITS_OF_AN_OPTION = 2
# what the copy is asked: the option in a recipe, at its reader, with the wrong optimizer, and in a resumed run
QUESTIONS = """
from adaface.config import parsing
from adaface.training import resume
from adaface.config.options import Config
from train_val import FaceRecognitionModule

config, _ = parsing.parse(["--config", "recipe.yaml"])
module = FaceRecognitionModule("ir_mini", 3, config.head, config.optimizer)
print("at its reader:", [group["nesterov"] for group in module.configure_optimizers()["optimizer"].param_groups])
try:
    parsing.parse(["--nesterov", "--optimizer", "adamw", "--lr", "1e-3"])
except ValueError as error:
    print("refused:", error)
older = {name: value for name, value in Config().as_dict().items() if name != "nesterov"}
resumed, notes = resume._resumed(parsing.parse(["--nesterov"])[0], older, [])
print("resumed:", resumed["nesterov"], *notes)
"""


def edits_of_an_option() -> list[tuple[str, str, str]]:
    """File, old lines and new lines of each edit that CONTRIBUTING.md makes for an option."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## How to add an option\n")[2]
    edits = []
    for block in re.findall(r"^ *```diff\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        file, *lines = textwrap.dedent(block).splitlines()
        old, new = ("\n".join(line[1:] for line in lines if line[0] in sides) for sides in (" -", " +"))
        edits.append((file, old, new))
    return edits


def test_an_option_takes_two_edits(tmp_path):
    copy = tmp_path / "copy"
    unneeded = shutil.ignore_patterns(".*", "tests", "docs", "bench", "demo", "experiments", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=unneeded)
    edits = edits_of_an_option()
    assert len(edits) == EDITS_OF_AN_OPTION
    for file, old, new in edits:
        code = (copy / file).read_text(encoding="utf-8")
        assert code.count(old) == 1, f"{file} has no such lines"
        (copy / file).write_text(code.replace(old, new), encoding="utf-8")
        assert len(set(new.splitlines()) - set(old.splitlines())) == 1, "one line each"
    (copy / "recipe.yaml").write_text("nesterov: true\n")

    def printed(*words: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert re.search(
        r"--\[no-\]nesterov +use Nesterov momentum \(only with --optimizer sgd; default: False\)",
        printed("main.py", "--help", "all"),
    )
    answers = printed("-c", QUESTIONS).splitlines()
    assert answers == [
        "at its reader: [True, True]",
        "refused: --nesterov requires --optimizer sgd, got --optimizer adamw",
        "resumed: True --nesterov was False in the resumed run and is now True",
    ]
