"""One call: where it runs, what it gives, and its report."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.blocking import Blocked, entered, until
from support.callers import called, called_here, caller

from deepseek_client import ClientClosed, DeadlineExceeded, InvalidRequest, Overloaded, PoolClosed, WorkerPool
from deepseek_client.calls import ending
from deepseek_client.calls.call import Attempt, calls_in_flight
from deepseek_client.calls.caller import deadline_in
from deepseek_client.wire.exchange import Exchange


async def test_a_call_on_the_pool_is_reported(pool, reports):
    """A success is reported once, with its method, its mode and both durations."""
    ours = caller(pool, chat=lambda prompt, *, loud: prompt.upper() if loud else prompt)
    assert await called(ours, "chat", "hi", loud=True) == "HI"
    (report,) = reports
    assert (report.method, report.mode, report.error) == ("chat", "async", None)
    assert report.waited_s >= 0
    assert report.ran_s >= 0
    assert report.attempts == 1


async def test_a_method_may_have_any_parameters(pool):
    """Parameters that are called as ours are still reach the client's method."""
    ours = caller(pool, post=lambda **given: given)
    given = {"method": "GET", "deadline": 3, "mode": 1, "self": 2, "fn": 4, "call": 5}
    assert await called(ours, "post", **given) == given
    assert called_here(ours, "post", **given) == given


@pytest.mark.parametrize("use_async", [True, False], ids=["in-a-slot", "unlimited"])
def test_a_call_in_the_own_thread_is_reported(pool, reports, use_async):
    """A call in its caller's thread has the mode "sync"."""
    assert called_here(caller(pool, use_async=use_async, parse=int), "parse", "7") == 7
    assert [(report.method, report.mode, report.error) for report in reports] == [("parse", "sync", None)]


@pytest.mark.parametrize("use_async", [True, False], ids=["in-a-slot", "unlimited"])
@pytest.mark.parametrize(
    ("error", "code"),
    [(DeadlineExceeded("x"), "deadline_exceeded"), (LookupError("x"), "unexpected")],
    ids=["ours", "foreign"],
)
def test_a_failure_is_reported_by_its_code(pool, reports, use_async, error, code):
    """A failure is reported with its code and raised as it is."""

    def chat() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        called_here(caller(pool, use_async=use_async, chat=chat))
    assert caught.value is error
    assert [(report.error, report.attempts) for report in reports] == [(code, 1)]


async def test_one_limit_for_every_way_in(pool):
    """A call in its caller's own thread needs a slot of the pool, and takes one from those on the pool."""
    blocked = Blocked()
    ours = caller(pool, chat=blocked, parse=int)
    running = asyncio.ensure_future(called(ours))
    await entered(blocked)
    with pytest.raises(Overloaded):
        called_here(ours, "parse")
    blocked.gate.set()
    await running

    blocked = ours.client.chat = Blocked()
    running = asyncio.ensure_future(asyncio.to_thread(called_here, ours))
    await entered(blocked)
    with pytest.raises(Overloaded):
        await called(ours, "parse")
    blocked.gate.set()
    await running


async def test_the_rollback_has_no_limit(pool):
    """With USE_ASYNC_DEEPSEEK=0 a call runs in its caller's thread, whatever the pool is doing."""
    blocked = Blocked()
    running = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    assert called_here(caller(pool, use_async=False, chat=lambda: "hi")) == "hi"
    blocked.gate.set()
    await running
    pool.close()
    assert called_here(caller(pool, use_async=False, chat=lambda: "hi")) == "hi"


async def test_a_closed_client_makes_no_call(pool):
    """A program that uses a client after its end gets a ClientClosed, and its method is not called."""
    called_with: list[str] = []
    ours = caller(pool, chat=called_with.append)
    ours.is_closed = True
    with pytest.raises(ClientClosed):
        await called(ours, "chat", "hi")
    with pytest.raises(ClientClosed):
        called_here(ours, "chat", "hi")
    assert not called_with


def test_without_an_event_loop_nothing_stays_behind(pool):
    """A call that a bare coroutine makes says what it needs, and neither the call nor a slot stays behind."""
    with pytest.raises(RuntimeError, match="an awaited call needs asyncio's event loop"):
        called(caller(pool, chat=int)).send(None)
    assert not calls_in_flight()
    assert pool.stats()["busy"] == 0


async def test_calls_in_flight_are_known():
    """A call is in flight from its start to its end: while it runs and while it waits in the queue."""
    pool, blocked = WorkerPool(workers=1, queue_limit=1), Blocked()
    ours = caller(pool, chat=blocked)
    calls = [asyncio.ensure_future(called(ours))]
    await entered(blocked)
    calls.append(asyncio.ensure_future(called(ours)))
    await until(lambda: pool.stats()["queued"] == 1)
    assert [call.method for call in calls_in_flight()] == ["chat", "chat"]
    blocked.gate.set()
    await asyncio.gather(*calls)
    assert not calls_in_flight()
    pool.close()


async def test_a_refused_call_is_reported(pool, reports):
    """A call that never started is reported too, with no time run."""
    blocked = Blocked()
    running = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    with pytest.raises(Overloaded):
        await called(caller(pool, chat=int))
    blocked.gate.set()
    await running
    assert [(report.error, report.ran_s, report.attempts) for report in reports] == [("overloaded", 0.0, 0)]


async def test_a_cancelled_call_is_reported(pool, reports):
    """A call whose task is cancelled is reported as "cancelled"."""
    blocked = Blocked()
    task = asyncio.ensure_future(called(caller(pool, chat=blocked)))
    await entered(blocked)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    blocked.gate.set()
    assert [report.error for report in reports] == ["cancelled"]
    assert not calls_in_flight()


LATE = object()


@pytest.mark.parametrize(
    ("aborted", "raised", "kind"),
    [
        (None, LookupError("its own"), LookupError),
        ("closing", None, PoolClosed),
        ("closing", OSError("shut down"), PoolClosed),
        ("deadline", None, DeadlineExceeded),
        ("deadline", OSError("shut down"), DeadlineExceeded),
        ("cancelled", None, DeadlineExceeded),
        (LATE, OSError("timed out"), DeadlineExceeded),
    ],
)
def test_an_ended_attempt_says_by_what_it_was_ended(aborted, raised, kind):
    """What the client makes of its end counts for nothing: our own reason is raised, with the client's as the cause."""
    ours = caller()
    exchange = Exchange(deadline=time.monotonic() + (-1 if aborted is LATE else 60))
    if isinstance(aborted, str):
        exchange.abort(aborted)
    with exchange:
        pass
    attempt = Attempt(ours, ours.call("chat", (), {}), exchange)
    attempt.raised = raised
    with pytest.raises(kind) as caught:
        ours.outcome(attempt)
    assert raised in (caught.value, caught.value.__cause__)


def test_an_answer_after_the_deadline_is_an_answer():
    """What the client returned is its caller's, although the deadline passed a moment before."""
    ours = caller()
    exchange = Exchange(deadline=time.monotonic() - 1)
    with exchange:
        pass
    attempt = Attempt(ours, ours.call("chat", (), {}), exchange)
    attempt.result = "hi"
    assert ours.outcome(attempt) == "hi"


def test_an_attempt_that_was_ended_before_it_began_calls_nothing():
    """An attempt whose end came before its thread did not call the client's method."""
    called_with: list[str] = []
    ours = caller(chat=called_with.append)
    attempt = Attempt(ours, ours.call("chat", ("hi",), {}), Exchange())
    attempt.abort("closing")
    with pytest.raises(PoolClosed):
        attempt()
    assert not called_with
    assert attempt.began is None


async def test_an_ended_call_counts_from_its_thread(monkeypatch, pool, alone):
    """A call that is ended while it runs made an attempt; one that is ended in the queue made none."""
    queueing, blocked = WorkerPool(workers=1, queue_limit=1), Blocked()
    ours = caller(queueing, chat=blocked)
    made = [ours.call("chat", (), {}) for _ in range(2)]
    tasks = [asyncio.ensure_future(ours.run(made[0]))]
    await entered(blocked)
    tasks.append(asyncio.ensure_future(ours.run(made[1])))
    await until(lambda: queueing.stats()["queued"] == 1)
    ending.end_calls()
    blocked.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PoolClosed, PoolClosed]
    assert [call.attempts for call in made] == [1, 0]


def test_a_deadline_that_is_no_time_is_refused():
    """A deadline in the past, or one that no moment can be compared with, is refused by its value."""
    for deadline_s in (float("nan"), -1.0):
        with pytest.raises(InvalidRequest, match=f"deadline_s is {deadline_s}: need seconds"):
            deadline_in(deadline_s)
