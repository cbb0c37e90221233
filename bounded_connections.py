"""A server whose connections are bounded: in number, in the time that a request may take to come, and in their end.

Each connection has a thread, and one request. What comes too many is told so at once, without a thread.
"""

import contextlib
import errno
import io
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from typing import Any

_MOST_REFUSED = 32  # kept open for a moment, so that the refusal is read
_REFUSED_SEC = 1.0
_READ_BYTES = 65536


class DeadlineReader(io.RawIOBase):
    """What a client sends, read until a deadline, however slowly it trickles.

    Args:
        connection: to the client.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._until = time.monotonic()

    def allow(self, seconds: float) -> None:
        """Set the deadline of all that is read from now on.

        Args:
            seconds: from now.
        """
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there.

        Args:
            buffer: filled from its beginning.

        Returns:
            Number of bytes, 0 at the end.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request has not come in time")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class BoundedServer(socketserver.TCPServer):
    """A TCP server with a bounded number of connections, each in a thread.

    Args:
        host: name or address to listen at.
        port: 0 takes any that is free.
        handler: of one connection.
        most_connections: at a time.
        refusal: sent to those above that, as it is.
        linger_sec: how long a client that still sends after its answer is listened to, so that it reads the answer.

    Raises:
        RuntimeError: the port is taken, or not allowed.
        ValueError: no name or address of this machine.
    """

    allow_reuse_address = True  # a port that was in use a moment ago
    request_queue_size = 64

    def __init__(
        self,
        host: str,
        port: int,
        handler: type[socketserver.BaseRequestHandler],
        *,
        most_connections: int,
        refusal: bytes,
        linger_sec: float = 2.0,
    ) -> None:
        self._most, self._refusal, self._linger_sec = most_connections, refusal, linger_sec
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._refused: deque[tuple[float, socket.socket]] = deque()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"there is no host {host!r} ({error}): give a name or address of this machine") from error
        self.address_family = found[0][0]
        try:
            super().__init__(found[0][4], handler)  # type: ignore[arg-type]  # of IPv6: four numbers
        except OSError as error:
            raise RuntimeError(
                f"cannot listen at port {port} of {host} ({error.strerror}): "
                + ("stop what uses it, or give another port" if error.errno == errno.EADDRINUSE else "give another one")
            ) from error

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread, or refuse it."""
        with self._changed:
            taken = len(self._open) < self._most
            if taken:
                self._open.add(request)
        if not taken:
            self._refuse(request)
            return
        thread = threading.Thread(target=self._handle, args=(request, client_address), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            self._forget(request)
            self._refuse(request)

    def _handle(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            try:
                self.shutdown_request(request)
            finally:
                self._forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell in a line what went wrong; nothing where the client has left."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"a connection failed: {error!r}", file=sys.stderr, flush=True)

    def shutdown_request(self, request: Any) -> None:
        """End a connection so that the client can read its answer: a reset would take it away."""
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            reader = DeadlineReader(request)
            reader.allow(self._linger_sec)
            buffer = bytearray(_READ_BYTES)
            while reader.readinto(buffer):
                pass
        self.close_request(request)

    def _forget(self, request: socket.socket) -> None:
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()

    def _refuse(self, request: socket.socket) -> None:
        """Send the refusal, without waiting; the connection is closed a moment later."""
        request.setblocking(False)
        with contextlib.suppress(OSError):
            request.send(self._refusal)
            request.shutdown(socket.SHUT_WR)
        self._refused.append((time.monotonic(), request))
        if len(self._refused) > _MOST_REFUSED:
            self.close_request(self._refused.popleft()[1])

    def service_actions(self) -> None:
        """Close the connections that were refused a moment ago; called twice a second."""
        while self._refused and self._refused[0][0] < time.monotonic() - _REFUSED_SEC:
            self.close_request(self._refused.popleft()[1])

    def wait_closed(self, seconds: float) -> None:
        """Stop listening, take no more of what clients send, and wait for the answers that are on their way.

        Args:
            seconds: at most.
        """
        self.server_close()
        while self._refused:
            self.close_request(self._refused.popleft()[1])
        with self._changed:
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RD)
            self._changed.wait_for(lambda: not self._open, seconds)
