"""The small web page: two photographs in, the similarity of their faces out; one static page, and two addresses for it.

    GET  /         the page
    GET  /model    {"model": name, "architecture": ..., "threshold": {"cosine": ..., "origin": ...} or null,
                    "most_bytes": of both photographs}
    POST /compare  multipart/form-data with the files ``first`` and ``second``, such as
                   curl -F first=@a.jpg -F second=@b.jpg http://127.0.0.1:8000/compare
        {"similarity": cosine, "same": true, false, or null where there is no threshold, "decision": in words,
         "faces": of each photograph {"quality": norm, "faces": how many were found, "box": [left, top, right, bottom],
                  "size_px": [width, height], "crop": "data:image/png;base64,...", "overview": "data:image/jpeg..."}}

Anything else is answered {"error": a sentence}, with a status of HTTP; where photographs are at fault (422) also
``"photographs": [sentence or null, sentence or null]``. Photographs are read from the request's body into memory, and
never written. The answer is only for the page itself: no other site may ask, or read.
"""

import base64
import hashlib
import ipaddress
import json
import re
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from alignment.detector import MTCNN
from bounded_connections import BoundedServer, DeadlineReader
from embedded_photograph import EmbeddedPhotograph, embed_photograph
from face_comparison import NO_THRESHOLD, Threshold
from face_requests import RequestError, body_length, check_sender, form_files
from inference import Embedder

PHOTOGRAPHS = ("first", "second")
_PAGE = Path(__file__).with_name("face_page.html")
_METHODS = {"/": ("GET", "HEAD"), "/model": ("GET", "HEAD"), "/compare": ("POST",)}
_JSON = "application/json; charset=utf-8"


@dataclass(frozen=True)
class Limits:
    """What is taken from clients.

    Attributes:
        most_bytes: of a request's body, both photographs together.
        most_connections: at a time.
        header_sec: for a request's first lines to come.
        body_sec: for its body.
        answer_sec: for the client to take the answer.
        turn_sec: that a comparison waits for those before it; one is computed at a time.
        closing_sec: for the last answers when the server ends.
    """

    most_bytes: int = 32 * 2**20
    most_connections: int = 16
    header_sec: float = 10
    body_sec: float = 60
    answer_sec: float = 20
    turn_sec: float = 60
    closing_sec: float = 5


class PhotographComparer:
    """Compares the faces of two photographs; one comparison at a time.

    Args:
        embedder: the model.
        detector: finds the faces.
        threshold: that decides; None where there is none.
        turn_sec: how long to wait for one's turn.
    """

    def __init__(self, embedder: Embedder, detector: MTCNN, threshold: Threshold | None, turn_sec: float) -> None:
        self._embedder, self._detector, self._threshold, self._turn_sec = embedder, detector, threshold, turn_sec
        self._turn = threading.Lock()

    def compare(self, encoded: Sequence[bytes]) -> tuple[int, dict[str, Any]]:
        """Return status and content of the answer, as the module describes it.

        Args:
            encoded: two image files.

        Raises:
            RequestError: 503 the others took too long.
        """
        if not self._turn.acquire(timeout=self._turn_sec):
            raise RequestError(503, "other photographs are being compared: try again in a moment")
        try:
            found = [self._embed(photograph) for photograph in encoded]
        finally:
            self._turn.release()
        faces = [face for face in found if isinstance(face, EmbeddedPhotograph)]
        if len(faces) < len(found):
            sentences = [face if isinstance(face, str) else None for face in found]
            told = [f"{name}: {text}" for name, text in zip(PHOTOGRAPHS, sentences, strict=True) if text]
            return HTTPStatus.UNPROCESSABLE_ENTITY, {"error": "; ".join(told), "photographs": sentences}
        similarity = float(np.clip(faces[0].embedding @ faces[1].embedding, -1, 1))
        same = None if self._threshold is None else similarity >= self._threshold.cosine
        decision = {None: NO_THRESHOLD, True: "one person", False: "two people"}[same]
        told_faces = [_described(face) for face in faces]
        return HTTPStatus.OK, {"similarity": similarity, "same": same, "decision": decision, "faces": told_faces}

    def _embed(self, encoded: bytes) -> EmbeddedPhotograph | str:
        try:
            return embed_photograph(encoded, self._embedder, self._detector)
        except ValueError as error:
            return str(error)


class FaceServer(BoundedServer):
    """The page's server; listens once it is made, answers in ``serve_forever``.

    Args:
        host: name or address to listen at.
        port: 0 takes any that is free.
        embedder: the model.
        detector: finds the faces.
        threshold: that decides; None where there is none.
        limits: what is taken from clients.

    Raises:
        RuntimeError: the port is taken, or not allowed.
        ValueError: no name or address of this machine.
    """

    def __init__(
        self, host: str, port: int, embedder: Embedder, detector: MTCNN, threshold: Threshold | None, limits: Limits
    ) -> None:
        self.limits = limits
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}
        self.comparer = PhotographComparer(embedder, detector, threshold, limits.turn_sec)
        told = None if threshold is None else {"cosine": threshold.cosine, "origin": threshold.origin}
        self.about = {
            "model": Path(embedder.name).name,
            "architecture": embedder.arch,
            "threshold": told,
            "most_bytes": limits.most_bytes,
        }
        self.page = _PAGE.read_bytes()
        self.headers = _security_headers(self.page.decode("utf-8"))
        refusal = {
            "error": f"{limits.most_connections} connections are open, more are not taken: try again in a moment"
        }
        super().__init__(
            host,
            port,
            _Handler,
            most_connections=limits.most_connections,
            refusal=_raw_answer(503, refusal, self.headers),
        )

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        address, port = self.server_address[:2]
        host = ipaddress.ip_address(str(address).partition("%")[0])
        if host.is_unspecified:
            host = ipaddress.ip_address("127.0.0.1" if host.version == 4 else "::1")
        return f"http://[{host}]:{port}/" if host.version == 6 else f"http://{host}:{port}/"

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return not ipaddress.ip_address(str(self.server_address[0]).partition("%")[0]).is_loopback


class _Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    server: FaceServer
    protocol_version = default_request_version = "HTTP/1.1"

    def handle(self) -> None:
        self._reader = DeadlineReader(self.connection)
        self._reader.allow(self.server.limits.header_sec)
        self.rfile = BufferedReader(self._reader)
        self.command = ""
        self.handle_one_request()

    def handle_expect_100(self) -> bool:
        """Wait with the invitation to send the body until it is known that it will be read."""
        return True

    def _respond(self) -> None:
        try:
            status, content = self._answered()
        except RequestError as error:
            status, content = error.status, {"error": str(error)}
        except TimeoutError:
            status, content = HTTPStatus.REQUEST_TIMEOUT, {"error": "the photographs did not come in time: try again"}
        except ConnectionError:
            raise
        except Exception as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"the server failed: {error!r}"})
            raise
        self._send(status, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _respond  # noqa: N815

    def _answered(self) -> tuple[int, dict[str, Any] | bytes]:
        """Return status and content, a page or what becomes JSON."""
        check_sender(self.headers, self.server.names)
        path = self.path.partition("?")[0]
        if path not in _METHODS:
            raise RequestError(404, f"there is no {path[:100]} here: the page is at /")
        if self.command not in _METHODS[path]:
            raise RequestError(405, f"{self.command} is not for {path}, {' and '.join(_METHODS[path])} is")
        if path == "/compare":
            return self.server.comparer.compare(form_files(self.headers, self._body(), PHOTOGRAPHS))
        return HTTPStatus.OK, self.server.page if path == "/" else self.server.about

    def _body(self) -> bytes:
        length = body_length(self.headers, self.server.limits.most_bytes)
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        self._reader.allow(self.server.limits.body_sec)
        body = self.rfile.read(length)
        if len(body) < length:
            raise RequestError(400, f"the request ended after {len(body):,} of {length:,} bytes: try again")
        return body

    def _send(self, status: int, content: dict[str, Any] | bytes) -> None:
        body = content if isinstance(content, bytes) else _json(content)
        self.connection.settimeout(self.server.limits.answer_sec)
        self.send_response(status)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", ", ".join(_METHODS[self.path.partition("?")[0]]))
        self.send_header("Content-Type", "text/html; charset=utf-8" if isinstance(content, bytes) else _JSON)
        for name, value in {**self.server.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request that can be understood, as the base class calls it, in the form of all errors."""
        self._send(code, {"error": message or HTTPStatus(code).phrase})

    def version_string(self) -> str:
        """Return what the server calls itself: no versions."""
        return "AdaFace"

    def log_message(self, *message: object) -> None:
        """Write no log: who compares which photographs is nobody's business."""


def _described(face: EmbeddedPhotograph) -> dict[str, Any]:
    return {
        "quality": face.norm,
        "faces": face.faces,
        "box": [round(side, 1) for side in face.box],
        "size_px": face.size_px,
        "crop": _data_url(face.crop, ".png"),
        "overview": _data_url(face.overview, ".jpeg"),
    }


def _data_url(image: np.ndarray, kind: str) -> str:
    encoded = base64.b64encode(cv2.imencode(kind, image)[1].tobytes()).decode()
    return f"data:image/{kind[1:]};base64,{encoded}"


def _security_headers(page: str) -> dict[str, str]:
    """Return the headers of every answer: the page's own style and script run, nothing is loaded from elsewhere."""

    def allowed(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
        "Connection": "close",
    }


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


def _raw_answer(status: int, content: dict[str, Any], headers: dict[str, str]) -> bytes:
    """Return an answer as it goes over the wire."""
    body = _json(content)
    more = {"Content-Type": _JSON, "Content-Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in more.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def serve(server: FaceServer) -> None:
    """Say where the page is, answer until Ctrl-C or SIGTERM, then finish what was begun.

    Args:
        server: listening.
    """

    def say(line: str) -> None:
        print(line, flush=True)

    say(f"the page is at {server.url} - open it in a browser; Ctrl-C ends it")
    if server.is_open:
        say("whoever reaches this machine over the network can use it: there is no password, and nothing is encrypted")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.wait_closed(server.limits.closing_sec)
    say("\nthe page is closed; no photograph was kept")
