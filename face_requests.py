"""Requests to the page's server, checked: each is understood and within bounds, or refused by status and sentence.

Source: RFC 9110 (HTTP), RFC 7578 and RFC 2046 (multipart/form-data).
"""

import ipaddress
import re
from collections.abc import Collection, Sequence
from email.message import Message
from email.parser import BytesHeaderParser

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_NUMBER = re.compile(r"[0-9]{1,18}")
_LONGEST_BOUNDARY = 70  # RFC 2046
_LONGEST_PART_HEADER = 4096
_MORE_PARTS = 4  # fields that nobody asked for, and are left out


class RequestError(ValueError):
    """A request that is refused.

    Args:
        status: of HTTP, 400 to 599.
        sentence: what is wrong, and what was expected.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def check_sender(headers: Message, names: Collection[str]) -> None:
    """Refuse what a page of another site sends, through a name that leads here (DNS rebinding) or without one.

    Args:
        headers: of the request.
        names: under which this server may be called, in small letters, beside addresses in numbers.

    Raises:
        RequestError: 400 no host, or two; 421 another name; 403 another page's request.
    """
    hosts = headers.get_all("Host", [])
    found = _HOST.fullmatch(hosts[0].strip()) if len(hosts) == 1 else None
    if found is None:
        raise RequestError(400, "the request has no valid Host header: one with the name of this server is expected")
    name = found[1].strip("[]").rstrip(".").lower()
    if name not in names and not _is_address(name):
        raise RequestError(
            421,
            f"this server is not called {name[:100]}: use its address in numbers, or start it with --host {name[:100]}",
        )
    origin = headers.get("Origin")
    if origin is not None and origin.strip().lower() not in {
        f"{kind}://{found[0].lower()}" for kind in ("http", "https")
    }:
        raise RequestError(403, f"the request comes from a page of {origin[:100]}, only this server's own page may ask")


def body_length(headers: Message, most_bytes: int) -> int:
    """Return how long the request's body is going to be.

    Args:
        headers: of the request.
        most_bytes: more are refused.

    Raises:
        RequestError: 411 no length is told, 400 none that is a number, 413 too long.
    """
    lengths = headers.get_all("Content-Length", [])
    if not lengths or headers.get("Transfer-Encoding"):
        raise RequestError(411, "the length of the request is not told: a Content-Length header is expected")
    if len(lengths) != 1 or not _NUMBER.fullmatch(lengths[0].strip()):
        raise RequestError(400, f"the Content-Length {', '.join(lengths)[:100]} is not one number of bytes")
    length = int(lengths[0])
    if length > most_bytes:
        raise RequestError(
            413, f"the photographs have {length:,} bytes together, more than the {most_bytes:,} that are taken: make "
            "them smaller first"
        )  # fmt: skip
    return length


def form_files(headers: Message, body: bytes, names: Sequence[str]) -> list[bytes]:
    """Return the contents of the files of a form.

    Args:
        headers: of the request.
        body: of the request, multipart/form-data.
        names: the fields to return, in this order; others are left out.

    Raises:
        RequestError: 415 no such form; 400 a damaged one, or a field that is absent, empty or there twice.
    """
    wanted = " and ".join(names)
    delimiter = _delimiter(headers, wanted)
    # the first delimiter may stand at the very beginning; the last one is followed by --
    parts = (b"\r\n" + body).split(delimiter, len(names) + _MORE_PARTS)[1:]
    if not parts or not parts[-1].startswith(b"--"):
        raise RequestError(400, f"the form is cut off, or has too many fields: the files {wanted} are expected")
    found: dict[str, bytes] = {}
    for part in parts[:-1]:
        name, content = _field(part)
        if name in found:
            raise RequestError(400, f"the form has two files called {name}, one is expected")
        if name in names:
            found[str(name)] = content
    for name in names:
        if not found.get(name):
            raise RequestError(400, f"the form has no file called {name}, or an empty one: {wanted} are expected")
    return [found[name] for name in names]


def _delimiter(headers: Message, wanted: str) -> bytes:
    """Return what stands before each part of a form."""
    boundary = headers.get_boundary()
    if headers.get_content_type() != "multipart/form-data" or not boundary:
        raise RequestError(
            415, f"got {headers.get('Content-Type', 'no Content-Type')[:100]}, expected multipart/form-data with the "
            f"files {wanted}"
        )  # fmt: skip
    if len(boundary) > _LONGEST_BOUNDARY or not boundary.isascii():
        raise RequestError(400, f"the form's boundary is not of 1 to {_LONGEST_BOUNDARY} ASCII letters")
    return b"\r\n--" + boundary.encode()


def _field(part: bytes) -> tuple[str | None, bytes]:
    """Return name and content of a form's part, which begins after its delimiter."""
    head, blank, content = part.partition(b"\r\n\r\n")
    if not blank or len(head) > _LONGEST_PART_HEADER:
        raise RequestError(400, "a field of the form has no end of its header")
    described = BytesHeaderParser().parsebytes(head.lstrip(b" \t\r\n"))
    name = described.get_param("name", header="Content-Disposition")
    return name if isinstance(name, str) else None, content


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
