import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adaface.commands import list_models
from adaface.models.registry import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED_ROW = re.compile(r"^\| `([\w:@]+)` \| ([\d.]+) M \| ([\d,.]+) M \| (\d+x\d+) \|", re.MULTILINE)


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """The lines of the table of all."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert list_models.main([]) == 0
    return said.getvalue().splitlines()


def test_the_command_lists_every_architecture(printed):
    head, *rows = printed
    assert head.split() == ["architecture", "parameters", "multiply-accumulates", "input", "embedding"]
    assert [row.split()[0] for row in rows] == list(ARCHITECTURES)
    assert len({len(line) for line in (head, *rows)}) == 1, "columns are aligned"
    by_name = {row.split()[0]: row.split()[1:] for row in rows}
    assert by_name["ir_18"] == ["24.0", "M", "2,597", "M", "112x112", "512"]
    assert by_name["mobilefacenet"] == ["1.2", "M", "221.2", "M", "112x112", "512"]


def test_one_of_timms_is_told_of_as_a_user_asks(tmp_path):
    command = [sys.executable, "-m", "adaface", "models", "timm:test_vit@64"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    _, row = done.stdout.splitlines()
    assert row.split() == ["timm:test_vit@64", "0.3", "M", row.split()[3], "M", "64x64", "512"]


def test_mistakes_are_told_in_one_line(capsys):
    for word, message in (("ir_5", "did you mean ir_50"), ("--nme", "unknown option --nme")):
        assert list_models.main([word]) == 2
        assert message in capsys.readouterr().err


def test_the_table_of_the_documentation_is_the_commands(printed):
    """It leaves out the column that is the same for all."""
    told = DOCUMENTED_ROW.findall((ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    of_timm = [row[0] for row in told if row[0].startswith("timm:")]
    assert len(of_timm) >= 2
    lines = [*printed[1:], *list_models.table(of_timm).splitlines()[1:]]
    rows = [line.replace(" M", "").split()[:-1] for line in lines]
    assert [list(row) for row in told] == rows
