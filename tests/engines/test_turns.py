"""Turns: a flood of calls leaves the event loop to others."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

from deepseek_client import AsyncFacade, WorkerPool
from deepseek_client.engines import turns


async def begin(number: int, begun: list[int]) -> None:
    if (turn := turns.later_turn()) is not None:
        await turn
    begun.append(number)


async def test_a_few_calls_begin_in_each_turn_of_the_loop():
    """However many tasks begin at once, no more than 16 calls begin before others have their turn; all do, in order."""
    begun: list[int] = []
    seen: list[int] = []

    async def look() -> None:
        while len(begun) < 1_000:
            seen.append(len(begun))
            await asyncio.sleep(0)

    await asyncio.gather(look(), *(begin(number, begun) for number in range(1_000)))
    assert begun == list(range(1_000))
    steps = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert max(steps) <= 16


async def test_single_calls_wait_for_nothing():
    """A call that begins alone has its turn at once."""
    for _ in range(3):
        assert turns.later_turn() is None
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_cancelled_call_gives_its_turn_away():
    """A task that is cancelled while it waits for its turn takes none from those behind it."""
    begun: list[int] = []
    tasks = [asyncio.ensure_future(begin(number, begun)) for number in range(40)]
    await asyncio.sleep(0)
    for task in tasks[16:32]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert begun == [*range(16), *range(32, 40)]


def test_without_an_event_loop_there_are_no_turns():
    """Code that no loop runs waits for nothing."""
    assert turns.later_turn() is None


async def test_a_flood_of_calls_is_served():
    """A thousand calls that begin at once are all made, and every slot is free afterwards."""
    pool = WorkerPool(workers=5, queue_limit=1_000)
    facade = AsyncFacade(SimpleNamespace(same=lambda number: number), pool=pool)
    assert await asyncio.gather(*map(facade.same_async, range(1_000))) == list(range(1_000))
    assert (pool.stats()["busy"], pool.stats()["queued"]) == (0, 0)
    pool.close()
