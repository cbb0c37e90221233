import json
import multiprocessing
import pickle
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaface.records import idx as idx_text
from adaface.records import index
from adaface.records.format import join
from adaface.records.reader import (
    MAGIC,
    ImageHeader,
    RecordFile,
    RecordWriter,
    announced_counts,
    build_idx,
    pack,
    scan,
    unpack,
)

MAGIC_BYTES = struct.pack("<I", MAGIC)
COLUMNS = ("keys", "offsets", "labels")

# Bytes with the magic number at every alignment, whole, halved and repeated.
PIECES = st.lists(
    st.one_of(st.just(MAGIC_BYTES), st.binary(max_size=5), st.just(MAGIC_BYTES[:2]), st.just(bytes(4))), max_size=12
).map(b"".join)
IDS = st.integers(0, 2**64 - 1)
FLOATS = st.floats(width=32, allow_nan=False)
LABELS = FLOATS | st.lists(FLOATS, min_size=1, max_size=4).map(lambda labels: np.array(labels, np.float32))


def write(path: Path, records: dict[int, bytes]) -> Path:
    with RecordWriter(path) as writer:
        for key, record in records.items():
            writer.write(key, record)
    return path


def image(label: float | np.ndarray, key: int = 0, payload: bytes = b"image") -> bytes:
    return pack(ImageHeader(label, key), payload)


def several(*labels: float) -> np.ndarray:
    return np.array(labels, np.float32)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Header record, four images of which one is split in three, two identity records."""
    return write(
        tmp_path / "train.rec",
        {
            0: image(several(5, 7), 0, b""),
            1: image(0.0, 1, b"first"),
            2: image(0.0, 2, b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES + b"ij"),
            3: image(1.0, 3, b""),
            4: image(several(1, 8, 9), 4, b"last"),
            5: image(several(1, 3), 5, b""),
            6: image(several(3, 5), 6, b""),
        },
    )


def full_disk(_handle: int) -> None:
    raise OSError(28, "No space left on device")


def same_index(a: RecordFile, b: RecordFile) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in COLUMNS)


# --- golden files -----------------------------------------------------------------------------------------------


@pytest.fixture
def expected(golden: Path) -> dict:
    return json.loads((golden / "recordio" / "expected.json").read_text())


def test_reads_what_mxnet_wrote(golden: Path, expected: dict) -> None:
    file = RecordFile(golden / "recordio" / "edge.rec")
    assert file.keys.tolist() == sorted(map(int, expected["records"]))
    for position, key in enumerate(file.keys.tolist()):
        record = expected["records"][str(key)]
        header = file.header(position)
        assert np.ndim(header.label) == (record["flag"] > 0)
        assert np.atleast_1d(header.label).tolist() == record["label"]
        assert (header.id, header.id2) == (record["id"], record["id2"])
        assert file.read_image(position).hex() == record["payload"]
        assert file.labels[position] == record["label"][0]
        assert len(file.read(position)) == 24 + 4 * record["flag"] + len(record["payload"]) // 2
    assert file.image_range() == (1, 9)
    assert file.num_identities() == 3


def test_writes_what_mxnet_wrote(golden: Path, expected: dict, tmp_path: Path) -> None:
    records = {}
    for key in expected["write_order"]:
        record = expected["records"][str(key)]
        label = several(*record["label"]) if record["flag"] else record["label"][0]
        records[key] = pack(ImageHeader(label, record["id"], record["id2"]), bytes.fromhex(record["payload"]))
    write(tmp_path / "edge.rec", records)
    for name in ("edge.rec", "edge.idx"):
        assert (tmp_path / name).read_bytes() == (golden / "recordio" / name).read_bytes()


def test_real_faces(lfw112: Path) -> None:
    file = RecordFile(lfw112 / "train.rec")
    images = np.arange(*file.image_range())
    assert file.keys[images].tolist() == list(range(1, 4528))
    assert file.num_identities() == 342 and len(file) == 1 + 4527 + 342
    assert np.array_equal(np.unique(file.labels[images]), np.arange(342))
    assert file.read_image(int(images[0])).startswith(b"\xff\xd8\xff")
    with pytest.warns(UserWarning, match=r"none\.idx is missing.* 4,870 records .* the ids in the image headers"):
        assert same_index(file, RecordFile(lfw112 / "train.rec", lfw112 / "none.idx"))


def test_pixels_of_real_faces(lfw112: Path) -> None:
    values = np.load(lfw112.parents[1] / "golden" / "lfw112_pixels.npz")
    file = RecordFile(lfw112 / "train.rec")
    positions = np.searchsorted(file.keys, values["keys"])
    assert np.array_equal(file.labels[positions], values["labels"])
    for position, rgb in zip(positions.tolist(), values["rgb"], strict=True):
        bgr = cv2.imdecode(np.frombuffer(file.read_image(position), np.uint8), cv2.IMREAD_COLOR)
        difference = np.abs(bgr[:, :, ::-1].astype(int) - rgb)
        assert difference.max() <= 2 and difference.mean() < 0.1


# --- image header -----------------------------------------------------------------------------------------------


@given(label=LABELS, identity=IDS, identity2=IDS, payload=PIECES)
def test_image_header_round_trip(label: float | np.ndarray, identity: int, identity2: int, payload: bytes) -> None:
    header = ImageHeader(label, identity, identity2)
    assert unpack(pack(header, payload)) == (header, payload)


def test_image_header_bytes() -> None:
    assert pack(ImageHeader(2.0, 3, 4), b"x") == struct.pack("<IfQQ", 0, 2, 3, 4) + b"x"
    assert pack(ImageHeader(several(2, 5), 3), b"x") == struct.pack("<IfQQff", 2, 0, 3, 0, 2, 5) + b"x"


def test_image_headers_compare() -> None:
    assert ImageHeader(1.0, 2) == ImageHeader(1.0, 2) and hash(ImageHeader(1.0, 2)) == hash(ImageHeader(1.0, 2))
    for other in (ImageHeader(1.0, 3), ImageHeader(several(1), 2), ImageHeader(2.0, 2), "header"):
        assert ImageHeader(1.0, 2) != other


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (ImageHeader(0.0, -1), "64-bit ids"),
        (ImageHeader(0.0, 0, 2**64), "64-bit ids"),
        (ImageHeader(1e39), "float32"),
        (ImageHeader(several()), r"shape \(0,\): expected one number, or at least one"),
        (ImageHeader(np.zeros((1, 2), np.float32)), r"shape \(1, 2\)"),
    ],
)
def test_pack_refuses(header: ImageHeader, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(header, b"")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "has 0 bytes, expected at least 24"),
        (bytes(23), "has 23 bytes, expected at least 24"),
        (struct.pack("<IfQQf", 2, 0, 0, 0, 1), "has 28 bytes, but its image header announces 2 labels, which takes 32"),
    ],
)
def test_short_record(tmp_path: Path, record: bytes, message: str) -> None:
    """It is in the index and can be read; only its header cannot."""
    with pytest.raises(ValueError, match=message):
        unpack(record)
    file = RecordFile(write(tmp_path / "a.rec", {1: image(4.0, 1), 2: record, 3: image(5.0, 3)}))
    assert file.read(1) == record
    assert np.array_equal(file.labels, several(4, np.nan, 5), equal_nan=True)
    for method in (file.header, file.read_image):
        with pytest.raises(ValueError, match=rf"a\.rec, key 2, offset 40: the record {message}"):
            method(1)


# --- parts and files --------------------------------------------------------------------------------------------


def read_slowly(data: bytes) -> list[bytes]:
    """Read records word by word, as the format says."""
    records, at = [], 0
    while at < len(data):
        record = b""
        while True:
            magic, lrec = struct.unpack_from("<II", data, at)
            assert magic == MAGIC
            cflag, length = divmod(lrec, 2**29)
            record += data[at + 8 : at + 8 + length]
            padding = data[at + 8 + length : at + 8 + (length + 3) // 4 * 4]
            assert padding == bytes(len(padding)) and (length % 4 == 0 or cflag in (0, 3))
            at += 8 + (length + 3) // 4 * 4
            if cflag in (0, 3):
                break
            record += MAGIC_BYTES
        records.append(record)
    return records


def aligned_magics(data: bytes) -> int:
    return sum(data[i : i + 4] == MAGIC_BYTES for i in range(0, len(data) - 3, 4))


@given(records=st.lists(PIECES, min_size=1, max_size=6), data=st.data())
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[bytes], data: st.DataObject) -> None:
    keys = data.draw(st.permutations(range(len(records))))
    rec = write(tmp_path_factory.mktemp("records") / "a.rec", dict(zip(keys, records, strict=True)))
    content = rec.read_bytes()
    assert read_slowly(content) == records
    # One magic number for each record, one for each that a split has taken out of the bytes, and none else.
    assert aligned_magics(content) == len(records) + sum(map(aligned_magics, records))
    file = RecordFile(rec)
    assert [file.read(int(p)) for p in np.searchsorted(file.keys, keys)] == records
    assert np.array_equal(np.sort(file.offsets), scan(rec))


@given(labels=st.lists(LABELS, min_size=1, max_size=6), payload=PIECES, identity=IDS)
def test_first_labels(
    tmp_path_factory: pytest.TempPathFactory, labels: list[float | np.ndarray], payload: bytes, identity: int
) -> None:
    records = {key: pack(ImageHeader(label, identity), payload) for key, label in enumerate(labels)}
    file = RecordFile(write(tmp_path_factory.mktemp("records") / "a.rec", records))
    assert np.array_equal(file.labels, several(*(np.atleast_1d(label)[0] for label in labels)))
    assert [file.header(i) for i in range(len(file))] == [ImageHeader(label, identity) for label in labels]
    assert all(file.read_image(i) == payload for i in range(len(file)))


def test_label_of_a_record_split_in_its_header(tmp_path: Path) -> None:
    """The magic number as a label, as an id and as the number of labels: the header lies in two parts."""
    magic_label = struct.unpack("<f", MAGIC_BYTES)[0]
    records = {
        1: pack(ImageHeader(magic_label, 1), b"x"),
        2: pack(ImageHeader(3.0, MAGIC), b"y"),
        3: pack(ImageHeader(several(7, magic_label), 3), b"z"),
        4: struct.pack("<I", MAGIC) + bytes(40),
    }
    file = RecordFile(write(tmp_path / "a.rec", records))
    assert np.array_equal(file.labels, several(magic_label, 3, 7, np.nan), equal_nan=True)
    assert [file.read(i) for i in range(4)] == list(records.values())
    assert file.header(1).id == MAGIC


def test_positions_of_images(small: Path, tmp_path: Path) -> None:
    file = RecordFile(small)
    assert file.image_range() == (1, 5) and file.num_identities() == 2
    assert file.read_image(2) == b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES + b"ij"
    # Without a header record all are images: record 0 has one label, or an image, or is not there.
    for first in ({0: image(1.0)}, {0: image(several(5, 7), 0, b"image")}, {9: image(several(5, 7), 9, b"")}):
        file = RecordFile(write(tmp_path / "plain.rec", first | {key: image(2.0, key) for key in (10, 11)}))
        assert file.image_range() == (0, 3) and file.num_identities() is None


@pytest.mark.parametrize("labels", [(0, 2), (5, 4), (2.5, 7), (np.nan, 7), (5, np.inf)])
def test_senseless_header_record(tmp_path: Path, labels: tuple[float, float]) -> None:
    rec = write(tmp_path / "a.rec", {0: image(several(*labels), 0, b""), 1: image(0.0, 1)})
    file = RecordFile(rec)
    for method in (file.image_range, file.num_identities):
        with pytest.raises(ValueError, match=r"key 0, offset 0: a header record with the numbers .* expected images"):
            method()


@pytest.mark.parametrize(("images", "what"), [(2, "key 2 holds an image"), (5, "key 5 holds no image")])
def test_header_record_that_announces_another_number_of_images(
    small: Path, tmp_path: Path, images: int, what: str
) -> None:
    """Only the images that it announces would be trained on."""
    damaged = small.read_bytes().replace(struct.pack("<f", 5), struct.pack("<f", images + (images == 5)), 1)
    small.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"key 0, offset 0: the header record announces .*, but the record of {what}"):
        RecordFile(small).image_range()


def test_idx_with_an_image_under_the_key_of_none(small: Path) -> None:
    """The image would be outside of the keys that the header record announces."""
    idx = small.with_suffix(".idx")
    idx.write_bytes(idx.read_bytes().replace(b"\n3\t", b"\n30\t"))
    with pytest.warns(UserWarning, match="3 keys of images, the header record announces 4"):
        file = RecordFile(small)
    assert file.keys.tolist() == list(range(7))
    assert file.image_range() == (1, 5)


def test_damaged_header_record_of_a_file_without_idx_names_the_file(small: Path) -> None:
    small.write_bytes(small.read_bytes().replace(struct.pack("<f", 5), struct.pack("<f", np.nan), 1))
    for with_idx in (True, False):
        if not with_idx:
            small.with_suffix(".idx").unlink()
        with (
            warnings.catch_warnings(),
            pytest.raises(ValueError, match=r"train\.rec, key 0, offset 0: a header"),
        ):
            warnings.simplefilter("ignore")
            RecordFile(small).image_range()


@pytest.mark.parametrize("images", [2**24 - 5, 2**24 - 4, 2**24 - 1, 2**24, 42_474_557, 42_474_555])
@pytest.mark.parametrize("with_identities", [True, False])
def test_header_record_of_tens_of_millions(tmp_path: Path, images: int, with_identities: bool) -> None:
    """Its float32 numbers are rounded; no identity record may pass for an image, and no image is lost."""
    records = {0: image(several(images + 1, images + 1 + 3), 0, b"")}
    records |= {key: image(1.0, key) for key in range(images - 8, images + 1)}
    if with_identities:
        records |= {images + 1 + i: image(several(i, i + 1), images + 1 + i, b"") for i in range(3)}
    with pytest.warns(UserWarning, match="images, there are 9"):
        file = RecordFile(write(tmp_path / "a.rec", records))
    assert file.keys[np.arange(*file.image_range())].tolist() == list(range(images - 8, images + 1))
    exact = images + 1 + 3 < 2**24
    assert file.num_identities() == (3 if with_identities or exact else None)


def test_copies_in_other_processes(small: Path) -> None:
    file = RecordFile(small)
    expected = [file.read(i) for i in range(len(file))]
    copy = pickle.loads(pickle.dumps(file))
    assert same_index(file, copy) and [copy.read(i) for i in range(len(copy))] == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(file.read, list(range(len(file))) * 20, chunksize=3) == expected * 20
    pickled = pickle.dumps(file)
    small.write_bytes(small.read_bytes() + bytes(4))
    with pytest.raises(ValueError, match=r"bytes, but had .* when its index was read"):
        pickle.loads(pickled)


def test_index_costs_16_bytes_a_record(small: Path) -> None:
    file = RecordFile(small)
    assert sum(getattr(file, name).nbytes for name in COLUMNS) == 16 * len(file)
    assert [getattr(file, name).dtype for name in COLUMNS] == [np.uint32, np.int64, np.float32]
    assert all(getattr(file, name).base is None or getattr(file, name).base.nbytes <= 16 * 7 for name in COLUMNS)


def test_pieces_of_the_index_make_the_whole(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RecordFile(small)
    monkeypatch.setattr(index, "_RECORDS_AT_ONCE", 2)
    monkeypatch.setattr(idx_text, "_BYTES_AT_ONCE", 3)
    assert same_index(whole, RecordFile(small))
    text = small.with_suffix(".idx").read_bytes()
    build_idx(small)
    assert small.with_suffix(".idx").read_bytes() == text


# --- the .idx ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["reversed", "crlf", "no last newline", "leading zeros"])
def test_forms_of_idx(small: Path, change: str) -> None:
    whole, idx = RecordFile(small), small.with_suffix(".idx")
    lines = idx.read_bytes().splitlines()
    if change == "reversed":
        lines = lines[::-1]
    elif change == "leading zeros":
        lines = [b"0" * 30 + line for line in lines]
    end = b"\r\n" if change == "crlf" else b"\n"
    idx.write_bytes(end.join(lines) + (b"" if change == "no last newline" else end))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_index(whole, RecordFile(small))


@pytest.mark.parametrize(
    "line",
    [
        *(b"one\t2", b"1 2", b"1\t2\t3", b"1", b"\t2", b"1\t", b"", b"-1\t2", b"1.5\t2", b"1\t" + b"9" * 19),
        *(b"9" * 5000, b"1\t\xff", b"1\t2\n3\t4\t5", b"1\t2\t3\n4"),
    ],
)
def test_idx_that_is_none(small: Path, line: bytes) -> None:
    idx = small.with_suffix(".idx")
    idx.write_bytes(b"0\t0\n" + line + b"\n7\t40\n")
    with pytest.raises(ValueError, match=r"train\.idx, line [23]: expected `key<TAB>offset`, .* Delete the file"):
        RecordFile(small)


def test_key_twice(small: Path) -> None:
    idx = small.with_suffix(".idx")
    idx.write_text(idx.read_text().replace("6\t", "5\t"))
    with pytest.raises(ValueError, match=r"train\.idx: key 5 occurs twice \(1 such keys\).* Delete the \.idx"):
        RecordFile(small)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0\t0\n1\t44\n", "no record starts at offset 44, key 1"),
        ("0\t0\n1\t42\n", "offset 42 of key 1"),
        ("0\t0\n1\t40000\n", r"offset 40,000 of key 1 \(the .rec has \d+ bytes\)"),
        ("0\t0\n1\t40\n", r"its last record ends at 80, the .rec has \d+ bytes"),
        ("0\t0\n1\t0\n", "no record starts at offset 0, key 1"),
        ("", r"its last record ends at 0"),
    ],
)
def test_idx_of_another_file(small: Path, lines: str, message: str) -> None:
    whole, idx = RecordFile(small), small.with_suffix(".idx")
    idx.write_text(lines)
    with pytest.warns(UserWarning, match=rf"train\.idx does not fit .*train\.rec: {message}") as warned:
        file = RecordFile(small)
    assert "7 records was made by a scan of train.rec, in memory only; its keys are the ids" in str(warned[0].message)
    assert warned[0].filename == __file__
    assert same_index(whole, file) and idx.read_text() == lines


def test_idx_into_a_split_record(small: Path) -> None:
    """Its later parts start with the magic number, but are no records."""
    file, idx = RecordFile(small), small.with_suffix(".idx")
    text = idx.read_text()
    middle = int(file.offsets[2]) + 8 + 28
    assert small.read_bytes()[middle : middle + 4] == MAGIC_BYTES
    idx.write_text(text.replace(f"2\t{file.offsets[2]}\n", f"2\t{middle}\n"))
    with pytest.warns(UserWarning, match=f"no record starts at offset {middle}, key 2"):
        assert same_index(file, RecordFile(small))


@pytest.mark.parametrize("where", ["the .rec has grown", "an .idx of a part"])
def test_idx_that_lists_a_part(small: Path, where: str) -> None:
    """Records without a line would be lost without a word."""
    idx, whole = small.with_suffix(".idx"), RecordFile(small)
    lines = idx.read_text().splitlines(keepends=True)
    if where == "an .idx of a part":
        idx.write_text("".join(lines[:2] + lines[4:]))
        with pytest.warns(UserWarning, match="it has 5 lines, the header record announces 7 records"):
            assert same_index(RecordFile(small), whole)
        idx.write_text("".join(lines[2:]))  # without the line of the header record
        with pytest.warns(UserWarning, match="it has 5 lines, the header record announces 7 records"):
            assert same_index(RecordFile(small), whole)
        return
    idx.write_text("".join(lines[:-1]))
    with pytest.warns(UserWarning, match="its last record ends at"):
        assert same_index(RecordFile(small), whole)


def test_idx_that_lists_a_part_of_a_file_without_header_record(tmp_path: Path) -> None:
    rec = write(tmp_path / "plain.rec", {key: image(key) for key in (3, 4, 5, 6)})
    idx = rec.with_suffix(".idx")
    lines = idx.read_text().splitlines(keepends=True)
    idx.write_text("".join(lines[:1] + lines[2:]))
    with pytest.warns(UserWarning, match=r"no line for some records, the first at offset \d+: they are left out"):
        assert RecordFile(rec).keys.tolist() == [3, 5, 6]


def without(rec: Path, *keys: int) -> Path:
    """A copy of a file without some records, in both files."""
    file = RecordFile(rec)
    kept = {int(key): file.read(i) for i, key in enumerate(file.keys) if key not in keys}
    (rec.parent / "less").mkdir()
    return write(rec.parent / "less" / "train.rec", kept)


@pytest.mark.parametrize("with_idx", [True, False])
@pytest.mark.parametrize(
    ("removed", "left"), [((2,), 3), ((3, 4, 5, 6), 2), ((4,), 3)], ids=["in the middle", "cut off", "the last image"]
)
def test_missing_images_are_announced_but_not_there(
    small: Path, removed: tuple[int, ...], left: int, with_idx: bool
) -> None:
    rec = without(small, *removed)
    if not with_idx:
        rec.with_suffix(".idx").unlink()
    with pytest.warns(UserWarning, match=f"train.rec: the header record announces 4 images, there are {left}") as said:
        file = RecordFile(rec)
    assert len(said) == (1 if with_idx else 2)
    assert [int(key) for key in file.keys] == [key for key in range(7) if key not in removed]
    assert len(range(*file.image_range())) == left


def test_keys_with_gaps_are_read(tmp_path: Path) -> None:
    """Images were removed on purpose, and the header record was kept."""
    header = {0: image(several(31, 31), 0, b"")}
    with pytest.warns(UserWarning, match="announces 30 images, there are 3. .* if nobody removed them, copy it again"):
        file = RecordFile(write(tmp_path / "a.rec", header | {key: image(0.0, key) for key in (1, 7, 30)}))
    assert file.image_range() == (1, 4)


def test_a_file_with_all_announced_images_causes_no_warning(small: Path, tmp_path: Path) -> None:
    images = {key: image(0.0, key) for key in (1, 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RecordFile(small)
        RecordFile(without(small, 5, 6))  # only the identity records are gone
        RecordFile(write(tmp_path / "a.rec", images))
        RecordFile(write(tmp_path / "a.rec", {0: image(several(3, 3), 0, b"")} | images))
        RecordFile(write(tmp_path / "a.rec", {0: image(several(2.5, 3), 0, b"")} | images))  # `image_range` reports it


def test_more_images_announced_than_keys_can_count(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"announces 1,099,511,627,775 images, there are 1\."):
        file = RecordFile(write(tmp_path / "a.rec", {0: image(several(2**40, 2**40), 0, b""), 1: image(0.0, 1)}))
    assert file.image_range() == (1, 2)


def test_announced_counts_are_read_without_the_index(small: Path, tmp_path: Path) -> None:
    small.with_suffix(".idx").unlink()
    assert announced_counts(small) == (4, 2, 0)
    assert announced_counts(write(tmp_path / "a.rec", {1: image(0.0, 1)})) is None
    (tmp_path / "b.rec").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"b\.rec: truncated at offset 0"):
        announced_counts(tmp_path / "b.rec")


def test_announced_counts_of_tens_of_millions_may_be_rounded(tmp_path: Path) -> None:
    images, identities = 42_474_557, 617_970
    header = image(several(images + 1, images + 1 + identities), 0, b"")
    counts = announced_counts(write(tmp_path / "a.rec", {0: header}))
    assert counts is not None and counts.images != images  # float32 has rounded it
    assert counts.fit(images, identities)
    assert not counts.fit(images - 20, identities) and not counts.fit(images, identities + 20)


@pytest.mark.parametrize(
    "ids", [(5, 5, 6), (0, 1, 2**63), (0, 1, 9), (0, 1, None)], ids=["twice", "too large", "unannounced", "none"]
)
def test_ids_that_cannot_be_keys(tmp_path: Path, ids: tuple[int | None, ...]) -> None:
    first = image(several(3, 3), ids[0] or 0, b"")
    rest = [b"short" if identity is None else image(float(i), identity) for i, identity in enumerate(ids[1:])]
    rec = write(tmp_path / "a.rec", {4 + i: record for i, record in enumerate([first, *rest])})
    rec.with_suffix(".idx").unlink()
    with pytest.warns(UserWarning, match=r"a\.idx is missing.* its keys are running numbers"):
        file = RecordFile(rec)
    assert file.keys.tolist() == [0, 1, 2]
    build_idx(rec)
    assert same_index(file, RecordFile(rec))


@pytest.mark.parametrize("ids", [(4, 3, 2, 1), (2**62, 7, MAGIC, 1), (0, 3, 1, 2)])
def test_ids_that_are_keys(tmp_path: Path, ids: tuple[int, ...]) -> None:
    rec = write(tmp_path / "a.rec", {key: image(float(i), key) for i, key in enumerate(ids)})
    text = rec.with_suffix(".idx").read_text()
    whole = RecordFile(rec)
    build_idx(rec, tmp_path / "other.idx")
    assert (tmp_path / "other.idx").read_text() == text
    rec.with_suffix(".idx").unlink()
    with pytest.warns(UserWarning, match=r"a\.idx is missing.* its keys are the ids in the image headers"):
        assert same_index(whole, RecordFile(rec))
    assert not rec.with_suffix(".idx").exists()


def test_build_idx_keeps_the_old_one_when_it_fails(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idx = small.with_suffix(".idx")
    before = idx.read_bytes()

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build_idx(small)
    assert idx.read_bytes() == before
    assert sorted(path.name for path in small.parent.iterdir()) == ["train.idx", "train.rec"]


# --- damage -----------------------------------------------------------------------------------------------------


def read_all(rec: Path) -> list[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = RecordFile(rec)
    return [file.read(int(position)) for position in np.argsort(file.offsets)]


@pytest.mark.parametrize("with_idx", [True, False])
def test_truncated_anywhere(small: Path, with_idx: bool) -> None:
    """A file cut after a record holds the records before; a file cut elsewhere is refused."""
    content, records, starts = small.read_bytes(), read_all(small), scan(small).tolist()
    if not with_idx:
        small.with_suffix(".idx").unlink()
    for size in range(1, len(content)):
        small.write_bytes(content[:size])
        if size in starts:
            assert read_all(small) == records[: starts.index(size)]
            continue
        with pytest.raises(ValueError, match=r"train\.rec: truncated.* at offset \d+,? expected|: expected") as error:
            RecordFile(small)
        last = max(start for start in starts if start < size)
        part = int(str(error.value).split("at offset ")[1].split(":")[0].split(" ")[0])
        assert part == last or (last == starts[2] and last < part < size + 8)  # a part of the split record


def test_truncation_says_what_is_missing(small: Path) -> None:
    content, start = small.read_bytes(), scan(small).tolist()[4]
    small.write_bytes(content[: start + 20])
    with pytest.raises(
        ValueError, match=f"train.rec: truncated: the record at offset {start} expected 48 bytes, got 20"
    ):
        scan(small)
    small.write_bytes(content[: start + 5])
    with pytest.raises(ValueError, match=f"train.rec: truncated at offset {start}: expected 8 bytes, got 5"):
        scan(small)


@pytest.mark.parametrize("with_idx", [True, False])
def test_any_damaged_byte(small: Path, with_idx: bool) -> None:
    """Damage is a ValueError or different bytes, whatever byte it hits; never another exception.

    Without an `.idx` a length that by chance ends where another record does takes in what lies between.
    """
    content, records = small.read_bytes(), read_all(small)
    if not with_idx:
        small.with_suffix(".idx").unlink()
    refused = 0
    for at in range(len(content)):
        for flip in (0x01, 0x20, 0x80):
            small.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            try:
                found = read_all(small)
                assert len(found) == len(records) or not with_idx
                assert sum(record not in records for record in found) <= 1
            except ValueError:
                refused += 1
    assert refused > 3 * 4 * len(records)  # the magic numbers at least


def test_damaged_magic_is_located(small: Path) -> None:
    file, content = RecordFile(small), bytearray(small.read_bytes())
    offset = int(file.offsets[3])
    content[offset + 3] ^= 0xFF
    small.write_bytes(content)
    damage = rf"train\.rec.* damaged at offset {offset}: expected the magic number 0xced7230a, got 0x31d7230a"
    with pytest.raises(ValueError, match=rf"{damage}.*no record starts at offset {offset}, key 3"):
        RecordFile(small)
    # Damage that comes after the index was read.
    with pytest.raises(ValueError, match=rf"train\.rec, key 3, offset {offset}: damaged at offset {offset}"):
        file.read_image(3)
    assert file.read_image(1) == b"first"


def test_file_that_becomes_shorter_while_it_is_read(small: Path) -> None:
    file = RecordFile(small)
    small.write_bytes(small.read_bytes()[: int(file.offsets[4]) + 10])
    with pytest.raises(ValueError, match=r"key 4, offset .*: truncated: the record at offset .* got 10"):
        file.read(4)
    small.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        file.read(4)


def test_length_that_reaches_into_the_next_record(small: Path) -> None:
    file, content = RecordFile(small), bytearray(small.read_bytes())
    first, second, third = file.offsets[1:4].tolist()
    content[first + 4 : first + 8] = struct.pack("<I", third - first - 8)
    small.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"before offset {second} \(key 2\) ends at {third}, expected at most {second}"
    ):
        RecordFile(small)


@pytest.mark.parametrize(
    ("cflags", "message"),
    [
        ([2], "expected the start of a record, got a part with cflag 2"),
        ([5], "expected the start of a record, got a part with cflag 5"),
        ([1, 0], "expected the next part of the record at 0, got cflag 0"),
        ([1, 2, 1], "expected the next part of the record at 0, got cflag 1"),
        ([1, 2], "truncated at offset 24: expected 8 bytes, got 0"),
    ],
)
def test_parts_in_disorder(tmp_path: Path, cflags: list[int], message: str) -> None:
    (tmp_path / "a.rec").write_bytes(b"".join(struct.pack("<IIf", MAGIC, c << 29 | 4, 1) for c in cflags))
    with pytest.raises(ValueError, match=message):
        scan(tmp_path / "a.rec")


def test_unsplit_magic_of_other_writers(tmp_path: Path) -> None:
    """Writers that do not split leave the magic number in the bytes: it is no record there."""
    records = [image(1.0, 1, MAGIC_BYTES * 3), image(2.0, 2)]
    framed = [struct.pack("<II", MAGIC, len(r)) + r + bytes(-len(r) % 4) for r in records]
    (tmp_path / "a.rec").write_bytes(b"".join(framed))
    build_idx(tmp_path / "a.rec")
    file = RecordFile(tmp_path / "a.rec")
    assert [file.read(i) for i in range(len(file))] == records
    assert join(framed[0], 0) == (records[0], len(framed[0]))


def test_missing_and_empty(tmp_path: Path) -> None:
    for function in (RecordFile, scan, build_idx):
        with pytest.raises(FileNotFoundError, match=r"no .*a\.rec; expected a packed training set"):
            function(tmp_path / "a.rec")
    write(tmp_path / "a.rec", {})
    for function in (RecordFile, scan, build_idx):
        with pytest.raises(ValueError, match=r"a\.rec is empty; expected records"):
            function(tmp_path / "a.rec")


# --- writing ----------------------------------------------------------------------------------------------------


def test_nothing_is_lost_when_writing_fails(small: Path) -> None:
    before = {path: path.read_bytes() for path in small.parent.iterdir()}
    with pytest.raises(KeyboardInterrupt), RecordWriter(small) as writer:
        writer.write(0, b"half")
        raise KeyboardInterrupt
    assert {path: path.read_bytes() for path in small.parent.iterdir()} == before


def test_full_disk(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in small.parent.iterdir()}
    monkeypatch.setattr("os.fsync", full_disk)
    for name in ("train.rec", "new.rec"):
        with pytest.raises(OSError, match="No space left") as error:
            write(small.with_name(name), {0: b"record"})
        assert error.value.filename == str(small.with_name(name))
        with pytest.raises(OSError) as error, RecordWriter(small.with_name(name)):
            full_disk(0)
        assert error.value.filename == str(small.with_name(name))
    assert {path: path.read_bytes() for path in small.parent.iterdir()} == before


def test_an_existing_file_is_kept_where_it_is_not_to_be_replaced(small: Path) -> None:
    before = {path: path.read_bytes() for path in small.parent.iterdir()}
    with pytest.raises(FileExistsError, match=r"train\.rec exists; use --overwrite to replace it"):
        RecordWriter(small, overwrite=False)
    assert {path: path.read_bytes() for path in small.parent.iterdir()} == before


def test_nothing_is_there_before_the_end(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "a.rec", tmp_path / "b.idx")
    writer.write(3, b"record")
    assert not (tmp_path / "a.rec").exists() and not (tmp_path / "b.idx").exists()
    writer.close()
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.rec", "b.idx"]
    assert RecordFile(tmp_path / "a.rec", tmp_path / "b.idx").keys.tolist() == [3]
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.write(4, b"record")


def test_writer_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write a.rec to"):
        RecordWriter(tmp_path / "nowhere" / "a.rec")
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key in (-1, 2**63 - 1):
            with pytest.raises(ValueError, match=rf"key {key}, expected 0 to 2\^63 - 2"):
                writer.write(key, b"")
        with pytest.raises(
            ValueError, match="key 1: a record of 536,870,912 bytes; the format takes at most 536,870,911"
        ):
            writer.write(1, bytes(2**29))
        writer.write(1, b"")
    assert RecordFile(tmp_path / "a.rec").read(0) == b""
    with pytest.raises(ValueError, match="key 1 was written twice"), RecordWriter(tmp_path / "c.rec") as writer:
        for key in (1, 2, 1):
            writer.write(key, b"")
    assert not (tmp_path / "c.rec").exists()
