"""What happens to a call that fails: whether it is tried again and when, and when no call is started at all."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from .errors import (
    AuthenticationFailed,
    BadReply,
    CircuitOpen,
    ConnectionFailed,
    DeepSeekError,
    InsufficientBalance,
    Overloaded,
    UpstreamRejected,
    UpstreamUnavailable,
)
from .events import BreakerChanged, emit

__all__ = ["Breaker", "Policy", "default_breaker"]

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

# Exponential back-off with full jitter: the n-th wait is a random part of the base doubled n - 1 times. Source of the
# rule: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
_BACK_OFF_S = 0.5
_LONGEST_BACK_OFF_S = 8.0

# A retry takes a token, a call brings a tenth of one. Source of the numbers: gRPC proposal A6, retry throttling.
_TOKENS = 10.0
_TOKENS_PER_CALL = 0.1

_WINDOW_CALLS = 50
_WINDOW_S = (
    300.0  # long enough for ten calls of a sync worker, one after the other, that all use up their deadline
)
_FEWEST_CALLS = 10
# Far above a half: where one call in two is answered, users are better off with the half than with a refusal.
_OPENING_SHARE = 0.8
_SLOW_SHARE = 0.8  # of LLM_DEADLINE_S; a call that comes so near to it holds a worker as one that hangs does
_PAUSE_S = 10.0
_ACCOUNT_PAUSE_S = 300.0  # a person has to act: pay, or replace the key

_ACCOUNT = (AuthenticationFailed, InsufficientBalance)
_FAILURES = (BadReply, ConnectionFailed, UpstreamUnavailable)

# Guards the state of all breakers and budgets, for microseconds; no call and no hook runs under it.
_lock = threading.Lock()


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
        self._recent: deque[tuple[float, bool]] = deque(maxlen=_WINDOW_CALLS)  # when, whether it was bad
        self._open_until: float | None = None  # None: closed
        self._pause_s = _PAUSE_S
        self._turn = (
            0  # counts openings, probes and closings: what a call from before one says no longer counts
        )
        self._reason = ""

    def refusal(self) -> CircuitOpen | None:
        """What a call would be refused with now; None when it would be let through."""
        with _lock:
            return self._refusal_locked()

    def enter(self) -> int:
        """Lets a call through; the ticket that it returns is handed to `leave`, whatever becomes of the call.

        Raises:
            CircuitOpen: the breaker is open. Nothing was sent.
        """
        with _lock:
            refusal = self._refusal_locked()
            if refusal is not None:
                raise refusal
            if (
                self._open_until is not None
            ):  # this call is the probe; the next one follows if it never reports
                self._turn += 1
                self._open_until = self._clock() + max(self._pause_s, self._slow_s)
            return self._turn

    def leave(self, ticket: int, error: BaseException | None, ran_s: float) -> None:
        """The call has ended.

        Args:
            error: what it raised, None for an answer. What says nothing about the API (a full queue, a rate limit, a
                wrong request, a caller that gave up early) does not count.
            ran_s: seconds in which its attempts ran.
        """
        with _lock:
            if ticket != self._turn:
                return
            was_open = self._open_until is not None
            change = self._judge_locked(error, ran_s)
        if change is not None:
            self._tell(change, was_open)

    def _refusal_locked(self) -> CircuitOpen | None:
        left_s = 0.0 if self._open_until is None else self._open_until - self._clock()
        if left_s <= 0:
            return None
        return CircuitOpen(f"No call is made for now: {self._reason}.", retry_after_s=left_s)

    def _judge_locked(self, error: BaseException | None, ran_s: float) -> str | None:
        """Takes the call's end into account; the new state, None if it is the old one."""
        now = self._clock()
        is_bad = isinstance(error, _FAILURES) or ran_s >= self._slow_s
        if isinstance(error, _ACCOUNT):
            self._open_locked(now + _ACCOUNT_PAUSE_S, _ACCOUNT_PAUSE_S, str(error).rstrip("."))
            return "open"
        if not is_bad and error is not None and not isinstance(error, UpstreamRejected):
            if self._open_until is not None:
                self._open_until = now  # the probe told nothing: the next call is one
            return None
        if self._open_until is not None:
            if is_bad:
                self._open_locked(now + self._pause_s, self._pause_s, self._reason)
                return "open"
            self._turn, self._open_until, self._pause_s = self._turn + 1, None, _PAUSE_S
            self._recent.clear()
            return "closed"
        self._recent.append((now, is_bad))
        while self._recent[0][0] < now - _WINDOW_S:
            self._recent.popleft()
        calls, bad = len(self._recent), sum(bad for _, bad in self._recent)
        if calls < _FEWEST_CALLS or bad < _OPENING_SHARE * calls:
            return None
        reason = f"{bad} of the last {calls} calls to the API failed or were slow"
        self._open_locked(now + _PAUSE_S, _PAUSE_S, reason)
        return "open"

    def _open_locked(self, until: float, pause_s: float, reason: str) -> None:
        self._turn, self._open_until, self._pause_s, self._reason = self._turn + 1, until, pause_s, reason

    def _tell(self, state: str, was_open: bool) -> None:
        if state == "closed":
            _logger.warning("breaker closed: the API answers again")
        elif was_open:
            _logger.warning("breaker stays open for %g s: the probe failed", self._pause_s)
        else:
            _logger.warning("breaker open for %g s: %s", self._pause_s, self._reason)
        emit(BreakerChanged(state))


class Policy:
    """Tries calls again where that makes sense, as often as a budget allows.

    A retryable failure is tried again up to LLM_MAX_ATTEMPTS in all, a bad reply once. The waits are random parts of
    0.5, 1, 2 ... 8 s after what the API's Retry-After asks for, and end before the deadline or are not begun. All
    retries of a client together are a tenth of its calls, and ten, so that an outage is not multiplied.

    Args:
        max_attempts: of one call, the first counted.
        breaker: asked by whoever makes the call; while it is open nothing is tried again.

    Threads: any number of event loops.
    """

    def __init__(self, max_attempts: int, breaker: Breaker) -> None:
        self._max_attempts = max_attempts
        self.breaker = breaker
        self._tokens = _TOKENS  # guarded by _lock

    async def run(self, attempt: Callable[[], Awaitable[_T]], deadline: float) -> _T:
        """Awaits `attempt()`, and again after failures; a wait between two attempts holds no thread.

        Args:
            deadline: moment on `time.monotonic()` that no wait passes.

        Raises:
            DeepSeekError: of the last attempt that reached the API.
        """
        with _lock:
            self._tokens = min(_TOKENS, self._tokens + _TOKENS_PER_CALL)
        try:
            return await attempt()
        except DeepSeekError as exc:
            failure = exc
        # Only from here: an iterator of stamina for every call would cost each of them 30 us.
        rule = self._rule(deadline)
        async for again in stamina.retry_context(on=rule, attempts=self._max_attempts, timeout=None):
            with again:
                if again.num > 1:
                    try:
                        return await attempt()
                    except Overloaded:
                        pass  # of our own pool: the call failed by what the attempt before it met
                    except DeepSeekError as exc:
                        failure = exc
                raise failure
        raise failure

    def _rule(self, deadline: float) -> Callable[[Exception], bool | float]:
        """For one call: says of each failure how many seconds to wait before the next attempt, or False."""
        failures = bad_replies = 0

        def seconds_or_not(error: Exception) -> bool | float:
            nonlocal failures, bad_replies
            failures += 1
            bad_replies += isinstance(error, BadReply)
            if not (isinstance(error, DeepSeekError) and error.retryable) or bad_replies > 1:
                return False
            wait_s = random.uniform(0, min(_LONGEST_BACK_OFF_S, _BACK_OFF_S * 2 ** (failures - 1)))
            wait_s += error.retry_after_s or 0
            is_in_time = time.monotonic() + wait_s < deadline
            may_retry = failures < self._max_attempts and is_in_time and self.breaker.refusal() is None
            return wait_s if may_retry and self._take_token() else False

        return seconds_or_not

    def _take_token(self) -> bool:
        with _lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


_breakers: dict[tuple[str, str], Breaker] = {}  # guarded by _lock


def default_breaker(base_url: str, api_key: str, deadline_s: float) -> Breaker:
    """The process-wide breaker of this address and account, made at the first request.

    Threads: any.
    """
    with _lock:
        breaker = _breakers.get((base_url, api_key))
        if breaker is None:
            breaker = _breakers[base_url, api_key] = Breaker(deadline_s)
        return breaker


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # its owner may be a thread of the parent


os.register_at_fork(after_in_child=_after_fork_in_child)
