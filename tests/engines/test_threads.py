"""WorkerPool: the limit is real, the slot belongs to the thread, and no waiter hangs."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.blocking import Blocked, Clock, Deaf, counts, entered, until

from deepseek_client import DeadlineExceeded, Overloaded, PoolClosed, WorkerPool, events
from deepseek_client.engines import inline, threads
from deepseek_client.engines.admission import Admission
from deepseek_client.engines.shared import default_pool
from deepseek_client.engines.threads import all_pools

GIVE_UP_S = 20.0


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


# Callers in threads of their own: run_here.


class Callers:
    """Threads that call `inline.run`."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def call(self, pool: WorkerPool, function: Callable[[], Any], **options: Any) -> asyncio.Future[Any]:
        """What a thread gets that calls it now; the thread is a new one."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()

        def call() -> None:
            try:
                result = inline.run(pool, function, **options)
            except BaseException as exc:
                loop.call_soon_threadsafe(outcome.set_exception, exc)
            else:
                loop.call_soon_threadsafe(outcome.set_result, result)

        self.threads.append(threading.Thread(target=call))
        self.threads[-1].start()
        return outcome


@pytest.fixture
def callers() -> Iterator[Callers]:
    made = Callers()
    yield made
    for thread in made.threads:
        thread.join(GIVE_UP_S)
        assert not thread.is_alive()


def test_it_runs_in_the_thread_that_calls(pool):
    """A call by inline.run runs in its caller's thread, with its contextvars, and its slot is free after it."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("of the caller")

    def look() -> tuple[int, str, tuple[int, int]]:
        return threading.get_ident(), variable.get(), counts(pool)

    assert inline.run(pool, look) == (threading.get_ident(), "of the caller", (1, 0))
    assert counts(pool) == (0, 0)


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_what_a_function_raises_is_its_callers(pool, kind):
    """In its caller's own thread an exception arrives as it is, also one that ends the thread, and frees the slot."""

    def raises() -> None:
        raise kind

    with pytest.raises(kind):
        inline.run(pool, raises)
    assert counts(pool) == (0, 0)


async def test_the_limit_is_shared(pool, callers):
    """Callers in threads of their own and callers on the pool take the same slots and wait in the same queue."""
    blocked = [Blocked() for _ in range(3)]
    calls = [asyncio.ensure_future(pool.run(blocked[0])), callers.call(pool, blocked[1])]
    await entered(blocked[0], blocked[1])
    calls.append(callers.call(pool, blocked[2]))
    await until(lambda: counts(pool) == (2, 1))
    with pytest.raises(Overloaded, match="All 2 workers are busy and 1 calls wait already"):
        await pool.run(int)
    with pytest.raises(Overloaded, match="All 2 workers are busy and 1 calls wait already"):
        await callers.call(pool, int)
    assert pool.stats()["rejected"] == 2
    assert not blocked[2].entered.is_set()
    for one in blocked:
        one.gate.set()
    assert await asyncio.gather(*calls) == ["let go"] * 3
    assert counts(pool) == (0, 0)


async def test_who_came_first_is_served_first(callers):
    """The queue is one for both kinds of callers, in the order of their arrival."""
    pool, blocked, served = WorkerPool(workers=1, queue_limit=4), Blocked(), []
    calls = [callers.call(pool, blocked)]
    await entered(blocked)
    for number in range(4):
        note = functools.partial(served.append, number)
        calls.append(callers.call(pool, note) if number % 2 else asyncio.ensure_future(pool.run(note)))
        await until(lambda number=number: counts(pool) == (1, number + 1))
    blocked.gate.set()
    await asyncio.gather(*calls)
    assert served == [0, 1, 2, 3]
    assert counts(pool) == (0, 0)
    pool.close()


async def test_many_of_both_kinds_lose_no_slot(callers):
    """After thousands of calls from threads and event loops at once every slot is free, and never were more in use."""
    pool, most = WorkerPool(workers=3, queue_limit=1_000), []

    def work() -> None:
        most.append(counts(pool)[0])

    def many() -> None:
        for _ in range(300):
            inline.run(pool, work)

    other = WorkerPool(workers=4, queue_limit=0)
    own = [callers.call(other, many) for _ in range(4)]
    for _ in range(10):
        await asyncio.gather(*(pool.run(work) for _ in range(100)))
    await asyncio.gather(*own)
    assert len(most) == 2_200
    assert max(most) <= 3
    assert counts(pool) == (0, 0)
    pool.close()
    other.close()


async def test_a_deadline_ends_the_wait_of_a_thread(callers):
    """A caller whose deadline passes in the queue is told so, leaves the queue, and its function is never called."""
    pool, blocked, queued = WorkerPool(workers=1, queue_limit=1), Blocked(), Blocked()
    call = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    with pytest.raises(DeadlineExceeded, match="before it was started"):
        await callers.call(pool, queued, deadline=time.monotonic() + 0.05)
    assert counts(pool) == (1, 0)
    blocked.gate.set()
    await call
    assert not queued.entered.is_set()
    pool.close()


@pytest.mark.parametrize("deadline", [None, float("inf")])
async def test_a_thread_may_wait_without_limit(callers, deadline):
    """Without a deadline, or with one that never comes, a caller waits for its slot until it has it."""
    pool, blocked = WorkerPool(workers=1, queue_limit=1), Blocked()
    call = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    waiting = callers.call(pool, int, deadline=deadline)
    await until(lambda: waiting.done() or counts(pool) == (1, 1))
    blocked.gate.set()
    assert await waiting == 0
    await call
    pool.close()


def test_a_deadline_that_has_passed_starts_nothing_here_either(pool):
    """A call whose time is over on arrival is not begun, although a slot is free."""
    blocked = Blocked()
    with pytest.raises(DeadlineExceeded, match="before it was started"):
        inline.run(pool, blocked, deadline=time.monotonic())
    assert not blocked.entered.is_set()
    assert counts(pool) == (0, 0)


async def test_close_ends_callers_in_own_threads(callers):
    """Closing the pool aborts what a thread runs in a slot of its own, and ends the wait of one that is queued."""
    pool, blocked, queued = WorkerPool(workers=1, queue_limit=1), Blocked(), Blocked()
    running = callers.call(pool, blocked)
    await entered(blocked)
    waiting = callers.call(pool, queued)
    await until(lambda: counts(pool) == (1, 1))
    pool.close()
    with pytest.raises(PoolClosed):
        await waiting
    await running
    assert blocked.reason == "closing"
    assert not queued.entered.is_set()
    assert counts(pool) == (0, 0)
    with pytest.raises(PoolClosed):
        inline.run(pool, queued)


async def test_close_waits_for_threads_within_its_grace(callers):
    """A call in a thread of its own that ends within the grace keeps its result."""
    pool, blocked = WorkerPool(workers=1, queue_limit=0), Blocked()
    call = callers.call(pool, blocked)
    await entered(blocked)
    closing = asyncio.ensure_future(asyncio.to_thread(pool.close, GIVE_UP_S))
    await until(pool.is_closed)
    blocked.gate.set()
    assert await call == "let go"
    await closing
    assert blocked.reason is None


def test_a_wait_that_a_signal_ends_leaves_the_queue():
    """A caller whose thread is torn out of the queue by a signal's handler does not get a slot afterwards."""
    pool, blocked = WorkerPool(workers=1, queue_limit=1), Blocked()

    def interrupt() -> None:
        asyncio.run(until(lambda: counts(pool) == (1, 1)))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    holder = threading.Thread(target=inline.run, args=(pool, blocked))
    holder.start()
    assert blocked.entered.wait(GIVE_UP_S)
    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        inline.run(pool, int, deadline=time.monotonic() + GIVE_UP_S)
    helper.join(GIVE_UP_S)
    assert counts(pool) == (1, 0)
    blocked.gate.set()
    holder.join(GIVE_UP_S)
    assert counts(pool) == (0, 0)


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


async def test_a_process_out_of_threads_tells_those_that_wait(callers, monkeypatch):
    """When a queued call's turn comes and no thread can be started for it, its waiter is told, and the slot is free."""
    pool, blocked = WorkerPool(workers=1, queue_limit=2), Blocked()
    running = callers.call(pool, blocked)
    await entered(blocked)
    waiting = [asyncio.ensure_future(pool.run(int)) for _ in range(2)]
    await until(lambda: counts(pool) == (1, 2))

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        blocked.gate.set()
        assert await running == "let go"
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [(type(one), str(one)) for one in outcomes] == [
        (Overloaded, "No thread can be started for the call.")
    ] * 2
    assert counts(pool) == (0, 0)
    pool.close()


def _sums(seen):
    changes = [vars(event) for event in seen if isinstance(event, events.PoolChanged)]
    return {
        name: sum(change[name] for change in changes) for name in ("workers", "busy", "queued", "rejected")
    }
