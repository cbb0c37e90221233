import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from adaface.system.numpy_file import read_array, read_arrays


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WHOLE = npy(np.arange(12, dtype=np.float32).reshape(3, 4))


def test_arrays_are_read_and_mapped(tmp_path):
    (tmp_path / "a.npy").write_bytes(WHOLE)
    for options in ({}, {"memory_map": True}, {"writable": True}):
        assert read_array(tmp_path / "a.npy", **options).tolist() == np.arange(12).reshape(3, 4).tolist()
    np.savez(tmp_path / "a.npz", x=np.arange(3), names=np.array(["a", "b"]))
    arrays = read_arrays(tmp_path / "a.npz")
    assert {name: array.tolist() for name, array in arrays.items()} == {"x": [0, 1, 2], "names": ["a", "b"]}


HEADERS = {
    "unfinished source": b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4,",
    "no source": b"{'descr': '<f4' 'fortran_order'",
    "an unclosed text": b"{'descr': '<f4",
    "a bad escape": b"{'descr': '\\x'}",
    "another dictionary": b"{'a': 1}",
    "a huge shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }",
    "a negative shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }",
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 4), }",
    "nested": b"(" * 300 + b")" * 300,
    "an unknown type": b"{'descr': '<q9', 'fortran_order': False, 'shape': (3, 4), }",
    "bytes that are no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", HEADERS)
def test_damaged_headers_are_one_kind_of_error(tmp_path, name, mapped):
    header = HEADERS[name].ljust(118) + b"\n"
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(48))
    with pytest.raises(ValueError, match=r"a\.npy is damaged or not a \.npy file"):
        read_array(path, memory_map=mapped)


@pytest.mark.parametrize("end", [0, 1, 8, 40, len(WHOLE) - 1])
def test_truncated_files_are_one_kind_of_error(tmp_path, end):
    (tmp_path / "a.npy").write_bytes(WHOLE[:end])
    for mapped in (False, True):
        with pytest.raises(ValueError, match=r"a\.npy is damaged or not a \.npy file"):
            read_array(tmp_path / "a.npy", memory_map=mapped)


def test_archives_that_are_damaged_or_compressed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(10**6))
    with pytest.raises(ValueError, match=r"a\.npz is damaged .*compressed, or announce more bytes than the file has"):
        read_arrays(path)
    np.savez(path, x=np.arange(100))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is damaged or not a \.npz file"):
        read_arrays(path)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=r"a\.npz is damaged or not a \.npz file"):
        read_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(ValueError, match=r"a\.npz is damaged or not a \.npz file"):
        read_arrays(path)


def test_bytes_behind_the_array_are_damage(tmp_path):
    """Such as an insertion, which would shift all numbers behind it."""
    (tmp_path / "a.npy").write_bytes(WHOLE[:140] + b"abcd" + WHOLE[140:])
    for mapped in (False, True):
        with pytest.raises(ValueError, match=r"a\.npy is damaged .*4 bytes more than its header announces"):
            read_array(tmp_path / "a.npy", memory_map=mapped)


def test_a_header_of_gigabytes_reserves_no_memory(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x03\x00\xff\xff\xff\xff" + WHOLE[10:])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.npy is damaged .*its header announces more bytes than the file has"):
            read_array(tmp_path / "a.npy")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_an_archive_is_no_array(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy is damaged or not a \.npy file \(it is an archive"):
        read_array(tmp_path / "a.npy")


def test_a_member_that_is_marked_as_encrypted(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3))
    content = bytearray(path.read_bytes())
    for start in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[start] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is damaged or not a \.npz file .*encrypted"):
        read_arrays(path)


def test_a_member_of_another_compression(tmp_path):
    """The start of an array, read as LZMA's, is an error of the ``lzma`` module."""
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(100))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = zipfile.ZIP_LZMA
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is damaged or not a \.npz file .*that NumPy does not use"):
        read_arrays(path)
