"""The walk over a pickle: how many opcodes it takes, and how much memory."""

import io
import pickle
import tracemalloc

import pytest

from adaface.system import pickle_walk
from adaface.system.pickle_walk import PAIR_SET_OPCODES, DamagedPickleError, UnsafePickleError, walk_pickle


def walk(content: bytes) -> None:
    walk_pickle(io.BytesIO(content), len(content), PAIR_SET_OPCODES)


@pytest.mark.parametrize(
    "content", [b"(" + b"]" * 3000 + b"t.", b"(" + b"]\x94" * 1500 + b"t.", b"(" + b"N" * 6000 + b"t."]
)
def test_more_opcodes_than_a_file_of_its_size_needs(content, monkeypatch):
    walk(content)
    monkeypatch.setattr(pickle_walk, "_MOST_OPCODES", 1000)
    with pytest.raises(UnsafePickleError, match=r"it has more than [\d,]+ opcodes, too many for its size"):
        walk(content)


@pytest.mark.parametrize("part", [b"]", b")", b"}", b"N\x85", b"NN\x86", b"(Nt", b"(t", b"(l"])
def test_more_containers_than_a_file_of_its_size_needs(part, monkeypatch):
    content = b"(" + part * 3000 + b"t."
    walk(content)
    monkeypatch.setattr(pickle_walk, "_MOST_CONTAINERS", 1000)
    with pytest.raises(UnsafePickleError, match=r"it has more than 1,\d+ containers, too many for its size"):
        walk(content)


@pytest.mark.parametrize("protocol", range(6))
def test_the_opcodes_of_a_verification_set_and_of_names_are_enough(protocol, monkeypatch):
    monkeypatch.setattr(pickle_walk, "_MOST_OPCODES", 100)
    monkeypatch.setattr(pickle_walk, "_MOST_CONTAINERS", 100)
    image = bytes(range(128, 256)) * 8
    walk(pickle.dumps(([image + bytes([number]) for number in range(200)], [True, False] * 50), protocol))
    # as two million names for the whole limit
    monkeypatch.setattr(pickle_walk, "_MOST_OPCODES", 2000)
    walk(pickle.dumps([f"class {number}" for number in range(1000)], protocol))


def test_plain_values_share_their_memory():
    content = b"(" + b"N" * 100_000 + b"t."
    tracemalloc.start()
    try:
        walk(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25 * len(content)  # the stack and a copy of it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>quota exceeded", "it is a web page, download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "it is a Git LFS pointer, run: git lfs pull"),
        (b"\x1f\x8b\x08\x00", "it is compressed by gzip, unpack it first"),
        (b"\x7fELF\x02\x01\x01\x00\x00", r"it begins with b'\x7fELF\x02\x01\x01\x00'"),
        (b"(N\xff.", r"it has the unknown opcode b'\xff'"),
        (b"hello", "it has no object 101 in its memo"),
    ],
)
def test_files_that_are_no_pickles_are_named(content, message):
    with pytest.raises(DamagedPickleError) as caught:
        walk(content)
    assert str(caught.value) == message


def test_the_file_is_left_behind_the_pickle():
    first, second = pickle.dumps([1, 2]), pickle.dumps("x" * 100)
    file = io.BytesIO(first + second)
    for end in (len(first), len(first) + len(second)):
        walk_pickle(file, len(first + second) - file.tell(), PAIR_SET_OPCODES)
        assert file.tell() == end
