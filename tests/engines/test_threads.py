"""WorkerPool: the limit is real, the slot belongs to the thread, and no waiter hangs."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
import time
import weakref

import pytest
from support.blocking import Blocked, Deaf, counts, entered, until

from deepseek_client import DeadlineExceeded, Overloaded, PoolClosed, WorkerPool, events
from deepseek_client.engines.threads import close_default_pools, default_pool

GIVE_UP_S = 5.0


@pytest.fixture
def pool():
    made = WorkerPool(workers=2, queue_limit=1)
    yield made
    made.close()


async def test_the_limit_is_real(pool):
    """Two workers run, one call waits, and one more is refused at once without being called."""
    blocked = [Blocked() for _ in range(4)]
    calls = [asyncio.ensure_future(pool.run(one)) for one in blocked[:3]]
    await entered(blocked[0], blocked[1])
    assert counts(pool) == (2, 1)
    with pytest.raises(Overloaded, match="All 2 workers are busy and 1 calls wait already"):
        await pool.run(blocked[3])
    assert not blocked[3].entered.is_set()
    assert pool.stats()["rejected"] == 1
    for one in blocked:
        one.gate.set()
    assert await asyncio.gather(*calls) == ["let go"] * 3
    assert counts(pool) == (0, 0)


async def test_ten_thousand_calls_lose_no_slot():
    """After ten thousand calls every slot is free and each call got its own result."""
    pool = WorkerPool(workers=5, queue_limit=9_995)
    results = await asyncio.gather(*(pool.run(int, str(number)) for number in range(10_000)))
    assert results == list(range(10_000))
    assert counts(pool) == (0, 0)
    pool.close()


async def test_a_waiter_finds_its_slot_free(pool):
    """When a call's result arrives, its slot is free already."""
    for _ in range(200):
        await pool.run(int)
        assert counts(pool) == (0, 0)


async def test_what_a_function_raises_arrives(pool):
    """An exception reaches the waiter as it is and frees the slot."""
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0)
    assert counts(pool) == (0, 0)


@pytest.mark.parametrize("kind", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_what_would_break_an_event_loop_arrives_as_a_runtime_error(pool, kind):
    """A StopIteration would hang the waiter and a SystemExit end its loop: both arrive as RuntimeError."""

    def raises() -> None:
        raise kind

    with pytest.raises(RuntimeError, match=f"the call raised {kind.__name__}"):
        await pool.run(raises)
    assert counts(pool) == (0, 0)


async def test_contextvars_reach_the_thread_and_stay_there(pool):
    """The function sees the caller's contextvars; what it sets does not leak to the caller."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("of the caller")

    def look() -> str:
        seen = variable.get()
        variable.set("of the thread")
        return seen

    assert await pool.run(look) == "of the caller"
    assert variable.get() == "of the caller"


async def test_keyword_arguments_arrive(pool):
    """Arguments are handed on by place and by name."""
    assert await pool.run(functools.partial(dict, a=1), b=2) == {"a": 1, "b": 2}


async def test_the_slot_of_a_running_call_stays_with_its_thread(pool):
    """A waiter that gives up does not free the slot of a function that still runs."""
    deaf = Deaf()
    call = asyncio.ensure_future(pool.run(deaf))
    await entered(deaf)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert counts(pool) == (1, 0)
    deaf.gate.set()
    await until(lambda: counts(pool) == (0, 0))


async def test_a_cancelled_call_is_aborted(pool):
    """Cancelling the waiter of a running call aborts the function, which frees the slot."""
    blocked = Blocked()
    call = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert blocked.reason == "cancelled"
    await until(lambda: counts(pool) == (0, 0))


async def test_a_cancelled_call_in_the_queue_is_removed(pool):
    """Cancelling a waiter whose call is queued frees its slot at once, and the function is never called."""
    blocked, queued = [Blocked(), Blocked()], Blocked()
    calls = [asyncio.ensure_future(pool.run(one)) for one in blocked]
    await entered(*blocked)
    waiter = asyncio.ensure_future(pool.run(queued))
    await until(lambda: counts(pool) == (2, 1))
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert counts(pool) == (2, 0)
    for one in blocked:
        one.gate.set()
    await asyncio.gather(*calls)
    assert await pool.run(int) == 0
    assert not queued.entered.is_set()


async def test_a_cancelled_call_in_the_queue_lets_go_of_its_arguments(pool):
    """The executor may keep a cancelled call's husk until a thread is free, but not its prompt."""

    class Prompt:
        pass

    blocked = [Blocked(), Blocked()]
    calls = [asyncio.ensure_future(pool.run(one)) for one in blocked]
    await entered(*blocked)
    prompt = Prompt()
    gone = weakref.ref(prompt)
    waiter = asyncio.ensure_future(pool.run(id, prompt))
    del prompt
    await until(lambda: counts(pool) == (2, 1))
    waiter.cancel()
    await asyncio.wait([waiter])
    del waiter
    gc.collect()
    assert gone() is None
    for one in blocked:
        one.gate.set()
    await asyncio.gather(*calls)


async def test_a_deadline_ends_a_running_call(pool):
    """A call that cannot end is aborted when its deadline passes, and its waiter told."""
    blocked = Blocked()
    with pytest.raises(DeadlineExceeded):
        await pool.run(blocked, deadline=time.monotonic() + 0.05)
    assert blocked.reason == "deadline"
    await until(lambda: counts(pool) == (0, 0))


async def test_a_deadline_ends_a_queued_call(pool):
    """A call whose deadline passes in the queue is dropped, never run."""
    blocked, queued = [Blocked(), Blocked()], Blocked()
    calls = [asyncio.ensure_future(pool.run(one)) for one in blocked]
    await entered(*blocked)
    with pytest.raises(DeadlineExceeded):
        await pool.run(queued, deadline=time.monotonic() + 0.05)
    assert counts(pool) == (2, 0)
    for one in blocked:
        one.gate.set()
    await asyncio.gather(*calls)
    assert await pool.run(int) == 0
    assert not queued.entered.is_set()


async def test_a_deadline_that_has_passed_starts_nothing(pool):
    """A call whose time is over on arrival is refused without being called."""
    blocked = Blocked()
    with pytest.raises(DeadlineExceeded):
        await pool.run(blocked, deadline=time.monotonic())
    assert not blocked.entered.is_set()


async def test_close_refuses_new_calls(pool):
    """A closed pool raises PoolClosed for every new call; closing twice is fine."""
    pool.close()
    pool.close()
    with pytest.raises(PoolClosed):
        await pool.run(int)


async def test_close_waits_for_calls_within_its_grace(pool):
    """A call that ends within the grace gets its result, although the pool is closing."""
    blocked = Blocked()
    call = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    closing = asyncio.ensure_future(asyncio.to_thread(pool.close, GIVE_UP_S))
    while True:  # closed for new calls before the old one is let go
        try:
            await pool.run(int)
        except PoolClosed:
            break
    blocked.gate.set()
    assert await call == "let go"
    await closing
    assert blocked.reason is None


@pytest.mark.parametrize("kind", [Blocked, Deaf], ids=["abortable", "deaf"])
async def test_close_ends_the_rest(pool, kind):
    """After the grace running and queued calls get PoolClosed, also those whose function ignores the abort."""
    running, queued = [kind(), kind()], Blocked()
    calls = [asyncio.ensure_future(pool.run(one)) for one in [*running, queued]]
    await entered(*running)
    await until(lambda: counts(pool) == (2, 1))
    pool.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[1:]] == [PoolClosed, PoolClosed]
    assert not queued.entered.is_set()
    for one in running:
        one.gate.set()
    await until(lambda: counts(pool) == (0, 0))


async def test_close_wakes_no_closed_loop():
    """Closing a pool whose waiter's event loop is gone raises nothing."""
    pool = WorkerPool(workers=1, queue_limit=0)
    deaf = Deaf()

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        call = loop.create_task(pool.run(deaf))
        loop.run_until_complete(entered(deaf))
        loop.close()
        call._log_destroy_pending = False  # type: ignore[attr-defined]

    await asyncio.to_thread(abandon)
    pool.close()
    deaf.gate.set()
    await until(lambda: counts(pool) == (0, 0))


def test_event_loops_in_turn_share_a_pool(pool):
    """One pool serves one event loop after another."""
    for number in range(3):
        assert asyncio.run(pool.run(int, number)) == number


def test_event_loops_at_once_share_a_pool():
    """Three event loops in three threads have a call in flight on one pool at the same moment."""
    pool = WorkerPool(workers=3, queue_limit=0)
    meeting = threading.Barrier(3, timeout=GIVE_UP_S)
    threads = [threading.Thread(target=lambda: asyncio.run(pool.run(meeting.wait))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GIVE_UP_S)
    assert not meeting.broken
    assert counts(pool) == (0, 0)
    pool.close()


async def test_no_thread_before_the_first_call():
    """Making a pool starts no thread."""
    before = set(threading.enumerate())
    pool = WorkerPool(workers=5, queue_limit=5)
    assert set(threading.enumerate()) <= before
    await pool.run(int)
    assert set(threading.enumerate()) - before
    pool.close()


async def test_a_process_out_of_threads_refuses_the_call(pool, monkeypatch):
    """When no thread can be started the call is Overloaded and its slot free."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(Overloaded, match="No thread can be started"):
        await pool.run(int)
    assert counts(pool) == (0, 0)


@pytest.mark.parametrize(("workers", "queue_limit"), [(0, 0), (-1, 5), (1, -1)])
def test_a_pool_needs_workers(workers, queue_limit):
    """A pool without workers, or with a negative queue, is refused by name and value."""
    with pytest.raises(ValueError, match=f"workers={workers}, queue_limit={queue_limit}"):
        WorkerPool(workers, queue_limit)


async def test_the_default_pool_is_one_per_size(monkeypatch):
    """The process-wide pool is the same object at each request; once closed it refuses, and none takes its place."""
    monkeypatch.setattr("deepseek_client.engines.threads._defaults", {})
    pool = default_pool(3, 7)
    assert default_pool(3, 7) is pool
    assert default_pool(3, 8) is not pool
    assert pool.stats()["workers"] == 3
    assert pool.stats()["queue_limit"] == 7
    close_default_pools()
    with pytest.raises(PoolClosed):
        await default_pool(3, 7).run(int)


async def test_a_pool_tells_what_changes():
    """The events of a pool add up to its counts, whatever their order, and an abort is an event of its own."""
    seen: list[events.PoolChanged | events.CallAborted] = []
    pool = WorkerPool(workers=1, queue_limit=1)
    events.subscribe(seen.append)
    try:
        blocked = [Blocked() for _ in range(3)]
        calls = [asyncio.ensure_future(pool.run(one)) for one in blocked[:2]]
        await entered(blocked[0])
        with pytest.raises(Overloaded):
            await pool.run(blocked[2])
        told = _sums(seen)
        assert told == {"workers": 1, "busy": 1, "queued": 1, "rejected": 1}
        assert told == {name: pool.stats()[name] for name in told}
        calls[0].cancel()
        blocked[1].gate.set()
        assert await calls[1] == "let go"
    finally:
        events.unsubscribe(seen.append)
    assert _sums(seen) == {"workers": 1, "busy": 0, "queued": 0, "rejected": 1}
    assert [event.reason for event in seen if isinstance(event, events.CallAborted)] == ["cancelled"]
    pool.close()


def _sums(seen):
    changes = [vars(event) for event in seen if isinstance(event, events.PoolChanged)]
    return {
        name: sum(change[name] for change in changes) for name in ("workers", "busy", "queued", "rejected")
    }
