"""One call: where it runs, what it gives, and its report."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from support.blocking import Blocked, entered, until

from deepseek_client import (
    CircuitOpen,
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PoolClosed,
    Settings,
    WorkerPool,
    events,
)
from deepseek_client.calls import call as call_module
from deepseek_client.calls import caller as caller_module
from deepseek_client.calls import ending
from deepseek_client.calls.call import Attempt, Call, calls_in_flight
from deepseek_client.calls.caller import Caller, deadline_in
from deepseek_client.wire import exchange as exchange_module
from deepseek_client.wire.exchange import Exchange

GIVE_UP_S = 20.0


def caller(pool: WorkerPool | None = None, *, use_async: bool = True, **methods: Any) -> Caller:
    settings = Settings(max_workers=1, queue_limit=0, use_async=use_async)
    return Caller(SimpleNamespace(**methods), settings, pool)


def called(ours: Caller, method: str = "chat", /, *args: Any, **kwargs: Any) -> Any:
    """A call on the pool, to be awaited."""
    return ours.run(ours.call(method, args, kwargs))


def called_here(ours: Caller, method: str = "chat", /, *args: Any, **kwargs: Any) -> Any:
    return ours.run_here(ours.call(method, args, kwargs))


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


class Guarding:
    """A guard, and its permit, that notes what it is asked and told."""

    def __init__(self, refusal: Exception | None = None, *, at_attempt: bool = False) -> None:
        self.refusal = refusal
        self.at_attempt = at_attempt
        self.seen: list[Any] = []

    def before_call(self) -> Guarding:
        if self.refusal is not None and not self.at_attempt:
            raise self.refusal
        self.seen.append("call")
        return self

    def before_attempt(self, attempt: Attempt) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.seen.append("attempt")

    def after_attempt(self, error: BaseException | None) -> None:
        self.seen.append("attempted" if error is None else error)

    def after_call(self, call: Call, error: BaseException | None) -> None:
        self.seen.append(error)


async def test_guards_are_asked_in_their_order_and_told_the_end(pool):
    """A guard is asked before the call and each attempt, told when its thread is done, and how the call ended."""
    ours, guard = caller(pool, chat=int), Guarding()
    ours._guards = (guard,)
    assert await called(ours) == 0
    assert called_here(ours) == 0
    assert guard.seen == ["call", "attempt", "attempted", None] * 2


@pytest.mark.parametrize("at_attempt", [False, True], ids=["call", "attempt"])
async def test_a_guard_that_refuses_lets_nothing_be_sent(pool, reports, at_attempt):
    """When one guard refuses, the method is not called, and those that had let the call through hear of its end."""
    refusal = CircuitOpen("x")
    called_with: list[str] = []
    ours, first = caller(pool, chat=called_with.append), Guarding()
    ours._guards = (first, Guarding(refusal, at_attempt=at_attempt))
    with pytest.raises(CircuitOpen):
        await called(ours, "chat", "hi")
    assert (first.seen[0], first.seen[-1]) == ("call", refusal)
    assert not called_with
    assert [(report.error, report.attempts, report.ran_s) for report in reports] == [("circuit_open", 0, 0.0)]


async def test_a_call_whose_time_is_over_asks_no_guard(pool, reports):
    """A call that has no time left on arrival is not made, and no guard counts it."""
    ours, guard = caller(pool, chat=int), Guarding()
    ours._guards = (guard,)
    with pytest.raises(DeadlineExceeded, match="before it was started"):
        await ours.run(ours.call("chat", (), {}, time.monotonic()))
    assert not guard.seen
    assert [report.error for report in reports] == ["deadline_exceeded"]


class ThreeAttempts:
    """In place of a policy: three attempts, and what its guard is told."""

    def __init__(self):
        self.guards = (self,)
        self.told: list[tuple[BaseException | None, float, int]] = []

    def note_call(self):
        pass

    def seconds_to_next(self, failures, deadline):
        return 0.0 if len(failures) < 3 else None

    def before_call(self):
        return self

    def before_attempt(self, attempt):
        pass

    def after_attempt(self, error):
        pass

    def after_call(self, call, error):
        self.told.append((error, call.held_s(error), call.requests))


class Reading(Caller):
    """Reads a reply of so many tokens out of each attempt, 10 s after it ended."""

    def outcome(self, attempt: Attempt) -> Any:
        self.client.now += 10.0
        attempt.usage = {"total_tokens": attempt.call.attempts + 1, "details": {"cached": 1}}
        attempt.exchange.requests = 1
        return super().outcome(attempt)


@pytest.mark.parametrize(
    ("last", "held_s"), [(None, 6.0), (DeadlineExceeded("x"), 36.0)], ids=["answered", "time-used-up"]
)
async def test_the_guards_are_told_how_long_the_api_had_it(pool, reports, monkeypatch, last, held_s):
    """It is the time of all attempts; the whole time, waits included, of a call whose time was used up."""
    outcomes = [ConnectionFailed("1"), ConnectionFailed("2"), last]

    def chat() -> None:
        client.now += 2.0
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    client, policy = SimpleNamespace(chat=chat, now=1000.0), ThreeAttempts()
    ours = Reading(client, Settings(), pool, policy)
    clock = SimpleNamespace(monotonic=lambda: client.now)
    deadline = time.monotonic() + 10_000.0
    monkeypatch.setattr(call_module, "time", clock)
    monkeypatch.setattr(caller_module, "time", clock)
    monkeypatch.setattr(exchange_module, "time", clock)
    with contextlib.suppress(DeadlineExceeded):
        await ours.run(ours.call("chat", (), {}, deadline))
    assert policy.told == [(last, held_s, 3)]
    (report,) = reports
    assert (report.attempts, report.ran_s, report.waited_s) == (3, 6.0, 30.0)
    assert report.usage == {"total_tokens": 1 + 2 + 3}


async def test_each_attempt_is_reported(pool, monkeypatch):
    """Every run of the client's method is an event with its own failure, in their order, before the call's."""
    seen: list[Any] = []
    outcomes: list[Exception] = [ConnectionFailed("1"), LookupError("2")]

    def chat() -> None:
        raise outcomes.pop(0)

    ours = Caller(SimpleNamespace(chat=chat), Settings(), pool, ThreeAttempts())
    note = seen.append
    events.subscribe(note)
    try:
        with pytest.raises(LookupError):
            await called(ours)
    finally:
        events.unsubscribe(note)
    ours_seen = [(type(event), event.error) for event in seen if not isinstance(event, events.PoolChanged)]
    assert ours_seen == [
        (events.AttemptFinished, "connection_failed"),
        (events.AttemptFinished, "unexpected"),
        (events.CallFinished, "unexpected"),
    ]


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
