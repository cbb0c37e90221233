from email.message import Message

import pytest

from face_requests import RequestError, body_length, check_sender, form_files

NAMES = ("first", "second")


def headers(**fields: str | list[str]) -> Message:
    message = Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


def form(*fields: tuple[str, bytes], boundary: str = "x-1", end: bytes = b"--\r\n") -> tuple[Message, bytes]:
    parts = [
        b'\r\nContent-Disposition: form-data; name="%s"; filename="a b.png"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in fields
    ]
    delimiter = b"--" + boundary.encode()
    body = b"".join(delimiter + part for part in parts) + delimiter + end
    return headers(Content_Type=f'multipart/form-data; boundary="{boundary}"'), body


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.:1", "127.0.0.1:9", "[::1]:8000", "192.168.1.2", "mine"]
)
def test_names_and_addresses_of_this_server(host):
    check_sender(headers(Host=host), {"localhost", "mine"})
    check_sender(headers(Host=host, Origin=f"http://{host}"), {"localhost", "mine"})


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 400),
        ({"Host": ["localhost", "localhost"]}, 400),
        ({"Host": "a b"}, 400),
        ({"Host": "localhost:port"}, 400),
        ({"Host": "user@127.0.0.1"}, 400),
        ({"Host": "evil.example:8000"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "[::1::2]"}, 421),
        ({"Host": "localhost:8000", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Host": "localhost:8000", "Origin": "null"}, 403),
    ],
)
def test_other_senders_are_refused(fields, status):
    with pytest.raises(RequestError) as refused:
        check_sender(headers(**fields), {"localhost"})
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 411),
        ({"Content-Length": "5", "Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": ["5", "5"]}, 400),
        ({"Content-Length": "-1"}, 400),
        ({"Content-Length": "+5"}, 400),
        ({"Content-Length": "1_0"}, 400),
        ({"Content-Length": "٣"}, 400),
        ({"Content-Length": ""}, 400),
        ({"Content-Length": "9" * 5000}, 400),
        ({"Content-Length": "101"}, 413),
        ({"Content-Length": "9" * 18}, 413),
    ],
)
def test_lengths_that_are_refused(fields, status):
    with pytest.raises(RequestError) as refused:
        body_length(headers(**fields), 100)
    assert refused.value.status == status
    assert body_length(headers(Content_Length=" 100 "), 100) == 100


@pytest.mark.parametrize("content", [b"x", b"\r\n--x-", b"\r\n\r\n--\r\nname=", bytes(range(256)) * 100, b"\r\n"])
def test_files_of_a_form_are_whole(content):
    first, second = form_files(*form(("second", b"2" + content), ("more", b""), ("first", content)), NAMES)
    assert (first, second) == (content, b"2" + content)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("first", b"1")], "no file called second, or an empty one: first and second are expected"),
        ([("first", b"1"), ("second", b"")], "no file called second"),
        ([("first", b"1"), ("first", b"2"), ("second", b"2")], "two files called first"),
        ([("", b"1")] * 8, "too many fields"),
        ([], "no file called first"),
    ],
)
def test_forms_that_are_refused(fields, message):
    with pytest.raises(RequestError, match=message) as refused:
        form_files(*form(*fields), NAMES)
    assert refused.value.status == 400


def test_forms_that_are_damaged():
    good, body = form(("first", b"1"), ("second", b"2"))
    for wrong in (body[:-4], body[:-20], b"", b"--x-1", b"none"):
        with pytest.raises(RequestError, match="cut off"):
            form_files(good, wrong, NAMES)
    for head in (b"x" * 9000 + b"\r\n\r\n", b'\r\nContent-Disposition: form-data; name="first"\r\n'):
        with pytest.raises(RequestError, match="no end of its header"):
            form_files(good, b"--x-1" + head + b"\r\n--x-1--\r\n", NAMES)
    with pytest.raises(RequestError, match="no file called first"):  # a name in another encoding is none of ours
        form_files(good, b"--x-1\r\nContent-Disposition: form-data; name*=utf-8''first\r\n\r\n1\r\n--x-1--", NAMES)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("multipart/form-data", 415),
        ("multipart/form-data; boundary=", 415),
        ("multipart/mixed; boundary=x", 415),
        ("multipart/form-data; boundary=" + "x" * 71, 400),
        ("multipart/form-data; boundary*=utf-8''%C3%A9", 400),
    ],
)
def test_what_is_no_form_is_refused(kind, status):
    with pytest.raises(RequestError) as refused:
        form_files(headers(Content_Type=kind), b"", NAMES)
    assert refused.value.status == status
