"""A reply as it comes over a shared connection: read past what is not the answer, and known to be the whole of it."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .exchange import Exchange
from .heads import plain_head
from .tcp import acknowledged_bytes, has_unacknowledged

__all__ = ["Reply", "watched"]

_LONGEST_LINE = 65536
_BODILESS = (http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED)
_SHOWN_CHARS = 200  # of a line that is no status line, in an error


class _Nothing:
    """Stands in for a reply's socket while its buffer is looked into."""

    def recv_into(self, buffer: Any) -> int:
        return 0


_NOTHING = _Nothing()


class Reply(http.client.HTTPResponse):
    """A reply that is not taken for another one's.

    Attributes:
        has_begun: a byte of it has come.
        is_lost: none has come, and the request, or a part of it, was never acknowledged.
        acknowledged_before: bytes that the server had acknowledged when the request began, None if it does not matter.
        is_early: what has come was sent before the server had a byte of the request, so it is no reply to it.
        in_step: it has been read to its end and nothing came behind it, so the connection may carry another request.

    Threads: one at a time, as its connection.
    """

    has_begun = False
    is_lost = False
    is_early = False
    acknowledged_before: int | None = None
    in_step = False
    _status_line: Any = None  # if it was read already

    def begin(self, **limits: Any) -> None:
        """Reads the head, as the base class does; since Python 3.15 that takes a limit of fields."""
        headers: Any = self.headers
        if headers is None and not self.debuglevel and not any(limits.values()):
            self._status_line = self._read_status()
            if self._begin_plainly(*self._status_line):
                return
        super().begin(**limits)

    def _begin_plainly(self, version: str, status: int, reason: str) -> bool:
        """Takes a usual head in one piece from what has come; False leaves all of it to the base class."""
        method = self._method  # type: ignore[attr-defined]
        if version != "HTTP/1.1" or method == "HEAD" or not 200 <= status < 600 or status in _BODILESS:
            return False
        head = plain_head(self.fp.peek(1))
        if head is None:
            return False
        self.fp.read(head.size_bytes)
        self._status_line = None
        self.version, self.code, self.status, self.reason = 11, status, status, reason.strip()
        self.headers = self.msg = head.fields
        self.chunked, self.will_close, self.length = head.is_chunked, head.closes, head.length_bytes
        if head.is_chunked:
            self.chunk_left = None
        return True

    def _read_status(self) -> Any:
        """The final reply's status line; interim ones, of which http.client knows 100 alone, are read past."""
        if self._status_line is not None:
            line, self._status_line = self._status_line, None
            return line
        while True:
            try:
                begin = self.fp.peek(1)
                if begin and not self.has_begun:
                    self._check_whose()
                if begin[:1] in (b"\r", b"\n"):
                    self._skip_blank_line()
                    continue
                line = super()._read_status()  # type: ignore[misc]
            except OSError:
                # Asked now: http.client closes the socket next. Over TLS the kernel's timeout may look like a mere end.
                self.is_lost = not self.has_begun and has_unacknowledged(self._socket())
                raise
            except http.client.BadStatusLine as exc:
                raise http.client.BadStatusLine(str(exc)[:_SHOWN_CHARS]) from None
            if not 100 <= line[1] < 200 or line[1] == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return line
            self._skip_fields()

    def _skip_blank_line(self) -> None:
        """Some servers end a body by one more, which may arrive after the next request."""
        line = self.fp.readline(_LONGEST_LINE + 1)
        if line.strip(b"\r\n"):
            raise http.client.BadStatusLine(str(line[:_SHOWN_CHARS], "latin-1"))

    def _check_whose(self) -> None:
        if self.acknowledged_before is not None:
            acknowledged = acknowledged_bytes(self._socket())
            self.is_early = acknowledged is not None and acknowledged <= self.acknowledged_before
            if self.is_early:
                raise ConnectionResetError("a reply came before its request had arrived")
        self.has_begun = True

    def _socket(self) -> Any:
        stream: Any = self.fp
        return _plain(stream.raw._sock)

    def _skip_fields(self) -> None:
        while True:
            line = self.fp.readline(_LONGEST_LINE + 1)
            if len(line) > _LONGEST_LINE:
                raise http.client.LineTooLong("header line")
            if line in (b"\r\n", b"\n", b""):
                return

    def _close_conn(self) -> None:
        # Called at the end of the body, and when something breaks.
        if self.chunked is True:
            # With a length besides, two readers of this reply may see two ends of it (RFC 9112, section 6.3).
            is_whole = "content-length" not in self.headers
        else:
            is_whole = self.length == 0 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS
        self.in_step = is_whole and not _has_buffered(self.fp)
        super()._close_conn()  # type: ignore[misc]


def _has_buffered(stream: Any) -> bool:
    """Whether the buffered stream of a socket holds bytes that nobody has read; reads nothing from the socket."""
    raw = stream.raw
    sock, raw._sock = raw._sock, _NOTHING
    try:
        return bool(stream.peek(1))
    except OSError:  # after a timeout it reads no more: it holds nothing, or it had not tried
        return False
    finally:
        raw._sock = sock


@contextmanager
def watched(exchange: Exchange, response: Any) -> Iterator[None]:
    """Inside, reading a response over a connection of another's ends at the deadline, in its caller's own thread, too.

    The connection's socket may be of a class that is not watched, such as pyOpenSSL's. Nothing is done without one:
    a mock's response comes from nowhere.
    """
    if not exchange.keeps_deadline:
        yield
        return
    stream = getattr(getattr(response.raw, "_original_response", None), "fp", None)
    connection = getattr(response.raw, "_connection", None)
    sock: Any = getattr(getattr(stream, "raw", None), "_sock", None) or getattr(connection, "sock", None)
    if sock is None:
        yield
        return
    sock = _plain(sock)
    exchange.register(sock)
    left_s = max(0.0, exchange.own_deadline - time.monotonic())
    timer = threading.Timer(left_s, exchange.abort, ("deadline",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        exchange.unregister(sock)


def _plain(sock: Any) -> Any:
    """The system's socket: that of pyOpenSSL, and that of TLS inside of TLS, lies around it."""
    return getattr(sock, "socket", sock)
