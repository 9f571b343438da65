"""Calls in their caller's own thread take the same slots, and wait in the same queue, as those on the pool."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.blocking import Blocked, counts, entered, until
from support.patience import GIVE_UP_S

from deepseek_client import DeadlineExceeded, Overloaded, PoolClosed, WorkerPool
from deepseek_client.engines import inline


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
    pool, blocked, has_left = WorkerPool(workers=1, queue_limit=1), Blocked(), threading.Event()
    former = signal.signal(signal.SIGUSR1, lambda *_: None)

    def interrupt() -> None:
        asyncio.run(until(lambda: counts(pool) == (1, 1)))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        # A signal that comes just before the wait begins does not end it; its handler runs with that of a later one.
        while not has_left.wait(0.01):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    holder = threading.Thread(target=inline.run, args=(pool, blocked))
    holder.start()
    assert blocked.entered.wait(GIVE_UP_S)
    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        inline.run(pool, int, deadline=time.monotonic() + GIVE_UP_S)
    has_left.set()
    helper.join(GIVE_UP_S)
    signal.signal(signal.SIGUSR1, former)
    assert counts(pool) == (1, 0)
    blocked.gate.set()
    holder.join(GIVE_UP_S)
    assert counts(pool) == (0, 0)


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
