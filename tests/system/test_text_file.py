import pytest

from adaface.system.text_file import read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_of_the_usual_programs(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Zoë\r\nAda\n".encode(encoding))
    assert read_text(tmp_path / "a.txt", windows=True) == "Zoë\r\nAda\n"
    if encoding != "cp1252":
        assert read_text(tmp_path / "a.txt") == "Zoë\r\nAda\n"


@pytest.mark.parametrize("content", [b"\xff\xfea", b"a\0b\0", b"\x81\x8d", bytes(range(256))])
def test_what_is_no_text(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    for windows in (False, True):
        with pytest.raises(ValueError, match=r"a\.txt is not a text file"):
            read_text(tmp_path / "a.txt", windows=windows)
