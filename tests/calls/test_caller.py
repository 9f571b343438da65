"""One call's report, and many calls in turns."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from support.blocking import Blocked, entered

from deepseek_client import (
    AsyncDeepSeekClient,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PoolClosed,
    Settings,
    WorkerPool,
    events,
)
from deepseek_client.answers import returned_or_raised
from deepseek_client.calls import caller as calls_module
from deepseek_client.calls.caller import Caller, abort_blocking, in_turns
from deepseek_client.wire.exchange import Exchange

GIVE_UP_S = 5.0


@pytest.fixture
def reports():
    seen: list[events.CallFinished] = []

    def note(event: object) -> None:
        if isinstance(event, events.CallFinished):
            seen.append(event)

    events.subscribe(note)
    yield seen
    events.unsubscribe(note)


@pytest.fixture
def pool():
    made = WorkerPool(workers=1, queue_limit=0)
    yield made
    made.close()


def _kept(error: Exception) -> Exception:
    return error


def _raised(error: Exception) -> None:
    raise error


def caller(pool: WorkerPool | None = None, **methods: Any) -> Caller:
    return Caller(SimpleNamespace(**methods), pool, Settings(max_workers=1, queue_limit=0))


async def test_a_call_on_the_pool_is_reported(pool, reports):
    """A success is reported once, with its method, its mode and both durations."""
    calls = caller(pool, chat=lambda prompt, *, loud: prompt.upper() if loud else prompt)
    assert await calls.on_pool(returned_or_raised, calls.until(), "chat", "hi", loud=True) == "HI"
    (report,) = reports
    assert (report.method, report.mode, report.error) == ("chat", "async", None)
    assert report.waited_s >= 0
    assert report.ran_s >= 0
    assert report.attempts == 1


async def test_a_method_may_have_any_parameters(pool):
    """Parameters that are called as ours are still reach the client's method."""
    calls = caller(pool, post=lambda **given: given)
    given = {"method": "GET", "deadline": 3, "judge": 1, "self": 2, "fn": 4}
    assert await calls.on_pool(returned_or_raised, calls.until(), "post", **given) == given


def test_a_call_in_the_own_thread_is_reported(reports):
    """A call in its caller's thread has the mode "sync"."""
    calls = caller(parse=int)
    assert calls.here(returned_or_raised, calls.until(), "parse", "7") == 7
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

    calls = caller(chat=int)
    with pytest.raises(type(error)):
        calls.here(judge, calls.until(), "chat")
    assert [report.error for report in reports] == [code]


class Told:
    """In place of a policy: three attempts, and what its breaker is told."""

    def __init__(self):
        self.breaker = self
        self.left: list[tuple[int, BaseException | None, float, bool]] = []

    async def run(self, attempt, deadline, is_leaving):
        for _ in range(2):
            with pytest.raises(LookupError):
                await attempt()
        return await attempt()

    def enter(self):
        return 7

    def check(self, ticket):
        assert ticket == 7

    def leave(self, ticket, error, held_s, *, was_sent):
        self.left.append((ticket, error, held_s, was_sent))


@pytest.mark.parametrize(
    ("last", "held_s"), [(None, 6.0), (DeadlineExceeded("x"), 36.0)], ids=["answered", "time-used-up"]
)
async def test_the_breaker_is_told_how_long_the_api_had_it(pool, reports, monkeypatch, last, held_s):
    """It is the time of all attempts; the whole time, waits included, of a call whose time was used up."""
    now = 1000.0
    monkeypatch.setattr(calls_module, "time", SimpleNamespace(monotonic=lambda: now))
    policy, outcomes = Told(), [LookupError("1"), LookupError("2"), last]

    def judge(exchange: Exchange) -> None:
        nonlocal now
        exchange.began, exchange.ended = now, now + 2.0
        exchange.usage = {"total_tokens": len(outcomes)}
        exchange.requests = 1
        now += 12.0  # 2 s of it ran
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    calls = Caller(SimpleNamespace(chat=int), pool, Settings(), policy)
    with contextlib.suppress(DeadlineExceeded):
        await calls.on_pool(judge, time.monotonic() + 60, "chat")
    assert policy.left == [(7, last, held_s, True)]
    (report,) = reports
    assert (report.attempts, report.ran_s, report.waited_s) == (3, 6.0, 30.0)
    assert report.usage == {"total_tokens": 6}


async def test_a_refused_call_is_reported(pool, reports):
    """A call that never started is reported too, with no time run."""
    blocked = Blocked()
    running = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    calls = caller(pool, chat=int)
    with pytest.raises(Overloaded):
        await calls.on_pool(returned_or_raised, calls.until(), "chat")
    blocked.gate.set()
    await running
    assert [(report.error, report.ran_s, report.attempts) for report in reports] == [("overloaded", 0.0, 0)]


async def test_a_cancelled_call_is_reported(pool, reports):
    """A call whose task is cancelled is reported as "cancelled"."""
    blocked = Blocked()
    calls = caller(pool, chat=blocked)
    task = asyncio.ensure_future(calls.on_pool(returned_or_raised, calls.until(), "chat"))
    await entered(blocked)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    blocked.gate.set()
    assert [report.error for report in reports] == ["cancelled"]


def test_the_deadline_is_the_settings(monkeypatch):
    """A call that starts now is over after LLM_DEADLINE_S, or after its own deadline_s, zero included."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    calls = Caller(None, None, Settings(deadline_s=7.0))
    assert (calls.until(), calls.until(3.0), calls.until(0.0)) == (1007.0, 1003.0, 1000.0)


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

    assert await in_turns(call, range(20), 4, _raised) == [i * i for i in range(20)]
    assert most == 4


async def test_no_items_give_no_results():
    """An empty sequence gives an empty list."""
    assert await in_turns(asyncio.sleep, [], 5, _raised) == []


async def test_exceptions_take_their_place():
    """What is made of a failure stands where its result would."""

    async def call(item: int) -> float:
        return 6 / item

    first, second, third = await in_turns(call, [1, 0, 3], 2, _kept)
    assert (first, third) == (6.0, 2.0)
    assert isinstance(second, ZeroDivisionError)


async def test_a_full_pool_costs_no_item_while_others_are_under_way():
    """An item that finds the pool full is left to the turns that have a place; it fails only when none has."""
    places = asyncio.Semaphore(2)

    async def call(item: int) -> int:
        if places.locked():
            raise Overloaded("x")
        async with places:
            await asyncio.sleep(0)
        return item

    assert await in_turns(call, range(50), 10, _kept) == list(range(50))
    async with places, places:
        results = await in_turns(call, range(5), 2, _kept)
    assert [type(result) for result in results] == [Overloaded] * 5


def test_calls_in_own_threads_are_ended(sandbox, settings):
    """A blocking call ends with PoolClosed when its process is about to leave."""
    sandbox.script([{"fault": "hang"}])
    client = AsyncDeepSeekClient(settings=settings, errors="raise")
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.chat, "hi")
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        abort_blocking()
        with pytest.raises(PoolClosed):
            call.result(GIVE_UP_S)
    assert not calls_module._blocking


async def test_refusals_let_others_go_on():
    """Calls that fail without waiting for anything do not keep the event loop from its other tasks."""
    refused: list[int] = []
    seen_meanwhile: list[int] = []

    async def call(item: int) -> None:
        if not refused:
            asyncio.get_running_loop().call_soon(lambda: seen_meanwhile.append(len(refused)))
        refused.append(item)
        raise Overloaded("x")

    await in_turns(call, range(100), 2, _kept)
    assert set(refused) == set(range(100))
    assert seen_meanwhile[0] < 10


async def test_the_first_failure_cancels_the_rest():
    """A failure that is raised again cancels the calls under way, and no further one begins."""
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
        await in_turns(call, range(10), 3, _raised)
    assert cancelled == [1, 2]
    assert begun == [0, 1, 2]


@pytest.mark.parametrize("deadline_s", [float("nan"), -1.0])
def test_a_deadline_that_is_none_is_refused(deadline_s):
    """A deadline in the past, or one that no moment can be compared with, is refused by its value."""
    with pytest.raises(InvalidRequest, match=f"deadline_s is {deadline_s}: need seconds"):
        caller().until(deadline_s)
