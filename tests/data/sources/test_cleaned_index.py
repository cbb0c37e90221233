"""The file that says which images are trained on, and as whose: written, read, edited by hand, refused."""

import csv
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from adaface.commands.train_options import check_files
from adaface.config import parsing
from adaface.config.options import RunOptions
from adaface.data.sources.cleaned_index import TrainingIndex, select_indexed, write_index
from adaface.data.sources.combined import CombinedSource
from adaface.data.sources.folder import FolderSource
from tests.support.sharded_records import face

NAMES = ["Ada", 'B "o", b', "Cy\nd", os.fsdecode(b"D\xff")]


@pytest.fixture
def source(tmp_path) -> FolderSource:
    """Four people of three images each, with awkward names."""
    for number, name in enumerate(NAMES):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for place in range(3):
            (tmp_path / "faces" / name / f"{place}.jpg").write_bytes(face(3 * number + place))
    return FolderSource(tmp_path / "faces")


@pytest.fixture
def index(tmp_path, source) -> Path:
    """Sample 1 is dropped, 3 is trained as Ada, and nothing is left of the third person."""
    classes = source.labels.copy()
    classes[[1, 6, 7, 8]] = -1
    classes[3] = 0
    write_index(tmp_path / "index.csv", source, TrainingIndex(classes, {1: 'a, "copy"', 3: "looks like Ada"}))
    return tmp_path / "index.csv"


def test_what_is_written_is_what_is_trained_on(source, index):
    chosen = select_indexed(source, index)
    assert chosen.class_names == [NAMES[0], NAMES[1], NAMES[3]]
    assert chosen.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [chosen.read(i) for i in range(8)] == [source.read(i) for i in (0, 2, 3, 4, 5, 9, 10, 11)]
    assert chosen.describe(2) == source.describe(3)
    assert str(index) in chosen.location


def test_the_file_is_one_that_a_person_reads(index):
    lines = index.read_bytes().split(b"\n")
    assert lines[0].startswith(b"# adaface index 1: 12 images, fingerprint ")
    assert lines[1] == b"sample,use,identity,train_as,why,image,checksum"
    assert lines[2].startswith(b"0,1,Ada,Ada,,")
    assert lines[3].startswith(b'1,0,Ada,,"a, ""copy""",')


def edited(index: Path, old: str, new: str) -> Path:
    text = index.read_text(encoding="utf-8", errors="surrogateescape")
    assert old in text
    index.write_text(text.replace(old, new, 1), encoding="utf-8", errors="surrogateescape")
    return index


def test_a_line_edited_by_hand_counts(source, index):
    edited(index, "1,0,Ada,,", "1,1,Ada,Ada,")
    assert select_indexed(source, index).labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_a_spreadsheet_has_saved_is_read(source, index, quoting, delimiter):
    told = select_indexed(source, index).labels
    with index.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    filled = [row + [""] * (6 - len(row)) for row in [*rows, []]]  # each line as long as the longest
    with index.open("w", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\r\n").writerows(filled)
    assert select_indexed(source, index).labels.tolist() == told.tolist()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# adaface index 1", "# nothing", "is not an index of"),
        (": 12 images", ": 13 images", "is for 13 images, .* has 12"),
        ("fingerprint ", f"fingerprint {'0' * 64}\n#", "belongs to other data than"),
        ("sample,use", "sample,used", "no column use; it has sample, used"),
        ("0,1,Ada,Ada", "0,yes,Ada,Ada", "line 3: use is 'yes', expected 1 or 0"),
        ("0,1,Ada,Ada", "12,1,Ada,Ada", "line 3: sample is '12', expected a number from 0 to 11"),
        ("0,1,Ada,Ada", "-1,1,Ada,Ada", "sample is '-1'"),
        ("0,1,Ada,Ada", "2,1,Ada,Ada", "sample 2 occurs twice"),
        ("0,1,Ada,Ada", "0,1,Ada,Adda", "train_as is 'Adda', which is not an identity of the data; did you mean Ada"),
        ("0,1,Ada,Ada", "0", "use is ''"),
        (",crc ", ",1", "line 3: checksum is '1.*', expected crc and 8 hexadecimal digits"),
        ("0,1,Ada,Ada", "0,1,Bob,Ada", "line 3: identity is 'Bob', sample 0 is of 'Ada': a spreadsheet may"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(source, index, old, new, message):
    with pytest.raises(ValueError, match=message):
        select_indexed(source, edited(index, old, new))


def test_who_is_new_and_who_is_gone_is_named(tmp_path, source, index):
    shutil.move(tmp_path / "faces" / "Ada", tmp_path / "faces" / "Zoe")
    with pytest.raises(ValueError, match=r"identities are others: 1 gone \(Ada\), 1 new \(Zoe\); audit it again"):
        select_indexed(FolderSource(tmp_path / "faces"), index)


def test_sets_in_another_order_are_told(tmp_path, source, index):
    combined = [("a", source), ("b", source)]
    index = tmp_path / "both.csv"
    write_index(index, CombinedSource(combined), TrainingIndex(CombinedSource(combined).labels, {}))
    assert len(select_indexed(CombinedSource(combined), index)) == 2 * len(source)
    with pytest.raises(ValueError, match="are the same, in another order: give several data sets in the order of the"):
        select_indexed(CombinedSource(combined[::-1]), index)


def test_an_index_that_was_cut_off_is_refused(source, index):
    text = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(text[:4]))
    with pytest.raises(ValueError, match="lacks 10 of 12 images, the first is sample 2"):
        select_indexed(source, index)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        select_indexed(source, index.with_name("absent.csv"))


def test_an_index_of_one_identity_is_refused(tmp_path, source):
    write_index(tmp_path / "index.csv", source, TrainingIndex(np.where(source.labels == 2, 2, -1), {}))
    with pytest.raises(ValueError, match="uses images of 1 identity"):
        select_indexed(source, tmp_path / "index.csv")


def test_an_image_replaced_after_the_audit_is_refused(tmp_path):
    """Of the 300 images, the fingerprint covers 256; the other one has the size and time of the old one."""
    for number in range(300):
        folder = tmp_path / "faces" / f"{number // 3:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number % 3}.jpg").write_bytes(b"%08d" % number)
    source = FolderSource(tmp_path / "faces")
    write_index(tmp_path / "index.csv", source, TrainingIndex(source.labels.copy(), {}))
    covered = np.linspace(0, 299, 256).astype(int).tolist()
    replaced = next(number for number in range(300) if number not in covered)
    (tmp_path / "faces" / f"{replaced // 3:03}" / f"{replaced % 3}.jpg").write_bytes(b"replaced")
    chosen = select_indexed(source, tmp_path / "index.csv")
    assert chosen.read(replaced + 1) == b"%08d" % (replaced + 1)
    with pytest.raises(ValueError, match=f"{replaced % 3}.jpg is not the image that was audited.*audit the data again"):
        chosen.read(replaced)


def test_an_index_without_checksums_is_read(source, index):
    lines = index.read_bytes().replace(b",checksum\n", b"\n")
    index.write_bytes(re.sub(rb",crc [0-9a-f]{8}", b"", lines))
    assert select_indexed(source, index).read(0) == source.read(0)


def test_options_that_contradict_an_index_are_refused(index):
    with pytest.raises(ValueError, match="both select images"):
        parsing.parse(["--train_data_index", str(index), "--train_data_subset"])
    with pytest.raises(FileNotFoundError, match="--train_data_index: there is no file absent"):
        check_files(RunOptions(), "absent.csv")
