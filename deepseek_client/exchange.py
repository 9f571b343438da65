"""What one attempt of a blocking method did on the wire."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Exchange", "current"]

_current: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("llm_exchange", default=None)


def current() -> Exchange | None:
    """The exchange that the running code belongs to; None outside of a call."""
    return _current.get()


class Exchange:
    """Runs one method of a client and keeps what the transport saw meanwhile.

    A client may swallow its failures, so the outcome is read from here: calling the exchange never raises what
    the method raised. When the method sends several requests (a redirect, a retry of its own) the last one counts.

    Args:
        method: the method's name.
        function: the method itself, bound to its client.
        record: False keeps the outcome only and lets the transport see nothing.

    Attributes:
        result: what the method returned, None before that.
        raised: what the method raised, None if nothing.
        began: moment on `time.monotonic()` at which a thread began to run it, None before that.
        ended: moment at which it ended, None before that.
        requests: HTTP requests that the method began.
        status: the reply's HTTP status, None while there is none.
        retry_after: the reply's Retry-After header as it came.
        body: the reply's whole body, None while it is not complete (or when the client streams it).
        error: what broke the last request, None if nothing.

    Threads: one thread runs it; any thread may read the attributes after it ended.
    """

    def __init__(self, method: str, function: Callable[..., Any], *, record: bool = True) -> None:
        self.method = method
        self._function = function
        self._record = record
        self.result: Any = None
        self.raised: Exception | None = None
        self.began: float | None = None
        self.ended: float | None = None
        self.requests = 0
        self._forget_reply()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Runs the method in this thread and keeps its outcome."""
        token = _current.set(self if self._record else None)
        self.began = time.monotonic()
        try:
            self.result = self._function(*args, **kwargs)
        except Exception as exc:
            self.raised = exc
        finally:
            self.ended = time.monotonic()
            _current.reset(token)

    def begin_request(self) -> None:
        """A further request starts: what was known of an earlier one no longer counts."""
        self.requests += 1
        self._forget_reply()

    def _forget_reply(self) -> None:
        self.status: int | None = None
        self.retry_after: str | None = None
        self.body: bytes | None = None
        self.error: Exception | None = None
