"""What happens to a call that fails: whether it is tried again, and when."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import stamina

from ..errors import BadReply, CircuitOpen, DeepSeekError, Overloaded, PoolClosed
from ..settings import Settings
from .breaker import Breaker

__all__ = ["Policy", "default_policy", "end_waits"]

_T = TypeVar("_T")

# Exponential back-off with full jitter: the n-th wait is a random part of the base doubled n - 1 times. Source of the
# rule: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
_BACK_OFF_S = 0.5
_LONGEST_BACK_OFF_S = 8.0

# A retry takes a token, a call brings a tenth of one. Source of the numbers: gRPC proposal A6, retry throttling.
_TOKENS = 10.0
_TOKENS_PER_CALL = 0.1

# Guards all budgets and _asleep. Reentrant, because the garbage collector may end an abandoned call anywhere.
_lock = threading.RLock()
_asleep: set[asyncio.Task[Any]] = set()  # guarded by _lock; between two attempts
_ended: set[asyncio.Task[Any]] = set()  # guarded by _lock; were asleep when `end_waits` was called


class Policy:
    """Tries calls again where that makes sense, as often as a budget allows.

    A retryable failure is tried again up to LLM_MAX_ATTEMPTS in all, a bad reply once. The waits are random parts of
    0.5, 1, 2 ... 8 s after what the API's Retry-After asks for, and end before the deadline or are not begun. All
    retries together are a tenth of the calls, and ten, so that an outage is not multiplied.

    Args:
        settings: their max_attempts, of one call and the first counted, and deadline_s, for the breaker.

    Attributes:
        breaker: asked by whoever makes a call and an attempt; while it is open nothing is tried again.

    Threads: any number of event loops.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_attempts = settings.max_attempts
        self.breaker = Breaker(settings.deadline_s)
        self._tokens = _TOKENS  # guarded by _lock

    async def run(
        self,
        attempt: Callable[[], Awaitable[_T]],
        deadline: float,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> _T:
        """Awaits `attempt()`, and again after failures; a wait between two attempts holds no thread.

        Args:
            deadline: moment on `time.monotonic()` that no wait passes.
            is_leaving: true once the process is about to leave, before it calls `end_waits`; then no wait begins.

        Raises:
            DeepSeekError: of the last attempt that was sent, or DeadlineExceeded.
            PoolClosed: `end_waits` was called while it waited.
        """
        with _lock:
            self._tokens = min(_TOKENS, self._tokens + _TOKENS_PER_CALL)
        try:
            return await attempt()
        except DeepSeekError as exc:
            failure = exc
        # Only from here: an iterator of stamina for every call would cost each of them 30 us.
        task = asyncio.current_task()
        assert task is not None
        try:
            async for again in stamina.retry_context(
                self._rule(deadline, task, is_leaving), self._max_attempts, timeout=None
            ):
                with again:
                    if again.num > 1:
                        with _lock:
                            _asleep.discard(task)
                        try:
                            return await attempt()
                        except (CircuitOpen, Overloaded):
                            pass  # nothing was sent: the call failed by what the attempt before it met
                        except DeepSeekError as exc:
                            failure = exc
                    raise failure
        except asyncio.CancelledError:
            if task not in _ended:
                raise
            raise PoolClosed("The service is shutting down.") from failure
        finally:
            with _lock:
                _asleep.discard(task)
                _ended.discard(task)
        raise failure

    def _rule(
        self, deadline: float, task: asyncio.Task[Any], is_leaving: Callable[[], bool]
    ) -> Callable[[Exception], bool | float]:
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
            if not (may_retry and self._take_token()):
                return False
            with _lock:
                _asleep.add(task)
            # Asked last: from the line above on `end_waits` reaches it.
            return False if is_leaving() else wait_s

        return seconds_or_not

    def _take_token(self) -> bool:
        with _lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def end_waits() -> None:
    """Ends the waits between two attempts of all calls of this process, which then raise PoolClosed.

    For a process that is about to leave; close the pools before, or further calls begin.

    Threads: any.
    """
    with _lock:
        tasks = list(_asleep)
        _ended.update(tasks)
    for task in tasks:
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
            task.get_loop().call_soon_threadsafe(task.cancel)


@functools.lru_cache(maxsize=100)
def default_policy(api_key: str, settings: Settings) -> Policy:
    """The process-wide policy of this account under these settings, made at the first request.

    Threads: any.
    """
    return Policy(settings)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # its owner may be a thread of the parent
    _asleep.clear()
    _ended.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
