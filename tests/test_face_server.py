import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import Browser, needs_webdriver
from photographs import astronaut, head, turned, two_heads
from test_embedded_photograph import png
from test_face_requests import form
from test_inference import write_checkpoint

import face_server
import inference_commands
from alignment.detector import MTCNN
from embedded_photograph import embed_photograph
from face_comparison import NO_THRESHOLD, Threshold
from face_server import FaceServer, Limits
from inference import Embedder

ROOT = Path(__file__).resolve().parents[1]
SEC = 60
THRESHOLD = Threshold(0.5, "stored in the model: FAR 0.001 on lfw")
PAIR = (("first", png(astronaut())), ("second", png(turned(astronaut(), 20, 0.6)[0])))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Embedder:
    return Embedder.load(write_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt"))


@contextlib.contextmanager
def serving(embedder: Embedder, threshold: Threshold | None = THRESHOLD, **limits: Any) -> Iterator[FaceServer]:
    server = FaceServer("127.0.0.1", 0, embedder, MTCNN(), threshold, Limits(**limits))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.wait_closed(SEC)


@pytest.fixture(scope="module")
def server(embedder) -> Iterator[FaceServer]:
    with serving(embedder) as running:
        yield running


def ask(server: FaceServer, method: str, path: str, body: bytes | None = None, **headers: str):
    """Return status, headers and content of an answer; its content must be what its header says."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=SEC)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["Content-Type"].startswith("application/json") and content
    return answer.status, answer.headers, json.loads(content) if is_json else content


def compare(server: FaceServer, *fields: tuple[str, bytes], **more: str):
    headers, body = form(*fields)
    status, _, content = ask(server, "POST", "/compare", body, Content_Type=headers["Content-Type"], **more)
    return status, content


def raw(server: FaceServer, sent: bytes) -> bytes:
    """Send bytes as they are, then nothing more; return everything that comes back."""
    with socket.create_connection(server.server_address, timeout=SEC) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def decoded(url: str, kind: str) -> np.ndarray:
    start, _, content = url.partition(",")
    assert start == f"data:image/{kind};base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(content, validate=True), np.uint8), cv2.IMREAD_COLOR)


def test_two_photographs_are_compared(server, embedder):
    status, answer = compare(server, *PAIR)
    assert status == 200
    expected = [embed_photograph(content, embedder, MTCNN()) for _, content in PAIR]
    assert answer["similarity"] == pytest.approx(float(expected[0].embedding @ expected[1].embedding), abs=1e-6)
    assert (answer["same"], answer["decision"]) == (True, "one person")
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
        (Threshold(1.0, "given by --threshold"), False, "two people"),
        (None, None, NO_THRESHOLD),
    ):
        with serving(embedder, threshold) as server:
            answer = compare(server, *PAIR)[1]
            assert (answer["same"], answer["decision"]) == (same, decision)
            told = ask(server, "GET", "/model")[2]
            assert told["threshold"] == (threshold and {"cosine": 1.0, "origin": "given by --threshold"})
            assert (told["model"], told["architecture"]) == ("model.ckpt", "ir_mini")
            assert told["most_bytes"] == Limits().most_bytes


def test_photographs_at_fault_are_told_apart(server):
    wall = png(np.full((300, 400, 3), 90, np.uint8))
    status, answer = compare(server, ("first", wall), ("second", b"no image"))
    assert status == 422
    assert answer["photographs"][0].startswith(
        "no face was found in the photograph of 400x300 px: faces that are smaller"
    )
    assert answer["photographs"][1].startswith("the file is no image of a kind that can be read")
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
        assert re.search(r"more than the 50,000,000 pixels|is too large", answer["error"])


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/", 200, "<title>AdaFace"),
        ("GET", "/?x=1", 200, "<title>AdaFace"),
        ("GET", "/model", 200, "model.ckpt"),
        ("HEAD", "/", 200, ""),
        ("HEAD", "/model", 200, ""),
        ("GET", "/compare", 405, "GET is not for /compare, POST is"),
        ("DELETE", "/", 405, "DELETE is not for /, GET and HEAD is"),
        ("OPTIONS", "/compare", 405, "OPTIONS is not for /compare"),
        ("BREW", "/", 501, "Unsupported method"),
        ("GET", "/none", 404, "there is no /none here: the page is at /"),
        ("GET", "/../etc/passwd", 404, "there is no /../etc/passwd"),
        ("GET", "/%2e%2e/face_page.html", 404, "there is no"),
        ("HEAD", "/none", 404, ""),
        ("GET", "/" + "x" * 70_000, 414, "Too Long"),
        ("POST", "/compare", 411, "Content-Length header is expected"),
    ],
)  # fmt: skip
def test_every_answer_has_its_status_and_the_same_headers(server, method, path, status, told):
    answer = raw(server, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head_, _, body = answer.decode().partition("\r\n\r\n")
    assert head_.startswith(f"HTTP/1.1 {status} ")
    assert told in body
    assert bool(body) == bool(told)
    fields = dict(line.split(": ", 1) for line in head_.splitlines()[1:])
    assert method == "HEAD" or int(fields["Content-Length"]) == len(body.encode())
    assert "default-src 'none'" in fields["Content-Security-Policy"]
    assert "unsafe" not in fields["Content-Security-Policy"]
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["Cache-Control"] == "no-store"
    assert fields["Connection"] == "close"
    assert fields["Server"] == "AdaFace"
    assert ("Allow" in fields) == (status == 405)
    assert not any(name.startswith("Access-Control") for name in fields)
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
    port = server.server_address[1]
    assert ask(server, "GET", "/", Host=f"localhost:{port}")[0] == 200
    status, _, answer = ask(server, "GET", "/", Host="evil.example")
    assert (status, "is not called evil.example" in answer["error"]) == (421, True)
    assert compare(server, *PAIR, Origin="http://evil.example")[0] == 403
    assert compare(server, *PAIR, Origin=f"http://127.0.0.1:{port}")[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),  # TLS
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"POST /compare HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /compare HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST /compare HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n123", 400),
        (b"POST /compare HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n123", 415),
    ],
)
def test_requests_that_nobody_should_send(server, sent, status):
    answer = raw(server, sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert list(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error"]
    assert raw(server, b"") == b""


def test_a_large_request_is_refused_before_and_while_it_is_sent(embedder):
    with serving(embedder, most_bytes=1000) as server:
        status, answer = compare(server, *PAIR)
        assert status == 413
        assert "bytes together, more than the 1,000 that are taken" in answer["error"]
        asking = b"POST /compare HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        assert raw(server, asking % 1001).startswith(b"HTTP/1.1 413 ")
        assert raw(server, asking % 3).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 ")


def test_slow_clients_meet_a_deadline(embedder):
    with serving(embedder, header_sec=0.2, body_sec=0.2) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(server.server_address, timeout=SEC)) for _ in range(3)]
        slow[1].sendall(b"GET / HTTP/1.1\r\nHo")
        slow[2].sendall(b"POST /compare HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n123")
        assert [connection.recv(100) for connection in slow[:2]] == [b"", b""]
        assert slow[2].recv(4096).startswith(b"HTTP/1.1 408 ")


def test_too_many_connections_are_refused_in_words(embedder):
    with serving(embedder, most_connections=1) as server, socket.create_connection(server.server_address):
        status, headers, answer = ask(server, "GET", "/")
        assert (status, headers["Cache-Control"]) == (503, "no-store")
        assert answer["error"] == "1 connections are open, more are not taken: try again in a moment"


def test_comparisons_take_turns(server, embedder, monkeypatch):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(compare(server, *PAIR))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SEC)
    assert [status for status, _ in answers] == [200] * 4
    assert all(answer == answers[0] for answer in answers)
    with serving(embedder, turn_sec=0.05) as impatient, impatient.comparer._turn:
        assert compare(impatient, *PAIR)[0] == 503


def test_a_mistake_of_ours_is_an_answer_too(embedder, monkeypatch, capsys):
    monkeypatch.setattr(face_server, "embed_photograph", lambda *_: 1 / 0)
    with serving(embedder) as server:
        for _ in range(2):  # the turn was given back
            status, answer = compare(server, *PAIR)
            assert status == 500
            assert "ZeroDivisionError" in answer["error"]
    assert capsys.readouterr().err == "a connection failed: ZeroDivisionError('division by zero')\n" * 2


def test_where_the_page_is(embedder):
    for host, url, open_ in (
        ("127.0.0.1", r"http://127\.0\.0\.1:\d+/", False),
        ("0.0.0.0", r"http://127\.0\.0\.1:\d+/", True),
    ):
        server = FaceServer(host, 0, embedder, MTCNN(), None, Limits())
        assert re.fullmatch(url, server.url)
        assert server.is_open == open_
        server.server_close()


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
        assert lines[:2] == [f"model: {checkpoint} (ir_mini)\n", "threshold: 0.5000 (stored in the model)\n"]
        address, port = re.fullmatch(r"the page is at http://(127\.0\.0\.1):(\d+)/ - .*\n", lines[2]).groups()
        headers, body = form(*PAIR)
        connection = http.client.HTTPConnection(address, int(port), timeout=SEC)
        connection.request("POST", "/compare", body, {"Content-Type": headers["Content-Type"]})
        assert json.loads(connection.getresponse().read())["decision"] == "one person"
        connection.close()
        assert inference_commands.main(["serve", "--checkpoint", str(checkpoint), "--port", port]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"inference: error: cannot listen at port {port} of 127.0.0.1 (Address already in use)")
        assert error.endswith("stop what uses it, or give another port\n")
        running.send_signal(signal.SIGINT)
        out, error = running.communicate(timeout=SEC)
        assert (running.returncode, out, error) == (0, "\nthe page is closed; no photograph was kept\n", "")
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
        assert browser.text("#said") == "Choose two photographs, or drop them on the fields."
        browser.type("#first", str(tmp_path / "a.png"))
        assert browser.text("#said") == "The second photograph is missing."
        browser.click("#compare")
        browser.type("#second", str(tmp_path / "b.png"))
        browser.click("#compare")
        shown = browser.until(lambda: browser.text("#similarity"))
        assert shown == f"{first.embedding @ second.embedding:.4f}"
        assert browser.text("#decision") == "Decision: one person"
        assert browser.text("#threshold").startswith("One person from a cosine of 0.5000 on, stored in the model: FAR")
        assert f"Quality {first.norm:.2f}" in browser.text("#first-faces")
        assert "One face, of" in browser.text("#first-faces")
        assert "2 faces; the largest was taken" in browser.text("#second-faces")
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
            assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == (scheme == "dark")

        browser.type("#first", str(tmp_path / "wall.png"))
        assert browser.text("#similarity") == ""  # nothing is shown of other photographs than the chosen ones
        browser.type("#second", str(tmp_path / "text.jpg"))
        browser.click("#compare")
        told = browser.until(lambda: browser.text("#first-said"))
        assert told.startswith("No face was found in the photograph of 400x300 px: faces that are smaller than 20 px")
        assert browser.text("#second-said").startswith("The file is no image of a kind that can be read")
        browser.script("model.most_bytes = 2100")
        browser.click("#compare")
        assert "more than the 0 MiB that are taken" in browser.text("#error")


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
        assert told.startswith("There is no answer: does the program that shows this page still run")
