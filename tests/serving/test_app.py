import asyncio
import tempfile

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from adaface.serving.app import Limits, read_photographs, sender_refusal

LIMITS = Limits()
FORM = 'multipart/form-data; boundary="x-1"'


def form(*fields: tuple[str, bytes], end: bytes = b"--\r\n") -> bytes:
    """Return the body of a form of files, with the boundary x-1."""
    parts = [
        b'\r\nContent-Disposition: form-data; name="%s"; filename="a b.png"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in fields
    ]
    return b"".join(b"--x-1" + part for part in parts) + b"--x-1" + end


def read(body: bytes, kind: str = FORM, limits: Limits = LIMITS, chunk: int = 1000, **more: str) -> list[bytes]:
    """Read a request whose body arrives in chunks."""
    chunks = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    headers = Headers({"content-type": kind, **{name.replace("_", "-"): value for name, value in more.items()}})

    async def receive() -> dict:
        part = chunks.pop(0) if chunks else b""
        return {"type": "http.request", "body": part, "more_body": bool(chunks)}

    request = Request({"type": "http", "method": "POST", "path": "/compare", "headers": headers.raw}, receive)
    return asyncio.run(read_photographs(request, limits))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.:1", "127.0.0.1:9", "[::1]:8000", "192.168.1.2", "mine"]
)
def test_names_and_addresses_of_this_server(host):
    assert sender_refusal(Headers({"host": host}), {"localhost", "mine"}) is None
    assert sender_refusal(Headers({"host": host, "origin": f"http://{host}"}), {"localhost", "mine"}) is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([], 400),
        ([("host", "localhost"), ("host", "localhost")], 400),
        ([("host", "a b")], 400),
        ([("host", "localhost:port")], 400),
        ([("host", "user@127.0.0.1")], 400),
        ([("host", "evil.example:8000")], 421),
        ([("host", "127.0.0.1.evil.example")], 421),
        ([("host", "localhost.evil.example")], 421),
        ([("host", "[::1::2]")], 421),
        ([("host", "localhost:8000"), ("origin", "http://evil.example")], 403),
        ([("host", "localhost:8000"), ("origin", "http://localhost:9000")], 403),
        ([("host", "localhost:8000"), ("origin", "null")], 403),
        ([("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://evil.example")], 403),
    ],
)
def test_other_senders_are_refused(fields, status):
    headers = Headers(raw=[(name.encode(), value.encode()) for name, value in fields])
    assert sender_refusal(headers, {"localhost"})[0] == status


@pytest.mark.parametrize(
    "content", [b"x", b"\r\n--x-", b"\r\n\r\n--\r\nname=", bytes(range(256)) * 100, b"\r\n"], ids=range(5)
)
@pytest.mark.parametrize("chunk", [1, 7, 1_000_000])
def test_files_of_a_form_are_whole(content, chunk):
    body = form(("second", b"2" + content), ("more", b""), ("first", content))
    assert read(body, chunk=chunk) == [content, b"2" + content]


def test_photographs_are_never_on_disk(monkeypatch):
    def written(*_):
        raise AssertionError("a photograph is written to a file")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", written)
    monkeypatch.setattr(tempfile, "TemporaryFile", written)
    assert MultiPartParser.spool_max_size < LIMITS.most_bytes  # Starlette would write them to files
    second = bytes(LIMITS.most_bytes - len(form(("first", b"1"), ("second", b""))))
    body = form(("first", b"1"), ("second", second))
    assert len(body) == LIMITS.most_bytes
    assert read(body, chunk=2**20) == [b"1", second]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("first", b"1")], "no file called second, or an empty one: first and second are expected"),
        ([("first", b"1"), ("second", b"")], "no file called second"),
        ([("first", b"1"), ("first", b"2"), ("second", b"2")], "2 files called first, one is expected"),
        ([("more", b"1")] * 8, "Too many files"),
        ([], "no file called first"),
    ],
)
def test_forms_that_are_refused(fields, message):
    with pytest.raises(HTTPException, match=message) as refused:
        read(form(*fields))
    assert refused.value.status_code == 400


def test_forms_that_are_damaged():
    body = form(("first", b"1"), ("second", b"2"))
    heads = (b"x" * 9000 + b"\r\n\r\n", b'\r\nContent-Disposition: form-data; name="first"\r\n', b"\r\nA: b\r\n\r\n")
    without_file = body.replace(b'; filename="a b.png"', b"")
    for wrong in (
        body[:-20],
        b"",
        b"--x-1",
        b"none",
        without_file,
        *(b"--x-1" + head + b"\r\n--x-1--" for head in heads),
    ):
        with pytest.raises(HTTPException, match="first and second are expected") as refused:
            read(wrong)
        assert refused.value.status_code == 400


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("", 415),
        ("multipart/mixed; boundary=x-1", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=" + "x" * 3000, 400),
        ("multipart/form-data; boundary*=utf-8''%C3%A9", 400),
    ],
)
def test_what_is_no_form_is_refused(kind, status):
    with pytest.raises(HTTPException) as refused:
        read(form(("first", b"1"), ("second", b"2")), kind)
    assert refused.value.status_code == status


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "hex", "utf-16", "none", "raw_unicode_escape"])
def test_no_codec_is_a_failure(charset):
    body = form(("first", b"1"), ("second", b"2"), ("\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), b"3"))
    try:
        assert read(body, f"{FORM}; charset={charset}") == [b"1", b"2"]
    except HTTPException as refused:
        assert refused.status_code == 400


def test_the_bound_holds_whether_the_length_is_announced_or_not():
    body = form(("first", b"1"), ("second", bytes(3000)))
    limits = Limits(most_bytes=len(body))
    assert read(body, limits=limits, content_length=str(len(body)))[1] == bytes(3000)
    limits = Limits(most_bytes=len(body) - 1)
    for announced in ({"content_length": str(len(body))}, {}):
        with pytest.raises(HTTPException, match=f"more than the limit of {len(body) - 1:,}") as refused:
            read(body, limits=limits, **announced)
        assert refused.value.status_code == 413
