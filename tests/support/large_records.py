"""A `.rec` in InsightFace's layout that is opened as a large one: by its identity records, with a sidecar."""

from pathlib import Path

import numpy as np
import pytest

from adaface.records import index
from adaface.records.reader import ImageHeader, RecordWriter, pack

IMAGES, IDENTITIES = 1200, 60
PAST = IMAGES + 1


def ranges() -> np.ndarray:
    """First key and the one past the last of each identity, (C, 2)."""
    rng = np.random.default_rng(3)
    bounds = np.sort(rng.choice(np.arange(2, PAST), IDENTITIES - 1, replace=False))
    return np.stack((np.append(1, bounds), np.append(bounds, PAST)), 1)


def records() -> dict[int, tuple[np.ndarray | float, bytes]]:
    """Label and image of each key; every seventh image is split by the writer."""
    made: dict[int, tuple[np.ndarray | float, bytes]] = {0: (np.array([PAST, PAST + IDENTITIES], np.float32), b"")}
    for label, (first, past) in enumerate(ranges().tolist()):
        made |= {key: (float(label), bytes(key % 5) + b"#%d" % key) for key in range(first, past)}
        made |= {key: (float(label), b"abcd\x0a\x23\xd7\xceef%d" % key) for key in range(first, past) if key % 7 == 0}
    return made | {PAST + i: (pair.astype(np.float32), b"") for i, pair in enumerate(ranges())}


def write(folder: Path, changed: dict[int, tuple[np.ndarray | float, bytes]] | None = None) -> Path:
    """Write it, with some records changed."""
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / "train.rec") as writer:
        for key, (label, image) in (records() | (changed or {})).items():
            writer.write(key, pack(ImageHeader(label, key), image))
    return folder / "train.rec"


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The `.rec`, alone with its `.idx` in a folder; the user's cache is in another."""
    monkeypatch.setattr(index, "_LARGE", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write(tmp_path / "faces")
