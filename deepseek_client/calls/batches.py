"""Many calls of one batch, a few at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ..errors import CallerLeft, CircuitOpen, Overloaded

__all__ = ["gather_bounded"]


async def gather_bounded(
    call: Callable[[Any], Awaitable[Any]],
    items: Sequence[Any],
    width: int,
    failed: Callable[[Any, Exception], Any],
    has_room: Callable[[], bool] = lambda: True,
) -> list[Any]:
    """Awaits `call(item)` for each item, at most `width` at a time; the results in the order of the items.

    A call that finds the pool full leaves its item to those that are under way, if there are any.

    Args:
        failed: called with an item and what its call raised, gives what stands in its place; what it raises itself
            cancels the rest.
        has_room: whether a call would find a place now; asked before each, while others are under way, so that a
            call which these complete later is not counted as refused.
    """
    waiting = deque(enumerate(items))
    results: list[Any] = [None] * len(items)
    under_way = 0

    async def take_turns() -> None:
        nonlocal under_way
        while waiting:
            if under_way > 0 and not has_room():
                return
            place, item = waiting.popleft()
            under_way += 1
            try:
                results[place] = await call(item)
            except Exception as exc:
                if isinstance(exc, Overloaded) and under_way > 1:
                    waiting.appendleft((place, item))
                    return
                results[place] = failed(item, exc)
                if isinstance(exc, (CallerLeft, CircuitOpen, Overloaded)):
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
