"""What happened, as values: the core reports here, and metrics or logs listen.

The core knows no metrics library. A hook that raises is logged and changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AccountChanged",
    "AttemptFinished",
    "BreakerChanged",
    "CallAborted",
    "CallFinished",
    "FailureSwallowed",
    "PoolChanged",
    "RequestFinished",
    "TaskFinished",
    "TaskRequeued",
    "TaskSubmitted",
    "emit",
    "listeners",
    "subscribe",
    "unsubscribe",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallFinished:
    """One call has ended, well or badly.

    Attributes:
        method: name of the wrapped client's method, e.g. "chat".
        mode: "async" when it ran on the pool, "sync" when it ran in the caller's thread.
        waited_s: seconds in the queue, for a place of the account, and between attempts.
        ran_s: seconds in a thread, of all attempts; 0 when it never started.
        error: the error's code, None on success.
        usage: the reply's token counts as the API names them, summed over the attempts; empty when there was none.
        attempts: how often the method was run; 0 when it never started.
        note: what an operator should know besides, "" when there is nothing.
        finish_reason: why the model ended its answer, in the API's word; "" when nobody knows.
        first_chunk_s: seconds from the call's start to the first chunk of its stream; None when there was none.
    """

    method: str
    mode: str
    waited_s: float
    ran_s: float
    error: str | None
    usage: dict[str, Any]
    attempts: int
    note: str = ""
    finish_reason: str = ""
    first_chunk_s: float | None = None


@dataclass(frozen=True)
class AttemptFinished:
    """One run of the client's method has ended, or nobody waits for it any more.

    Attributes:
        method: as in CallFinished.
        error: the error's code, None on success.
        usage: the reply's token counts as the API names them; empty when there was none.
    """

    method: str
    error: str | None
    usage: dict[str, Any]


@dataclass(frozen=True)
class BreakerChanged:
    """A circuit breaker has opened, or has closed.

    Attributes:
        state: "open" or "closed".
    """

    state: str


@dataclass(frozen=True)
class FailureSwallowed:
    """A caller got a blank, or what its client gave, in place of an error.

    Attributes:
        method: as in CallFinished.
        code: the error's code.
    """

    method: str
    code: str


@dataclass(frozen=True)
class PoolChanged:
    """A pool's counts have changed by so many each; differences, so that reports may overtake each other.

    Attributes:
        workers, busy, queued: as in WorkerPool.stats.
        rejected: calls that were refused.
    """

    workers: int = 0
    busy: int = 0
    queued: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class AccountChanged:
    """The account's limit, as it concerns this process, has changed by so much, or a call has waited for its place.

    Attributes:
        limit: of the whole account, divided by the processes that share it: the sum of all is the limit.
        away: 1 when this process cannot reach the server that shares the limit, and keeps to its share; -1 when it
            can again.
        waited_s: seconds in which one attempt waited for a place.
    """

    limit: float = 0.0
    away: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True)
class CallAborted:
    """A running call is being ended from outside.

    Attributes:
        reason: "deadline", "cancelled" or "closing".
    """

    reason: str


@dataclass(frozen=True)
class RequestFinished:
    """The web server has answered a request.

    Attributes:
        method: of HTTP.
        route: its pattern, "unmatched" when none fits.
        status: of the answer.
        took_s: seconds from the request's first view function to its answer.
        queued_s: seconds before that from the last byte that the kernel had of it; None where nobody knows.
    """

    method: str
    route: str
    status: int
    took_s: float
    queued_s: float | None = None


@dataclass(frozen=True)
class TaskSubmitted:
    """Somebody has asked for a task.

    Attributes:
        outcome: "accepted", "repeated" when its key was known, or the code of the error that refused it.
    """

    outcome: str


@dataclass(frozen=True)
class TaskFinished:
    """A worker has ended a task, or has ended its work on one.

    Attributes:
        status: "completed", "failed" or "cancelled"; "dropped" when the task had been given to another run.
    """

    status: str


@dataclass(frozen=True)
class TaskRequeued:
    """A task that had neither a message nor a worker was put into the queue again."""


_Event = (
    CallFinished
    | AttemptFinished
    | BreakerChanged
    | FailureSwallowed
    | PoolChanged
    | AccountChanged
    | CallAborted
    | RequestFinished
    | TaskSubmitted
    | TaskFinished
    | TaskRequeued
)
_Hook = Callable[[Any], None]
# Replaced under _lock, never changed: emit() reads it without. Empty: a reporter need not make an event.
listeners: tuple[_Hook, ...] = ()
_lock = threading.Lock()


def subscribe(hook: _Hook) -> None:
    """Calls `hook` with each event from now on; the same hook twice counts once.

    Threads: any. The hook runs in whichever thread reports, several at once, and should not block.
    """
    global listeners
    with _lock:
        if hook not in listeners:
            listeners = (*listeners, hook)


def unsubscribe(hook: _Hook) -> None:
    """Stops calling `hook`; an unknown one is ignored.

    Threads: any.
    """
    global listeners
    with _lock:
        listeners = tuple(known for known in listeners if known != hook)


def emit(event: _Event) -> None:
    """Hands `event` to every hook. Never raises because of one.

    Threads: any.
    """
    for hook in listeners:
        try:
            hook(event)
        except Exception:  # the edge to code that is not ours
            _logger.exception("event hook %r failed", hook)
