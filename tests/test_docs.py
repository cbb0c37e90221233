"""Pictures, tables, links and Python blocks of the documentation are those of the code."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import bench.__main__
from adaface.audit.finding import KINDS
from adaface.augmentation import more
from adaface.augmentation.more import MORE_AUGMENTATIONS
from adaface.checkpoints.published import PUBLISHED, RANK_1
from adaface.config import parsing
from adaface.config.options import ABOUT, OPTIONS
from adaface.heads.margins import HEADS
from adaface.models.registry import build_model
from docs import draw_architecture, draw_augmentations
from tests.support.photographs import astronaut, turned
from tests.test_architecture import FOLDERS
from tests.training.test_memory_plan import MEMORY

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adaface"


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "shown_by"),
    [(draw_architecture, "docs/architecture.md"), (draw_augmentations, "docs/augmentation.md")],
    ids=lambda argument: getattr(argument, "__name__", argument),
)
def test_a_picture_is_what_its_script_draws(script, shown_by, tmp_path):
    script.draw(tmp_path / "picture.png")
    drawn, kept = (cv2.imread(str(path)).astype(int) for path in (tmp_path / "picture.png", script.PICTURE))
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 1, f"draw it anew: python -m docs.{script.__name__.rpartition('.')[2]}"
    assert f"]({script.PICTURE.name})" in page(shown_by)


def test_every_augmentation_is_shown_and_does_something():
    shown = draw_augmentations.augmentations()
    assert set(MORE_AUGMENTATIONS) < set(shown)
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    for change in shown.values():
        assert not np.array_equal(change(face, np.random.default_rng(1)), face)


def test_the_architecture_names_folders_that_are_there():
    folders = {folder.strip() for box in draw_architecture.BOXES.values() for folder in box.folders.split(",")}
    assert not [folder for folder in folders if not (PACKAGE / folder).is_dir()]
    assert {end for arrow in draw_architecture.ARROWS for end in arrow[:2]} == set(draw_architecture.BOXES)


def test_where_the_same_bits_are_promised_it_is_said_what_a_gpu_needs():
    """A GPU adds up in any order."""
    claim = r"bit for bit|bit-identical|[Ii]dentical (?:runs|results)|same bits"
    promised = 0
    for name in ("README.md", "CHANGELOG.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))):
        for section in re.split(r"^#+ ", page(name), flags=re.MULTILINE):
            if re.search(claim, section) and "CPU" not in section.splitlines()[0]:
                promised += 1
                assert "--deterministic" in section, f"{name}, {section.splitlines()[0]}"
    assert promised >= 5
    helps = [about.help for name, about in ABOUT.items() if name != "deterministic" and re.search(claim, about.help)]
    assert len(helps) >= 2
    assert all("--deterministic" in text for text in helps)


# --- tables -------------------------------------------------------------------------------------------------------


def test_the_table_of_identities_and_devices_is_what_a_plan_computes():
    """Weights, gradient and momentum of the head: the numbers that bench/partial_fc.py measures at a million."""
    text = page("docs/scaling.md")
    rows = re.findall(r"^\| ([\d,]+)(?: \(\w+\))? \| (\d+\.\d\d) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == 4
    for identities, dense, more_columns in rows:
        head = replace(MEMORY, backbone_parameters=0, embedding_size=512, class_num=int(identities.replace(",", "")))
        shared = [replace(head, sharded=True, processes=devices) for devices in (8, 16, 64)]
        sampled = replace(shared[0], sample_rate=0.1)
        computed = [memory.weights_bytes / 1e9 for memory in (head, *shared, sampled)]
        assert [f"{number:.2f}" for number in computed] == [dense, *more_columns.replace(" ", "").split("|")]
    ideal = [replace(head, class_num=10**6, sharded=True, processes=W).weights_bytes / 1e9 for W in (1, 2, 4)]
    computed = re.search(r"the computed values are ([\d.]+), ([\d.]+) and ([\d.]+) GB\.", text)
    assert list(computed.groups()) == [f"{number:.2f}" for number in ideal]


def test_the_table_of_margins_has_all_of_them_with_their_options():
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| `(--[^`]+)` \|$", page("docs/models.md"), re.MULTILINE))
    assert list(rows) == list(HEADS)
    for name, options in rows.items():
        words = options.split()
        values = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        assert values == {f"--{option}": value for option, value in HEADS[name].options.items()}
        parsed, _ = parsing.parse(["--head", name, *words])
        assert parsed.head.head == name


def test_the_table_of_published_models_is_theirs():
    text = page("docs/models.md")
    rows = [
        [cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| `(adaface_.*) \|$", text, re.MULTILINE)
    ]
    sets = ("lfw", "cfp_fp", "cplfw", "calfw", "agedb_30", "ijbb", "ijbc")
    figures = [[f"{model.numbers[name]:.2f}" if name in model.numbers else "" for name in sets] for model in PUBLISHED]
    assert [[name.strip("` "), *cells] for name, *cells in rows] == [
        [model.stem, *row] for model, row in zip(PUBLISHED, figures, strict=True)
    ]
    tinyface = {stem: figure for figure, stem in re.findall(r"([\d.]+)\s+\(`(adaface_\w+)`\)", text)}
    assert tinyface == {model.stem: f"{model.numbers[RANK_1]:.2f}" for model in PUBLISHED if RANK_1 in model.numbers}


def test_the_table_of_augmentations_has_all_of_them_with_their_ranges():
    rows = dict(
        re.findall(r"^\| `--(\w+)_augmentation_prob` \| .* \| (.*?) ?\|$", page("docs/augmentation.md"), re.MULTILINE)
    )
    assert set(rows) == {name.removesuffix("_augmentation_prob") for name in OPTIONS if "augmentation_prob" in name}
    assert [name for name in rows if name in MORE_AUGMENTATIONS] == list(MORE_AUGMENTATIONS), "the order of use"
    smallest, largest = (round(100 * share) for share in more.CUTOUT_SHARE)
    for name, text in {
        "cutout": f"side {smallest} to {largest} %",
        "blur": "sigma {:g} to {:g} px".format(*more.BLUR_SIGMA_PX),
        "motion_blur": "{:g} to {:g} px".format(*more.MOTION_PX),
        "noise": "{:g} to {:g} of 255".format(*more.NOISE_LEVELS),
        "jpeg": "quality {} to {}".format(*more.JPEG_QUALITY),
    }.items():
        assert text in rows[name]


def test_the_table_of_benchmarks_is_that_of_the_newest_results():
    table = bench.__main__.table(bench.__main__.scripts([]))
    assert table in page("docs/benchmarks.md"), "paste what `python -m bench --table` prints"


def test_the_figures_of_the_readme_are_measured_ones():
    results = [line for path in (ROOT / "bench" / "results").glob("*.jsonl") for line in path.read_text().splitlines()]
    compared = [result for result in map(json.loads, results) if "ratio" in result]
    ratios = {result["row"]: result["ratio"] for result in compared}  # the newest of each row
    named = re.findall(r"(\d+\.(\d+))x", page("README.md"))
    assert len(named) == 4
    for figure, decimals in named:
        assert figure in {f"{ratio:.{len(decimals)}f}" for ratio in ratios.values()}
    of_demo = re.findall(r"(\d+\.\d+) %", page("recipes/demo_cpu.yaml"))
    assert re.findall(r"(\d+\.\d) %", page("README.md")) == [f"{float(value):.1f}" for value in of_demo]


def test_the_findings_shown_are_kinds_of_the_audit():
    shown = re.findall(r"^(error|warning) +\d+  (.+)$", page("docs/data.md"), re.MULTILINE)
    kinds = {(kind.level, kind.title[0].lower() + kind.title[1:]) for kind in KINDS.values()}
    assert len(shown) == 9 and set(shown) <= kinds


def test_all_recipes_are_named():
    named = set(
        re.findall(r"`(?:recipes/)?(\w+\.yaml)`", "\n".join(map(page, ("docs/training.md", "docs/finetuning.md"))))
    )
    assert {recipe.name for recipe in (ROOT / "recipes").glob("*.yaml")} <= named


def test_the_extras_are_those_of_the_package():
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \|$", page("README.md").partition("| extra |")[2].partition("\n\n")[0], re.MULTILINE
    )
    package = tomllib.loads(page("pyproject.toml"))["project"]["optional-dependencies"]
    assert sorted(rows) == sorted(package)


def test_the_cpu_wheels_are_the_pinned_ones():
    pins = page("requirements.txt").splitlines() + page("requirements-dev.txt").splitlines()
    wheels = re.search(r"pip install (torch==\S+) (torchvision==\S+) --index-url", page("docs/faq.md"))
    assert set(wheels.groups()) <= set(pins)


# --- folders and modules ------------------------------------------------------------------------------------------


def test_the_readme_lists_the_folders():
    named = re.findall(r"^\| `adaface/(\w+)/` \|", page("README.md"), re.MULTILINE)
    assert tuple(named) == FOLDERS


def test_every_module_has_its_line():
    text = page("docs/architecture.md").partition("## Modules")[2]
    parts = re.findall(r"^### `adaface/([\w/]+)/`\n(.*?)(?=^###|\Z)", text, re.MULTILINE | re.DOTALL)
    named = {
        f"{folder}/{name}" for folder, part in parts for name in re.findall(r"^\| `(\w+\.py)` \|", part, re.MULTILINE)
    }
    there = {str(path.relative_to(PACKAGE)) for path in PACKAGE.glob("*/**/*.py") if path.name != "__init__.py"}
    assert (sorted(there - named), sorted(named - there)) == ([], []), "without a line; a line without a module"
    assert tuple(folder for folder, _ in parts if "/" not in folder) == FOLDERS


# --- links, code, checks ------------------------------------------------------------------------------------------


@pytest.fixture
def copy_of_the_pages(tmp_path) -> Path:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def build_site(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_site_is_built_without_a_dead_link(copy_of_the_pages):
    done = build_site(copy_of_the_pages)
    assert done.returncode == 0, done.stderr
    assert (copy_of_the_pages / "site" / "index.html").is_file()
    assert "fonts.googleapis.com" not in (copy_of_the_pages / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "link", "message"),
    [
        ("README.md", "[x](docs/nowhere.md)", "nowhere.md"),
        ("README.md", "[x](docs/faq.md#nowhere)", "#nowhere"),
        ("docs/data.md", "[x](../CONTRIBUTING.md#nowhere)", "#nowhere"),
    ],
)
def test_a_dead_link_ends_the_build(copy_of_the_pages, name, link, message):
    with (copy_of_the_pages / name).open("a", encoding="utf-8") as file:
        file.write(f"\n{link}\n")
    done = build_site(copy_of_the_pages)
    assert done.returncode != 0 and message in done.stderr


def python_blocks() -> dict[str, str]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {}
    for path in pages:
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found |= {f"{path.name} {number}": block for number, block in enumerate(blocks)}
    return found


@pytest.mark.parametrize("code", python_blocks().values(), ids=python_blocks())
def test_a_python_block_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = {f"model.{key}": value for key, value in build_model("ir_mini").state_dict().items()}
    torch.save({"state_dict": state}, "best.ckpt")
    for name in ("a.png", "b.png"):
        cv2.imwrite(name, np.random.default_rng(len(name)).integers(0, 256, (112, 112, 3), dtype=np.uint8))
    photographs = {"dark.jpg": astronaut() // 3, "small.jpg": turned(astronaut(), 0, 0.3)[0], "whole.jpg": astronaut()}
    Path("photographs").mkdir()
    for name, photograph in photographs.items():
        cv2.imwrite(f"photographs/{name}", photograph)
    cv2.imwrite("c.jpg", astronaut())
    exec(compile(code.replace("<CLONE>", str(ROOT)), "block", "exec"), {})
    if "photographs" in code:
        assert re.match(r"whole\.jpg (1\.0|0\.99)", capsys.readouterr().out)


def test_pre_commit_runs_the_checks_of_make_lint():
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", page("Makefile"), re.MULTILINE)[1]
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    (repo,) = yaml.safe_load(page(".pre-commit-config.yaml"))["repos"]
    assert [hook["entry"] for hook in repo["hooks"]] == checks
