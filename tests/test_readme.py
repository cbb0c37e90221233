"""The commands of the README and of the recipes are ones that the programs take."""

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from adaface.checkpoints.published import PUBLISHED
from adaface.commands import align, convert, evaluate, export, inference
from adaface.config import parsing
from adaface.heads.margins import HEADS
from adaface.models.registry import check_architecture
from tests.training.test_memory_plan import MEMORY

ROOT = Path(__file__).resolve().parents[1]


def commands(program: str) -> list[list[str]]:
    """The words after the program's name, of each command in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    indented = "\n".join(line.strip() for line in text.splitlines() if line.startswith("    "))
    inline = re.findall(r"`(python [^`]+)`", text)
    return _parsed(indented.replace("\\\n", " ").splitlines() + inline, program)


def recipe_commands() -> list[list[str]]:
    """The words after main.py, of each command in the recipes, comments or not."""
    found = []
    for file in sorted((ROOT / "recipes").iterdir()):
        lines = "\n".join(line.lstrip("# ").rstrip(")") for line in file.read_text(encoding="utf-8").splitlines())
        lines = re.sub(r"\s&& break$", "", lines.replace("\\\n", " "), flags=re.MULTILINE)
        found += _parsed([re.sub(r"^(Command: +|srun \S+ )", "", line) for line in lines.splitlines()], "main.py")
    return found


def _parsed(lines: list[str], program: str) -> list[list[str]]:
    """The words after the program's name of those lines that are a command of it."""
    starts = re.compile(rf"(python|torchrun [^;]*) {re.escape(program)}( |$)")
    found = [line for line in lines if starts.match(line)]
    filled = [re.sub(r"<([^>]*)>", lambda match: match.group(1).replace(" ", "_"), line) for line in found]
    words = [shlex.split(line) for line in filled]
    return [line[line.index(program.split()[-1]) + 1 :] for line in words]


@pytest.mark.parametrize("words", commands("main.py") + recipe_commands(), ids=" ".join)
def test_main_commands_parse(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in words:
        if name.endswith((".ckpt", ".yaml", ".csv")):  # options check that such files exist
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text("lr: 0.1\n")
    if "--help" in words:
        with pytest.raises(SystemExit) as stopped:
            parsing.parse(words)
        assert stopped.value.code == 0
    else:
        assert parsing.parse(words)[0].given


@pytest.mark.parametrize("words", commands("convert.py"), ids=" ".join)
def test_convert_commands_parse(words):
    assert convert.parse(words) is not None


@pytest.mark.parametrize("words", commands("-m evaluation"), ids=" ".join)
def test_evaluation_commands_parse(words):
    assert evaluate.parse(words).root


@pytest.mark.parametrize("words", commands("-m alignment"), ids=" ".join)
def test_alignment_commands_parse(words):
    assert align.parse(words).output


@pytest.mark.parametrize("words", commands("export_onnx.py"), ids=" ".join)
def test_export_commands_parse(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export.parse(words).output == "model.onnx"


@pytest.mark.parametrize("words", commands("inference.py"), ids=" ".join)
def test_inference_commands_parse(words):
    assert inference.parse(words).model in {model.stem for model in PUBLISHED}


@pytest.mark.parametrize("words", commands("architecture_table.py"), ids=" ".join)
def test_the_table_of_backbones_takes_its_words(words):
    for name in words:
        check_architecture(name)


def test_there_are_commands_to_check():
    assert len(commands("architecture_table.py")) >= 2
    assert len(commands("-m alignment")) >= 2
    assert len(commands("export_onnx.py")) >= 2
    assert {words[0] for words in commands("inference.py")} == {"compare", "embed", "search", "serve"}
    assert len(commands("-m evaluation")) >= 4
    assert len(commands("main.py")) >= 4
    assert sum("--run_folder" in words for words in commands("main.py")) == 2
    assert sum("--run_folder" in words for words in recipe_commands()) == 2
    assert len(commands("convert.py")) >= 3


def test_every_file_the_readme_names_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+\.py|recipes/[a-z0-9_]+\.[a-z]+)`", text))
    assert len(named) > 20
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert not missing


def test_the_table_of_identities_and_devices_is_what_a_plan_computes():
    """Weights, gradient and momentum of the head: the numbers that bench/partial_fc.py measures at a million."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+)(?: \(\w+\))? \| (\d+\.\d\d) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == 4
    for identities, dense, more in rows:
        head = replace(MEMORY, backbone_parameters=0, embedding_size=512, class_num=int(identities.replace(",", "")))
        shared = [replace(head, sharded=True, processes=devices) for devices in (8, 16, 64)]
        sampled = replace(shared[0], sample_rate=0.1)
        computed = [memory.weights_bytes / 1e9 for memory in (head, *shared, sampled)]
        assert [f"{number:.2f}" for number in computed] == [dense, *more.replace(" ", "").split("|")]
    ideal = [replace(head, class_num=10**6, sharded=True, processes=W).weights_bytes / 1e9 for W in (1, 2, 4)]
    told = re.search(r"the arithmetic gives ([\d.]+), ([\d.]+) and ([\d.]+)\.", text)
    assert list(told.groups()) == [f"{number:.2f}" for number in ideal]


def test_the_table_of_margins_has_all_of_them_with_their_options():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| `(--[^`]+)` \|$", text, re.MULTILINE))
    assert list(rows) == list(HEADS)
    for name, options in rows.items():
        words = options.split()
        values = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        assert values == {f"--{option}": value for option, value in HEADS[name].options.items()}
        parsed, _ = parsing.parse(["--head", name, *words])
        assert parsed.head.head == name


def test_the_batch_job_is_a_shell_script():
    for script in (ROOT / "recipes").glob("*.sbatch"):
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        lines = script.read_text().splitlines()
        end_of_directives = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
        assert all(line.startswith("#") for line in lines[:end_of_directives]), (
            "SLURM reads no directive after a command"
        )


def test_make_targets_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z-]+)\b", "\n".join(line for line in text.splitlines() if line[:4] == "    ")))
    assert {"demo", "test", "lint", "test-mxnet"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
