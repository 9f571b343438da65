"""One call from its start to its report, and many of them in turns."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..engines.threads import WorkerPool, default_pool
from ..errors import CircuitOpen, DeadlineExceeded, DeepSeekError, InvalidRequest, Overloaded, PoolClosed
from ..events import AttemptFinished, CallFinished, emit
from ..settings import Settings
from ..wire import adapter
from ..wire.exchange import Exchange
from .retries import Policy

__all__ = ["Caller", "abort_blocking", "in_turns"]

_Judge = Callable[[Exchange], Any]

_blocking: set[Exchange] = set()  # those that run in their callers' threads


def abort_blocking() -> None:
    """Ends the calls that run in their callers' threads; they raise PoolClosed. For a process that is about to leave.

    Threads: any.
    """
    for exchange in list(_blocking):
        exchange.abort("closing")


class Caller:
    """Makes the calls of one client: says where they run and how long they may take, and reports their end.

    Args:
        client: any object with blocking methods.
        pool: None for the process-wide pool of the size that `settings` give.
        policy: None tries nothing again and has no breaker.

    Threads: any number of threads and event loops may call at once; after `close` they get PoolClosed.
    """

    def __init__(
        self, client: Any, pool: WorkerPool | None, settings: Settings, policy: Policy | None = None
    ) -> None:
        self.client = client
        self.settings = settings
        self._pool = pool
        self._policy = policy
        self.is_closed = False

    def close(self) -> None:
        """Refuses further calls; the pool and the client are not closed."""
        self.is_closed = True

    def until(self, deadline_s: float | None = None) -> float:
        """The moment on `time.monotonic()` at which a call that starts now is over; None means LLM_DEADLINE_S."""
        if deadline_s is None:
            deadline_s = self.settings.deadline_s
        if not deadline_s >= 0:  # also for nan
            raise InvalidRequest(f"deadline_s is {deadline_s!r}: need seconds, at least 0.")
        return time.monotonic() + deadline_s

    @property
    def pool(self) -> WorkerPool:
        """Where calls run."""
        return self._pool or default_pool(self.settings.max_workers, self.settings.queue_limit)

    async def on_pool(self, judge: _Judge, deadline: float, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Runs the client's method on the pool; returns or raises what `judge` does, or raises what the pool does."""
        with self._reported(method, "async") as call:

            async def attempt() -> Any:
                exchange = self._exchange(call, judge, deadline, method, args, kwargs)
                with call.attempted(exchange):
                    return await self.pool.run(exchange, deadline=deadline)

            if self._policy is None:
                return await attempt()
            return await self._policy.run(attempt, deadline, self.pool.is_closed)

    def here(self, judge: _Judge, deadline: float, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """The same in the caller's thread, where the transport's reads keep the deadline; nothing is tried again."""
        with self._reported(method, "sync") as call:
            if deadline <= time.monotonic():
                raise DeadlineExceeded("The call's time was over before it was started.")
            exchange = self._exchange(call, judge, deadline, method, args, kwargs)
            _blocking.add(exchange)
            try:
                with call.attempted(exchange):
                    return exchange()
            finally:
                _blocking.discard(exchange)

    @contextmanager
    def _reported(self, method: str, mode: str) -> Iterator[_Call]:
        """One call, from the breaker's leave to begin it to the report of its end."""
        if self.is_closed:
            raise PoolClosed("This client is closed.")
        breaker = None if self._policy is None else self._policy.breaker
        call, error, ticket = _Call(method), None, None
        try:
            if breaker is not None:
                ticket = breaker.enter()
                call.before = functools.partial(breaker.check, ticket)
            yield call
        except BaseException as exc:
            error = exc
            raise
        finally:
            if breaker is not None and ticket is not None:
                breaker.leave(ticket, error, call.held_s(error), was_sent=call.requests > 0)
            waited_s = time.monotonic() - call.began - call.ran_s
            emit(CallFinished(method, mode, waited_s, call.ran_s, _code_of(error), call.usage, call.attempts))

    def _exchange(
        self,
        call: _Call,
        judge: _Judge,
        deadline: float,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Exchange:
        if self.settings.transport:
            adapter.install()
        return Exchange(
            method,
            functools.partial(getattr(self.client, method), *args, **kwargs),
            judge,
            record=self.settings.transport,
            deadline=deadline,
            read_timeout_s=self.settings.read_timeout_s,
            before=call.before,
        )


async def in_turns(
    call: Callable[[Any], Awaitable[Any]],
    items: Sequence[Any],
    width: int,
    failed: Callable[[Exception], Any],
) -> list[Any]:
    """Awaits `call(item)` for each item, at most `width` at a time; the results in the order of the items.

    A call that finds the pool full leaves its item to those that are under way, if there are any.

    Args:
        failed: what stands in the place of a call that raised; what it raises itself cancels the rest.
    """
    waiting = deque(enumerate(items))
    results: list[Any] = [None] * len(items)
    under_way = 0

    async def take_turns() -> None:
        nonlocal under_way
        while waiting:
            place, item = waiting.popleft()
            under_way += 1
            try:
                results[place] = await call(item)
            except Exception as exc:
                if isinstance(exc, Overloaded) and under_way > 1:
                    waiting.appendleft((place, item))
                    return
                results[place] = failed(exc)
                if isinstance(exc, (CircuitOpen, Overloaded)):
                    # One after the other is refused at once: the loop has others to serve.
                    await asyncio.sleep(0)
            finally:
                under_way -= 1

    tasks = [asyncio.ensure_future(take_turns()) for _ in range(min(width, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return results


class _Call:
    """What a call came to so far, over its attempts."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.began = time.monotonic()
        self.ran_s = 0.0
        self.attempts = 0
        self.requests = 0
        self.before: Callable[[], None] | None = None  # each attempt: may it still be made?
        self.usage: dict[str, Any] = {}

    @contextmanager
    def attempted(self, exchange: Exchange) -> Iterator[None]:
        """Adds one attempt, unless it ended before a thread began it."""
        error = None
        try:
            yield
        except BaseException as exc:
            error = exc
            raise
        finally:
            if exchange.began is not None:
                self.attempts += 1
                self.requests += exchange.requests
                self.ran_s += (exchange.ended or time.monotonic()) - exchange.began
                for name, number in exchange.usage.items():
                    if type(number) is int:
                        self.usage[name] = self.usage.get(name, 0) + number
                emit(AttemptFinished(self.method, _code_of(error), exchange.usage))

    def held_s(self, error: BaseException | None) -> float:
        """Seconds in which it ran; of its whole time where that was used up, so that waiting hides no hanging API."""
        is_over = isinstance(error, DeadlineExceeded) and self.attempts > 0
        return time.monotonic() - self.began if is_over else self.ran_s


def _code_of(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, DeepSeekError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "unexpected"
