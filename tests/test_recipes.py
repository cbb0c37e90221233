"""Every recipe parses, says what it is for, and starts on small data of the same form."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import main
from adaface.checkpoints.published import PUBLISHED
from adaface.commands import convert
from adaface.config.options import OPTIONS
from adaface.config.parsing import parse
from adaface.data.sources.selection import SUBSET_LIST
from adaface.demo.dataset import write_demo_data
from adaface.models.registry import build_model, check_architecture

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAPER = {"epochs": 26, "batch_size": 512, "lr": 0.1, "lr_milestones": (12, 20, 24), "m": 0.4, "h": 0.333, "s": 64.0}
DATA = {"ms1mv2": "MS1MV2", "ms1mv3": "MS1MV3", "casia": "CASIA-WebFace"}
DATA |= {"webface4m": "WebFace4M", "webface12m": "WebFace12M"}
SETS = {"lfw": "LFW", "cfp_fp": "CFP-FP", "cplfw": "CPLFW", "calfw": "CALFW", "agedb_30": "AgeDB-30"}
SETS |= {"ijbb": "IJB-B", "ijbc": "IJB-C"}
RUNS = [recipe for recipe in RECIPES if recipe.stem.partition("_ir")[0] in (*DATA, "ms1mv2_subset")]
# what a small machine cannot do as the recipe says
SCALED_DOWN = ["--gpus", "0", "--num_nodes", "1", "--num_workers", "0", "--batch_size", "8", "--arch", "ir_mini"]


def header(recipe: Path) -> str:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    first_option = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    return "\n".join(lines[:first_option])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_parses_and_its_head_says_command_hardware_and_result(recipe):
    config, _ = parse(["--config", str(recipe)])
    assert config.given == frozenset(yaml.safe_load(recipe.read_text()))
    check_architecture(config.run.arch)
    for word in ("Command:", "Hardware:", "Result:"):
        assert re.search(rf"^# {word} +\S", header(recipe), re.MULTILINE), f"{recipe.name} has no {word}"
    assert f"recipes/{recipe.name}" in header(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_gives_no_option_its_default(recipe):
    """But for what a reader looks for: a default that moves would move the experiment."""
    looked_for = {"head", "s", "lr", "arch", "epochs", "batch_size", "gpus", "num_workers", "weight_decay"}
    given = {name: parse(["--config", str(recipe)])[0][name] for name in yaml.safe_load(recipe.read_text())}
    idle = {name for name, value in given.items() if value == OPTIONS[name].default}
    assert idle <= looked_for | {"train_data_path", "val_data_path", "lr_milestones"}


@pytest.mark.parametrize("recipe", RUNS, ids=lambda recipe: recipe.stem)
def test_the_papers_runs_have_its_settings_and_its_published_results(recipe):
    config, _ = parse(["--config", str(recipe)])
    assert {name: config[name] for name in PAPER} == PAPER
    assert config.head.head == "adaface" and config.devices.use_16bit
    augmentations = (config.augmentation.low_res_augmentation_prob, config.augmentation.crop_augmentation_prob)
    assert {*augmentations, config.augmentation.photometric_augmentation_prob} == {0.2}
    assert not any(config.augmentation.more_augmentations.values())
    stem, _, depth = recipe.stem.rpartition("_ir")
    assert config.run.arch == f"ir_{depth}"
    found = [model for model in PUBLISHED if (model.arch, model.data) == (config.run.arch, DATA.get(stem))]
    told = set(re.findall(r"([A-Z][A-Za-z]+(?:-\w+)?) (\d\d\.\d\d)", header(recipe)))
    assert bool(found) != ("none published" in header(recipe))
    for model in found:
        assert told == {(SETS[name], f"{value:.2f}") for name, value in model.numbers.items() if name in SETS}
        assert model.file in header(recipe)


def test_all_runs_of_the_paper_are_there():
    wanted = {f"{data}_{arch}" for data in DATA if data != "casia" for arch in ("ir50", "ir101")}
    assert {recipe.stem for recipe in RUNS} == wanted | {"casia_ir50", "ms1mv2_subset_ir18"}


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_demo_data(folder, identities=6, images_per_identity=5, pairs=10, seed=3)
    assert convert.main(["--rec_path", str(folder)]) == 0
    (folder / SUBSET_LIST).write_text(",".join(map(str, range(25))))
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_starts_on_small_data(recipe, faces, tmp_path, capsys):
    paths = ["--data_root", str(faces.parent), "--train_data_path", "faces", "--val_data_path", "faces"]
    paths += ["--output_dir", str(tmp_path / "runs")]
    if parse(["--config", str(recipe)])[0].run.finetune:
        state = {f"model.{key}": value for key, value in build_model("ir_mini").state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "pretrained.ckpt")
        paths += ["--finetune", str(tmp_path / "pretrained.ckpt")]
    status = main.main(["--config", str(recipe), *paths, *SCALED_DOWN, "--fast_dev_run"])
    assert status == 0, capsys.readouterr().err
    assert "results are in" in capsys.readouterr().out
