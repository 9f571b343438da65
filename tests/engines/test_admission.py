"""WorkerPool: which calls it takes while all of its threads are busy. Durations are numbers of a clock of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from support.blocking import Blocked, Clock, Deaf, counts, entered, until

from deepseek_client import DeadlineExceeded, Overloaded, WorkerPool
from deepseek_client.engines import threads as pool_module


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=made))
    return made


@pytest.fixture
def pool():
    made = WorkerPool(workers=2, queue_limit=3)
    yield made
    made.close()


async def run_for(pool: WorkerPool, clock: Clock, seconds: float, times: int = 10) -> None:
    """Calls that end one after the other, each after so many seconds."""

    def work() -> None:
        clock.now += seconds

    for _ in range(times):
        await pool.run(work)


@asynccontextmanager
async def busy(pool: WorkerPool, queued: int = 0) -> AsyncIterator[None]:
    """Both workers are busy, and so many calls wait."""
    blocked = [Blocked() for _ in range(2 + queued)]
    calls = [asyncio.ensure_future(pool.run(one)) for one in blocked]
    await entered(*blocked[:2])
    await asyncio.sleep(0)
    assert counts(pool) == (2, queued)
    yield
    for one in blocked:
        one.gate.set()
    await asyncio.gather(*calls)


async def test_retry_after_is_the_time_that_the_queue_needs(pool, clock):
    """With calls of 6 s on two workers, three that wait and one more are done in four times 3 s."""
    await run_for(pool, clock, 6.0)
    async with busy(pool, queued=3):
        with pytest.raises(Overloaded, match="All 2 workers are busy and 3 calls wait already") as caught:
            await pool.run(int)
    assert caught.value.retry_after_s == 12.0


@pytest.mark.parametrize(("times", "later_s"), [(9, 0.0), (10, 60.0)], ids=["too-few", "too-old"])
async def test_a_pace_that_is_not_known(pool, clock, times, later_s):
    """Fewer than ten calls, or calls of a minute ago, say nothing: no Retry-After, and nobody is refused for it."""
    await run_for(pool, clock, 6.0, times)
    clock.now += later_s
    async with busy(pool, queued=2):
        waiting = asyncio.ensure_future(pool.run(int, deadline=clock.now + 1.0))
        await asyncio.sleep(0)
        assert counts(pool) == (2, 3)
        with pytest.raises(Overloaded) as caught:
            await pool.run(int)
        assert caught.value.retry_after_s is None
    assert await waiting == 0


async def test_the_pace_is_that_of_the_last_ten(pool, clock):
    """Calls of an hour each no longer count after ten short ones."""
    await run_for(pool, clock, 3_600.0)
    await run_for(pool, clock, 2.0)
    async with busy(pool, queued=3):
        with pytest.raises(Overloaded) as caught:
            await pool.run(int)
    assert caught.value.retry_after_s == 4.0


async def test_a_call_that_would_be_late_is_refused(pool, clock):
    """A call that by the pace of the last ones would end after its deadline is refused on arrival, with reason."""
    await run_for(pool, clock, 6.0)
    async with busy(pool, queued=1):
        called: list[int] = []
        with pytest.raises(Overloaded, match="would not end in time after 1 that wait") as caught:
            await pool.run(called.append, 1, deadline=clock.now + 11.9)
        assert caught.value.retry_after_s == 6.0
        assert pool.stats()["rejected"] == 1
        assert counts(pool) == (2, 1)
        in_time = asyncio.ensure_future(pool.run(called.append, 2, deadline=clock.now + 12.0))
        await asyncio.sleep(0)
        assert counts(pool) == (2, 2)
    await in_time
    assert called == [2]


async def test_a_call_that_was_cut_short_is_not_quick(pool, clock):
    """What was given up after a moment would have run at least as long as the others: the pace does not rise."""
    await run_for(pool, clock, 6.0)
    for _ in range(10):
        blocked = Blocked()
        given_up = asyncio.ensure_future(pool.run(blocked))
        await entered(blocked)
        given_up.cancel()
        await until(lambda: counts(pool) == (0, 0))
    async with busy(pool, queued=3):
        with pytest.raises(Overloaded) as caught:
            await pool.run(int)
    assert caught.value.retry_after_s == 12.0


async def test_a_worker_that_is_about_to_be_free_counts_as_free(pool, clock):
    """A call that takes the place of two that were given up is not refused, although their threads still end."""
    await run_for(pool, clock, 6.0)
    deaf = [Deaf(), Deaf()]
    given_up = [asyncio.ensure_future(pool.run(one)) for one in deaf]
    await entered(*deaf)
    for call in given_up:
        call.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    assert counts(pool) == (2, 0)
    next_ones = [asyncio.ensure_future(pool.run(int, deadline=clock.now + 6.5)) for _ in range(2)]
    await asyncio.sleep(0)
    assert counts(pool) == (2, 2)
    with pytest.raises(Overloaded):
        await pool.run(int, deadline=clock.now + 6.5)
    for one in deaf:
        one.gate.set()
    assert await asyncio.gather(*next_ones) == [0, 0]


async def test_nested_calls_are_not_of_the_pace(clock):
    """What a call runs in its own worker's place is part of its time, not a call more."""
    pool = WorkerPool(workers=1, queue_limit=1)

    def outer() -> None:
        asyncio.run(run_for(pool, clock, 0.6))

    for _ in range(10):
        await pool.run(outer)
    blocked = Blocked()
    calls = [asyncio.ensure_future(pool.run(one)) for one in (blocked, int)]
    await entered(blocked)
    with pytest.raises(Overloaded) as caught:
        await pool.run(int)
    assert caught.value.retry_after_s == pytest.approx(12.0)
    blocked.gate.set()
    await asyncio.gather(*calls)
    pool.close()


async def test_an_idle_worker_takes_a_call_without_asking_the_pace(pool, clock):
    """While a worker is free no call is refused for its short deadline."""
    await run_for(pool, clock, 6.0)
    assert await pool.run(int, deadline=clock.now + 5.9) == 0


async def test_a_call_whose_time_is_over_is_not_begun(pool, clock):
    """A thread that becomes free takes no call whose deadline has passed, though its waiter has not noticed yet."""
    called: list[int] = []
    async with busy(pool):
        late = asyncio.ensure_future(pool.run(called.append, 1, deadline=clock.now + 5.0))
        await asyncio.sleep(0)
        assert counts(pool) == (2, 1)
        clock.now += 5.0
    with pytest.raises(DeadlineExceeded):
        await late
    assert called == []
    assert counts(pool) == (0, 0)
