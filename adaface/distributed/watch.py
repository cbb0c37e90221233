"""Watch the other processes of a run: if one is lost, report its rank and host, and end this one too.

Collectives report little: gloo says "connection closed by peer", NCCL waits, and both wait on a dead link. Therefore
each process holds an idle TCP connection to rank 0. It is closed when a process dies, for whatever reason; if a host or
link is down, the kernel's keep-alive probes are not answered. Nothing else is sent during normal operation, and the
kernel answers the probes, so a process that is busy or stopped is never considered lost.
"""

import contextlib
import errno
import logging
import os
import platform
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch.distributed as dist

from adaface.distributed.startup import ReportedElsewhereError, check_agreement
from adaface.system.command_line import program_name
from adaface.system.lightning_setup import pl
from adaface.system.threads import in_main_thread

logger = logging.getLogger(__name__)

_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 5}  # 30 s without an answer: the link is dead
_CONNECT_SEC = 30.0
_TOGETHER_SEC = 0.3  # the processes of a dead host are lost one after the other, but reported together
_OWN_ERROR_SEC = 1.5  # the other processes often raise the same error themselves
_REPORT_SEC = 5.0  # more than the others, also on a busy machine
_READ_SEC = 0.05  # from reading a message to noting it
_END_SEC = 1.0  # from the end of a process's connection to its own
_GRACE_SEC = 4.0  # for the main thread to end by itself
_ENDED = 2
_BYE, _FAILED, _LOST = "bye", "failed", "lost"
_NETWORK_ERRORS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out waiting")
_TIMEOUT_ERRORS = ("timed out", "timeout")


class InterruptedTrainingError(Exception):
    """Training stopped on request in all processes after saving ``checkpoint``."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"stopped on request; the training so far is saved in {checkpoint}")
        self.checkpoint = checkpoint


class _Peer(NamedTuple):
    """A process of the run."""

    rank: int
    host: str
    pid: int


class ProcessWatch(pl.Callback):
    """Watch the other processes from the first ``fit`` or ``test`` until the end of this object's ``with`` block.

    Args:
        facts: values that must be the same in all processes, see ``check_agreement``.
        advice: returns how to resume the run, for the message.
        timeout_sec: timeout of collectives, for the message.
    """

    def __init__(self, facts: dict[str, Any], advice: Callable[[], str], timeout_sec: float) -> None:
        self._facts, self._advice, self._timeout_sec = facts, advice, timeout_sec
        self._rank = 0
        self._peers: list[_Peer] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._done: list[socket.socket] = []  # of processes that have said goodbye
        self._lock = threading.Lock()
        self._losses: list[tuple[_Peer, str]] = []
        self._leaving = False
        self._loss_reported = threading.Event()
        self._connected = threading.Semaphore(0)  # rank 0 releases it once for each process that is welcome

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Check that the processes agree, connect to rank 0 and start watching, once."""
        if trainer.world_size > 1 and not self._peers:
            check_agreement(self._facts)
            self._children = list(getattr(trainer.strategy.launcher, "procs", []))
            self._meet()

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Tell the others if the user interrupts: Lightning then kills the processes that it has started."""
        if isinstance(exception, KeyboardInterrupt) and not self._one_is_lost():
            self._leave(_BYE)

    def __enter__(self) -> "ProcessWatch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send to the others how this process ends.

        Raises:
            ReportedElsewhereError: it ends because another process was lost.
            RuntimeError: it ends because another process did not answer in time.
        """
        if error is not None and self._peers and in_main_thread():
            # torchrun sends it to all when one has died; the message must be printed first
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        text = str(error).lower()
        network_error = isinstance(error, dist.DistError) or any(words in text for words in _NETWORK_ERRORS)
        wait = bool(self._losses) or (network_error and bool(self._peers))
        # before a signal, the thread that reads may not have run since the loss
        wait = wait or (error is not None and not isinstance(error, Exception) and self._one_is_lost())
        if wait and not self._leaving and self._loss_reported.wait(_REPORT_SEC):
            raise ReportedElsewhereError("another process is lost") from error
        if not isinstance(error, Exception) or isinstance(error, InterruptedTrainingError):
            self._leave(_BYE)
            return
        self._leave(_FAILED)
        if network_error and any(words in text for words in _TIMEOUT_ERRORS):
            raise RuntimeError(
                f"another process did not answer for {self._timeout_sec:g} s (--collective_timeout_sec), though none "
                f"is known to be lost: it hangs, or is much slower; {self._advice()}"
            ) from error

    # connections

    def _meet(self) -> None:
        """Exchange ranks and hosts, connect to rank 0, and start watching; called in all processes together."""
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        peers: list[Any] = [None] * world_size
        dist.all_gather_object(peers, _Peer(self._rank, platform.node(), os.getpid()))
        self._peers = peers
        address = os.environ["MASTER_ADDR"]
        box: list[Any] = [None]
        if self._rank == 0:
            server = _listen(address, world_size)
            box = [(server.getsockname()[1], secrets.token_hex(16))]
            self._sockets.append(server)
        dist.broadcast_object_list(box)
        port, token = box[0]
        os.register_at_fork(after_in_child=self._forget)
        if self._rank == 0:
            _start(self._accept, server, token)
            self._wait_for_all()
            return
        try:
            connection = socket.create_connection((address, port), timeout=_CONNECT_SEC)
        except OSError as error:
            raise RuntimeError(
                f"process {self._rank} on {platform.node()} cannot reach process 0 at {address}, port {port} "
                f"({error}): open all TCP ports between the machines of a run"
            ) from error
        _keep_alive(connection)
        connection.sendall(f"{token} {self._rank}\n".encode())
        self._sockets.append(connection)
        _start(self._watch, connection, connection.makefile("r"), peers[0])

    def _wait_for_all(self) -> None:
        """Wait until all other processes are connected: one that is not would get no message when this one ends."""
        until = time.monotonic() + _CONNECT_SEC
        for number in range(len(self._peers) - 1):
            if not self._connected.acquire(timeout=max(0.0, until - time.monotonic())):
                raise RuntimeError(
                    f"{number} of {len(self._peers) - 1} processes have connected to process 0 on {platform.node()} in "
                    f"{_CONNECT_SEC:g} s: open all TCP ports between the machines of a run"
                )

    def _accept(self, server: socket.socket, token: str) -> None:
        while True:
            connection, _ = server.accept()
            _keep_alive(connection)
            _start(self._welcome, connection, token)

    def _welcome(self, connection: socket.socket, token: str) -> None:
        """Watch a process that sends the token; close other connections."""
        lines = connection.makefile("r", errors="replace")
        with contextlib.suppress(OSError, ValueError):
            received, rank = lines.readline(len(token) + 20).split()
            if secrets.compare_digest(received.encode(), token.encode()):
                peer = self._peers[int(rank)]
                self._sockets.append(connection)
                self._connected.release()
                self._watch(connection, lines, peer)
                return
        lines.close()
        connection.close()

    def _forget(self) -> None:
        """Close the connections in a data worker, which would keep them open after this process has died."""
        while self._sockets:
            os.close(self._sockets.pop().detach())

    def _send(self, message: str) -> None:
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):  # one that is lost itself, or the socket that listens
                connection.sendall(f"{message}\n".encode())

    def _one_is_lost(self) -> bool:
        """Return whether another process is lost, also if its thread of the watch has not run yet since."""
        if self._losses or not any(map(_tells_a_loss, list(self._sockets))):
            return bool(self._losses)
        time.sleep(_READ_SEC)  # for the thread that has read a goodbye and not noted it yet
        return bool(self._losses) or any(_tells_a_loss(one) and one not in self._done for one in list(self._sockets))

    def _leave(self, message: str) -> None:
        if not self._leaving:
            self._leaving = True
            self._send(message)

    # loss of a process

    def _watch(self, connection: socket.socket, lines: Any, peer: _Peer) -> None:
        """Wait for a message of another process; if it ends before the run, end this one."""
        how = "died"
        try:
            for line in lines:
                word, _, rest = line.rstrip("\n").partition(" ")
                if word == _BYE:
                    self._done.append(connection)
                    return
                if word == _LOST:
                    elsewhere = self._peers[self._rank].host != self._peers[0].host  # there rank 0 prints
                    self._end(rest, prints=elsewhere and self._is_first_on_its_host())
                    return
                if word == _FAILED:
                    how = _FAILED
                    break
        except ConnectionResetError:
            pass
        except OSError as error:
            how = f"no longer answers ({error.strerror}): its host or the network is down"
        if not self._leaving:
            self._lose(peer, how)

    def _lose(self, peer: _Peer, how: str) -> None:
        with self._lock:
            self._losses.append((peer, how))
            if len(self._losses) > 1:
                return
        time.sleep(_OWN_ERROR_SEC if how == _FAILED else _TOGETHER_SEC)
        with self._lock:
            text = "; ".join(self._describe(peer, how) for peer, how in self._losses)
        if self._rank == 0:
            self._send(f"{_LOST} {text}")
        self._end(text, prints=self._rank == 0 or self._is_first_on_its_host())

    def _describe(self, peer: _Peer, how: str) -> str:
        code = None
        if how == "died" and 0 < peer.rank <= len(self._children):
            with contextlib.suppress(subprocess.TimeoutExpired):  # its connection is closed before it has ended
                code = self._children[peer.rank - 1].wait(_END_SEC)
        if how == _FAILED:
            how = "stopped by an error, which it has printed"
        elif dist.get_backend() == "nccl" and how == "died" and (code is None or code == -signal.SIGABRT):
            how = (
                "died, as NCCL ends a process for which another one has no answer for "
                f"{self._timeout_sec:g} s (--collective_timeout_sec), or as any other fault does"
            )
        elif code:
            how = f"died by signal {-code}" if code < 0 else f"died by exit status {code}"
        return f"process {peer.rank} on {peer.host} (pid {peer.pid}) {how}"

    def _is_first_on_its_host(self) -> bool:
        """Return whether this process prints for its host; rank 0 prints itself, or is the lost process."""
        host = self._peers[self._rank].host
        return self._rank == min(peer.rank for peer in self._peers if peer.rank and peer.host == host)

    def _end(self, text: str, *, prints: bool) -> None:
        """Report the loss, and end this process if its main thread does not because it waits in a collective."""
        if self._leaving:
            return
        try:
            if prints:
                logger.error(f"{program_name('train')}: error: {text}: the run ends; {self._advice()}")
        finally:  # even if printing fails
            self._loss_reported.set()
            time.sleep(_GRACE_SEC)
            os._exit(_ENDED)


def _start(target: Callable[..., None], *words: Any) -> None:
    threading.Thread(target=target, args=words, daemon=True, name="process-watch").start()


def _listen(address: str, backlog: int) -> socket.socket:
    """Return a socket that listens at ``address``, or at all addresses if this host does not know that name."""
    for place in (address, ""):
        with contextlib.suppress(OSError):
            family = socket.getaddrinfo(place or None, 0, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((place, 0), family=family, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)


def _tells_a_loss(connection: socket.socket) -> bool:
    """Return whether what is to be read next from a connection is its end, or that a process failed or is lost."""
    try:
        coming = connection.recv(len(_FAILED), socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError as error:  # the socket that listens is not connected
        return error.errno != errno.ENOTCONN
    return coming == b"" or coming.startswith((_FAILED.encode(), _LOST.encode()))


def _keep_alive(connection: socket.socket) -> None:
    """Enable the kernel's keep-alive probes on an idle connection."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
