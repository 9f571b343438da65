"""What one attempt did on the wire, and how to end it from outside."""

from __future__ import annotations

import contextvars
import functools
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from . import blocked, greenlets, waiting, watchdog
from .watch import Watch, numbers_of_watched_sockets, socket_lock, watch_of, watch_of_locked

if TYPE_CHECKING:
    import requests

    from .redirects import Redirect

__all__ = ["UNCAPPED", "Exchange", "Interrupted", "Rules", "current"]

_current: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("llm_exchange", default=None)
current = _current.get
"""The exchange that the running code belongs to; None outside of a call."""


greenlets.refuse_eventlet()  # whose sockets have not even what the next line asks for

_shut_down: Any = (
    socket.socket.shutdown
)  # of the base class: SSLSocket's drops its TLS state under the reader

UNCAPPED = object()
"""What `Exchange.cap_timeout` gives for a timeout that it left as it was."""

# Setting a timeout is a system call. One that passes the deadline by no more than this is left.
_TOLERANCE_S = 0.01
_AT_ONCE_S = 0.001  # 0 would mean "do not block"

# How often a client may catch its end and go on, before it gets what cannot be caught.
_CATCHES = 10


class Interrupted(BaseException):
    """Ends the method of an aborted call. Private, and no Exception, so that no client catches it and tries again."""


class Rules(NamedTuple):
    """What holds for the requests of one kind of client; without any, all is as `requests` does it.

    Attributes:
        rewrite: makes another request of each one that is about to leave; None sends it as it is.
        reply_limit_bytes: of a whole reply, decompressed; None for no limit.
        stays_at_origin: no body is sent to another origin than the client asked for, wherever a redirect leads.
        may_catch_end: an abort comes to the client as an OSError, of which it may make what it likes; False: as an
            Interrupted, which passes it by.
    """

    rewrite: Callable[[requests.PreparedRequest], requests.PreparedRequest] | None = None
    reply_limit_bytes: int | None = None
    stays_at_origin: bool = False
    may_catch_end: bool = True


class Exchange:
    """What the wire saw while a client's method ran, in `with exchange:` on one thread.

    A client may swallow its failures, so their truth is kept here. When the method sends several requests (a
    redirect, a retry of its own) the last one counts.

    Args:
        deadline: moment on `time.monotonic()` that caps the client's timeouts; None for no cap.
        read_timeout_s: replaces the client's own timeout for each read; None leaves it.
        rules: what holds for its requests.
        is_seen: False lets the wire see nothing of it, nor end it.
        keeps_deadline: its sockets keep the deadline, by their timeouts; False if somebody aborts it then.

    Attributes:
        client, method: whose it is, for a warning.
        on_abort: called once when a running one is aborted, after its sockets were shut down; must not block.
        ended: moment on `time.monotonic()` at which the method ended, None before that.
        aborted: the reason of the first abort, None without one.
        overruled_timeout_s: the client's own read timeout, if the deadline comes before it.
        requests: HTTP requests that the method began.
        path: that of the last request's URL.
        sent: whether a byte of the last request may have left this machine.
        response: the last reply, None while there is none; its body is read unless the client streams it.
        body: the reply's whole body, None while it is not complete (or when the client streams it).
        error: what broke the last request, None if nothing.
        swallowed: what the client itself told of its failure, if the wire saw no request; None if nothing.
        stale: whether the server had closed the kept connection before it read the request.
        redirect: where the last reply that was a redirect sent its request, None without one.
        phase: where the last request is, or broke: "connecting", "sending", "waiting", "reading" or "done".

    Threads: one thread runs the method. `abort` may be called from any other, at any time; the attributes may be
        read by any thread after it ended.
    """

    # Of the last request; there was none.
    path = ""
    sent = stale = False
    phase = "connecting"
    response: requests.Response | None = None
    body: bytes | None = None
    error: Exception | None = None
    swallowed: Exception | None = None

    client: Any = None
    method = ""
    on_abort: Callable[[], None] | None = None
    thread_id = 0  # of the thread that runs the method, as threading.get_ident() gives it; 0 before that
    waiter: waiting.Waiter | None = None  # by which the method waits, if it runs on an event loop
    _greenlet: greenlets.Greenlet | None = None  # of gevent's, if one runs the method
    _interruptions = 0
    _woken: threading.Event | None = None  # ends a sleep of the method; guarded by socket_lock
    _sleeper: waiting.Waiter | None = None  # by which it sleeps on an event loop; guarded by socket_lock

    def __init__(
        self,
        deadline: float | None = None,
        read_timeout_s: float | None = None,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        *,
        is_seen: bool = True,
        keeps_deadline: bool = True,
    ) -> None:
        self._is_seen = is_seen
        self.keeps_deadline = keeps_deadline and is_seen and deadline is not None
        self.own_deadline = math.inf if deadline is None or not self.keeps_deadline else deadline
        self.deadline = deadline
        self.read_timeout_s = read_timeout_s
        self.rules = rules
        self.ended: float | None = None
        self.overruled_timeout_s: float | None = None
        self.requests = 0
        self.redirect: Redirect | None = None
        self.aborted: str | None = None  # guarded by socket_lock
        self.sockets: dict[socket.socket, Watch] = {}  # changed under socket_lock; what the method has used

    def __enter__(self) -> Exchange:
        self.thread_id = threading.get_ident()
        self.waiter = waiting.current()
        if greenlets.are_in_use():
            self._greenlet = greenlets.current()
            if self._greenlet is not None and self.own_deadline < math.inf:
                left_s = self.own_deadline - time.monotonic()
                self._greenlet.call_later(left_s, functools.partial(self.abort, "deadline"))
        self._token = _current.set(self if self._is_seen else None)
        if self.aborted is not None:  # just now: `abort` may have found no thread to end
            self._chase()
        return self

    def __exit__(self, *exc_info: object) -> None:
        _current.reset(self._token)
        del self._token  # it holds the context, and that the call: a cycle, which would keep the prompt
        if self._greenlet is not None:
            self._greenlet.leave()
        with socket_lock:
            self.ended = time.monotonic()
            for sock, watch in self.sockets.items():
                watch.remove_locked(self)
                watch.let_block_locked(sock)
            self.sockets.clear()

    @contextmanager
    def left(self) -> Iterator[None]:
        """In the block its thread does something else, and what that blocks on is not the method's to end."""
        self.thread_id = 0
        try:
            yield
        finally:
            self.thread_id = threading.get_ident()

    @property
    def status(self) -> int | None:
        """The reply's HTTP status, None while there is none."""
        return None if self.response is None else self.response.status_code

    def is_late(self) -> bool:
        """Whether the method ended when its time was over: whatever broke then broke by the deadline."""
        return self.deadline is not None and (self.ended or 0) >= self.deadline

    def abort(self, reason: str) -> None:
        """Ends the call: what its thread is blocked on, connecting to reading, fails within milliseconds.

        A name lookup, a lock and whatever else is no socket are not reached; the call then ends at its next use of a
        socket. A connection that only this call uses is not used again. A call that has ended is not touched.

        Args:
            reason: "deadline", "cancelled" or "closing"; the first one is kept.
        """
        with socket_lock:
            if self.aborted is not None or self.ended is not None:
                return
            self.aborted = reason
            self._shut_down_locked()
            if self._woken is not None:
                self._woken.set()
            sleeper = self._sleeper
        if sleeper is not None:
            sleeper.wake()
        if self.thread_id:
            self._chase()

    def _chase(self) -> None:
        watchdog.chase(self)
        on_abort, self.on_abort = self.on_abort, None
        if on_abort is not None:
            on_abort()

    def end_again(self) -> None:
        """Ends what an aborted call's thread blocks on by now: it may have begun to connect, or be in a C library."""
        if not self._is_seen:
            return
        with socket_lock:
            self._shut_down_locked()
            known = numbers_of_watched_sockets()
        if self.waiter is not None:  # its thread is an event loop's, and waits for everybody's connections
            return
        if self._greenlet is not None:
            self._greenlet.end(self._interruption_at_work)
            return
        thread_id = self.thread_id
        blocked.end(thread_id, known, lambda: self.ended is None and self.thread_id == thread_id)

    def _interruption_at_work(self) -> BaseException | None:
        return self.interruption() if self.ended is None and self.thread_id else None

    def _shut_down_locked(self) -> None:
        for sock, watch in self.sockets.items():
            if watch.may_be_ended_locked(self):
                with suppress(OSError):  # closed, or not connected yet: `end_again` comes back to it
                    _shut_down(sock, socket.SHUT_RDWR)

    def begin_request(self, path: str) -> None:
        """A further request starts: what was known of an earlier one no longer counts.

        Args:
            path: that of its URL.
        """
        self.requests += 1
        self.path = path
        self.sent = self.stale = False
        self.phase = "connecting"
        self.response = self.body = self.error = None

    def register(self, sock: socket.socket, *, reads: bool = True) -> Watch | None:
        """The thread may block on this socket from now on, until `unregister`; None if the exchange has ended.

        Args:
            reads: False if it is about to write: on a connection that other calls share, half a message would break
                theirs, so it is let through.

        Raises:
            ConnectionAbortedError, Interrupted: the exchange was aborted.
        """
        with socket_lock:
            if self.ended is not None:  # a thread that its client has started goes on
                return None
            watch = watch_of(sock)
            is_shared = watch is not None and bool(watch.sharers)
            if self.aborted is not None and (reads or not is_shared):
                raise self.interruption()
            if watch is None:
                watch = watch_of_locked(sock)
            if watch.owner is None and not watch.sharers:
                watch.owner, watch.is_busy = self, False
            else:
                watch.add_locked(self, goes_on_reading=reads and sock in self.sockets)
            self.sockets[sock] = watch
            return watch

    def unregister(self, sock: socket.socket | None) -> bool:
        """The thread is done with the socket; False if an abort has shut it."""
        with socket_lock:
            watch = None if sock is None else self.sockets.pop(sock, None)
            if sock is not None and watch is not None:
                if watch.owner is self:
                    watch.owner = None
                else:
                    watch.remove_locked(self)
                watch.let_block_locked(sock)
            return self.aborted is None

    def interruption(self) -> BaseException:
        """What is raised in the thread of an exchange that was aborted."""
        self._interruptions += 1
        text = f"the call was aborted ({self.aborted})"
        if self.rules.may_catch_end and self._interruptions <= _CATCHES:
            return ConnectionAbortedError(text)
        return Interrupted(text)

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

    def cap_timeout(self, sock: socket.socket) -> Any:
        """The thread is about to block on the socket: no longer than to the deadline, however it drips.

        When that has passed, the exchange ends: the socket is shut down, or does not connect in time.

        Returns:
            The socket's own timeout, if it was another one; UNCAPPED if it stays.
        """
        left_s, timeout_s = self.own_deadline - time.monotonic(), sock.gettimeout()
        if left_s <= 0:
            self.end_if_late()
            left_s = _AT_ONCE_S
        if timeout_s is not None and timeout_s <= left_s + _TOLERANCE_S:
            return UNCAPPED
        sock.settimeout(left_s)
        return timeout_s

    def end_if_late(self) -> None:
        """Aborts itself, in its own thread, if its deadline has passed."""
        if time.monotonic() < self.own_deadline:
            return
        with socket_lock:
            if self.aborted is None:
                self.aborted = "deadline"
                self._shut_down_locked()

    def sleep(self, seconds: float, sleep: Callable[[float], None]) -> None:
        """Sleeps for the method, until an abort.

        Args:
            sleep: what to do it with once the exchange has ended.

        Raises:
            Interrupted: the exchange was aborted. A client that may catch its end just wakes early.
        """
        waiter = waiting.current()
        with socket_lock:
            if self._woken is None:
                self._woken = threading.Event()
            if self.aborted is not None:
                self._woken.set()
            else:
                self._sleeper = waiter
        if self.ended is not None:
            sleep(seconds)
            return
        seconds = min(seconds, max(0.0, self.own_deadline - time.monotonic()))
        try:
            if waiter is None:
                self._woken.wait(min(seconds, threading.TIMEOUT_MAX))
            elif self.aborted is None:
                waiter.sleep(seconds)
        finally:
            with socket_lock:
                self._sleeper = None
        self.end_if_late()
        if self.aborted is not None:
            interruption = self.interruption()
            if isinstance(interruption, Interrupted):
                raise interruption
