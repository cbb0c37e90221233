import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaface.system.csv_text import SafeWriter, original, safe


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "'=1", "-", "=1"])
def test_formulas_become_texts(text):
    assert safe(text) == f"'{text}"
    assert original(safe(text)) == text


@pytest.mark.parametrize("cell", ["-0.53", "+1e-9", "-inf", "12", "Ada", "'Ada", "a=b", "", 5, -0.5, None])
def test_numbers_and_other_texts_stay_as_they_are(cell):
    assert safe(cell) is cell
    if isinstance(cell, str):
        assert original(cell) == cell


@given(st.text())
def test_every_text_comes_back(text):
    assert original(safe(text)) == text


def test_rows_are_written_safely():
    text = io.StringIO(newline="")
    SafeWriter(text).writerows([["=1", -1, "a,b"], ["-1.5", "x", ""]])
    assert list(csv.reader(io.StringIO(text.getvalue()))) == [["'=1", "-1", "a,b"], ["-1.5", "x", ""]]
