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
    "AttemptFinished",
    "BreakerChanged",
    "CallAborted",
    "CallFinished",
    "PoolChanged",
    "RequestFinished",
    "emit",
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
        waited_s: seconds in the queue, and between attempts.
        ran_s: seconds in a thread, of all attempts; 0 when it never started.
        error: the error's code, None on success.
        usage: the reply's token counts as the API names them, summed over the attempts; empty when there was none.
        attempts: how often the method was run; 0 when it never started.
    """

    method: str
    mode: str
    waited_s: float
    ran_s: float
    error: str | None
    usage: dict[str, Any]
    attempts: int


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
    """

    method: str
    route: str
    status: int
    took_s: float


_Event = CallFinished | AttemptFinished | BreakerChanged | PoolChanged | CallAborted | RequestFinished
_Hook = Callable[[Any], None]
_hooks: tuple[_Hook, ...] = ()  # replaced under _lock, never changed: emit() reads it without
_lock = threading.Lock()


def subscribe(hook: _Hook) -> None:
    """Calls `hook` with each event from now on; the same hook twice counts once.

    Threads: any. The hook runs in whichever thread reports, several at once, and should not block.
    """
    global _hooks
    with _lock:
        if hook not in _hooks:
            _hooks = (*_hooks, hook)


def unsubscribe(hook: _Hook) -> None:
    """Stops calling `hook`; an unknown one is ignored.

    Threads: any.
    """
    global _hooks
    with _lock:
        _hooks = tuple(known for known in _hooks if known != hook)


def emit(event: _Event) -> None:
    """Hands `event` to every hook. Never raises because of one.

    Threads: any.
    """
    for hook in _hooks:
        try:
            hook(event)
        except Exception:  # the edge to code that is not ours
            _logger.exception("event hook %r failed", hook)
