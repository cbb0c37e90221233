import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adaface.system import interrupt
from adaface.system.imports import imported_for_good

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import gc, sys
from adaface.system.imports import imported_for_good
from adaface.system.interrupt import end_on_interrupt
if sys.argv[1] == "command":
    end_on_interrupt()
with imported_for_good():
    import decimal
    print(gc.isenabled())
print(gc.get_freeze_count() > 1000, gc.isenabled())
"""


@pytest.mark.parametrize(
    ("process", "printed"),
    [("command", ["False", "True", "True"]), ("other", ["True", "False", "True"])],
)
def test_the_objects_of_a_command_are_kept_and_those_of_others_are_not(process, printed):
    done = subprocess.run([sys.executable, "-c", PROGRAM, process], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == printed, done.stderr


@pytest.mark.parametrize("enabled", [True, False])
def test_after_an_error_garbage_is_collected_as_before(enabled, monkeypatch):
    monkeypatch.setattr(interrupt, "_process", os.getpid())
    monkeypatch.setattr(gc, "freeze", lambda: None)
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), imported_for_good():
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
