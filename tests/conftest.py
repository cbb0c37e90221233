"""Shared fixtures: golden values, and the real faces where they are present."""

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from adaface.data import image_header
from adaface.system.screen import log_to_screen

# one thread, as the processes that tests start compute: what they train is compared bit for bit. Here, because PyTorch,
# which the conftest of a folder may import, reads it once
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("untimed", deadline=None)  # the time of an example depends on what else runs
settings.load_profile("untimed")

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
# What trains, builds networks of full size, or starts processes: not part of `make test-quick`. The longest come
# first, so that the two processes of `make test` end together.
LONG = (
    "commands/test_train.py",
    "distributed/test_startup.py",
    "training/test_sharded_training.py",
    "test_quickstart.py",
    "training/test_module.py",
    "checkpoints/test_sharded.py",
    "distributed/test_watch.py",
    "test_bench.py",
    "test_fuzz.py",
    "test_kills.py",
    "commands/test_train_finetune.py",
    "heads/test_partial_fc.py",
    "training/test_whole_step.py",
    "commands/test_export.py",
    "commands/test_evaluate.py",
    "inference/test_embedding_cache.py",
    "training/test_memory_plan.py",
    "training/test_plan.py",
    "commands/test_inference.py",
    "commands/test_list_models.py",
    "training/test_health.py",
    "serving/test_server.py",
    "commands/test_convert.py",
    "commands/test_convert_shards.py",
    "distributed/test_two_hosts.py",
    "data/test_module.py",
    "test_package.py",
    "test_contributing.py",
    "test_docs.py",
    "demo/test_dataset.py",
    "models/test_iresnet.py",
    "system/test_command_line.py",
    "audit/test_run.py",
)
LFW112 = Path(__file__).resolve().parents[2] / "shared" / "data" / "lfw112"


@pytest.fixture
def golden() -> Path:
    """Folder of the golden values (numbers of the official implementation)."""
    return GOLDEN


@pytest.fixture
def lfw112() -> Path:
    """Folder of real faces in the InsightFace layout; the test skips where it is absent."""
    if not (LFW112 / "train.rec").is_file():
        pytest.skip(f"the real faces are not on this machine (expected in {LFW112})")
    return LFW112


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the optional package that decodes HEIC."""
    monkeypatch.setattr(image_header, "readable_formats", lambda: image_header._READABLE)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Undo what programs under test set for the processes that they start: ranks, addresses, decisions."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def screen() -> Iterator[None]:
    """Show what the library logs, as the commands do."""
    with log_to_screen():
        yield


@pytest.fixture
def training_screen() -> Iterator[None]:
    """Show what the library logs, as the training does."""
    with log_to_screen(errors_from=logging.ERROR):
        yield


def pytest_configure() -> None:
    """Collect no garbage: what is imported and collected stays to the end."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage again, but of the tests alone."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the files that take long, and put them first."""
    place = {TESTS / name: number for number, name in enumerate(LONG)}
    for item in items:
        if item.path in place:
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: place.get(item.path, len(LONG)))
