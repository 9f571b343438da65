"""When no call is started at all: the circuit breaker."""

from __future__ import annotations

import logging
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
from ..fork_safe import ForkSafeLock
from .call import Attempt, Call

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
# A caller's own deadline that is shorter than this says little about the API when it passes.
_SLOW_FLOOR_S = 5.0
_PAUSE_S = 10.0
_ACCOUNT_PAUSE_S = 300.0  # a person has to act: pay, or replace the key
_PROBE_LIMIT_S = 60.0

# Refused calls in a row, none answered since, after which it is the account and not one call.
_ACCOUNT_REFUSALS = 3

# Guards the state of all breakers, for microseconds; no call and no hook runs under it. Reentrant, because the garbage
# collector may end an abandoned call anywhere.
_lock = ForkSafeLock()


class Breaker:
    """Refuses calls while the API keeps failing, so that they neither hold a worker nor add to its load.

    Opens for 10 s when four fifths of the last 10 to 50 calls (of the last 5 minutes) failed on the API's side or
    took four fifths of their time, and for 5 minutes when the API reports an empty balance or refuses the key of three
    calls in a row. After that one call goes through as a probe: an answer closes it, a failure opens it anew.

    Args:
        deadline_s: LLM_DEADLINE_S. A call is slow that took four fifths of it; or of its own deadline, where that is
            longer and it was answered, or shorter, but not below 5 s, and it passed.
        clock: replaces `time.monotonic`.

    Threads: any.
    """

    def __init__(self, deadline_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._slow_s = _SLOW_SHARE * deadline_s
        self._clock = clock
        # When a call ended, and whether it was bad; guarded by _lock.
        self._recent: deque[tuple[float, bool]] = deque(maxlen=_WINDOW_CALLS)
        self._bad = 0  # guarded by _lock; how many of _recent were bad
        self._refused = 0  # guarded by _lock; calls in a row whose key was refused
        self._open_until: float | None = None  # guarded by _lock; None: closed
        self._turn = 0  # guarded by _lock; counts openings, probes and closings
        self._reason = ""  # guarded by _lock

    def refusal(self) -> CircuitOpen | None:
        """What a new call would be refused with now; None when it would be let through."""
        if self._open_until is None:
            return None
        with _lock:
            left_s = 0.0 if self._open_until is None else self._open_until - self._clock()
            return self._refusal_locked(left_s) if left_s > 0 else None

    def before_call(self) -> _Permit:
        """Lets a call through.

        Raises:
            CircuitOpen: the breaker is open. Nothing was sent.
        """
        turn = self._turn  # before the look at _open_until, which changes first when it opens
        if self._open_until is None:
            return _Permit(self, turn)
        with _lock:
            if self._open_until is not None:
                refusal = self.refusal()
                if refusal is not None:
                    raise refusal
                # This call is the probe. If it never reports, the next one is.
                self._turn += 1
                self._open_until = self._clock() + max(_PAUSE_S, min(self._slow_s, _PROBE_LIMIT_S))
            return _Permit(self, self._turn)

    def _refusal_locked(self, left_s: float) -> CircuitOpen:
        return CircuitOpen(f"No call is made for now: {self._reason}.", retry_after_s=left_s)

    def _judge_locked(self, error: BaseException | None, is_slow: bool, was_sent: bool) -> str:
        """Takes the call's end into account; returns what there is to log, if anything."""
        if isinstance(error, InsufficientBalance):
            return self._open_locked(_ACCOUNT_PAUSE_S, str(error).rstrip("."))
        if isinstance(error, AuthenticationFailed):
            self._refused += 1
            if self._refused >= _ACCOUNT_REFUSALS or self._open_until is not None:
                return self._open_locked(_ACCOUNT_PAUSE_S, str(error).rstrip("."))
            return ""
        failed = False if error is None else _has_failed(error) if was_sent else None
        if self._open_until is not None:
            if failed is False:
                self._turn, self._open_until = self._turn + 1, None
                self._recent.clear()
                self._bad = self._refused = 0
                return "closed: the API answers again"
            if failed or is_slow:
                return self._open_locked(_PAUSE_S, "the API keeps failing")
            self._open_until = self._clock()  # the probe told nothing: the next call is one
        elif failed is not None or is_slow:
            return self._count_locked(bool(failed or is_slow))
        return ""

    def _count_locked(self, is_bad: bool) -> str:
        now, recent = self._clock(), self._recent
        if not is_bad:
            self._refused = 0
        if len(recent) == _WINDOW_CALLS:
            self._bad -= recent[0][1]
        recent.append((now, is_bad))
        self._bad += is_bad
        while recent[0][0] < now - _WINDOW_S:
            self._bad -= recent.popleft()[1]
        calls, bad = len(recent), self._bad
        if calls < _FEWEST_CALLS or bad < _OPENING_SHARE * calls:
            return ""
        return self._open_locked(_PAUSE_S, f"{bad} of the last {calls} calls to the API failed or were slow")

    def _open_locked(self, pause_s: float, reason: str) -> str:
        self._open_until, self._reason = self._clock() + pause_s, reason
        self._turn += 1
        return f"open for {pause_s:g} s: {reason}"


class _Permit:
    """The breaker's leave to make one call; knows whether the breaker has changed since."""

    __slots__ = ("_breaker", "_turn")

    def __init__(self, breaker: Breaker, turn: int) -> None:
        self._breaker = breaker
        self._turn = turn

    def before_attempt(self, attempt: Attempt) -> None:
        """The attempt may have waited: raises CircuitOpen if the breaker has opened since; nothing was sent then."""
        breaker = self._breaker
        if breaker._open_until is None:
            return
        with _lock:
            if breaker._open_until is not None and self._turn != breaker._turn:
                raise breaker._refusal_locked(max(0.0, breaker._open_until - breaker._clock()))

    def after_attempt(self, error: BaseException | None) -> None:
        """Nothing: the call counts, not its attempts."""

    def after_call(self, call: Call, error: BaseException | None) -> None:
        """The call has ended.

        What says nothing about the API (a full queue, a wrong request, a caller that gave up early, a call that was
        not seen on the network) does not count; a rate limit, a refused request and a model's text that is no answer
        are answers of the API.
        """
        breaker = self._breaker
        with _lock:
            if self._turn != breaker._turn:  # it began before the last opening, probe or closing
                return
            was_open = breaker._open_until is not None
            own_s = _SLOW_SHARE * (call.deadline - call.began)
            if error is None:
                is_slow = call.ran_s >= max(breaker._slow_s, own_s)
            else:
                is_slow = call.held_s(error) >= min(breaker._slow_s, max(_SLOW_FLOOR_S, own_s))
            if call.first_chunk_s is not None:  # the API is there: a long stream is no sign of a slow one
                is_slow = False
            news = breaker._judge_locked(error, is_slow, call.requests > 0)
            is_open = breaker._open_until is not None
        if news:
            _logger.warning("breaker %s", news)
        if is_open != was_open:
            emit(BreakerChanged("open" if is_open else "closed"))


def _has_failed(error: BaseException) -> bool | None:
    """Whether the API has failed a call that ended so; None if that says nothing about the API."""
    if isinstance(error, BadReply):
        return not error.is_completion
    if isinstance(error, (ConnectionFailed, UpstreamUnavailable)):
        return True
    return False if isinstance(error, (RateLimited, UpstreamRejected)) else None
