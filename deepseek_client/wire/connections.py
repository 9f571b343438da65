"""urllib3's connections, which tell the exchange of their thread what it is blocked on."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util import Timeout
from urllib3.util.connection import allowed_gai_family
from urllib3.util.wait import wait_for_write

from .exchange import DeadlineSocket, Exchange, current
from .tls import context_for_proxy, renewed

__all__ = ["POOL_CLASSES"]

# A server that closes an idle connection crosses the request on its way (RFC 9112, section 9.5): that shows within a
# round trip. One that fails later may have worked on the request, which is then not sent again.
_IDLE_CLOSE_WITHIN_S = 0.3


class _Watched(HTTPConnection):
    """A connection that can be ended from outside in every phase.

    Threads: one thread at a time uses it, as any urllib3 connection; Exchange.abort reaches it from others.
    """

    _exchange: Exchange | None = None  # whose request it carries
    _held: list[bytes] | None = None  # what `send` was given, until the request is whole
    _used = False  # whether its socket has carried a request
    _asked_at = 0.0  # moment at which this request began
    _is_reused = False  # whether it had carried one before this request

    def _new_conn(self) -> socket.socket:
        exchange = current()
        if exchange is None:
            return super()._new_conn()
        timeout_s = Timeout.resolve_default_timeout(self.timeout)
        try:
            return _connect(
                exchange, self._dns_host, self.port, timeout_s, self.source_address, self.socket_options
            )
        except socket.gaierror as exc:
            raise NameResolutionError(self.host, self, exc) from exc
        except TimeoutError as exc:
            raise ConnectTimeoutError(self, f"{self.host} took no connection within {timeout_s} s") from exc
        except OSError as exc:
            raise NewConnectionError(self, f"cannot connect to {self.host}: {exc}") from exc

    def request(self, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> None:
        self._exchange = exchange = current()
        self._is_reused, self._used = self._used, True
        self._asked_at = time.monotonic()
        if exchange is not None and self.sock is not None:
            exchange.block_on(_innermost(self.sock))
        if isinstance(body, (bytes, str)) and not kwargs.get("chunked"):
            # http.client sends the head and the body apart, which costs a TLS record and a system call more.
            self._held = []
        try:
            try:
                super().request(method, url, body, *args, **kwargs)
            finally:
                held, self._held = self._held, None
            if held:
                self.send(b"".join(held))
        except (ConnectionError, ssl.SSLError):
            self._note_whether_stale()
            raise

    def send(self, data: Any) -> None:
        if self._held is not None and isinstance(data, bytes):
            self._held.append(data)
            return
        if self.sock is None and self.auto_open:
            self.connect()
        if self._exchange is not None:
            self._exchange.sent = True
            self._exchange.phase = "sending"
            self._exchange.keep_deadline(_innermost(self.sock))
        super().send(data)

    def getresponse(self) -> Any:
        if self._exchange is None:
            return super().getresponse()
        self._exchange.phase = "waiting"
        try:
            return super().getresponse()
        except (ConnectionError, ssl.SSLError):  # not one byte of a reply came
            self._note_whether_stale()
            raise

    def _note_whether_stale(self) -> None:
        if self._exchange is not None:
            took_s = time.monotonic() - self._asked_at
            self._exchange.stale = self._is_reused and took_s < _IDLE_CLOSE_WITHIN_S

    def close(self) -> None:
        self._used = False
        exchange = self._exchange
        if exchange is None or self.sock is None:
            super().close()
            return
        with exchange.closing():
            super().close()


class _WatchedTLS(_Watched, HTTPSConnection):
    """The same over TLS; tls.py's sockets tell of their handshake themselves."""

    def connect(self) -> None:
        if self.ssl_context is not None:
            self.ssl_context = renewed(self.ssl_context)
        super().connect()

    def _connect_tls_proxy(self, hostname: str, sock: socket.socket) -> Any:
        # urllib3 would make a context of the system's authorities: others than the call trusts, and not watched.
        if (
            self.proxy_config is not None
            and self.proxy_config.ssl_context is None
            and self.ssl_context is not None
        ):
            self.proxy_config = self.proxy_config._replace(ssl_context=context_for_proxy(self.ssl_context))
        return super()._connect_tls_proxy(hostname, sock)


class _WatchedPool(HTTPConnectionPool):
    """Gives a connection back to everybody only after its exchange has let go of it."""

    ConnectionCls = _Watched

    def _put_conn(self, conn: Any) -> None:
        exchange = getattr(conn, "_exchange", None)
        if exchange is not None:
            conn._exchange = None
            if not exchange.let_go(_innermost(conn.sock)):
                conn.close()
        super()._put_conn(conn)


class _WatchedTLSPool(_WatchedPool, HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


POOL_CLASSES = {"http": _WatchedPool, "https": _WatchedTLSPool}


def _connect(
    exchange: Exchange, host: str, port: int, timeout_s: float | None, source: Any, options: Any
) -> socket.socket:
    """A connected socket to the first address of the host that takes one, as socket.create_connection.

    That one cannot be ended from outside: its socket is nobody's before it is connected.
    """
    error: OSError = OSError(f"the lookup of {host} gave no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host.strip("[]"), port, allowed_gai_family(), socket.SOCK_STREAM
    ):
        sock = None
        try:
            sock = DeadlineSocket(family, kind, protocol)
            for option in options or ():
                sock.setsockopt(*option)
            if source:
                sock.bind(source)
            sock.setblocking(False)
            code = sock.connect_ex(address)
            # After connect_ex: a shutdown of a socket that does not connect yet would have no effect.
            exchange.block_on(sock)
            if code == errno.EINPROGRESS:
                if not wait_for_write(sock, exchange.capped(timeout_s)):
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                exchange.block_on(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            sock.settimeout(exchange.capped(timeout_s))
            return sock
        except OSError as exc:
            error = exc
            if sock is not None:
                with exchange.closing():
                    sock.close()
            if exchange.aborted is not None:
                break
    raise error


def _innermost(sock: Any) -> Any:
    """The socket of the operating system; TLS inside of TLS, through an HTTPS proxy, has none of its own."""
    return getattr(sock, "socket", sock)
