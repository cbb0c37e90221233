import ast
import base64
import contextlib
import http.client
import importlib.util
import inspect
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from adaface.alignment.detector import MTCNN
from adaface.commands import inference
from adaface.inference.comparison import NO_THRESHOLD, Threshold, embed_photograph
from adaface.inference.embedder import Embedder
from adaface.serving import app
from adaface.serving.app import Limits
from adaface.serving.server import build_server, is_open, listen, page_url
from tests.inference.test_comparison import png
from tests.inference.test_embedder import write_checkpoint
from tests.serving.test_app import FORM, form
from tests.support.browser import Browser, in_browser, needs_chromium, needs_webdriver
from tests.support.photographs import astronaut, head, turned, two_heads

ROOT = Path(__file__).resolve().parents[2]
SEC = 250
THRESHOLD = Threshold(0.5, "stored in the model: FAR 0.001 on lfw")
PAIR = (("first", png(astronaut())), ("second", png(turned(astronaut(), 20, 0.6)[0])))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Embedder:
    return Embedder.load(write_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt"))


class Served:
    """A server in a thread of this process, and its address."""

    def __init__(self, embedder: Embedder, threshold: Threshold | None, limits: Limits) -> None:
        listening = listen("127.0.0.1", 0)
        self.address, self.url = listening.getsockname(), page_url(listening)
        self.server = build_server("127.0.0.1", embedder, MTCNN(), threshold, limits)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()


@contextlib.contextmanager
def serving(embedder: Embedder, threshold: Threshold | None = THRESHOLD, **limits: Any) -> Iterator[Served]:
    served = Served(embedder, threshold, Limits(**limits))
    try:
        yield served
    finally:
        served.server.should_exit = True
        served.thread.join(SEC)
        assert not served.thread.is_alive()


@pytest.fixture(scope="module")
def server(embedder) -> Iterator[Served]:
    with serving(embedder) as running:
        yield running


def ask(server: Served, method: str, path: str, body: Any = None, **headers: str):
    """Return status, headers and content of an answer; its content must be what its header says."""
    connection = http.client.HTTPConnection(*server.address, timeout=SEC)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["Content-Type"].startswith("application/json") and content
    return answer.status, answer.headers, json.loads(content) if is_json else content


def compare(server: Served, *fields: tuple[str, bytes], **more: str):
    status, _, content = ask(server, "POST", "/compare", form(*fields), Content_Type=FORM, **more)
    return status, content


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def raw(server: Served, sent: bytes) -> bytes:
    """Send bytes as they are, then nothing more; return everything that comes back."""
    with socket.create_connection(server.address, timeout=SEC) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return everything(connection)


def decoded(url: str, kind: str) -> np.ndarray:
    start, _, content = url.partition(",")
    assert start == f"data:image/{kind};base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(content, validate=True), np.uint8), cv2.IMREAD_COLOR)


def test_two_photographs_are_compared(server, embedder):
    status, answer = compare(server, *PAIR)
    assert status == 200
    expected = [embed_photograph(content, embedder, MTCNN()) for _, content in PAIR]
    assert answer["similarity"] == pytest.approx(float(expected[0].embedding @ expected[1].embedding), abs=1e-6)
    assert (answer["same"], answer["decision"]) == (True, "same person")
    for face, photograph in zip(answer["faces"], expected, strict=True):
        assert face["quality"] == pytest.approx(photograph.norm)
        assert face["box"] == pytest.approx(photograph.box, abs=0.06)
        assert (face["faces"], face["size_px"]) == (1, list(photograph.size_px))
        np.testing.assert_array_equal(decoded(face["crop"], "png"), photograph.crop)
        assert decoded(face["overview"], "jpeg").shape == photograph.overview.shape
    turned_round = compare(server, ("first", PAIR[1][1]), ("second", PAIR[0][1]))[1]
    assert turned_round["similarity"] == pytest.approx(answer["similarity"])
    assert turned_round["faces"][0] == answer["faces"][1]


def test_the_threshold_decides(embedder):
    for threshold, same, decision in (
        (Threshold(1.0, "set by --threshold"), False, "different people"),
        (None, None, NO_THRESHOLD),
    ):
        with serving(embedder, threshold) as server:
            answer = compare(server, *PAIR)[1]
            assert (answer["same"], answer["decision"]) == (same, decision)
            told = ask(server, "GET", "/model")[2]
            assert told["threshold"] == (threshold and {"cosine": 1.0, "origin": "set by --threshold"})
            assert (told["model"], told["architecture"]) == ("model.ckpt", "ir_mini")
            assert told["most_bytes"] == Limits().most_bytes


def test_photographs_at_fault_are_told_apart(server):
    wall = png(np.full((300, 400, 3), 90, np.uint8))
    status, answer = compare(server, ("first", wall), ("second", b"no image"))
    assert status == 422
    assert answer["photographs"][0].startswith("no face was found in the photograph of 400x300 px: faces smaller")
    assert answer["photographs"][1].startswith("the file is not a readable image")
    assert answer["error"] == f"first: {answer['photographs'][0]}; second: {answer['photographs'][1]}"
    status, answer = compare(server, PAIR[0], ("second", PAIR[1][1][:3000]))
    assert (status, answer["photographs"][0]) == (422, None)
    assert "damaged" in answer["photographs"][1]


def test_a_decompression_bomb_is_refused_before_it_is_decoded(server):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (7_100, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        status, answer = compare(server, PAIR[0], ("second", bomb))
        assert status == 422
        assert re.search(r"more than the maximum of 50,000,000 pixels|too few for a photograph", answer["error"])


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("GET", "/", 200, "<title>AdaFace"),
        ("GET", "/?x=1", 200, "<title>AdaFace"),
        ("GET", "/model", 200, "model.ckpt"),
        ("HEAD", "/", 200, ""),
        ("HEAD", "/model", 200, ""),
        ("GET", "/compare", 405, "GET is not allowed for /compare, expected POST"),
        ("DELETE", "/", 405, "DELETE is not allowed for /, expected GET and HEAD"),
        ("OPTIONS", "/compare", 405, "OPTIONS is not allowed for /compare"),
        ("CONNECT", "/", 405, "CONNECT is not allowed for /"),
        ("BREW", "/", 405, "BREW is not allowed for /"),
        ("OPTIONS", "*", 404, "there is no"),
        ("GET", "http://evil.example/", 404, "there is no"),
        ("GET", "/none", 404, "there is no /none on this server: the page is at /"),
        ("GET", "/model/", 404, "there is no /model/"),
        ("GET", "/../etc/passwd", 404, "there is no /../etc/passwd"),
        ("GET", "/%2e%2e/face_page.html", 404, "there is no"),
        ("GET", "//etc/passwd", 404, "there is no"),
        ("GET", "/%00%ff%0d%0aA:b", 404, "there is no"),
        ("HEAD", "/none", 404, ""),
        ("POST", "/compare", 415, "expected multipart/form-data"),
    ],
)  # fmt: skip
def test_every_answer_has_its_status_and_the_same_headers(server, method, path, status, expected):
    answer = raw(server, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head_, _, body = answer.decode().partition("\r\n\r\n")
    assert head_.startswith(f"HTTP/1.1 {status} ")
    assert expected in body
    assert bool(body) == bool(expected)
    fields = dict(line.lower().split(": ", 1) for line in head_.splitlines()[1:])
    assert method == "HEAD" or int(fields["content-length"]) == len(body.encode())
    assert "default-src 'none'" in fields["content-security-policy"]
    assert "unsafe" not in fields["content-security-policy"]
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["cache-control"] == "no-store"
    assert fields["connection"] == "close"
    assert "server" not in fields
    assert ("allow" in fields) == (status == 405)
    assert not any(name.startswith("access-control") for name in fields)
    if status >= 400 and body:
        assert list(json.loads(body)) == ["error"]


def test_the_page_runs_only_its_own_script_and_loads_nothing(server):
    _, headers, page = ask(server, "GET", "/")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].count("'sha256-") == 2
    assert not re.search(rb"https?://|@import|url\(|\son[a-z]+=|innerHTML|document\.write", page)
    assert b'lang="en"' in page
    for field in re.findall(rb'<input[^>]* id="(\w+)"', page):
        assert b'<label for="%s">' % field in page


def test_other_names_and_other_pages_are_refused(server):
    port = server.address[1]
    assert ask(server, "GET", "/", Host=f"localhost:{port}")[0] == 200
    status, headers, answer = ask(server, "GET", "/", Host="evil.example")
    assert (status, "evil.example is not a name of this server" in answer["error"]) == (421, True)
    assert headers["Cache-Control"] == "no-store"
    assert compare(server, *PAIR, Origin="http://evil.example")[0] == 403
    assert compare(server, *PAIR, Origin=f"http://127.0.0.1:{port}")[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        *(
            b"POST /compare HTTP/1.1\r\nHost: localhost\r\nContent-Length: %s\r\n\r\n" % length
            for length in (b"1e3", b"-1", b"+5", b"1_0", b"", b"5\r\nContent-Length: 6", b"9" * 5000)
        ),
        b"POST /compare HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:12] + sent[-12:]),
)
def test_requests_that_nobody_should_send(server, sent):
    assert re.match(rb"HTTP/1\.1 (400|501) ", raw(server, sent))
    assert raw(server, b"") == b""


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ", b"GET /"], ids=["field", "address"])
def test_a_header_without_end_is_refused(server, sent):
    with socket.create_connection(server.address, timeout=SEC) as connection:
        with contextlib.suppress(ConnectionError):  # the server stops reading: a reset may come before its answer
            for _ in range(1000):
                connection.sendall(sent)
                sent = b"x" * 10_000
            raise AssertionError("10 MB of header were taken")
        with contextlib.suppress(ConnectionError):
            assert everything(connection).startswith(b"HTTP/1.1 400 ")
    assert ask(server, "GET", "/model")[0] == 200


def test_a_request_that_ends_early_is_dropped(server):
    start = b"POST /compare HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + FORM.encode()
    assert raw(server, start + b"\r\nContent-Length: 50\r\n\r\n--x-1") == b""
    assert compare(server, *PAIR)[0] == 200


def test_chunked_bodies_are_read_and_bounded(embedder):
    body = form(*PAIR)
    chunks = [body[start : start + 10_000] for start in range(0, len(body), 10_000)]
    with serving(embedder, most_bytes=len(body)) as server:
        assert ask(server, "POST", "/compare", iter(chunks), Content_Type=FORM)[0] == 200
        status, _, answer = ask(server, "POST", "/compare", iter([*chunks, b"x"]), Content_Type=FORM)
        assert (status, "bytes or more together" in answer["error"]) == (413, True)


def test_a_large_request_is_refused_before_and_while_it_is_sent(embedder):
    with serving(embedder, most_bytes=1000) as server:
        for pair in (PAIR, (PAIR[0], ("second", bytes(20_000_000)))):
            status, answer = compare(server, *pair)
            assert status == 413
            assert "bytes together, more than the limit of 1,000" in answer["error"]
        asking = (
            b"POST /compare HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: %s\r\n"
            b"Content-Length: %d\r\n\r\n"
        )
        with socket.create_connection(server.address, timeout=SEC) as connection:
            connection.sendall(asking % (FORM.encode(), 1001))
            assert everything(connection).startswith(b"HTTP/1.1 413 ")
        with socket.create_connection(server.address, timeout=SEC) as connection:
            connection.sendall(asking % (FORM.encode(), 9))
            assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"--x-1--\r\n")
            assert everything(connection).startswith(b"HTTP/1.1 400 ")


def test_slow_headers_meet_a_deadline(embedder):
    with serving(embedder, header_sec=2) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(server.address, timeout=SEC)) for _ in range(2)]
        slow[1].sendall(b"GET / HTTP/1.1\r\nHo")
        assert [everything(connection) for connection in slow] == [b"", b""]


def test_slow_bodies_meet_a_deadline(embedder):
    start = b"POST /compare HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\nContent-Type: "
    with serving(embedder, body_sec=0.3) as server:
        with socket.create_connection(server.address, timeout=SEC) as connection:
            connection.sendall(start + FORM.encode() + b"\r\n\r\n--x")
            assert everything(connection).startswith(b"HTTP/1.1 408 ")
        assert ask(server, "GET", "/model")[0] == 200  # the others are served


def test_a_connection_has_an_end(embedder):
    with serving(embedder, connection_sec=0.3) as server, socket.create_connection(server.address) as connection:
        connection.settimeout(SEC)
        assert connection.recv(100) == b""


def test_too_many_connections_are_refused(embedder):
    with serving(embedder, most_connections=2) as server, socket.create_connection(server.address, timeout=SEC):
        assert raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 503 ")


def test_fifty_at_once_take_turns_or_are_refused_in_words(embedder, monkeypatch):
    running, most = [0], [0]
    real, lock = app.embed_photograph, threading.Lock()

    def counted(*arguments: Any):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            return real(*arguments)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(app, "embed_photograph", counted)
    answers = []
    with serving(embedder, header_sec=SEC) as server:
        threads = [threading.Thread(target=lambda: answers.append(compare(server, *PAIR))) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SEC)
        after = compare(server, *PAIR)
    assert len(answers) == 50
    compared = [answer for status, answer in answers if status == 200]
    assert len(compared) >= Limits().most_comparisons
    assert all(answer == compared[0] for answer in compared)
    refused = [answer["error"] for status, answer in answers if status == 503]
    assert len(compared) + len(refused) == 50
    assert set(refused) <= {"16 comparisons are waiting already: try again in a moment"}
    assert most == [1]
    assert after == (200, compared[0])


def test_comparisons_beyond_the_queue_are_refused(embedder, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: Any):
        begun.set()
        assert go_on.wait(SEC)
        raise ValueError("no face")

    monkeypatch.setattr(app, "embed_photograph", slow)
    answers = []
    with serving(embedder, most_comparisons=1) as server:
        thread = threading.Thread(target=lambda: answers.append(compare(server, *PAIR)))
        thread.start()
        assert begun.wait(SEC)
        status, answer = compare(server, *PAIR)
        assert (status, answer["error"]) == (503, "1 comparisons are waiting already: try again in a moment")
        assert ask(server, "GET", "/model")[0] == 200  # the page goes on
        server.server.should_exit = True  # and an answer that has been begun is given
        go_on.set()
        thread.join(SEC)
    assert answers[0][0] == 422


def test_the_end_does_not_wait_for_requests(embedder):
    with serving(embedder, closing_sec=1) as server:
        silent = socket.create_connection(server.address, timeout=SEC)
        slow = socket.create_connection(server.address, timeout=SEC)
        slow.sendall(b"POST /compare HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nContent-Type: ")
        slow.sendall(FORM.encode() + b"\r\n\r\n-")
        assert ask(server, "GET", "/")[0] == 200
        began = time.monotonic()
    assert time.monotonic() - began < 10
    with silent, slow:
        assert silent.recv(100) == b""


@pytest.mark.usefixtures("screen")
def test_a_mistake_of_ours_is_an_answer_too(embedder, monkeypatch, capsys):
    monkeypatch.setattr(app, "embed_photograph", lambda *_: 1 / 0)
    with serving(embedder) as server:
        for _ in range(2):  # the turn was given back
            status, headers, answer = ask(server, "POST", "/compare", form(*PAIR), Content_Type=FORM)
            assert (status, headers["Cache-Control"]) == (500, "no-store")
            assert "ZeroDivisionError" in answer["error"]
    assert capsys.readouterr().err == "a request failed: ZeroDivisionError('division by zero')\n" * 2


def test_where_the_page_is():
    for host, url, reachable in (
        ("127.0.0.1", r"http://127\.0\.0\.1:\d+/", False),
        ("localhost", r"http://(127\.0\.0\.1|\[::1\]):\d+/", False),
        ("0.0.0.0", r"http://127\.0\.0\.1:\d+/", True),
    ):
        with listen(host, 0) as listening:
            assert re.fullmatch(url, page_url(listening))
            assert is_open(listening) == reachable


def test_places_where_nobody_can_listen():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        message = rf"cannot listen on port {port} of 127\.0\.0\.1 \(Address already in use\): stop the program"
        with pytest.raises(RuntimeError, match=message):
            listen("127.0.0.1", port)
    for host in ("no such host", "a" * 70 + ".b", "\0"):
        with pytest.raises(ValueError, match="there is no host"):
            listen(host, 0)
    with pytest.raises(RuntimeError, match="cannot listen"):
        listen("192.0.2.1", 0)


def test_a_missing_package_is_named_before_the_model_is_read(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else real(name, *more)
    )
    assert inference.main(["serve", "--checkpoint", "none.ckpt"]) == 2
    assert capsys.readouterr().err == (
        "adaface serve: error: the page needs packages that are not installed: pip install uvicorn\n"
    )


def test_other_commands_do_not_import_the_server():
    statements = ast.parse(inspect.getsource(inference)).body
    imports = [ast.unparse(node) for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(imports) > 10
    assert not re.search(r"starlette|uvicorn|face_app|serve_page", "\n".join(imports))


def test_the_command_serves_until_it_is_stopped(tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.ckpt", adaface_threshold={"cosine": 0.5})
    command = [sys.executable, str(ROOT / "inference.py"), "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    folders = {name: tmp_path / name for name in ("work", "temporary", "home")}
    for folder in folders.values():
        folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folders["temporary"]), "HOME": str(folders["home"])}
    running = subprocess.Popen(
        command, cwd=folders["work"], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # a shell starts what runs in the background, these tests perhaps, with Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        lines = [running.stdout.readline() for _ in range(3)]
        assert lines[:2] == [f"model: {checkpoint} (ir_mini)\n", "threshold: 0.50 (stored in the model)\n"]
        address, port = re.fullmatch(r"the page is at http://(127\.0\.0\.1):(\d+)/ - .*\n", lines[2]).groups()
        # larger than what Starlette keeps in memory by itself
        body = form(*PAIR, ("more", bytes(3_000_000)))
        connection = http.client.HTTPConnection(address, int(port), timeout=SEC)
        connection.request("POST", "/compare", body, {"Content-Type": FORM})
        assert json.loads(connection.getresponse().read())["decision"] == "same person"
        connection.close()
        assert inference.main(["serve", "--checkpoint", str(checkpoint), "--port", port]) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"adaface serve: error: cannot listen on port {port} of 127.0.0.1 (Address already in use)"
        )
        assert error.endswith("stop the program that uses it, or use another port\n")
        running.send_signal(signal.SIGINT)
        out, error = running.communicate(timeout=SEC)
        assert (running.returncode, out, error) == (0, "\nserver stopped; no photographs were stored\n", "")
    finally:
        running.kill()
        running.communicate()
    written = [path for folder in folders.values() for path in folder.rglob("*") if path.is_file()]
    assert [path for path in written if "matplotlib" not in path.parts] == []  # which keeps a list of fonts


@needs_webdriver
def test_in_a_browser(server, embedder, tmp_path):
    photographs = {
        "a.png": PAIR[0][1],
        "b.png": png(two_heads()),
        "wall.png": png(np.full((300, 400, 3), 90, np.uint8)),
        "text.jpg": b"no image",
    }
    for name, content in photographs.items():
        (tmp_path / name).write_bytes(content)
    first, second = (embed_photograph(photographs[name], embedder, MTCNN()) for name in ("a.png", "b.png"))
    with Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.until(lambda: browser.text("#model") == "Model: model.ckpt (ir_mini)")
        assert browser.text("#status") == "Choose two photographs, drop them on the page, or paste them."
        browser.type("#first", str(tmp_path / "a.png"))
        assert browser.text("#status") == "The second photograph is missing."
        browser.click("#compare")
        browser.type("#second", str(tmp_path / "b.png"))
        browser.click("#compare")
        shown = browser.until(lambda: browser.text("#similarity"))
        assert shown == f"{first.embedding @ second.embedding:.4f}"
        assert browser.text("#decision") == "Same person"
        assert browser.text("#threshold").startswith(
            "Same person if the cosine is at least 0.50 (stored in the model: FAR"
        )
        assert bar_of(browser) == pytest.approx((400 * float(shown), 200), abs=0.03)
        assert f"Quality {first.norm:.2f}" in browser.text("#first-faces")
        assert "One face:" in browser.text("#first-faces")
        assert "2 faces; the largest one is used" in browser.text("#second-faces")
        sizes = browser.until(
            lambda: browser.script(
                "const all = [...document.images];return all.every((i) => i.complete) && all.map((i) => i.naturalWidth)"
            )
        )
        assert sizes == [320, 112, 320, 112]
        assert browser.complaints() == []

        for width, scheme in ((400, "dark"), (320, "light"), (1200, "light")):
            browser.screen(width, 900, scheme)
            wide, back = browser.script(
                "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
            )
            assert wide <= width
            bottom = "return document.getElementById('threshold').getBoundingClientRect().bottom + scrollY"
            assert browser.script(bottom) < 450  # the whole answer is seen without scrolling
            assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == (scheme == "dark")

        browser.type("#first", str(tmp_path / "wall.png"))
        assert browser.text("#similarity") == ""  # nothing is shown of other photographs than the chosen ones
        browser.type("#second", str(tmp_path / "text.jpg"))
        browser.click("#compare")
        told = browser.until(lambda: browser.text("#first-error"))
        assert told.startswith("No face was found in the photograph of 400x300 px: faces smaller than 20 px")
        assert browser.text("#second-error").startswith("The file is not a readable image")
        browser.script("model.most_bytes = 2100")
        browser.click("#compare")
        assert "more than the 0 MiB that are allowed" in browser.text("#error")


def bar_of(browser: Browser) -> tuple[float, float]:
    """Length of the bar and place of the threshold, of 400."""
    return tuple(
        float(browser.script(f"return document.getElementById('{part}').getAttribute('{name}')"))
        for part, name in (("bar-value", "width"), ("bar-threshold", "x1"))
    )


@needs_chromium
def test_texts_below_the_bar_do_not_overlap_and_a_third_photograph_is_told(tmp_path):
    page = Path(app.__file__).with_name("face_page.html").read_text(encoding="utf-8")
    script = """<style>#bar { font-size: 18px; }</style><script>
    byId("result").hidden = false;
    const found = [0.966, 0.9999, 0.0123, -0.9876, -0.4444, 0.4444, 0.2751, 0.7249, 0.5].map((threshold) => {
      drawBar(0.5, threshold);
      const boxes = [...document.querySelectorAll("#bar text")].map((text) => text.getBBox());
      return boxes.map((box) => [box.x, box.x + box.width]);
    });
    take(["a", "b", "c", "d"].map((name) => new File([new Uint8Array([1])], name + ".png", { type: "image/png" })));
    document.body.innerHTML = `<pre>${JSON.stringify([found, byId("status").textContent])}</pre>`;
    </script></body>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", script), encoding="utf-8")
    shown = in_browser(tmp_path / "page.html").stdout
    bars, status = json.loads(shown.partition("<pre>")[2].partition("</pre>")[0])
    for low, name, one in bars:
        assert low[0] < low[1] < name[0] < name[1] < one[0] < one[1]
    assert status == "Two photographs are compared: c.png, d.png are left out."


@needs_webdriver
def test_photographs_are_dropped_and_pasted(embedder, tmp_path):
    """On a field, beside the fields, two at once; the next empty field is filled, then the second one."""
    files = (
        "const files = new DataTransfer();"
        "for (const name of NAMES) files.items.add(new File([new Uint8Array([1])], name, {type: 'image/png'}));"
    )
    dropped = (
        "document.querySelector('PLACE').dispatchEvent(new DragEvent('drop', {bubbles: true, dataTransfer: files}))"
    )
    pasted = "document.body.dispatchEvent(new ClipboardEvent('paste', {bubbles: true, clipboardData: files}))"
    chosen = "return ['first', 'second'].map((name) => document.getElementById(name).files[0]?.name)"
    with serving(embedder, Threshold(-0.5, "set by --threshold")) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.until(lambda: browser.text("#model").startswith("Model: "))
        for event, place, names, expected in (
            (dropped, "h1", ["a.png"], ["a.png", None]),
            (pasted, "", ["b.png"], ["a.png", "b.png"]),
            (pasted, "", ["c.png"], ["a.png", "c.png"]),
            (dropped, "label[for=first]", ["d.png"], ["d.png", "c.png"]),
            (dropped, "h1", ["e.png", "f.png"], ["e.png", "f.png"]),
        ):
            browser.script(files.replace("NAMES", json.dumps(names)) + event.replace("PLACE", place))
            assert browser.script(chosen) == expected
        assert browser.text("#status") == ""
        names = ["g.png", "h.png", "i.png"]
        browser.script(files.replace("NAMES", json.dumps(names)) + dropped.replace("PLACE", "h1"))
        assert browser.script(chosen) == ["g.png", "h.png"]
        assert browser.text("#status") == "Two photographs are compared: i.png is left out."
        browser.click("#compare")
        assert browser.until(lambda: browser.text("#first-error")).startswith("The file is not a readable image")
        browser.script("drawBar(-0.25, -0.5)")
        assert bar_of(browser) == (150, 100)  # on a scale from -1 to 1


@needs_webdriver
def test_a_page_whose_server_has_ended_says_so(embedder, tmp_path):
    with serving(embedder) as server:
        browser = Browser(tmp_path / "profile")
        (tmp_path / "a.png").write_bytes(png(head()))
        browser.open(server.url)
        browser.until(lambda: browser.text("#model").startswith("Model: "))
    with browser:
        for name in ("first", "second"):
            browser.type(f"#{name}", str(tmp_path / "a.png"))
        browser.click("#compare")
        told = browser.until(lambda: browser.text("#error"))
        assert told.startswith("No response: check that the server is still running")
