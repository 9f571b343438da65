"""What one attempt of a blocking method did on the wire, and how to end it from outside."""

from __future__ import annotations

import contextvars
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["DeadlineSocket", "Exchange", "current"]

_current: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("llm_exchange", default=None)


def current() -> Exchange | None:
    """The exchange that the running code belongs to; None outside of a call."""
    return _current.get()


class Exchange:
    """Runs one method of a client and keeps what the transport saw meanwhile.

    A client may swallow its failures, so `judge` reads the outcome from here. When the method sends several
    requests (a redirect, a retry of its own) the last one counts.

    Args:
        method: the method's name.
        function: the method itself with its arguments bound.
        judge: called with this exchange in its thread after the method ended; what it returns or raises is the
            outcome.
        record: False keeps the outcome only and lets the transport see nothing.
        deadline: moment on `time.monotonic()` that caps the client's timeouts; None for no cap.
        read_timeout_s: replaces the client's own timeout for each read; None leaves it.
        before: called in the thread right before the method; what it raises is the outcome, and nothing was run.

    Attributes:
        result: what the method returned, None before that.
        raised: what the method raised, None if nothing.
        began: moment on `time.monotonic()` at which a thread began to run it, None before that.
        ended: moment at which it ended, None before that.
        aborted: the reason of the first abort, None without one.
        requests: HTTP requests that the method began.
        path: that of the last request's URL.
        sent: whether a byte of the last request may have left this machine.
        status: the reply's HTTP status, None while there is none.
        retry_after: the reply's Retry-After header as it came.
        body: the reply's whole body, None while it is not complete (or when the client streams it).
        error: what broke the last request, None if nothing.
        usage: the reply's token counts as the API names them, once a judge has read them.
        phase: where the last request is, or broke: "connecting", "sending", "waiting", "reading" or "done".

    Threads: one thread runs it. `abort` may be called from any other, at any time; the attributes may be read by
        any thread after it ended.
    """

    def __init__(
        self,
        method: str,
        function: Callable[[], Any],
        judge: Callable[[Exchange], Any],
        *,
        record: bool = True,
        deadline: float | None = None,
        read_timeout_s: float | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.method = method
        self.read_timeout_s = read_timeout_s
        self.deadline = deadline
        self._function = function
        self._judge = judge
        self._record = record
        self._before = before
        self.result: Any = None
        self.raised: Exception | None = None
        self.began: float | None = None
        self.ended: float | None = None
        self._lock = threading.Lock()
        self.aborted: str | None = None  # guarded by _lock
        self._sockets: set[socket.socket] = set()  # guarded by _lock; what the thread may be blocked on
        self.requests = 0
        self.usage: dict[str, Any] = {}
        self._forget_request()

    def __call__(self) -> Any:
        """Runs the method in this thread, unless it was aborted before; returns or raises what the judge does."""
        if self._before is not None:
            self._before()
        if self.aborted is None:
            self._run()
        return self._judge(self)

    def _run(self) -> None:
        token = _current.set(self if self._record else None)
        self.began = time.monotonic()
        try:
            self.result = self._function()
        except Exception as exc:
            self.raised = exc
        finally:
            _current.reset(token)
            with self._lock:
                self.ended = time.monotonic()
                self._sockets.clear()

    def abort(self, reason: str) -> None:
        """Ends the call: what its thread is blocked on, connecting to reading, fails within milliseconds.

        A name lookup is not reached; the call then fails right after it. The connection is not used again. A call
        that has ended is not touched.

        Args:
            reason: "deadline", "cancelled" or "closing"; the first one is kept.
        """
        with self._lock:
            if self.aborted is not None or self.ended is not None:
                return
            self.aborted = reason
            for sock in self._sockets:
                try:
                    # The method of the base class: SSLSocket's own would drop its TLS state under the reader.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:  # closed or not yet connected: its thread will ask `block_on` and learn it
                    pass

    def begin_request(self, path: str) -> None:
        """A further request starts: what was known of an earlier one no longer counts.

        Args:
            path: that of its URL.
        """
        self.requests += 1
        self._forget_request()
        self.path = path

    def block_on(self, sock: socket.socket) -> None:
        """The thread may block on this socket from now on, until `let_go` of it.

        Raises:
            ConnectionAbortedError: the exchange was aborted.
        """
        with self._lock:
            if self.aborted is not None:
                raise ConnectionAbortedError(f"the call was aborted ({self.aborted})")
            self._sockets.add(sock)

    def let_go(self, sock: socket.socket | None) -> bool:
        """The thread is done with the socket; False if an abort has shut it."""
        with self._lock:
            if sock is not None:
                self._sockets.discard(sock)
            return self.aborted is None

    def capped(self, timeout_s: float | None) -> float | None:
        """The timeout, or less if the deadline comes first.

        Raises:
            TimeoutError: the deadline has passed.
        """
        if self.deadline is None:
            return timeout_s
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the call's deadline has passed")
        return left_s if timeout_s is None or timeout_s > left_s else timeout_s

    def keep_deadline(self, sock: socket.socket) -> None:
        """The thread is about to block: no longer than to the deadline, however often the peer moves a little.

        Raises:
            TimeoutError: the deadline has passed.
        """
        timeout_s = sock.gettimeout()
        if (capped_s := self.capped(timeout_s)) != timeout_s:
            sock.settimeout(capped_s)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Keeps `abort` away while a socket is closed: its number may be another connection's a moment later."""
        with self._lock:
            yield

    def _forget_request(self) -> None:
        self.path = ""
        self.sent = False
        self.stale = False  # the server had closed the kept connection before it read the request
        self.phase = "connecting"
        self.status: int | None = None
        self.retry_after: str | None = None
        self.body: bytes | None = None
        self.error: Exception | None = None


class DeadlineSocket(socket.socket):
    """A socket whose reads keep the deadline of the exchange that their thread is in, if it is in one.

    The timeout of `requests` begins anew with each byte that drips. Also a base of TLS sockets.

    Threads: as any socket.
    """

    def recv_into(self, *args: Any) -> int:
        """Reads as the base class does, no longer than to the deadline."""
        self._keep_deadline()
        return super().recv_into(*args)

    def recv(self, *args: Any) -> bytes:
        """Reads as the base class does, no longer than to the deadline."""
        self._keep_deadline()
        return super().recv(*args)

    def settimeout(self, value: float | None) -> None:
        """Sets the timeout, in seconds, if it is another one than before."""
        # urllib3 sets the same one several times in a call; each is a system call that gives the GIL away.
        if value != self.gettimeout():
            super().settimeout(value)

    def _keep_deadline(self) -> None:
        exchange = current()
        if exchange is not None:
            exchange.keep_deadline(self)
