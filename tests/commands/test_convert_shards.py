"""Conversion of a training set in several `.rec`: one folder, no name twice, stopped and gone on."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adaface.commands import convert
from adaface.data.sources.finder import open_training_source
from adaface.data.sources.folder import FolderSource
from adaface.records import reader
from tests.commands.test_convert import PROJECT, error_of, files_below, run
from tests.support.sharded_records import face, write_chunks, write_parts

LABELS = [[0, 0, 1], [1, 2], [2, 10, 10]]
PARTS = {  # keys begin again in every file
    f"{label}/{shard}-{key}.jpg": face(number)
    for number, (label, shard, key) in enumerate(
        [(0, 0, 1), (0, 0, 2), (1, 0, 3), (1, 1, 1), (2, 1, 2), (2, 2, 1), (10, 2, 2), (10, 2, 3)]
    )
}


def test_all_shards_go_to_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_parts(tmp_path / "faces", LABELS)
    assert run("--rec_path", folder) == 0
    assert files_below(folder / "imgs") == PARTS
    out = capsys.readouterr().out
    assert "8 images, 4 identities" in out and "labels have gaps and go up to 10" in out and "announces" not in out
    assert "--train_data_path faces/imgs --val_data_path faces" in out
    assert run("--rec_path", folder, "--make_image_files") == 0
    assert "already converted (8 images, 4 identities); nothing to do" in capsys.readouterr().out


def test_keys_that_count_over_all_shards(tmp_path: Path) -> None:
    folder = write_chunks(tmp_path / "faces", LABELS)
    assert run("--rec_path", folder) == 0
    shards = [0, 0, 0, 1, 1, 2, 2, 2]
    labels = [label for some in LABELS for label in some]
    names = [f"{label}/{shard}-{key}.jpg" for key, (label, shard) in enumerate(zip(labels, shards, strict=True))]
    assert files_below(folder / "imgs") == {name: face(key) for key, name in enumerate(names)}


def test_changed_or_added_shards_are_not_mixed_with_the_old_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_parts(tmp_path / "faces", LABELS[:2])
    run("--rec_path", folder)
    write_parts(folder, LABELS)
    assert "was converted from another train.rec; use --overwrite" in error_of(capsys, "--rec_path", folder)
    assert run("--rec_path", folder, "--overwrite") == 0
    assert files_below(folder / "imgs") == PARTS
    write_parts(folder, [LABELS[0], [1, 3], LABELS[2]])
    assert "was converted from another train.rec; use --overwrite" in error_of(capsys, "--rec_path", folder)


def test_incomplete_and_ambiguous_sets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_parts(tmp_path / "faces", LABELS)
    (folder / "train_1.rec").rename(folder / "train_3.rec")
    assert "train_1.rec is missing" in error_of(capsys, "--rec_path", folder)
    (folder / "train_3.rec").rename(folder / "train_1.rec")
    (folder / "train.rec").touch()
    assert "contains both train.rec and train_0.rec" in error_of(capsys, "--rec_path", folder)
    (folder / "lfw.bin").touch()
    assert "lfw.bin" in error_of(capsys, "--rec_path", folder, "--make_validation_memfiles")  # no matter for the sets
    write_parts(tmp_path / "own", [[0, 0, 1], [0, 1]])
    assert "each file numbers its own identities" in error_of(capsys, "--rec_path", tmp_path / "own")
    assert not (tmp_path / "own" / "imgs").exists()


def test_another_number_of_identities_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_parts(tmp_path / "faces", [[0, 0, 1], [1, 2]])
    (folder / "property").write_text("5,112,112")
    assert run("--rec_path", folder) == 0
    assert f"note: {folder / 'property'} announces 5 identities, its images have 3" in capsys.readouterr().out


def test_bad_records_are_named_with_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_chunks(tmp_path / "faces", LABELS)
    with reader.RecordWriter(folder / "train_1.rec") as writer:
        for key, payload in ((3, b"broken"), (4, face(4))):
            writer.write(key, reader.pack(reader.ImageHeader(1.0 + (key == 4), key), payload))
    assert "train_1.rec, key 3 (label 1): the record holds no JPEG" in error_of(capsys, "--rec_path", folder)
    assert run("--rec_path", folder, "--skip_bad_images") == 1
    assert "skipped, no usable image: keys 1-3 (all are" in capsys.readouterr().out
    assert json.loads((folder / "imgs" / ".convert.json").read_text())["skipped"] == ["1-3"]
    assert len(FolderSource(folder / "imgs")) == 7


KILLED_CONVERSION = """
import os, signal, sys
from adaface.commands import convert
from adaface.conversion import unpack_rec

unpack_rec._JOURNAL_EVERY, unpack_rec._IMAGES_AT_ONCE = 30, 10
write, left = unpack_rec._write, int(sys.argv[2])

def count_down(path, data):
    global left
    left -= 1
    if left == 0:
        write(path, data[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)

unpack_rec._write = count_down
sys.exit(convert.main(["--rec_path", sys.argv[1]]))
"""


def test_killed_conversions_go_on(tmp_path: Path) -> None:
    """SIGKILL inside the first file, then inside another one: what is there at the end is whole."""
    labels = [[i // 8 for i in range(start, start + 40)] for start in (0, 40, 80)]
    folder = write_parts(tmp_path / "faces", labels)
    expected = {
        f"{(40 * shard + key - 1) // 8}/{shard}-{key}.jpg": face(40 * shard + key - 1)
        for shard in range(3)
        for key in range(1, 41)
    }
    command = [sys.executable, "-c", KILLED_CONVERSION, str(folder)]
    for writes in ("35", "60"):
        killed = subprocess.run([*command, writes], cwd=PROJECT, stdout=subprocess.DEVNULL, timeout=300)
        assert killed.returncode == -signal.SIGKILL
        with pytest.raises(ValueError, match="is not complete"):
            open_training_source(folder, "imgs")
    assert {Path(name).name[0] for name in files_below(folder / "imgs")} == {"0", "1", "2"}
    assert convert.main(["--rec_path", str(folder)]) == 0
    assert files_below(folder / "imgs") == expected
    source = open_training_source(folder, "", use_mxrecord=True)
    converted = open_training_source(folder, "imgs")
    assert [source.read(i) for i in range(120)] == [converted.read(i) for i in range(120)]
