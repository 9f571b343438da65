"""WorkerPool inside itself, and on both sides of a fork."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from support.blocking import Blocked, Deaf, counts, entered, held_elsewhere, in_child, until
from support.patience import GIVE_UP_S

from deepseek_client import DeadlineExceeded, Overloaded, WorkerPool
from deepseek_client.engines import inline


def nested(pool: WorkerPool, depth: int) -> int:
    return depth if depth == 0 else asyncio.run(pool.run(nested, pool, depth - 1))


@pytest.mark.parametrize("depth", [1, 2, 5])
async def test_a_nested_call_on_a_full_pool_does_not_wait_for_itself(depth):
    """A call made from the pool's only thread runs there: waiting for a slot would wait for ever."""
    pool = WorkerPool(workers=1, queue_limit=10)
    assert await asyncio.wait_for(pool.run(nested, pool, depth), GIVE_UP_S) == 0
    assert counts(pool) == (0, 0)
    pool.close()


def over_a_loop(pool: WorkerPool, function: Callable[[], int]) -> int:
    return asyncio.run(pool.run(function))


def in_the_own_thread(pool: WorkerPool, function: Callable[[], int]) -> int:
    return inline.run(pool, function)


WAYS = [over_a_loop, in_the_own_thread]


@pytest.mark.parametrize("outer", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("middle", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("inner", WAYS, ids=lambda way: way.__name__)
async def test_no_way_into_a_full_pool_waits_for_itself(outer, middle, inner):
    """Calls inside of each other, each awaited or in its own thread, all get through a pool of one worker."""
    pool = WorkerPool(workers=1, queue_limit=10)

    def nest() -> int:
        return outer(pool, lambda: middle(pool, lambda: inner(pool, lambda: counts(pool)[0])))

    assert await asyncio.wait_for(asyncio.to_thread(nest), GIVE_UP_S) == 1
    assert counts(pool) == (0, 0)
    pool.close()


async def test_a_nested_call_in_the_own_thread_counts_where_there_is_room(pool):
    """With a slot to spare a nested inline.run takes it, for other calls may come meanwhile."""
    inner = await pool.run(lambda: inline.run(pool, lambda: counts(pool)))
    assert inner == (2, 0)
    assert counts(pool) == (0, 0)


async def test_a_nested_call_borrows_an_idle_worker(pool):
    """With a worker to spare a nested call runs in that worker's thread, not in the caller's."""

    def outer() -> tuple[int, int]:
        return threading.get_ident(), asyncio.run(pool.run(threading.get_ident))

    own, borrowed = await pool.run(outer)
    assert own != borrowed


async def test_nested_calls_run_no_more_at_once_than_there_are_workers():
    """Ten nested calls from the only worker run one after the other, and take no slot."""
    pool = WorkerPool(workers=1, queue_limit=0)
    at_once: list[int] = []
    running = 0

    def inner() -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        running -= 1

    async def ten() -> None:
        await asyncio.gather(*(pool.run(inner) for _ in range(10)))

    await pool.run(lambda: asyncio.run(ten()))
    assert at_once == [1] * 10
    assert counts(pool) == (0, 0)
    pool.close()


async def test_a_nested_call_that_was_given_up_keeps_the_outer_slot():
    """A deaf nested call whose waiter left still runs: the outer call's slot stays taken until it ends."""
    pool = WorkerPool(workers=1, queue_limit=0)
    deaf = Deaf()

    def outer() -> None:
        with suppress(DeadlineExceeded):
            asyncio.run(pool.run(deaf, deadline=time.monotonic() + 0.05))

    call = asyncio.ensure_future(pool.run(outer))
    await entered(deaf)
    with pytest.raises(Overloaded):
        await pool.run(int)
    assert counts(pool) == (1, 0)
    deaf.gate.set()
    await call
    assert counts(pool) == (0, 0)
    pool.close()


@pytest.mark.parametrize("way", ["another loop", "another pool"])
async def test_a_nested_call_is_known_by_what_it_belongs_to(way):
    """A call that reaches the full pool through another event loop or another pool does not wait for itself."""
    pool, other = WorkerPool(workers=1, queue_limit=10), WorkerPool(workers=1, queue_limit=10)
    loop = asyncio.get_running_loop()

    def over_another_loop() -> int:
        return asyncio.run_coroutine_threadsafe(pool.run(int, "7"), loop).result(GIVE_UP_S)

    def over_another_pool() -> int:
        return asyncio.run(other.run(lambda: asyncio.run(pool.run(int, "7"))))

    outer = over_another_loop if way == "another loop" else over_another_pool
    assert await pool.run(outer, deadline=time.monotonic() + GIVE_UP_S) == 7
    pool.close()
    other.close()


async def test_code_that_outlives_its_call_is_not_nested():
    """A task started in a call that has ended waits in the queue like everybody."""
    pool = WorkerPool(workers=1, queue_limit=1)
    started: list[asyncio.Future[int]] = []
    loop, blocked, go_on = asyncio.get_running_loop(), Blocked(), asyncio.Event()

    async def later() -> int:
        await go_on.wait()
        return await pool.run(int, "7")

    def start() -> None:
        started.append(asyncio.run_coroutine_threadsafe(later(), loop))

    await pool.run(start)
    call = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    go_on.set()
    await until(lambda: counts(pool) == (1, 1))
    blocked.gate.set()
    await call
    assert await asyncio.wrap_future(started[0]) == 7
    pool.close()


async def test_a_nested_call_keeps_its_deadline():
    """A nested call without a worker to spare is aborted at its deadline all the same."""
    pool = WorkerPool(workers=1, queue_limit=0)
    blocked = Blocked()

    def outer() -> str:
        try:
            return asyncio.run(pool.run(blocked, deadline=time.monotonic() + 0.05))
        except DeadlineExceeded:
            return "over"

    assert await pool.run(outer) == "over"
    assert blocked.reason == "deadline"
    pool.close()


def test_a_child_has_an_empty_open_pool(pool):
    """A pool that was used before a fork works in the child."""
    assert asyncio.run(pool.run(int)) == 0
    in_child(lambda: asyncio.run(pool.run(int)))


def test_a_fork_in_the_middle_of_calls_leaves_the_child_all_slots(pool):
    """Slots that were taken at the fork, running and queued, are free in the child; the parent's calls go on."""
    blocked = [Blocked() for _ in range(3)]

    async def parent() -> list[str]:
        calls = [asyncio.ensure_future(pool.run(one)) for one in blocked]
        await entered(blocked[0], blocked[1])
        await asyncio.to_thread(in_child, child)
        for one in blocked:
            one.gate.set()
        return await asyncio.gather(*calls)

    def child() -> None:
        assert counts(pool) == (0, 0)
        meeting = threading.Barrier(2, timeout=GIVE_UP_S)

        async def meet() -> None:
            await asyncio.gather(pool.run(meeting.wait), pool.run(meeting.wait))

        asyncio.run(meet())

    assert asyncio.run(parent()) == ["let go"] * 3
    assert counts(pool) == (0, 0)


def test_a_fork_while_the_lock_is_held_does_not_hang_the_child(pool):
    """A child forked while another thread is inside the pool's lock can use the pool."""
    with held_elsewhere(pool._changed):
        in_child(lambda: asyncio.run(pool.run(int)))
