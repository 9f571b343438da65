"""One call from its start to its report, and many of them in turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .errors import DeepSeekError
from .events import CallFinished, emit
from .exchange import Exchange
from .pool import WorkerPool, run_here
from .replies import usage_of

__all__ = ["call_async", "call_here", "in_turns", "returned_or_raised"]

_Judge = Callable[[Exchange], Any]


async def call_async(
    pool: WorkerPool,
    exchange: Exchange,
    judge: _Judge,
    deadline: float,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Runs the exchange on the pool and returns what `judge` makes of it; raises what either raises.

    Args:
        deadline: a moment on `time.monotonic()`.
    """
    with _reported("async", exchange):
        await pool.run(exchange, *args, deadline=deadline, **kwargs)
        return judge(exchange)


def call_here(exchange: Exchange, judge: _Judge, deadline: float, args: Sequence[Any]) -> Any:
    """The same in the caller's thread."""
    with _reported("sync", exchange):
        run_here(exchange, *args, deadline=deadline)
        return judge(exchange)


def returned_or_raised(exchange: Exchange) -> Any:
    """The judge that believes the client."""
    if exchange.raised is not None:
        raise exchange.raised
    return exchange.result


async def in_turns(
    call: Callable[[Any], Awaitable[Any]], items: Sequence[Any], width: int, *, return_exceptions: bool
) -> list[Any]:
    """Awaits `call(item)` for each item, at most `width` at a time; the results in the order of the items.

    Args:
        return_exceptions: puts what a call raised in its place; otherwise the first to raise cancels the rest.
    """
    turns = iter(enumerate(items))
    results: list[Any] = [None] * len(items)

    async def take_turns() -> None:
        for place, item in turns:
            try:
                results[place] = await call(item)
            except Exception as exc:
                if not return_exceptions:
                    raise
                results[place] = exc

    tasks = [asyncio.ensure_future(take_turns()) for _ in range(min(width, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return results


@contextmanager
def _reported(mode: str, exchange: Exchange) -> Iterator[None]:
    admitted, error = time.monotonic(), None
    try:
        yield
    except BaseException as exc:
        error = _code_of(exc)
        raise
    finally:
        now = time.monotonic()
        began = exchange.began or now
        ended = exchange.ended or now
        emit(CallFinished(exchange.method, mode, began - admitted, ended - began, error, usage_of(exchange)))


def _code_of(exc: BaseException) -> str:
    if isinstance(exc, DeepSeekError):
        return exc.code
    return "cancelled" if isinstance(exc, asyncio.CancelledError) else "unexpected"
