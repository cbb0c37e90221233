from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adaface.records import idx
from adaface.records.idx import read_idx

NUMBERS = st.integers(0, 10**6) | st.integers(0, 2**63 - 2)


def written(folder: Path, lines: list[tuple[int, int]], end: str = "\n") -> Path:
    path = folder / "a.idx"
    path.write_bytes("".join(f"{key}\t{offset}{end}" for key, offset in lines).encode())
    return path


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=50), st.sampled_from(["\n", "\r\n"]), st.integers(1, 200))
@example([(10**16 - 1, 10**16 - 1), (10**16 - 2, 10**15)] * 9, "\n", 1000)  # as many digits as the fast way takes
def test_numbers_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, int]], end: str, bytes_at_once: int
) -> None:
    path = written(tmp_path_factory.mktemp("idx"), lines, end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idx, "_BYTES_AT_ONCE", bytes_at_once)
        keys, offsets = read_idx(path)
    assert keys.dtype == offsets.dtype == np.int64
    assert list(zip(keys.tolist(), offsets.tolist(), strict=True)) == lines


@pytest.mark.parametrize("first", [0, 5, 99_999_000, 10**16 - 1500])
def test_long_files_take_the_fast_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    lines = [(first + i, 3 + 41 * i * i) for i in range(1500)]
    path = written(tmp_path, lines)
    monkeypatch.setattr(idx, "_parse_lines", None)
    keys, offsets = read_idx(path)
    assert list(zip(keys.tolist(), offsets.tolist(), strict=True)) == lines


@pytest.mark.parametrize("old", ["777\t", "\t777000\n", "777\t777000\n"])
@pytest.mark.parametrize(
    "new",
    ["77:\t", "77/\t", "\t77700O\n", "7 7\t777000\n", "\n\n\n", "\t\t\n", "7\t7\t777000\n", "\t777\t777000\n", "x"],
)
def test_one_bad_line_of_many_is_named(tmp_path: Path, old: str, new: str) -> None:
    path = written(tmp_path, [(i, 1000 * i) for i in range(3000)])
    text = path.read_text()
    assert text.count(f"\n{old}") == 1 or text.count(old) == 1
    at = text.index("777\t777000\n") + "777\t777000\n".index(old)
    path.write_text(text[:at] + new + text[at + len(old) :])
    with pytest.raises(ValueError, match=r"a\.idx, line 77[89]: expected `key<TAB>offset`"):
        read_idx(path)


def test_a_byte_order_mark_alone(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(b"\xef\xbb\xbf")
    assert [len(column) for column in read_idx(tmp_path / "a.idx")] == [0, 0]
