import os
import subprocess
import sys
from pathlib import Path

from tests.test_architecture import MODULES, imported, name_of

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_is_told_or_kept_about_who_uses_it(tmp_path):
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)}
    for name in ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"):  # these keep it quiet too
        environment.pop(name, None)
    command = [sys.executable, "-c", "from adaface.alignment.detector import MTCNN; MTCNN()"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=120)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nobody_else_imports_it():
    there = [name_of(module) for module in MODULES if "onnxruntime" in imported(module)]
    assert there == ["adaface.system.onnx_runtime"]
    by_name = [name_of(module) for module in MODULES if 'import_module("onnxruntime")' in module.read_text()]
    assert by_name == []
