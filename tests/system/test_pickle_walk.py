"""The walk over a pickle: how many opcodes it takes, and how much memory."""

import io
import pickle
import tracemalloc

import pytest

from adaface.system import pickle_walk
from adaface.system.pickle_walk import PAIR_SET_OPCODES, UnsafePickleError, walk_pickle


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


@pytest.mark.parametrize("protocol", range(6))
def test_the_opcodes_of_a_verification_set_and_of_names_are_enough(protocol, monkeypatch):
    monkeypatch.setattr(pickle_walk, "_MOST_OPCODES", 100)
    image = bytes(range(128, 256)) * 8
    walk(pickle.dumps(([image + bytes([number]) for number in range(200)], [True, False] * 50), protocol))
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
