"""WorkerPool: the limit is real, each call gets its own outcome, and what changes is told."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
import time
import weakref

import pytest
from support.blocking import Blocked, Clock, Deaf, counts, entered, until
from support.patience import GIVE_UP_S

from deepseek_client import Overloaded, PoolClosed, WorkerPool, events
from deepseek_client.engines import threads
from deepseek_client.engines.admission import Admission
from deepseek_client.engines.shared import default_pool
from deepseek_client.engines.threads import all_pools


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


async def test_a_call_that_ends_before_its_caller_waits_is_not_missed():
    """A queued call may get its turn and end before its caller has gone on: its result arrives all the same."""
    pool, blocked, ran = WorkerPool(workers=1, queue_limit=1), Blocked(), threading.Event()
    running = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)

    def let_it_run(event: object) -> None:
        if event == events.PoolChanged(queued=1):
            blocked.gate.set()
            assert ran.wait(GIVE_UP_S)

    events.subscribe(let_it_run)
    try:
        await pool.run(ran.set, deadline=time.monotonic() + GIVE_UP_S)
    finally:
        events.unsubscribe(let_it_run)
    await running
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


def test_without_an_event_loop_nothing_is_taken(pool):
    """A bare coroutine, which no asyncio loop runs, is told what it needs, and leaves no slot behind."""
    for _ in range(5):
        with pytest.raises(RuntimeError, match="an awaited call needs asyncio's event loop"):
            pool.run(int).send(None)
    assert counts(pool) == (0, 0)


async def test_the_default_pool_is_one_per_size(monkeypatch):
    """The process-wide pool is the same object at each request; once closed it refuses, and none takes its place."""
    monkeypatch.setattr("deepseek_client.engines.shared._defaults", {})
    monkeypatch.setattr(threads, "_pools", weakref.WeakSet())
    pool = default_pool(3, 7)
    assert default_pool(3, 7) is pool
    assert default_pool(3, 8) is not pool
    assert pool.stats()["workers"] == 3
    assert pool.stats()["queue_limit"] == 7
    for each in all_pools():
        each.close()
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


async def test_waits_are_told_with_the_number_to_raise(caplog):
    """Calls that waited for a worker are a line of the log that says how many, how long and which variable helps."""
    pool, clock = WorkerPool(workers=1, queue_limit=1), Clock()
    pool._admission = Admission(1, 1, clock=clock)
    caplog.set_level(logging.WARNING, threads.__name__)
    blocked = Blocked()
    calls = [asyncio.ensure_future(pool.run(one)) for one in (blocked, str)]
    await entered(blocked)
    await until(lambda: counts(pool) == (1, 1))
    clock.now += 3.0
    blocked.gate.set()
    await asyncio.gather(*calls)
    assert caplog.messages == [
        "1 calls waited up to 3.0 s for one of 1 workers: LLM_MAX_WORKERS is the number to raise"
    ]
    pool.close()


async def test_a_slot_about_to_be_free_is_counted_so():
    """A call is not refused for its deadline when the call before it was given up and is about to leave its worker."""
    pool, clock, deaf = WorkerPool(workers=1, queue_limit=1), Clock(), Deaf()
    pool._admission = Admission(1, 1, clock=clock)

    def work() -> None:
        clock.now += 600.0

    for _ in range(10):
        await pool.run(work)
    call = asyncio.ensure_future(pool.run(deaf))
    await entered(deaf)
    clock.now = time.monotonic()  # a deadline is a moment of both clocks
    pool._admission._last_ended = clock.now
    with pytest.raises(Overloaded, match="would not end in time"):
        await pool.run(int, deadline=clock.now + 300.0)
    call.cancel()
    await asyncio.wait([call])
    following = asyncio.ensure_future(pool.run(int, deadline=clock.now + 300.0))
    await until(lambda: counts(pool) == (1, 1))
    deaf.gate.set()
    assert await following == 0
    pool.close()


def _sums(seen):
    changes = [vars(event) for event in seen if isinstance(event, events.PoolChanged)]
    return {
        name: sum(change[name] for change in changes) for name in ("workers", "busy", "queued", "rejected")
    }
