"""The notebook of the documentation runs, and its stored outputs are those of a whole run."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_readme import PARSERS, command_of

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
MOST_BYTES = 200_000
SEC = 600  # of one cell, on a busy machine
CELLS = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
LINES = [
    line.strip()
    for cell in CELLS
    if cell.source.startswith("%%sh\n")
    for line in re.sub(r"\\\n\s*", "", cell.source).splitlines()[1:]
]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("adaface ")])
def test_its_commands_parse(line):
    command, words = command_of(line)
    if command == "train":
        words = [word for word in words if word not in ("--finetune", "trained/best.ckpt")]  # a file of its own
    assert PARSERS[command](words) is not None


def test_its_stored_outputs_are_of_a_whole_run():
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert [cell.execution_count for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert all(cell.outputs for cell in CELLS)
    assert not [output for cell in CELLS for output in cell.outputs if output.output_type == "error"]
    text = "\n".join(map(printed, CELLS))
    assert not re.search(r"Traceback|Error|(?<![\w.])/(?:tmp|home|work|root|Users)\b", text)
    assert sum("image/png" in output.get("data", {}) for cell in CELLS for output in cell.outputs) == 2


def test_its_links_lead_to_pages():
    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    links = re.findall(r"\]\(([\w.]+\.md)", text)
    assert len(links) == 4 and all((ROOT / "docs" / link).is_file() for link in links)
    for page in ("README.md", "docs/inference.md"):
        assert "quickstart.ipynb)" in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.long
def test_it_runs(tmp_path, monkeypatch):
    """The commands are those of this repository, whatever is installed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, words in {"python": "", "adaface": "-m adaface"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    work = tmp_path / "work"
    work.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=SEC, resources={"metadata": {"path": str(work)}}).execute()
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for now, stored in zip(ran, CELLS, strict=True):
        kinds = [sorted(output.get("data", {})) for output in now.outputs if "data" in output]
        assert kinds == [sorted(output.get("data", {})) for output in stored.outputs if "data" in output]
    text = "\n".join(map(printed, ran))
    assert "same person if the cosine is at least 0.50 (set by --threshold)" in text
    assert re.search(r"^held_out: (fine-tuning made it|no significant difference)", text, re.MULTILINE)
    for run in ("trained", "finetuned"):
        assert (work / run / "report.html").is_file() and (work / run / "best.ckpt").is_file()
    cosines = re.findall(r"-?\d\.\d*", printed(ran[2]))
    assert len(cosines) == 16 and cosines[0] == cosines[5] == "1."
