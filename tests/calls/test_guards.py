"""Guards: what they are asked before a call and each attempt, and what they are told of the end."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from support.callers import called, called_here, caller

from deepseek_client import CircuitOpen, ConnectionFailed, DeadlineExceeded, Settings, events
from deepseek_client.calls import call as call_module
from deepseek_client.calls import caller as caller_module
from deepseek_client.calls.call import Attempt, Call
from deepseek_client.calls.caller import Caller
from deepseek_client.wire import exchange as exchange_module


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
