"""urllib3's connections, which tell the exchange of their thread what it is blocked on."""

from __future__ import annotations

import errno
import http
import os
import queue
import select
import socket
import ssl
import sys
import time
from contextlib import suppress
from typing import Any

from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util import Timeout, connection

from . import waiting
from .exchange import Exchange, current
from .heads import are_lines_original, plain_line
from .replies import Reply
from .sockets import WatchedSocket
from .tcp import SOCKET_OPTIONS, acknowledged_bytes, has_unacknowledged
from .tls import context_for_proxy, renewed

__all__ = ["POOL_CLASSES"]

# A server that closes an idle connection crosses the request on its way (RFC 9112, section 9.5): that shows within a
# round trip. One that fails later may have worked on the request, which is then not sent again.
_IDLE_CLOSE_WITHIN_S = 0.3

# A client's timeout may be shorter than a round trip; only after this long does "not acknowledged" mean "lost".
_LOST_AFTER_S = 1.0

# What is between us and the server forgets a connection sooner or later: most wait for minutes, some for one.
_IDLE_LIMIT_S = 30.0


class _Trust:
    """What the connections of one pool have found out about each other."""

    since = 0.0  # moment: connections that were idle before it may have been forgotten by the network


class _Watched(HTTPConnection):
    """A connection that can be ended from outside in every phase, and knows whether it may be used again.

    Threads: one thread at a time uses it, as any urllib3 connection; Exchange.abort reaches it from others.
    """

    trust = _Trust()
    exchange: Exchange | None = None  # whose request it carries
    reply: Reply | None = None  # to the newest request, as far as it has come
    inner: Any = (
        None  # the operating system's socket; that of TLS inside of TLS, through an HTTPS proxy, is no such
    )
    idle_since = 0.0  # moment at which it was given back
    _lookup: Any = None  # by which its host was looked up: a test's own may send it elsewhere, or refuse
    _held: list[bytes] | None = None  # what `send` was given, until the request is whole
    _writes_lines = False  # whether a plain field of the request needs no look by http.client
    _used = False  # whether its socket has carried a request
    _asked_at = 0.0  # moment at which this request began
    _acknowledged_before: int | None = None  # bytes, when this request began; None if its socket is new
    _is_reused = False  # whether it had carried one before this request

    def _new_conn(self) -> socket.socket:
        self._lookup = socket.getaddrinfo
        exchange = current()
        if exchange is None:
            return super()._new_conn()
        timeout_s = Timeout.resolve_default_timeout(self.timeout)
        try:
            sock = _connect(
                exchange, self._dns_host, self.port, timeout_s, self.source_address, self.socket_options
            )
        except socket.gaierror as exc:
            raise NameResolutionError(self.host, self, exc) from exc
        except TimeoutError as exc:
            raise ConnectTimeoutError(self, f"{self.host} took no connection within {timeout_s} s") from exc
        except OSError as exc:
            raise NewConnectionError(self, f"cannot connect to {self.host}: {exc}") from exc
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock

    def connect(self) -> None:
        super().connect()
        self.inner = getattr(self.sock, "socket", self.sock)

    @property
    def is_connected(self) -> bool:
        """Whether it may carry a further request; asked when it is taken for one."""
        if self.sock is None or self.idle_since < self.trust.since:
            return False
        if time.monotonic() - self.idle_since > _IDLE_LIMIT_S or self._lookup is not socket.getaddrinfo:
            return False
        # Whatever lies on it now, be it the server's goodbye or a late reply, is no answer to what comes.
        waiting = select.poll()
        waiting.register(self.inner, select.POLLIN)
        return not waiting.poll(0)

    def request(self, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> None:
        self.exchange = exchange = current()
        self.reply = None
        self._is_reused, self._used = self._used, True
        self._asked_at = time.monotonic()
        self._acknowledged_before = None
        if exchange is not None and self.sock is not None:
            exchange.register(self.inner)
            if self._is_reused:
                self._acknowledged_before = acknowledged_bytes(self.inner)
        self._writes_lines = are_lines_original()
        if isinstance(body, (bytes, str)) and not kwargs.get("chunked"):
            # http.client sends the head and the body apart, which costs a TLS record and a system call more.
            self._held = []
        try:
            try:
                super().request(method, url, body, *args, **kwargs)
            finally:
                held, self._held = self._held, None
            if held:
                if self.sock is None:
                    self.connect()
                if exchange is not None:
                    exchange.sent, exchange.phase = True, "sending"
                super().send(b"".join(held))  # its timeout, which the deadline has capped, is for all of it
        except OSError as exc:
            self._note_whether_stale(exc)
            raise

    def putheader(self, header: Any, *values: Any) -> None:
        """Adds a field to the head of the request, as the base class does."""
        line = None
        if self._writes_lines and len(values) == 1 and type(header) is type(values[0]) is str:
            line = plain_line(header, values[0])
        if line is None:
            super().putheader(header, *values)
        else:
            self._buffer.append(line)  # type: ignore[attr-defined]

    def send(self, data: Any) -> None:
        if self._held is not None and isinstance(data, bytes):
            self._held.append(data)
            return
        if self.sock is None and self.auto_open:
            self.connect()
        if self.exchange is not None:
            self.exchange.sent = True
            self.exchange.phase = "sending"
        super().send(data)

    def response_class(self, *args: Any, **kwargs: Any) -> Reply:  # type: ignore[override]
        """Makes the reply to the newest request; http.client calls it as it would a class."""
        self.reply = Reply(*args, **kwargs)
        self.reply.acknowledged_before = self._acknowledged_before
        return self.reply

    def getresponse(self) -> Any:
        if self.exchange is None:
            return super().getresponse()
        self.exchange.phase = "waiting"
        try:
            response = super().getresponse()
            if response.status == http.HTTPStatus.REQUEST_TIMEOUT:
                self._check_whose_timeout()
            return response
        except Exception as exc:
            if isinstance(exc, OSError):
                self._note_whether_stale(exc)
            if self.reply is not None:
                self.reply.close()  # or its stream keeps the socket open when the connection is closed
            raise

    def _check_whose_timeout(self) -> None:
        """A server says 408 when it gives a connection up as idle, too, and that crosses the request on its way.

        RFC 9110, section 15.5.9, has the request repeated on a new connection.
        """
        if self.reply is None or not self._is_reused or not self._is_soon():
            return
        self.reply.is_early = True
        self.trust.since = self._asked_at
        raise ConnectionResetError("the server gave the connection up before the request had arrived")

    def _is_soon(self) -> bool:
        """Whether the request was sent only a round trip ago."""
        return time.monotonic() - self._asked_at < _IDLE_CLOSE_WITHIN_S

    def _note_whether_stale(self, exc: OSError) -> None:
        """Notes whether the connection had ended before the server could read this request."""
        exchange, reply = self.exchange, self.reply
        if exchange is None or not self._is_reused:
            return
        if reply is not None and reply.is_early:
            exchange.stale = True
            return
        if reply is not None and reply.has_begun:
            return
        is_lost = has_unacknowledged(self.inner) if reply is None else reply.is_lost
        if is_lost and time.monotonic() - self._asked_at > _LOST_AFTER_S:
            exchange.stale = True
            self.trust.since = self._asked_at
        elif isinstance(exc, (ConnectionError, ssl.SSLError)):
            exchange.stale = self._is_soon()

    def close(self) -> None:
        self._used = False
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


class _Idle:
    """The idle connections of a pool that never blocks, in place of urllib3's queue.LifoQueue: a list needs no lock.

    Threads: any.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._connections: list[Any] = []

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes one; raises queue.Empty at once if there is none."""
        try:
            return self._connections.pop()
        except IndexError:
            raise queue.Empty from None

    def put(self, conn: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds one; raises queue.Full at once if there are enough."""
        if len(self._connections) >= self._maxsize > 0:
            raise queue.Full
        self._connections.append(conn)

    def qsize(self) -> int:
        """Returns how many there are."""
        return len(self._connections)


class _WatchedPool(HTTPConnectionPool):
    """Gives a connection back to everybody only after its exchange has let go of it, and only in step."""

    ConnectionCls = _Watched
    QueueCls: Any = _Idle

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trust = _Trust()  # here: first connections that are made at once have the same

    def urlopen(self, *args: Any, **options: Any) -> Any:
        """Sends a request as the base class does, which copies the fields first: a dict in one step."""
        fields = options.get("headers")
        if type(fields) is CaseInsensitiveDict and not self.proxy_headers:
            options["headers"] = dict(fields._store.values())  # type: ignore[attr-defined]
        return super().urlopen(*args, **options)

    def _new_conn(self) -> Any:
        conn: Any = super()._new_conn()
        conn.trust = self._trust
        return conn

    def _put_conn(self, conn: Any) -> None:
        exchange = getattr(conn, "exchange", None)
        if exchange is not None:
            conn.exchange = None
            conn.idle_since = time.monotonic()
            is_ours = exchange.unregister(conn.inner)
            if conn.sock is not None and not (is_ours and conn.reply.in_step and not _pending(conn.sock)):
                conn.close()
        super()._put_conn(conn)


class _WatchedTLSPool(_WatchedPool, HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


POOL_CLASSES = {"http": _WatchedPool, "https": _WatchedTLSPool}


def _pending(sock: Any) -> int:
    """How many bytes TLS has read from the socket and decrypted, and nobody has asked for."""
    pending = getattr(sock, "pending", None)
    return 0 if pending is None else int(pending())


def _connect(
    exchange: Exchange, host: str, port: int, timeout_s: float | None, source: Any, options: Any
) -> socket.socket:
    """A connected socket to the first address of the host that takes one, as socket.create_connection.

    That one cannot be ended from outside: its socket is nobody's before it is connected.
    """
    try:
        host.encode("idna")
    except UnicodeError:
        raise LocationParseError(f"{host!r}, label empty or too long") from None
    error: OSError = OSError(f"the lookup of {host} gave no address")
    for *kind, _, address in socket.getaddrinfo(
        host.strip("[]"), port, connection.allowed_gai_family(), socket.SOCK_STREAM
    ):
        try:
            return _connect_to(exchange, kind, address, timeout_s, source, options)
        except OSError as exc:
            error = exc
            if exchange.aborted is not None:
                break
    raise error


def _connect_to(
    exchange: Exchange, kind: list[Any], address: Any, timeout_s: float | None, source: Any, options: Any
) -> socket.socket:
    sock = WatchedSocket(*kind)
    try:
        _set_options(sock, options)
        if source:
            sock.bind(source)
        sock.setblocking(False)
        code = sock.connect_ex(address)
        # After connect_ex: a shutdown of a socket that does not connect yet would have no effect.
        exchange.register(sock)
        if code == errno.EINPROGRESS:
            if not waiting.writable(sock, exchange.capped(timeout_s)):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            exchange.register(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        sock.settimeout(exchange.capped(timeout_s))
        return sock
    except BaseException:  # the call's end, too, which its client cannot catch
        sock.close()
        raise


def _set_options(sock: socket.socket, options: Any) -> None:
    for option in SOCKET_OPTIONS:
        with suppress(OSError):  # a kernel, or a kind of socket, that does not know it does without
            sock.setsockopt(*option)
    for option in options or ():
        sock.setsockopt(*option)
