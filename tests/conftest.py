"""Shared fixtures: golden values, and the real faces where they are present."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaface.system.screen import log_to_screen

GOLDEN = Path(__file__).parent / "golden"
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
