import json

import pytest

from adaface.system.json_file import parse_object, read_object


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_objects_in_every_encoding_of_unicode(tmp_path, encoding):
    (tmp_path / "a.json").write_text(json.dumps({"name": "Zoë"}, ensure_ascii=False), encoding=encoding)
    assert read_object(tmp_path / "a.json") == {"name": "Zoë"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"[1]", "it is a list"),
        (b"1e400", "it is a float"),
        (b"null", "it is a NoneType"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b"[" * 100_000, "recursion"),
        (b"\xff\xfe\x00", "decode"),
    ],
)
def test_whatever_is_wrong_is_one_kind_of_error(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json is damaged or not a JSON object \(.*{reason}"):
        read_object(tmp_path / "a.json")
    with pytest.raises(ValueError, match=reason):
        parse_object(content)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "a.json")
