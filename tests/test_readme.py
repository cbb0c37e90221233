"""The commands of the README, the documentation and the recipes are ones that the programs take."""

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import bench.__main__
from adaface.commands import COMMANDS as TABLE
from adaface.commands import align, audit, completion, convert, evaluate, export, inference
from adaface.config import parsing
from adaface.models.registry import check_architecture

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ONLY_NAMED = re.compile(r"adaface( [a-z]+)?|python (-m adaface|main\.py|convert\.py)")
OF_OTHERS = ("pip install ", "curl ")


def _parse_models(words: list[str]) -> list[str]:
    for name in words:
        check_architecture(name)
    return words


def _parse_inference(command: str, words: list[str]) -> Any:
    return inference.parse([command, *words])


PARSERS: Mapping[str, Callable[[list[str]], Any]] = {
    "train": parsing.parse,
    "convert": convert.parse,
    "audit": audit.parse,
    "evaluate": evaluate.parse,
    "align": align.parse,
    **{name: partial(_parse_inference, name) for name in ("compare", "embed", "search", "group", "serve")},
    "export": export.parse,
    "models": _parse_models,
    "completion": lambda words: completion.build_parser().parse(words),
}
OFFICIAL = {"main.py": "train", "convert.py": "convert"}


def lines_of(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continued ones joined; and its inline code that is a command with options."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:adaface|python) [^`]+)`", prose)
    return [line for line in lines + inline if line and not ONLY_NAMED.fullmatch(line)]


def recipe_lines() -> list[str]:
    """The commands in the recipes, comments or not."""
    found = []
    for file in sorted((ROOT / "recipes").iterdir()):
        lines = "\n".join(line.lstrip("# ").rstrip(")") for line in file.read_text(encoding="utf-8").splitlines())
        lines = re.sub(r"\s&& break$", "", re.sub(r"\\\n\s*", "", lines), flags=re.MULTILINE)
        words = [re.sub(r"^(Command: +|srun \S+ )", "", line) for line in lines.splitlines()]
        found += [line for line in words if re.match("(python|torchrun|adaface) ", line) and command_of(line)]
    return found


def command_of(line: str) -> tuple[str, list[str]] | None:
    """The command of ``adaface`` that a line runs, and the words after it; None where it runs another program."""
    words = shlex.split(re.sub(r"<([^>]*)>", lambda match: match[1].replace(" ", "_"), line))
    if words[:3] == ["python", "-m", "adaface"]:
        words = words[2:]
    if words[:1] == ["adaface"]:
        return words[1], words[2:]
    if words[:1] in (["python"], ["torchrun"]):
        for name, command in OFFICIAL.items():
            if name in words:
                return command, words[words.index(name) + 1 :]
    return None


LINES = {f"{page.name}: {line}": line for page in PAGES for line in lines_of(page)}
COMMANDS = {name: command_of(line) for name, line in LINES.items() if command_of(line)}
COMMANDS |= {f"recipe: {line}": command_of(line) for line in recipe_lines()}


@pytest.mark.parametrize(("command", "words"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_parses(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in words:
        if name.endswith((".ckpt", ".yaml", ".csv")) and command == "train":  # options check that such files exist
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text("lr: 0.1\n")
    if "--help" in words:
        with pytest.raises(SystemExit) as stopped:
            PARSERS[command](words)
        assert stopped.value.code == 0
    else:
        assert PARSERS[command](words) is not None


@pytest.mark.parametrize("line", [line for line in LINES.values() if not command_of(line)], ids=str)
def test_any_other_line_is_one_that_can_be_run(line):
    words = shlex.split(line)
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2])
        if words[2:4] == ["bench", "fuzz"]:
            assert importlib.util.find_spec("bench.fuzz")
        elif words[2] == "bench" and "--table" not in words:
            assert all(bench.__main__.scripts([word]) for word in words[3:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    else:
        assert line.startswith(OF_OTHERS), f"a shell block with a line that no test knows: {line}"


def test_there_are_commands_to_check():
    used = [command for command, _ in COMMANDS.values()]
    assert set(used) == set(PARSERS) == set(TABLE)
    assert used.count("evaluate") >= 4 and used.count("train") >= 10 and used.count("convert") >= 3
    assert sum("--run_folder" in words for name, (_, words) in COMMANDS.items() if name.startswith("scaling")) == 2
    assert sum("--run_folder" in words for name, (_, words) in COMMANDS.items() if name.startswith("recipe")) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_in_prose_exist(page):
    named = re.findall(r"`adaface ([a-z]+)", page.read_text(encoding="utf-8"))
    assert set(named) <= set(PARSERS)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:adaface|bench|docs|recipes|tests)/[\w/.]*)`", text))
    new = {"adaface/models/plain_net.py", "adaface/data/sources/listed.py"}  # what the how-tos make
    missing = [name for name in named - new if not (ROOT / name).exists()]
    assert not missing


def test_the_readme_is_one_that_people_read():
    assert (ROOT / "README.md").stat().st_size <= 9_000


def test_the_batch_job_is_a_shell_script():
    for script in (ROOT / "recipes").glob("*.sbatch"):
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        lines = script.read_text().splitlines()
        end_of_directives = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
        assert all(line.startswith("#") for line in lines[:end_of_directives]), (
            "SLURM reads no directive after a command"
        )
