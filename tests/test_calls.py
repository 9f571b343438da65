"""One call's report, and many calls in turns."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from deepseek_client import DeadlineExceeded, Overloaded, WorkerPool, events
from deepseek_client.calls import call_async, call_here, in_turns, returned_or_raised
from deepseek_client.exchange import Exchange

GIVE_UP_S = 5.0


@pytest.fixture
def reports():
    seen: list[events.CallFinished] = []
    events.subscribe(seen.append)
    yield seen
    events.unsubscribe(seen.append)


@pytest.fixture
def pool():
    made = WorkerPool(workers=1, queue_limit=0)
    yield made
    made.close()


def soon() -> float:
    return time.monotonic() + GIVE_UP_S


async def test_a_call_on_the_pool_is_reported(pool, reports):
    """A success is reported once, with its method, its mode and both durations."""
    exchange = Exchange("chat", lambda prompt, *, loud: prompt.upper() if loud else prompt)
    result = await call_async(pool, exchange, returned_or_raised, soon(), ("hi",), {"loud": True})
    assert result == "HI"
    (report,) = reports
    assert (report.method, report.mode, report.error) == ("chat", "async", None)
    assert report.waited_s >= 0
    assert report.ran_s >= 0


def test_a_call_in_the_own_thread_is_reported(reports):
    """A call in its caller's thread has the mode "sync"."""
    assert call_here(Exchange("parse", int), returned_or_raised, soon(), ("7",)) == 7
    assert [(report.method, report.mode, report.error) for report in reports] == [("parse", "sync", None)]


@pytest.mark.parametrize(
    ("error", "code"),
    [(DeadlineExceeded("x"), "deadline_exceeded"), (LookupError("x"), "unexpected")],
    ids=["ours", "foreign"],
)
def test_a_failure_is_reported_by_its_code(reports, error, code):
    """A failure is reported with its code and raised as it is."""

    def judge(exchange: Exchange) -> None:
        raise error

    with pytest.raises(type(error)):
        call_here(Exchange("chat", int), judge, soon(), ())
    assert [report.error for report in reports] == [code]


async def test_a_refused_call_is_reported(pool, reports):
    """A call that never started is reported too, with no time run."""
    entered, gate = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert gate.wait(GIVE_UP_S)

    running = asyncio.ensure_future(pool.run(block))
    assert await asyncio.to_thread(entered.wait, GIVE_UP_S)
    with pytest.raises(Overloaded):
        await call_async(pool, Exchange("chat", int), returned_or_raised, soon(), (), {})
    gate.set()
    await running
    assert [(report.error, report.ran_s) for report in reports] == [("overloaded", 0.0)]


async def test_a_cancelled_call_is_reported(pool, reports):
    """A call whose task is cancelled is reported as "cancelled"."""
    entered, gate = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert gate.wait(GIVE_UP_S)

    task = asyncio.ensure_future(
        call_async(pool, Exchange("chat", block), returned_or_raised, soon(), (), {})
    )
    assert await asyncio.to_thread(entered.wait, GIVE_UP_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert [report.error for report in reports] == ["cancelled"]


async def test_turns_keep_the_order_and_the_width():
    """Results come in the order of the items, and never more than `width` calls are under way."""
    under_way = most = 0

    async def call(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(item % 3):
            await asyncio.sleep(0)
        under_way -= 1
        return item * item

    assert await in_turns(call, range(20), 4, return_exceptions=False) == [i * i for i in range(20)]
    assert most == 4


async def test_no_items_give_no_results():
    """An empty sequence gives an empty list."""
    assert await in_turns(asyncio.sleep, [], 5, return_exceptions=False) == []


async def test_exceptions_take_their_place():
    """With return_exceptions a failure stands where its result would."""

    async def call(item: int) -> float:
        return 6 / item

    first, second, third = await in_turns(call, [1, 0, 3], 2, return_exceptions=True)
    assert (first, third) == (6.0, 2.0)
    assert isinstance(second, ZeroDivisionError)


async def test_the_first_failure_cancels_the_rest():
    """Without return_exceptions the first failure is raised, after the calls under way were cancelled."""
    cancelled: list[int] = []
    begun: list[int] = []

    async def call(item: int) -> None:
        begun.append(item)
        if item == 0:
            await asyncio.sleep(0)
            raise LookupError("first")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(LookupError, match="first"):
        await in_turns(call, range(10), 3, return_exceptions=False)
    assert cancelled == [1, 2]
    assert begun == [0, 1, 2]
