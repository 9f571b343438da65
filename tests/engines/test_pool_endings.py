"""What ends a call on the pool: a waiter that gives up, a deadline, or the end of the pool."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest
from support.blocking import Blocked, Deaf, counts, entered, until
from support.patience import GIVE_UP_S

from deepseek_client import DeadlineExceeded, PoolClosed, WorkerPool


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


@pytest.mark.parametrize("ends", ["in its own time", "after its deadline"])
async def test_what_a_call_raised_leaves_memory_with_its_caller(ends):
    """No cycle holds a failed call's error, whose traceback has the prompt, until a collection of garbage."""

    class Failure(Exception):
        pass

    pool, gone = WorkerPool(workers=1, queue_limit=1), []
    entered_it, gate = threading.Event(), threading.Event()

    def fail() -> None:
        error = Failure()
        gone.append(weakref.ref(error))
        entered_it.set()
        gate.wait(GIVE_UP_S)
        try:
            raise error
        finally:
            del error

    gc.disable()
    try:
        if ends == "in its own time":
            gate.set()
            with pytest.raises(Failure):
                await pool.run(fail)
        else:
            with pytest.raises(DeadlineExceeded):
                await pool.run(fail, deadline=time.monotonic() + 0.05)
            await asyncio.to_thread(entered_it.wait, GIVE_UP_S)
            gate.set()
        await pool.run(int)  # the only thread is done with the call before
        assert gone[0]() is None
    finally:
        gc.enable()
        pool.close()


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
    """After the grace running and queued calls get PoolClosed, whether the abort makes their function return or not."""
    running, queued = [kind(), kind()], Blocked()
    calls = [asyncio.ensure_future(pool.run(one)) for one in [*running, queued]]
    await entered(*running)
    await until(lambda: counts(pool) == (2, 1))
    pool.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PoolClosed] * 3
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


async def test_a_queued_call_of_a_closed_loop_loses_no_slot():
    """When the event loop of a queued call was closed, the call's turn comes and goes, and the next one is served."""
    pool, blocked = WorkerPool(workers=1, queue_limit=2), Blocked()
    running = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        call = loop.create_task(pool.run(int))
        loop.run_until_complete(until(lambda: counts(pool) == (1, 1)))
        loop.close()
        call._log_destroy_pending = False  # type: ignore[attr-defined]

    await asyncio.to_thread(abandon)
    following = asyncio.ensure_future(pool.run(int, "7"))
    await until(lambda: counts(pool)[1] >= 1)
    blocked.gate.set()
    await running
    assert await following == 7
    await until(lambda: counts(pool) == (0, 0))
    pool.close()
