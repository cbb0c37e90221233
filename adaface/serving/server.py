"""The server of the web page: uvicorn on one socket, with additional limits on connections."""

import asyncio
import errno
import ipaddress
import logging
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from adaface.alignment.detector import MTCNN
from adaface.inference.comparison import Threshold
from adaface.inference.embedder import Embedder
from adaface.serving.app import FaceComparer, Limits, build_app

logger = logging.getLogger(__name__)

_MOST_HEADER_BYTES = 16 * 1024


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: name or address to listen on.
        port: port to listen on; 0 chooses a free one.

    Raises:
        RuntimeError: the port is in use, or not allowed.
        ValueError: ``host`` is not a name or address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"there is no host {host!r} ({error}): give a name or address of this machine") from error
    try:
        return socket.create_server(address[:2], family=family, backlog=64)
    except OSError as error:
        advice = (
            "stop the program that uses it, or use another port"
            if error.errno == errno.EADDRINUSE
            else "use another one"
        )
        reason = str(error.strerror).partition(" (while")[0]
        raise RuntimeError(f"cannot listen on port {port} of {host} ({reason}): {advice}") from error


def build_server(
    host: str, embedder: Embedder, detector: MTCNN, threshold: Threshold | None, limits: Limits
) -> uvicorn.Server:
    """Return the server; ``run(sockets=[...])`` answers until ``should_exit`` is set or a signal arrives.

    Args:
        host: allowed host name, besides localhost, the machine's name and IP addresses.
        embedder: the model.
        detector: face detector.
        threshold: decision threshold; None without one.
        limits: limits on the requests of clients.
    """
    names = {"localhost", host.lower(), socket.gethostname().lower()}
    config = uvicorn.Config(
        build_app(FaceComparer(embedder, detector, threshold, limits), names),
        http=_bounded_protocol(limits),
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        log_config=None,
        log_level="critical",  # no request log, for privacy
        access_log=False,
        limit_concurrency=limits.most_connections,
        timeout_graceful_shutdown=limits.closing_sec,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
    )
    return uvicorn.Server(config)


def _bounded_protocol(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's protocol with deadlines: uvicorn itself waits forever for a header and for a slow reader."""

    class BoundedProtocol(H11Protocol):
        _deadlines: tuple[asyncio.TimerHandle, ...] = ()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadlines = (
                self.loop.call_later(limits.header_sec, lambda: transport.close() if self.cycle is None else None),
                self.loop.call_later(limits.connection_sec, transport.abort),
            )

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for deadline in self._deadlines:
                deadline.cancel()

        def eof_received(self) -> bool:  # type: ignore[override]
            """Keep the connection open for the response if a client stops sending after a complete request."""
            return self.cycle is not None and not self.cycle.more_body

    return BoundedProtocol


def page_url(listening: socket.socket) -> str:
    """Return the URL of the page for a browser on this machine.

    Args:
        listening: listening socket.
    """
    port = listening.getsockname()[1]
    host = _address(listening)
    if host.is_unspecified:
        host = ipaddress.ip_address("127.0.0.1" if host.version == 4 else "::1")
    return f"http://[{host}]:{port}/" if host.version == 6 else f"http://{host}:{port}/"


def is_open(listening: socket.socket) -> bool:
    """Return whether other machines can reach the server.

    Args:
        listening: listening socket.
    """
    return not _address(listening).is_loopback


def _address(listening: socket.socket) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(str(listening.getsockname()[0]).partition("%")[0])


def serve(server: uvicorn.Server, listening: socket.socket) -> None:
    """Log the URL, serve until Ctrl-C or SIGTERM, then finish running requests.

    Args:
        server: server from ``build_server``.
        listening: socket from ``listen``.
    """
    logger.info(f"the page is at {page_url(listening)} - open it in a browser; press Ctrl-C to stop")
    if is_open(listening):
        logger.info(
            "anyone who can reach this machine over the network can use it: there is no password and no encryption"
        )
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # re-raised by uvicorn after a clean shutdown
        pass
    finally:
        listening.close()
    logger.info("\nserver stopped; no photographs were stored")
