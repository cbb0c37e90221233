import pytest

from adaface.system.text_table import aligned, line_number, read_table

COLUMNS = {"name": "str", "template": "int64", "score": "float32"}


@pytest.fixture
def table(tmp_path):
    def write(text):
        (tmp_path / "table.txt").write_bytes(text.encode())
        return tmp_path / "table.txt"

    return write


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_rows_come_in_pieces(table, rows):
    path = table('a.jpg 1 0.5\n\n  NA 2 1e3 \r\nc"d 3 -1\n')
    pieces = list(read_table(path, COLUMNS, rows=rows))
    assert [len(piece) for piece in pieces] == {1: [1, 1, 1], 2: [2, 1], 100: [3]}[rows]
    assert [tuple(row) for piece in pieces for row in piece.to_numpy()] == [
        ("a.jpg", 1, 0.5), ("NA", 2, 1000.0), ('c"d', 3, -1.0),
    ]  # fmt: skip
    assert [line_number(path, row) for row in range(3)] == [1, 3, 4]
    with pytest.raises(ValueError, match="has no row 3"):
        line_number(path, 3)


def test_the_first_columns_of_a_table_with_captions(table):
    path = table('T,S,F\n1,2,"x, y"\n\n3,4,z,more\n')
    columns = {"template": "int64", "subject": "int64"}
    (piece,) = read_table(path, columns, commas=True)
    assert piece.to_numpy().tolist() == [[1, 2], [3, 4]]
    assert line_number(path, 1, commas=True) == 4


def test_an_empty_file_has_no_rows(table):
    assert sum(map(len, read_table(table(""), COLUMNS))) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b 2", "line 4: got 2 fields, expected 3 .*: 'b 2'"),
        ("b 2 0.5 7", "line 4: got 4 fields"),
        ("b two 0.5", "line 4: template must be a whole number, got 'two'"),
        ("b 2.5 0.5", "line 4: template must be a whole number, got '2.5'"),
        ("b 2 much", "line 4: score must be a number, got 'much'"),
        ("b 99999999999999999999 0.5", "line 4: template must fit in 64 bits"),
    ],
)
@pytest.mark.parametrize("rows", [1, 100])
def test_a_line_that_does_not_fit_is_named(table, line, message, rows):
    path = table(f"a 1 0.5\n\na 1 0.5\n{line}\nc 3 0.5\n")
    with pytest.raises(ValueError, match=f"table.txt, {message}"):
        list(read_table(path, COLUMNS, rows=rows))


def test_too_many_fields_in_the_first_line(table):
    with pytest.raises(ValueError, match="line 1: got 4 fields"):
        list(read_table(table("a 1 0.5 8\nb 2 0.5\n"), COLUMNS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,x\n3,4,y\n", "line 1: expected a header"),
        ("T,S,F\n1,2,x\n3\n", "line 3: got 1 fields, expected 2"),
        ("T,S,F\n1,2,x\n3,,y\n", "line 3: subject must be a whole number, got ''"),
    ],
)
def test_captioned_lines_that_do_not_fit(table, text, message):
    with pytest.raises(ValueError, match=f"table.txt, {message}"):
        list(read_table(table(text), {"template": "int64", "subject": "int64"}, commas=True))


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [["", "images", "what"], None, ["lfw", "13,233", "faces"], ["a longer name", "9", ""]]
    assert aligned(rows, "<><") == [
        "               images  what",
        "----------------------------",
        "lfw            13,233  faces",
        "a longer name       9",
    ]
    assert aligned([["a", "1", "22"], ["bb", "33", "4"]]) == ["a    1  22", "bb  33   4"]
    assert aligned([["a", "1", "x"], ["bb", "33", "yy"]], "<") == ["a   1   x", "bb  33  yy"]
    assert aligned([]) == []
