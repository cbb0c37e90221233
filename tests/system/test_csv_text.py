import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaface.system.csv_text import SafeWriter, original, safe

FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "'=1",
    "-",
    "=1",
    "\uff1d1",
    "\uff201",
]


@pytest.mark.parametrize("text", FORMULAS)
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


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_every_row_is_read_as_it_was_written(row):
    text = io.StringIO(newline="")
    SafeWriter(text).writerow(row)
    assert text.getvalue().endswith("\n")
    assert not text.getvalue().endswith("\r\n")
    lines = list(csv.reader(io.StringIO(text.getvalue(), newline="")))
    assert [[original(cell) for cell in line] for line in lines] == [row]


@pytest.mark.parametrize("name", ["a\rb.jpg", "\r", "a\nb", "a\r\nb"])
def test_line_ends_in_a_name_are_quoted(name):
    text = io.StringIO(newline="")
    SafeWriter(text).writerow([name, 1])
    ((cell, number),) = csv.reader(io.StringIO(text.getvalue(), newline=""))
    assert (original(cell), number) == (name, "1")


def test_rows_are_written_safely():
    text = io.StringIO(newline="")
    SafeWriter(text).writerows([["=1", -1, "a,b"], ["-1.5", "x", ""]])
    assert list(csv.reader(io.StringIO(text.getvalue()))) == [["'=1", "-1", "a,b"], ["-1.5", "x", ""]]
