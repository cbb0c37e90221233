import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bounded_connections import BoundedServer, DeadlineReader

SEC = 30


class Echo(socketserver.BaseRequestHandler):
    """Sends one line back."""

    def handle(self) -> None:
        reader = DeadlineReader(self.request)
        reader.allow(SEC)
        buffer = bytearray(100)
        self.request.sendall(bytes(buffer[: reader.readinto(buffer)]))


@contextlib.contextmanager
def serving(handler=Echo, most_connections: int = 2, linger_sec: float = SEC) -> Iterator[BoundedServer]:
    server = BoundedServer(
        "127.0.0.1", 0, handler, most_connections=most_connections, refusal=b"full", linger_sec=linger_sec
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.wait_closed(SEC)
        assert not server._open


def connected(server: BoundedServer) -> socket.socket:
    return socket.create_connection(server.server_address, timeout=SEC)


def everything(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(4096):
        parts.append(part)
    return b"".join(parts)


def asked(server: BoundedServer, text: bytes = b"hello") -> bytes:
    with connected(server) as connection:
        connection.sendall(text)
        return everything(connection)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SEC
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_too_many_connections_are_told_so():
    with serving() as server:
        with connected(server), connected(server) as second:
            assert asked(server) == b"full"
            second.sendall(b"hello")
            assert everything(second) == b"hello"
        until(lambda: not server._open)  # the server has seen them leave
        assert asked(server) == b"hello"


def test_refused_connections_are_closed():
    with serving(most_connections=0) as server:
        waiting = [connected(server) for _ in range(50)]
        assert [everything(connection) for connection in waiting] == [b"full"] * 50
        assert len(server._refused) <= 32
        until(lambda: not server._refused)  # a moment later, by service_actions
        for connection in waiting:
            connection.close()


def test_a_place_is_free_again_where_no_thread_starts_or_the_handler_fails(monkeypatch, capsys):
    class Failing(socketserver.BaseRequestHandler):
        def handle(self):
            raise KeyError("a mistake")

    with serving(Failing, most_connections=1) as server:
        for _ in range(3):
            assert asked(server, b"") == b""
            until(lambda: not server._open)
    assert capsys.readouterr().err == "a connection failed: KeyError('a mistake')\n" * 3

    with serving(most_connections=1) as server:
        real, left = threading.Thread.start, [3]

        def start(thread):
            if thread.daemon and left[0]:
                left[0] -= 1
                raise RuntimeError("can't start new thread")
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        assert [asked(server) for _ in range(4)] == [b"full"] * 3 + [b"hello"]


def test_a_client_that_trickles_meets_the_deadline():
    here, there = socket.socketpair()
    with here, there:
        reader = DeadlineReader(here)
        there.sendall(b"1234")
        reader.allow(SEC)
        assert reader.read(2) == b"12"
        reader.allow(0)
        with pytest.raises(TimeoutError, match="has not come in time"):
            reader.read(2)
        reader.allow(0.05)
        assert reader.read(2) == b"34"
        with pytest.raises(TimeoutError):
            reader.read(2)


def test_an_answer_is_read_while_the_client_still_sends():
    class Hasty(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"too long")

    with serving(Hasty) as server, connected(server) as connection:
        connection.sendall(bytes(5_000_000))
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection) == b"too long"


def test_the_end_waits_for_answers_and_not_for_requests():
    begun, go_on = threading.Event(), threading.Event()

    class Slow(socketserver.BaseRequestHandler):
        def handle(self):
            if self.request.recv(4):
                begun.set()
                go_on.wait(SEC)
                self.request.sendall(b"done")

    with serving(Slow, linger_sec=0.1) as server:
        silent, working = connected(server), connected(server)
        working.sendall(b"work")
        begun.wait(SEC)
        threading.Timer(0.2, go_on.set).start()
    with silent, working:
        assert everything(working) == b"done"
        assert everything(silent) == b""


def test_places_where_nobody_can_listen(monkeypatch):
    with serving() as server:
        port = server.server_address[1]
        with pytest.raises(
            RuntimeError, match=rf"cannot listen at port {port} of 127\.0\.0\.1 \(Address already in use"
        ):
            BoundedServer("127.0.0.1", port, Echo, most_connections=1, refusal=b"")
    for host in ("no such host", "a" * 70 + ".b", "\0"):
        with pytest.raises(ValueError, match="there is no host"):
            BoundedServer(host, 0, Echo, most_connections=1, refusal=b"")
    with pytest.raises(RuntimeError, match="cannot listen"):
        BoundedServer("192.0.2.1", 0, Echo, most_connections=1, refusal=b"")
