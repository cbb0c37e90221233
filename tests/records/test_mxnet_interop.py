"""The real mxnet reads what we write and writes what we read; `make test-mxnet` runs this.

mxnet lives in an environment of its own (`requirements-mxnet.txt`), whose Python the variable MXNET_PYTHON names; it is
called by `mxnet_side.py`.
"""

import json
import os
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from adaface.conversion.pack import pack_folder
from adaface.records.reader import MAGIC, ImageHeader, RecordFile, RecordWriter, build_idx, pack

MXNET_PYTHON = os.environ.get("MXNET_PYTHON")
pytestmark = [
    pytest.mark.mxnet,
    pytest.mark.skipif(
        not MXNET_PYTHON, reason="MXNET_PYTHON is not set; `make test-mxnet` installs mxnet and sets it"
    ),
]

MAGIC_BYTES = struct.pack("<I", MAGIC)
Record = dict[str, Any]


def mxnet_side(*arguments: str | Path) -> None:
    script = Path(__file__).parents[1] / "support" / "mxnet_side.py"
    # Not `resolve`: the Python of an environment is a link that must be called by its own name.
    command = [str(Path(MXNET_PYTHON or "").absolute()), str(script), *map(str, arguments)]
    # Not our packages: mxnet needs an older numpy.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def mxnet_writes(records: list[Record], folder: Path) -> Path:
    folder.mkdir()
    (folder / "case.json").write_text(json.dumps(records))
    mxnet_side("write", folder / "case.json", folder)
    return folder / "train.rec"


def mxnet_reads(folder: Path) -> list[Record]:
    mxnet_side("read", folder, folder / "result.json")
    return json.loads((folder / "result.json").read_text())


def we_write(records: list[Record], folder: Path) -> Path:
    folder.mkdir()
    with RecordWriter(folder / "train.rec") as writer:
        for record in records:
            label = np.array(record["label"], np.float32) if record["flag"] else record["label"][0]
            header = ImageHeader(label, record["id"], record["id2"])
            writer.write(record["key"], pack(header, bytes.fromhex(record["payload"])))
    return folder / "train.rec"


def we_read(rec: Path) -> list[Record]:
    file = RecordFile(rec)
    records = []
    for position, key in enumerate(file.keys.tolist()):
        header = file.header(position)
        labels = np.atleast_1d(header.label)
        assert file.labels[position] == np.float32(labels[0])
        record = {"key": key, "flag": len(labels) if np.ndim(header.label) else 0, "label": labels.tolist()}
        record |= {"id": header.id, "id2": header.id2, "payload": file.read_image(position).hex()}
        records.append(record)
    return records


def make(key: int, label: float | list[float], payload: bytes, identity: int | None = None, id2: int = 0) -> Record:
    labels = label if isinstance(label, list) else [label]
    record = {"key": key, "flag": len(labels) if isinstance(label, list) else 0, "label": labels}
    return record | {"id": key if identity is None else identity, "id2": id2, "payload": payload.hex()}


def picture(seed: int) -> np.ndarray:
    """A smooth color image, (112, 112, 3) uint8 BGR, with more red than blue."""
    noise = np.random.default_rng(seed).integers(0, 200, (7, 7, 3), np.uint8)
    smooth = cv2.resize(noise, (112, 112), interpolation=cv2.INTER_CUBIC)
    return smooth // 2 + np.array([0, 20, 100], np.uint8)


def encoded(seed: int, form: str = ".jpg") -> bytes:
    return cv2.imencode(form, picture(seed))[1].tobytes()


def odd_records() -> list[Record]:
    """Every way to place the magic number, several labels, large ids, empty payloads; in shuffled order."""
    magic_label = struct.unpack("<f", MAGIC_BYTES)[0]
    records = [
        make(0, [40, 44], b""),
        make(1, 3, b""),
        make(2, [1], b"one label in an array"),
        make(3, [4, 5, 6], b"abc" + MAGIC_BYTES),
        make(4, 2**24, b"large", 2**40 + 3, 2**63 + 5),
        make(5, -1.5, b"largest", 2**64 - 1, 2**64 - 1),
        make(6, magic_label, b"label"),
        make(7, 1, b"id", MAGIC, MAGIC << 32),
        make(8, [2, magic_label, magic_label], b"labels"),
        make(2**62, 1, b"large key"),
    ]
    drawn = random.Random(0)
    pieces = [MAGIC_BYTES, MAGIC_BYTES, MAGIC_BYTES[:2], MAGIC_BYTES[2:], b"a", b"bc", bytes(4)]
    for key in range(9, 300):
        payload = b"".join(drawn.choices(pieces, k=drawn.randrange(14)))
        records.append(make(key, drawn.randrange(9) if key % 3 else [1, 2][: key % 2 + 1], payload))
    # Nothing but magic numbers, and a record of many parts far apart.
    records += [make(300, 0, MAGIC_BYTES * 50), make(301, 0, (bytes(4000) + MAGIC_BYTES) * 20 + b"end")]
    drawn.shuffle(records)
    return records


def insightface_records() -> list[Record]:
    """Header record, images of three people, identity records."""
    labels = [0, 0, 0, 1, 1, 2]
    records = [make(0, [7, 10], b"")]
    records += [make(key, label, encoded(key, ".png" if key == 5 else ".jpg")) for key, label in enumerate(labels, 1)]
    return [*records, make(7, [1, 4], b""), make(8, [4, 6], b""), make(9, [6, 7], b"")]


CASES = {"odd": odd_records, "insightface": insightface_records}


@pytest.mark.parametrize("case", CASES)
def test_both_read_and_write_the_same(case: str, tmp_path: Path) -> None:
    records = CASES[case]()
    theirs, ours = mxnet_writes(records, tmp_path / "mxnet"), we_write(records, tmp_path / "ours")
    for suffix in (".rec", ".idx"):
        assert theirs.with_suffix(suffix).read_bytes() == ours.with_suffix(suffix).read_bytes()
    expected = sorted(records, key=lambda record: record["key"])
    assert we_read(theirs) == expected
    read = mxnet_reads(ours.parent)
    assert [{name: record[name] for name in expected[0]} for record in read] == expected


def test_insightface_layout_of_mxnet(tmp_path: Path) -> None:
    rec = mxnet_writes(insightface_records(), tmp_path / "mxnet")
    file = RecordFile(rec)
    images = np.arange(*file.image_range())
    assert file.keys[images].tolist() == [1, 2, 3, 4, 5, 6] and file.num_identities() == 3
    assert file.labels[images].tolist() == [0, 0, 0, 1, 1, 2]
    # A scan finds the same, down to the text of the index.
    text = rec.with_suffix(".idx").read_bytes()
    rec.with_suffix(".idx").unlink()
    build_idx(rec)
    assert rec.with_suffix(".idx").read_bytes() == text


@pytest.mark.parametrize(("form", "quality"), [(".jpg", 95), (".jpg", 30), (".png", 3)])
def test_images_that_mxnet_encodes(form: str, quality: int, tmp_path: Path) -> None:
    records = []
    for key in range(3):
        np.save(tmp_path / f"{key}.npy", picture(key))
        record = make(key, [key, 9] if key else 4, b"")
        records.append(record | {"pixels": str(tmp_path / f"{key}.npy"), "format": form, "quality": quality})
    rec = mxnet_writes(records, tmp_path / "mxnet")
    file, read = RecordFile(rec), mxnet_reads(rec.parent)
    for key in range(3):
        image = file.read_image(key)
        assert image.hex() == read[key]["payload"]
        bgr = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        difference = np.abs(bgr[:, :, ::-1].astype(int) - np.load(read[key]["rgb"]))
        assert difference.max() <= 2 and difference.mean() < 0.1
        if form == ".png":
            assert np.array_equal(bgr, picture(key))


def test_mxnet_decodes_what_we_pack(tmp_path: Path) -> None:
    """A folder packed by `convert.py --pack`: labels, counts and colors as mxnet sees them."""
    pictures = {("b", 0): picture(1), ("b", 1): picture(2), ("a", 0): picture(3)}
    for (name, number), pixels in pictures.items():
        path = tmp_path / "faces" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)
    pack_folder(tmp_path / "faces", tmp_path / "packed")
    header, *rest = mxnet_reads(tmp_path / "packed")
    assert (header["key"], header["label"]) == (0, [4, 6])
    images, identities = rest[:3], rest[3:]
    assert [(record["key"], record["id"], record["label"]) for record in images] == [
        (1, 1, [0]),
        (2, 2, [1]),
        (3, 3, [1]),
    ]
    for record, name in zip(images, [("a", 0), ("b", 0), ("b", 1)], strict=True):
        assert np.array_equal(np.load(record["rgb"]), pictures[name][:, :, ::-1])
    assert [(record["key"], record["label"], record["payload"]) for record in identities] == [
        (4, [1, 2], ""),
        (5, [2, 4], ""),
    ]
