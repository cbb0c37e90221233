"""Verification sets: the restricted unpickler, the three forms on disk."""

import io
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path

import bcolz
import cv2
import numpy as np
import pytest

from adaface.data import pair_sets, pair_writers
from adaface.data.pair_pickle import read_bin, write_bin


def smooth_image(seed: int) -> np.ndarray:
    """(112, 112, 3) uint8 BGR, smooth enough for JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return cv2.resize(noise, (112, 112), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


IMAGES = [smooth_image(seed) for seed in range(6)]
ENCODED = [encode(image) for image in IMAGES]
ISSAME = [True, False, True]


def dump(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def check_images(pair_set: pair_sets.PairSet) -> None:
    assert len(pair_set.images) == 6
    for image, expected in zip(pair_set.images, IMAGES, strict=True):
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)
    assert pair_set.issame.dtype == bool
    assert pair_set.issame.tolist() == ISSAME


# --- .bin -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_bin_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    images, issame = read_bin(dump(tmp_path / "a.bin", (ENCODED, ISSAME), protocol))
    assert images == ENCODED
    assert issame.tolist() == ISSAME


def python2_pickle(images: list[bytes], issame: list[bool]) -> bytes:
    """What Python 2 writes for (list of str, list of bool) with protocol 2, opcode by opcode."""
    out = io.BytesIO()
    out.write(b"\x80\x02](")
    for image in images:
        out.write(b"T" + len(image).to_bytes(4, "little") + image)
    out.write(b"e](" + b"".join(b"\x88" if same else b"\x89" for same in issame) + b"e\x86.")
    return out.getvalue()


def python2_text_pickle(images: list[bytes], issame: list[bool]) -> bytes:
    """What Python 2 writes with protocol 0, its default."""
    texts = b"".join(b"S" + repr(image)[1:].encode() + b"\np%d\na" % number for number, image in enumerate(images, 2))
    return b"((lp1\n" + texts + b"(lp9\n" + b"".join(b"I0%d\na" % same for same in issame) + b"tp10\n."


@pytest.mark.parametrize("dump_of_python_2", [python2_pickle, python2_text_pickle])
def test_bin_of_python_2(tmp_path: Path, dump_of_python_2: Callable[[list[bytes], list[bool]], bytes]) -> None:
    path = tmp_path / "lfw.bin"
    path.write_bytes(dump_of_python_2(ENCODED, ISSAME))
    images, issame = read_bin(path)
    assert images == ENCODED
    assert issame.tolist() == ISSAME


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_bin_with_arrays(tmp_path: Path, protocol: int, module: str) -> None:
    """Old files hold encoded bytes as arrays, or RGB pixels, and numpy booleans."""
    encoded = [np.frombuffer(data, np.uint8) for data in ENCODED[:3]]
    pixels = [np.asfortranarray(image[:, :, ::-1]) for image in IMAGES[3:]]
    path = tmp_path / "old.bin"
    content = pickle.dumps((encoded + pixels, [np.bool_(same) for same in ISSAME]), protocol)
    if protocol < 4:  # text opcodes: the name can be replaced in place
        content = content.replace(b"numpy._core.multiarray", module.encode())
    path.write_bytes(content)
    check_images(pair_sets.open_pair_set(tmp_path, "old"))
    dump(path, (encoded + pixels, np.array(ISSAME)), protocol)
    check_images(pair_sets.open_pair_set(tmp_path, "old"))


class Call:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call  # type: ignore[return-value]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_pickle_that_calls_is_refused_and_not_run(tmp_path: Path, protocol: int, function: object) -> None:
    payload = tmp_path / "payload"
    command = f"touch {payload}" if function is os.system else f"open({str(payload)!r}, 'w').close()"
    path = dump(tmp_path / "evil.bin", (ENCODED, [Call(function, command), True, False]), protocol)
    with pytest.raises(ValueError, match=r"refused: the pickle asks for \w+\.(system|eval|exec)"):
        read_bin(path)
    assert not payload.exists()
    pickle.loads(path.read_bytes())  # the file is armed: an ordinary unpickler runs it
    assert payload.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",  # another codec
        b"c_codecs\ndecode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R.",  # another function
        b"cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.",  # a gigabyte out of a number
        b"cnumpy\nndarray\nJ\x00\x00\x00\x40\x85R.",  # memory that nobody wrote
        b"cnumpy\nload\nX\x01\x00\x00\x00a\x85R.",
        b"cnumpy\ndtype.__class__\n.",
        b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",  # changes a function through BUILD
    ],
)
def test_misused_globals_are_refused(tmp_path: Path, stream: bytes) -> None:
    pickletools.dis(stream, out=io.StringIO())  # well formed
    path = tmp_path / "evil.bin"
    path.write_bytes(b"\x80\x02" + stream)
    with pytest.raises(ValueError, match=r"evil\.bin was refused"):
        read_bin(path)


@pytest.mark.parametrize(
    "array",
    [np.array([b"a", None], dtype=object), np.zeros(3, np.float32), np.zeros(3, "U4"), np.zeros(3, [("a", "u1")])],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    path = dump(tmp_path / "a.bin", ([array, array], [True]))
    with pytest.raises(
        ValueError, match=r"contains an array of (type|an unknown type)|structured|image 0 is one array"
    ):
        read_bin(path)


ENCODED_ARRAYS = [np.frombuffer(data, np.uint8) for data in ENCODED]
REAL_LIFE = {
    "encoded arrays, numpy labels": (ENCODED_ARRAYS, np.array(ISSAME)),
    "columns, as OpenCV returned them": ([array[:, None] for array in ENCODED_ARRAYS], ISSAME),
    "rows": ([array[None] for array in ENCODED_ARRAYS], ISSAME),
    "int64 labels": (ENCODED, np.array(ISSAME, np.int64)),
    "int32 labels, big-endian": (ENCODED, np.array(ISSAME, ">i4")),
    "float labels": (ENCODED, np.array(ISSAME, np.float32)),
    "Python floats": (ENCODED, [float(same) for same in ISSAME]),
    "int64 scalars": (ENCODED, [np.int64(same) for same in ISSAME]),
    "bool scalars": (ENCODED, [np.bool_(same) for same in ISSAME]),
    "array of bytes objects": (np.array(ENCODED, dtype=object), np.array(ISSAME, dtype=object)),
    "bytearrays": ([bytearray(data) for data in ENCODED], ISSAME),
    "a column of labels": (ENCODED, np.array(ISSAME)[:, None]),
    "bytes of Python 2 as latin-1": ([data.decode("latin-1") for data in ENCODED], ISSAME),
    "a list of two": [ENCODED, ISSAME],
    "tuples": (tuple(ENCODED), tuple(ISSAME)),
    "one array of bytes": (np.array(ENCODED), np.array(ISSAME)),
    "bytes scalars": ([np.bytes_(data) for data in ENCODED], ISSAME),
    "RGB pixels of PyTorch, axes moved": (
        [np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)).transpose(1, 2, 0) for image in IMAGES],
        ISSAME,
    ),
    "one array of RGB pixels, axes moved": (
        np.ascontiguousarray(np.stack(IMAGES)[..., ::-1].transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
        ISSAME,
    ),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", REAL_LIFE)
def test_files_that_people_have(tmp_path: Path, name: str, protocol: int) -> None:
    dump(tmp_path / "a.bin", REAL_LIFE[name], protocol)
    check_images(pair_sets.open_pair_set(tmp_path, "a"))


def nested(levels: int) -> bytes:
    return b"\x80\x02" + b")" + b"\x85" * levels + b"."


def array_of(shape: bytes, kind: bytes, content: bytes) -> bytes:
    """A NumPy array in protocol 2, with the opcodes of its shape and its content."""
    described = b"cnumpy\ndtype\nX\2\0\0\0" + kind + b"K\0K\1\x87R"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n)U\1b\x87R(K\1"
        + shape
        + described
        + b"\x89"
        + content
        + b"tb"
    )


LONG = b"\x8b" + (10_001).to_bytes(4, "little") + b"\1" * 10_001
HOSTILE = {
    "a shape of a thousand long numbers": b"\x80\2(" + array_of(
        b"(" + LONG + b"q\5" + b"h\5" * 1000 + b"t", b"u1", b"U\1a"
    ) + b"Nt.",
    "a hundred arrays of the same list": b"\x80\2((" + b"N" * 10**6 + b"lq\0("
    + array_of(b"J" + (10**6).to_bytes(4, "little") + b"\x85", b"O8", b"h\0") * 100 + b"lNt.",
    "a million nested tuples": nested(1_000_000),
    "nested lists": b"\x80\x02" + b"](" * 500 + b"]" + b"e" * 500 + b".",
    "nested by the memo": b"\x80\x04]\x94" + b"".join(b"]\x94ah" + bytes([n]) for n in range(1, 200)) + b".",
    "two to the power of 200 parts": b"\x80\x04)" + b"\x94h\x00\x86"[:1] + b"".join(
        b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(200)
    ) + b".",
    "nine bytes of two gigabytes": b"\x80\x02B" + (2**31 - 1).to_bytes(4, "little") + b"a.",
    "a text of four gigabytes": b"\x80\x02X" + (2**32 - 1).to_bytes(4, "little") + b"a.",
    "bytes of 2**60": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"a.",
    "a frame of a terabyte": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",
    "a memo of two gigabytes": b"\x80\x02)r" + (2**28).to_bytes(4, "little") + b"0.",
    "a dictionary with a tuple as key": b"\x80\x02}))s.",
    "a set of tuples": b"\x80\x04\x8f()\x90.",
    "a text copied again and again": b"\x80\x02c_codecs\nencode\nq\x000X" + (10**5).to_bytes(4, "little") + b"a" * 10**5
    + b"q\x010X\x06\x00\x00\x00latin1q\x020](" + b"h\x00h\x01h\x02\x86R" * 1000 + b"e.",
    "bytes scalars of the same bytes": b"\x80\2cnumpy.core.multiarray\nscalar\nq\0"
    b"cnumpy\ndtype\nX\7\0\0\0S100000K\0K\1\x87Rq\1"
    b"T" + (10**5).to_bytes(4, "little") + b"a" * 10**5 + b"q\2](" + b"h\0h\1h\2\x86R" * 1000 + b"e.",
    "a list that grows in a tuple": b"\x80\x04]\x94\x85h\x00Na.",
    "an array with a zero side": pickle.dumps(([np.zeros((2**20, 0), np.uint8)] * 2, [True]), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_small_hostile_pickles_are_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.bin"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=r"evil\.bin (was refused|is not a verification \.bin)") as caught:
        read_bin(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("stored", [b"\x96\x40\x42\x0f\0\0\0\0\0", b"X\x40\x42\x0f\0"])
def test_an_image_that_is_used_many_times_is_kept_once(tmp_path: Path, stored: bytes) -> None:
    start = b"\x89PNG" if stored[:1] == b"\x96" else "\x89PNG".encode()
    path = tmp_path / "a.bin"
    image = stored + start + b"a" * (10**6 - len(start)) + b"\x94"
    path.write_bytes(b"\x80\5(]" + image + b"a" + b"h\0a" * 19_999 + b"](" + b"\x88" * 10_000 + b"et.")
    images, _ = read_bin(path)
    assert len({id(one) for one in images}) == 1  # not 20 GB


def test_many_numbers_as_keys_are_refused(tmp_path: Path) -> None:
    path = dump(tmp_path / "evil.bin", dict.fromkeys(range(2**31, 2**31 + 5_001)))
    with pytest.raises(ValueError, match="more than 5,000 floats or large numbers as keys"):
        read_bin(path)


def test_array_whose_shape_lies_is_refused(tmp_path: Path) -> None:
    content = pickle.dumps(([np.zeros((2, 3), np.uint8)] * 2, [True]), 2)
    path = tmp_path / "a.bin"
    path.write_bytes(content.replace(b"K\x02K\x03\x86", b"K\x02K\x63\x86"))
    with pytest.raises(ValueError, match="stores an array in 6 bytes that do not fit its shape"):
        read_bin(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((ENCODED[:5], ISSAME), "5 images, an odd number"),
        ((ENCODED, ISSAME[:2]), "6 images for 2 pairs, expected 4"),
        (([], []), "empty"),
        (ENCODED, "it holds a list of length 6"),
        ({"images": 1}, "it holds one dict"),
        ((ENCODED, "yes"), "issame is one str"),
        ((ENCODED, [1, 0, 2]), r"issame\[2\]"),
        (([*ENCODED[:5], "text"], ISSAME), "image 5 is one str"),
        (([*ENCODED[:5], None], ISSAME), "image 5 is one NoneType"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_bin(dump(tmp_path / "a.bin", content))


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x80", pickle.dumps((ENCODED, ISSAME))[:-100]])
def test_not_a_pickle_or_truncated(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.bin is not a verification .bin .* or is truncated"):
        read_bin(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_bin(tmp_path / "b.bin")


def test_write_bin_reads_back_and_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "lfw.bin"
    write_bin(path, ENCODED, np.array(ISSAME))
    assert pickle.loads(path.read_bytes()) == (ENCODED, ISSAME)
    check_images(pair_sets.open_pair_set(tmp_path, "lfw"))
    with pytest.raises(ValueError, match="odd number"):
        write_bin(path, ENCODED[:3], [True])
    assert [entry.name for entry in tmp_path.iterdir()] == ["lfw.bin"]
    check_images(pair_sets.open_pair_set(tmp_path, "lfw"))


def test_real_faces(lfw112: Path) -> None:
    pair_set = pair_sets.open_pair_set(lfw112, "lfw")
    assert len(pair_set.images) == 2400
    assert pair_set.issame.sum() == 600
    assert pair_set.images[-1].shape == (112, 112, 3)


# --- sets on disk ---------------------------------------------------------------------------------------------


def test_memfile_round_trip(tmp_path: Path) -> None:
    pair_writers.write_memfile(tmp_path, "lfw", iter(IMAGES), ISSAME)
    stored = np.load(tmp_path / "lfw_images.npy", mmap_mode="r")
    assert stored.shape == (6, 112, 112, 3)
    assert stored.dtype == np.uint8
    check_images(pair_sets.open_pair_set(tmp_path, "lfw"))


def test_bcolz_is_what_the_official_code_writes(tmp_path: Path) -> None:
    pair_writers.write_bcolz(tmp_path, "lfw", IMAGES, ISSAME)
    stored = bcolz.carray(rootdir=str(tmp_path / "lfw"), mode="r")  # as the official reader opens it
    assert stored.shape == (6, 3, 112, 112)
    assert stored.dtype == np.float32
    for planes, image in zip(stored, IMAGES, strict=True):
        np.testing.assert_allclose(planes, image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert np.load(tmp_path / "lfw_list.npy").tolist() == ISSAME
    check_images(pair_sets.open_pair_set(tmp_path, "lfw"))


def test_bcolz_written_by_bcolz_reads_back_exactly(tmp_path: Path) -> None:
    """Every grey level survives, as (x / 255 - 0.5) / 0.5 and as x / 127.5 - 1."""
    levels = np.arange(112 * 112 * 3, dtype=np.uint16).astype(np.uint8).reshape(112, 112, 3)
    array = bcolz.fill([2, 3, 112, 112], dtype=np.float32, rootdir=str(tmp_path / "cfp_fp"), mode="w")
    array[0, ...] = (levels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    array[1, ...] = (levels.transpose(2, 0, 1) / 127.5 - 1).astype(np.float32)
    array.flush()
    np.save(tmp_path / "cfp_fp_list.npy", np.array([True]))
    for image in pair_sets.open_pair_set(tmp_path, "cfp_fp").images:
        np.testing.assert_array_equal(image, levels)


def test_damaged_bcolz_is_named(tmp_path: Path) -> None:
    pair_writers.write_bcolz(tmp_path, "lfw", IMAGES, ISSAME)
    chunk = tmp_path / "lfw" / "data" / "__0.blp"
    whole = chunk.read_bytes()
    damages = {
        "a number of 255 bytes": whole[:19] + b"\xff" + whole[20:],  # bcolz would write behind its buffer
        "another length": whole[:20] + b"\xff\xff\xff\x7f" + whole[24:],
        "truncated": whole[:-1],
        "all": b"x" * 100,
    }
    for damaged in damages.values():
        chunk.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"lfw: damaged bcolz folder \(the header of __0\.blp does not fit"):
            pair_sets.open_pair_set(tmp_path, "lfw")
    chunk.unlink()
    with pytest.raises(ValueError, match="lfw: damaged bcolz folder"):
        pair_sets.open_pair_set(tmp_path, "lfw")
    chunk.write_bytes(whole)
    storage = tmp_path / "lfw" / "meta" / "storage"
    storage.write_text(storage.read_text().replace("float32", "object"))
    with pytest.raises(ValueError, match="of object, expected float32"):
        pair_sets.open_pair_set(tmp_path, "lfw")
    (tmp_path / "lfw" / "meta" / "sizes").write_text("{")
    with pytest.raises(ValueError, match="damaged bcolz folder"):
        pair_sets.open_pair_set(tmp_path, "lfw")


def test_values_in_a_bcolz_folder_that_no_pixel_has_are_damage(tmp_path: Path) -> None:
    pair_writers.write_bcolz(tmp_path, "lfw", IMAGES, ISSAME)
    assert {"lfw_list.npy", "lfw/data/__0.blp"} <= set(pair_sets.content_checksums(tmp_path, "lfw"))
    array = bcolz.open(str(tmp_path / "lfw"), mode="a")
    planes = array[0]
    planes[1, 5, 6] += np.float32(0.003)
    array[0] = planes
    array.flush()
    with pytest.raises(ValueError, match="lfw, image 0: values that no pixel has; the folder is damaged"):
        _ = pair_sets.open_pair_set(tmp_path, "lfw").images[0]


def test_damaged_memfile_is_named(tmp_path: Path) -> None:
    pair_writers.write_memfile(tmp_path, "lfw", IMAGES, ISSAME)
    images = tmp_path / "lfw_images.npy"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"lfw_images\.npy is damaged"):
        pair_sets.open_pair_set(tmp_path, "lfw")
    np.save(images, np.zeros((6, 112, 112), np.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 \(2P, 112, 112, 3\)"):
        pair_sets.open_pair_set(tmp_path, "lfw")
    images.write_bytes(whole)
    np.save(tmp_path / "lfw_list.npy", np.array([True]))
    with pytest.raises(ValueError, match="6 images for 1 pairs"):
        pair_sets.open_pair_set(tmp_path, "lfw")
    np.save(tmp_path / "lfw_list.npy", np.zeros(3, "f4,f4"))
    with pytest.raises(ValueError, match=r"expected P booleans, got \[\('f0', '<f4'\), \('f1', '<f4'\)\] of shape"):
        pair_sets.open_pair_set(tmp_path, "lfw")
    np.save(tmp_path / "lfw_list.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"lfw_list\.npy is damaged"):
        pair_sets.open_pair_set(tmp_path, "lfw")


@pytest.mark.parametrize("write", [pair_writers.write_memfile, pair_writers.write_bcolz])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:5], "5 images, an odd number"),
        (IMAGES[:4], "4 images for 3 pairs"),
        ([*IMAGES[:5], IMAGES[5][:100]], "image 5"),
    ],
)
def test_nothing_is_left_of_a_failed_write(tmp_path: Path, write: object, images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path, "lfw", images, ISSAME)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../lfw", "a/b", ".hidden", "a\\b"])
def test_names_do_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    for call in (
        lambda: pair_writers.write_memfile(tmp_path, name, IMAGES, ISSAME),
        lambda: pair_writers.write_bcolz(tmp_path, name, IMAGES, ISSAME),
        lambda: pair_sets.open_pair_set(tmp_path, name),
    ):
        with pytest.raises(ValueError, match="cannot be the name of a verification set"):
            call()


def test_sets_are_found_in_the_order_of_the_paper(tmp_path: Path) -> None:
    for name in ("zoo", "calfw", "lfw"):
        write_bin(tmp_path / f"{name}.bin", ENCODED, ISSAME)
    pair_writers.write_bcolz(tmp_path, "lfw", IMAGES, ISSAME)
    pair_writers.write_bcolz(tmp_path, "agedb_30", IMAGES, ISSAME)
    assert list(pair_sets.find_pair_sets(tmp_path).items()) == [
        ("agedb_30", tmp_path / "agedb_30"),
        ("lfw", tmp_path / "lfw"),
        ("calfw", tmp_path / "calfw.bin"),
        ("zoo", tmp_path / "zoo.bin"),
    ]
    pair_writers.write_memfile(tmp_path, "lfw", IMAGES, ISSAME)
    assert pair_sets.find_pair_sets(tmp_path)["lfw"] == tmp_path / "lfw_images.npy"
    with pytest.raises(FileNotFoundError, match=r"no verification set 'cplfw' .* agedb_30, lfw, calfw, zoo"):
        pair_sets.open_pair_set(tmp_path, "cplfw")
    with pytest.raises(FileNotFoundError, match="not a folder"):
        pair_sets.find_pair_sets(tmp_path / "none")


@pytest.mark.parametrize("form", ["bin", "memfile", "bcolz"])
def test_sets_travel_to_workers_without_their_images(tmp_path: Path, form: str) -> None:
    if form == "bin":
        write_bin(tmp_path / "lfw.bin", ENCODED, ISSAME)
    else:
        (pair_writers.write_memfile if form == "memfile" else pair_writers.write_bcolz)(tmp_path, "lfw", IMAGES, ISSAME)
    pair_set = pair_sets.open_pair_set(tmp_path, "lfw")
    _ = pair_set.images[0]
    parcel = pickle.dumps(pair_set)
    assert len(parcel) < 1500
    check_images(pickle.loads(parcel))
    np.testing.assert_array_equal(pair_set.images[-1], IMAGES[-1])
    assert len(pair_set.images[1:3]) == 2
    with pytest.raises(IndexError):
        _ = pair_set.images[6]
