"""What a request was before it came to the application: how long it has waited, and whether its caller is still there.

Before the pool's queue there are others that nobody bounds: the kernel's backlog, and that for a server's threads.
Linux knows when the last byte of a connection came in, so this wait counts towards the deadline of each call that the
request makes. A request to which it leaves less time than a call needs is refused when it makes one, and so is one
whose caller has closed the connection. A request that makes no call is served as ever.

A caller that closes only its sending side counts as one that has left, as it does for nginx. Where a server hands the
application no socket (waitress, uWSGI) nothing is known; behind a unix socket, and on other systems, the wait is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from flask import Flask, g, has_request_context, request, request_started, request_tearing_down

from ..calls.call import Attempt, Call
from ..calls.options import current_request, set_request
from ..errors import CallerLeft, DeadlineExceeded, Overloaded
from ..wire import tcp

__all__ = ["init_app", "mark_requests", "seconds_queued", "served_socket", "socket_of"]

_PACE_CALLS = 10
_QUEUED_S = (
    "deepseek_client.queued_s"  # in a request's environ: the bounds of its calls and the metrics both ask
)
_IS_SERVED = "deepseek_client.is_served"  # in a request's environ, for as long as Flask serves the request


def init_app(app: Flask, limit_s: float) -> None:
    """Bounds the calls of each request by how it has arrived.

    Args:
        limit_s: LLM_DEADLINE_S.
    """
    arrivals = _Arrivals(limit_s)
    request_started.connect(arrivals.begin, app, weak=False)
    request_tearing_down.connect(arrivals.end, app, weak=False)


def mark_requests(app: Flask) -> None:
    """Lets `served_socket` tell a request that Flask serves from a context that others have made."""
    request_started.connect(_mark, app)
    request_tearing_down.connect(_unmark, app)


def _mark(_: Flask, **__: Any) -> None:
    request.environ[_IS_SERVED] = True


def _unmark(_: Flask, **__: Any) -> None:
    request.environ.pop(_IS_SERVED, None)


def served_socket() -> Any:
    """The socket of the request that Flask serves here; None outside of one, and where the server does not show it.

    Flask-SocketIO handles an event in the context of the request that had opened the session. That request has long
    been answered: its socket is closed, or has another request, and tells nothing of who waits for the event.
    """
    is_served = has_request_context() and _IS_SERVED in request.environ
    return socket_of(request.environ) if is_served else None


def seconds_queued(environ: dict[str, Any]) -> float | None:
    """How long a request has waited for its server, asked of the kernel once; None where nobody knows.

    Ask before the body is read: one that comes later than the head begins the wait anew.
    """
    if _QUEUED_S not in environ:
        sock = socket_of(environ)
        environ[_QUEUED_S] = None if sock is None else tcp.seconds_since_received(sock)
    seconds: float | None = environ[_QUEUED_S]
    return seconds


def socket_of(environ: Mapping[str, Any]) -> Any:
    """The socket that the server has the request from; None where it does not show it."""
    return environ.get("gunicorn.socket", environ.get("werkzeug.socket"))


class _Arrivals:
    """Makes the arrival of each request known to the calls that it makes.

    Attributes:
        limit_s: what a request may take from its arrival to the end of a call.

    Threads: any.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._ran_s: deque[float] = deque(maxlen=_PACE_CALLS)  # changed in one step each: needs no lock

    def needed_s(self) -> float:
        """How long a call takes, by the last ones; half of the limit if that is less, or while nothing is known."""
        ran_s = self._ran_s.copy()
        half_s = self.limit_s / 2  # calls that all met their deadline must not have every request refused
        return min(sum(ran_s) / len(ran_s), half_s) if ran_s else half_s

    def note(self, call: Call, error: BaseException | None) -> None:
        """A call has ended. How soon it has failed does not tell how long one takes, unless its time was over."""
        if call.attempts and (error is None or isinstance(error, DeadlineExceeded)):
            self._ran_s.append(call.ran_s)

    def begin(self, _: Flask, **__: Any) -> None:
        """A request begins, in the thread that serves it."""
        sock = socket_of(request.environ)
        if sock is not None:
            arrival = _Arrival(self, sock, seconds_queued(request.environ) or 0.0)
            g._deepseek_arrival = arrival, current_request()
            set_request(arrival)

    def end(self, _: Flask, **__: Any) -> None:
        """A request is over."""
        arrival, former = g.pop("_deepseek_arrival", (None, None))
        if arrival is not None:
            arrival.end()
            set_request(former)


class _Arrival:
    """The running request, as its calls see it.

    Threads: any; asks the kernel, and waits for nothing.
    """

    def __init__(self, arrivals: _Arrivals, sock: Any, queued_s: float) -> None:
        self._arrivals = arrivals
        self._sock = sock  # None once the request is over
        self._queued_s = queued_s

    def end(self) -> None:
        """The request is over: calls of work that it has left behind are no longer made for its caller."""
        self._sock, self._queued_s = None, 0.0

    def seconds_left(self, deadline_s: float) -> float:
        """What is left of a call's deadline; one below the limit is cut only when the limit comes before it."""
        return min(deadline_s, max(deadline_s, self._arrivals.limit_s) - self._queued_s)

    def admit(self, call: Call) -> None:
        """Lets a call begin.

        Raises:
            Overloaded: the request has waited for so long that a call has not the time that it needs. Nothing was sent.
            CallerLeft: nobody waits for its answer any more. Nothing was sent.
        """
        self._check()
        # What is left of the request's time; or what the view gives this call, which may be more.
        left_s = max(self._arrivals.limit_s - self._queued_s, call.deadline - call.began)
        if left_s < self._arrivals.needed_s():
            raise Overloaded(
                f"The request had waited {self._queued_s:.1f} s for this server, too long for a call."
            )
        call.permits.append(self)

    def before_attempt(self, attempt: Attempt) -> None:
        """The call may have waited for a thread: raises CallerLeft if its caller has left meanwhile."""
        self._check()

    def after_attempt(self, error: BaseException | None) -> None:
        """Nothing is left to do."""

    def _check(self) -> None:
        sock = self._sock
        if sock is not None and tcp.has_other_end_closed(sock):
            raise CallerLeft("The caller has closed the connection.")

    def after_call(self, call: Call, error: BaseException | None) -> None:
        """The call has ended: its time is the pace of the next ones."""
        self._arrivals.note(call, error)
