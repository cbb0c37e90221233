"""The web page that compares two faces, as an ASGI application: a static page and its HTTP API.

    GET  /         the page
    GET  /model    {"model": name, "architecture": ..., "threshold": {"cosine": ..., "origin": ...} or null,
                    "most_bytes": limit of both photographs together}
    POST /compare  multipart/form-data with the files ``first`` and ``second``, such as
                   curl -F first=@a.jpg -F second=@b.jpg http://127.0.0.1:8000/compare
        {"similarity": cosine, "same": true, false, or null without a threshold, "decision": in words,
         "faces": for each photograph {"quality": norm, "faces": number of faces, "box": [left, top, right, bottom],
                  "size_px": [width, height], "crop": "data:image/png;base64,...", "overview": "data:image/jpeg..."}}

Errors are returned as {"error": message} with an HTTP status; for errors in the photographs (422) also as
``"photographs": [message or null, message or null]``. Photographs stay in memory and are never written to disk. Only
the page itself may send requests: those with another host name (DNS rebinding) or from the page of another site are
refused.
"""

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import logging
import re
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adaface.alignment.detector import MTCNN
from adaface.inference.comparison import NO_THRESHOLD, EmbeddedPhotograph, Threshold, decision, embed_photograph
from adaface.inference.embedder import Embedder

logger = logging.getLogger(__name__)

PHOTOGRAPHS = ("first", "second")
_PAGE = Path(__file__).with_name("face_page.html")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_MOST_OTHER_FIELDS = 4  # of a form: unknown fields are ignored
_LINGER_SEC = 2.0  # for a client that is still sending when its request is refused


@dataclass(frozen=True)
class Limits:
    """Limits on the requests of clients.

    Attributes:
        most_bytes: size of a request's body, both photographs together.
        most_comparisons: comparisons that are running, waiting or being received; one is computed at a time.
        most_connections: open connections.
        header_sec: time for a request's header to arrive.
        body_sec: time for a request's body to arrive.
        connection_sec: duration of a connection, so that a client that does not read its response is dropped.
        closing_sec: time for the last responses when the server stops.
    """

    most_bytes: int = 32 * 2**20
    most_comparisons: int = 16
    most_connections: int = 64
    header_sec: float = 10
    body_sec: float = 60
    connection_sec: float = 180
    closing_sec: int = 5


class FaceComparer:
    """The endpoints of the HTTP API.

    Args:
        embedder: the model.
        detector: face detector.
        threshold: decision threshold; None without one.
        limits: limits on the requests of clients.
    """

    def __init__(self, embedder: Embedder, detector: MTCNN, threshold: Threshold | None, limits: Limits) -> None:
        self._embedder, self._detector, self._threshold, self._limits = embedder, detector, threshold, limits
        self._turn = asyncio.Lock()
        self._comparisons = 0

    async def about(self, request: Request) -> Response:
        """Answer ``GET /model``."""
        threshold = self._threshold
        return JSONResponse(
            {
                "model": Path(self._embedder.name).name,
                "architecture": self._embedder.arch,
                "threshold": threshold and {"cosine": threshold.cosine, "origin": threshold.origin},
                "most_bytes": self._limits.most_bytes,
            }
        )

    async def compare(self, request: Request) -> Response:
        """Answer ``POST /compare``, one comparison at a time."""
        if self._comparisons >= self._limits.most_comparisons:
            raise HTTPException(503, f"{self._comparisons} comparisons are waiting already: try again in a moment")
        self._comparisons += 1
        try:
            photographs = await read_photographs(request, self._limits)
            async with self._turn:
                status, content = await asyncio.to_thread(self._compared, photographs)
        finally:
            self._comparisons -= 1
        return JSONResponse(content, status)

    def _compared(self, photographs: Sequence[bytes]) -> tuple[int, dict[str, Any]]:
        """Return status and content of the response."""
        embedded = [self._embed(photograph) for photograph in photographs]
        faces = [face for face in embedded if isinstance(face, EmbeddedPhotograph)]
        if len(faces) < len(embedded):
            sentences = [face if isinstance(face, str) else None for face in embedded]
            named = [f"{name}: {text}" for name, text in zip(PHOTOGRAPHS, sentences, strict=True) if text]
            return 422, {"error": "; ".join(named), "photographs": sentences}
        similarity = float(np.clip(faces[0].embedding @ faces[1].embedding, -1, 1))
        same = None if self._threshold is None else similarity >= self._threshold.cosine
        words = NO_THRESHOLD if same is None else decision(same)
        described = [_described(face) for face in faces]
        return 200, {"similarity": similarity, "same": same, "decision": words, "faces": described}

    def _embed(self, photograph: bytes) -> EmbeddedPhotograph | str:
        try:
            return embed_photograph(photograph, self._embedder, self._detector)
        except ValueError as error:
            return str(error)


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


async def read_photographs(request: Request, limits: Limits) -> list[bytes]:
    """Return the contents of the form's two files, without writing them to disk.

    Args:
        request: its body is parsed as it arrives, and refused if it exceeds the limits.
        limits: limits on size and time.

    Raises:
        HTTPException: 400 invalid form, 408 too slow, 413 too large, 415 not a form.
    """
    expected = " and ".join(PHOTOGRAPHS)
    kind = request.headers.get("content-type", "no Content-Type")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(415, f"got {kind[:100]}, expected multipart/form-data with the files {expected}")
    parser = MultiPartParser(
        request.headers, _bounded(request, limits.most_bytes),
        max_files=len(PHOTOGRAPHS) + _MOST_OTHER_FIELDS, max_fields=_MOST_OTHER_FIELDS,
    )  # fmt: skip
    parser.spool_max_size = limits.most_bytes + 1  # larger files would be written to disk: no body is that large
    try:
        async with asyncio.timeout(limits.body_sec):
            form = await parser.parse()
    except TimeoutError as error:
        raise HTTPException(408, "the photographs did not arrive in time: try again") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the request ended before its body was complete: try again") from error
    except (MultiPartException, ValueError) as error:  # ValueError: unusual codec in the form
        raise HTTPException(400, f"the form is damaged ({error}): the files {expected} are expected") from error
    try:
        files = {name: form.getlist(name) for name in PHOTOGRAPHS}
        for name, values in files.items():
            if not values or not isinstance(values[0], UploadFile) or not values[0].size:
                raise HTTPException(
                    400, f"the form has no file called {name}, or an empty one: {expected} are expected"
                )
            if len(values) > 1:
                raise HTTPException(400, f"the form has {len(values)} files called {name}, one is expected")
        return [await values[0].read() for values in files.values() if isinstance(values[0], UploadFile)]
    finally:
        await form.close()


async def _bounded(request: Request, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield a request's body as it arrives, and refuse one that is too large, announced or not."""
    announced = request.headers.get("content-length", "")  # digits only: checked by h11
    size = int(announced or 0)
    refusal = f"more than the limit of {most_bytes:,}: make them smaller first"
    if size > most_bytes:
        raise HTTPException(413, f"the photographs have {size:,} bytes together, {refusal}")
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most_bytes:
            raise HTTPException(413, f"the photographs have {size:,} bytes or more together, {refusal}")
        yield chunk


class Guard:
    """Middleware that refuses requests from other sites and adds security headers to every response.

    Args:
        app: application behind it.
        names: host names of this server, in lower case; IP addresses are always allowed.
        headers: headers of every response.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], headers: dict[str, str]) -> None:
        self._app, self._names, self._headers = app, names, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        received = False  # the whole body

        async def receive_noted() -> Message:
            nonlocal received
            message = await receive()
            received = not message.get("more_body", False)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
                if "expect" not in Headers(scope=scope):  # a client that waits for permission is not sending
                    with contextlib.suppress(TimeoutError):
                        # closing a connection with unread data resets it, and the client may lose the response
                        async with asyncio.timeout(_LINGER_SEC):
                            while not received:
                                await receive_noted()
            await send(message)

        refusal = sender_refusal(Headers(scope=scope), self._names)
        app = self._app if refusal is None else JSONResponse({"error": refusal[1]}, refusal[0])
        await app(scope, receive_noted, send_with_headers)


def sender_refusal(headers: Headers, names: Collection[str]) -> tuple[int, str] | None:
    """Return why a request is refused, or None if it is allowed.

    Args:
        headers: headers of the request.
        names: host names of this server, in lower case; IP addresses are always allowed.

    Returns:
        Status and message: 400 no host, or two; 421 another name (DNS rebinding); 403 the page of another site.
    """
    hosts = headers.getlist("host")
    host = _HOST.fullmatch(hosts[0].strip()) if len(hosts) == 1 else None
    if host is None:
        return 400, "the request has no valid Host header: expected one with the name of this server"
    name = host[1].strip("[]").rstrip(".").lower()
    if name not in names and not _is_address(name):
        name = name[:100]
        return 421, f"{name} is not a name of this server: use its IP address, or start it with --host {name}"
    own = {f"{scheme}://{host[0].lower()}" for scheme in ("http", "https")}
    for origin in headers.getlist("origin"):
        if origin.strip().lower() not in own:
            return 403, f"requests from {origin[:100]} are not allowed, only those from this server's own page"
    return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def build_app(comparer: FaceComparer, names: Collection[str]) -> ASGIApp:
    """Return the application with its guard, which is outermost so that errors have its headers, too.

    Args:
        comparer: answers ``/model`` and ``/compare``.
        names: host names of the server, in lower case; IP addresses are always allowed.
    """
    page = _PAGE.read_text(encoding="utf-8")
    app = Starlette(
        routes=[
            Route("/", lambda request: HTMLResponse(page), methods=["GET"]),
            Route("/model", comparer.about, methods=["GET"]),
            Route("/compare", comparer.compare, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )
    app.router.redirect_slashes = False
    return Guard(app, names, _security_headers(page))


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, sentence = request.url.path[:100], error.detail
    if error.status_code == 404:
        sentence = f"there is no {path} on this server: the page is at /"
    if error.status_code == 405:
        allowed = " and ".join(sorted((error.headers or {})["Allow"].split(", ")))
        sentence = f"{request.method[:20]} is not allowed for {path}, expected {allowed}"
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


def _fail(request: Request, error: Exception) -> Response:
    logger.error(f"a request failed: {error!r}")
    return JSONResponse({"error": f"the server failed: {error!r}"}, 500)


def _security_headers(page: str) -> dict[str, str]:
    """Return the headers of every response: only the page's own style and script are allowed."""

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
