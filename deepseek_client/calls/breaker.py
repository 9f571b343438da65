"""When no call is started at all: the circuit breaker."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from ..errors import (
    AuthenticationFailed,
    BadReply,
    CircuitOpen,
    ConnectionFailed,
    InsufficientBalance,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from ..events import BreakerChanged, emit

__all__ = ["Breaker"]

_logger = logging.getLogger(__name__)

_WINDOW_CALLS = 50
# Long enough for ten calls of a sync worker, one after the other, that all use up their deadline.
_WINDOW_S = 300.0
_FEWEST_CALLS = 10
# Far above a half: where one call in two is answered, users are better off with the half than with a refusal.
_OPENING_SHARE = 0.8
# Of LLM_DEADLINE_S; a call that comes so near to it holds a worker as one that hangs does.
_SLOW_SHARE = 0.8
_PAUSE_S = 10.0
_ACCOUNT_PAUSE_S = 300.0  # a person has to act: pay, or replace the key
_PROBE_LIMIT_S = 60.0

# Guards the state of all breakers, for microseconds; no call and no hook runs under it. Reentrant, because the garbage
# collector may end an abandoned call anywhere.
_lock = threading.RLock()


class Breaker:
    """Refuses calls while the API keeps failing, so that they neither hold a worker nor add to its load.

    Opens for 10 s when four fifths of the last 10 to 50 calls (of the last 5 minutes) failed on the API's side or
    took four fifths of their time, and for 5 minutes when the API refuses the key or reports an empty balance. After
    that one call goes through as a probe: an answer closes it, a failure opens it anew.

    Args:
        deadline_s: LLM_DEADLINE_S, by which a call is judged slow.
        clock: replaces `time.monotonic`.

    Threads: any.
    """

    def __init__(self, deadline_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._slow_s = _SLOW_SHARE * deadline_s
        self._clock = clock
        # When a call ended, and whether it was bad; guarded by _lock.
        self._recent: deque[tuple[float, bool]] = deque(maxlen=_WINDOW_CALLS)
        self._open_until: float | None = None  # guarded by _lock; None: closed
        self._turn = 0  # guarded by _lock; counts openings, probes and closings
        self._reason = ""  # guarded by _lock

    def refusal(self) -> CircuitOpen | None:
        """What a new call would be refused with now; None when it would be let through."""
        with _lock:
            left_s = 0.0 if self._open_until is None else self._open_until - self._clock()
            return self._refusal_locked(left_s) if left_s > 0 else None

    def enter(self) -> int:
        """Lets a call through; the ticket that it returns is handed to `leave`, whatever becomes of the call.

        Raises:
            CircuitOpen: the breaker is open. Nothing was sent.
        """
        with _lock:
            refusal = self.refusal()
            if refusal is not None:
                raise refusal
            if self._open_until is not None:
                # This call is the probe. If it never reports, the next one is.
                self._turn += 1
                self._open_until = self._clock() + max(_PAUSE_S, min(self._slow_s, _PROBE_LIMIT_S))
            return self._turn

    def check(self, ticket: int) -> None:
        """Asked right before each attempt, which may have waited: has the breaker opened since `enter`?

        Raises:
            CircuitOpen: it has, and this call is not the probe. Nothing was sent.
        """
        with _lock:
            if self._open_until is not None and ticket != self._turn:
                raise self._refusal_locked(max(0.0, self._open_until - self._clock()))

    def leave(
        self, ticket: int, error: BaseException | None, held_s: float, *, was_sent: bool = True
    ) -> None:
        """The call has ended.

        Args:
            error: what it raised, None for an answer. What says nothing about the API (a full queue, a wrong request,
                a caller that gave up early) does not count; a rate limit, a refused request and a model's text that
                is no answer are answers of the API.
            held_s: seconds in which it ran, or of its whole time when that was used up.
            was_sent: whether it was seen on the network; if not, its failure says nothing about the API.
        """
        with _lock:
            if ticket != self._turn:  # it began before the last opening, probe or closing
                return
            was_open = self._open_until is not None
            news = self._judge_locked(error, held_s, was_sent)
            is_open = self._open_until is not None
        if news:
            _logger.warning("breaker %s", news)
        if is_open != was_open:
            emit(BreakerChanged("open" if is_open else "closed"))

    def _refusal_locked(self, left_s: float) -> CircuitOpen:
        return CircuitOpen(f"No call is made for now: {self._reason}.", retry_after_s=left_s)

    def _judge_locked(self, error: BaseException | None, held_s: float, was_sent: bool) -> str:
        """Takes the call's end into account; returns what there is to log, if anything."""
        if isinstance(error, (AuthenticationFailed, InsufficientBalance)):
            return self._open_locked(_ACCOUNT_PAUSE_S, str(error).rstrip("."))
        failed = _has_failed(error) if was_sent or error is None else None
        is_slow = held_s >= self._slow_s
        if self._open_until is not None:
            if failed is False:
                self._turn, self._open_until = self._turn + 1, None
                self._recent.clear()
                return "closed: the API answers again"
            if failed or is_slow:
                return self._open_locked(_PAUSE_S, "the API keeps failing")
            self._open_until = self._clock()  # the probe told nothing: the next call is one
        elif failed is not None or is_slow:
            return self._count_locked(bool(failed or is_slow))
        return ""

    def _count_locked(self, is_bad: bool) -> str:
        now = self._clock()
        self._recent.append((now, is_bad))
        while self._recent[0][0] < now - _WINDOW_S:
            self._recent.popleft()
        calls, bad = len(self._recent), sum(bad for _, bad in self._recent)
        if calls < _FEWEST_CALLS or bad < _OPENING_SHARE * calls:
            return ""
        return self._open_locked(_PAUSE_S, f"{bad} of the last {calls} calls to the API failed or were slow")

    def _open_locked(self, pause_s: float, reason: str) -> str:
        self._turn, self._open_until, self._reason = self._turn + 1, self._clock() + pause_s, reason
        return f"open for {pause_s:g} s: {reason}"


def _has_failed(error: BaseException | None) -> bool | None:
    """Whether the API has failed a call that ended so; None if that says nothing about the API."""
    if isinstance(error, BadReply):
        return not error.is_completion
    if isinstance(error, (ConnectionFailed, UpstreamUnavailable)):
        return True
    return False if error is None or isinstance(error, (RateLimited, UpstreamRejected)) else None


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # its owner may be a thread of the parent


os.register_at_fork(after_in_child=_after_fork_in_child)
