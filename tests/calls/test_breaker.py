"""Breaker: when it opens, what it refuses, and how it closes again. The clock is a number."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from support.blocking import Clock, held_elsewhere, in_child

from deepseek_client import (
    AuthenticationFailed,
    BadReply,
    CircuitOpen,
    ConnectionFailed,
    DeadlineExceeded,
    InsufficientBalance,
    Overloaded,
    PoolClosed,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
    events,
)
from deepseek_client.calls import breaker as breaker_module
from deepseek_client.calls.breaker import Breaker

DOWN = UpstreamUnavailable("down")
QUICK_S, SLOW_S = 1.0, 20.0  # the deadline is 25 s
ATTEMPT: Any = None  # which a breaker does not look at


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(25.0, clock=clock)


def call(held_s: float = QUICK_S, requests: int = 1) -> SimpleNamespace:
    """What the breaker looks at of a call that has ended."""
    return SimpleNamespace(
        began=0.0,
        deadline=25.0,
        held_s=lambda error: held_s,
        ran_s=held_s,
        requests=requests,
        first_chunk_s=None,
    )


def calls(breaker: Breaker, times: int, error: BaseException | None, held_s: float = QUICK_S) -> None:
    for _ in range(times):
        breaker.before_call().after_call(call(held_s), error)


def opened(breaker: Breaker) -> bool:
    return breaker.refusal() is not None


@pytest.mark.parametrize("error", [None, DeadlineExceeded("x")], ids=["whole", "cut"])
def test_a_long_stream_is_not_slow(breaker, error):
    """A stream that has begun shows that the API is there, however long it lasts."""
    for _ in range(20):
        long = call(SLOW_S)
        long.first_chunk_s = 0.5
        breaker.before_call().after_call(long, error)
    assert not opened(breaker)


@pytest.mark.parametrize("error", [BadReply("x"), ConnectionFailed("x"), DOWN], ids=lambda error: error.code)
def test_it_opens_when_calls_fail(breaker, error):
    """Ten calls that failed on the API's side open it; nine do not."""
    calls(breaker, 9, error)
    assert not opened(breaker)
    calls(breaker, 1, error)
    with pytest.raises(CircuitOpen, match="10 of the last 10 calls to the API failed or were slow") as caught:
        breaker.before_call()
    assert caught.value.retry_after_s == 10.0


@pytest.mark.parametrize("error", [None, DeadlineExceeded("x")], ids=["answered", "not-answered"])
def test_it_opens_when_calls_are_slow(breaker, error):
    """Ten calls that ran for four fifths of their time open it, answered or not."""
    calls(breaker, 10, error, SLOW_S)
    assert opened(breaker)


def test_half_of_the_calls_may_fail(breaker):
    """It stays closed while more than a fifth of the calls is answered, for users are better off so."""
    for _ in range(100):
        calls(breaker, 1, None)
        calls(breaker, 3, DOWN)
        assert not opened(breaker)
    with pytest.raises(CircuitOpen):
        calls(breaker, 50, DOWN)


@pytest.mark.parametrize(
    "error",
    [Overloaded("x"), DeadlineExceeded("x"), PoolClosed("x"), asyncio.CancelledError(), LookupError("x")],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_about_the_api_does_not_count(breaker, error):
    """Our own limits, a caller that gave up early and a defect neither open it nor keep it closed."""
    calls(breaker, 100, error)
    assert not opened(breaker)
    calls(breaker, 10, DOWN)
    assert opened(breaker)


ANSWERS = [UpstreamRejected("x"), RateLimited("x"), BadReply("x", is_completion=True)]


@pytest.mark.parametrize("error", ANSWERS, ids=lambda error: error.code)
def test_a_refusal_is_an_answer(breaker, clock, error):
    """An API that refuses a request, or whose model says nothing useful, is alive: also as the answer to a probe."""
    calls(breaker, 100, error)
    assert not opened(breaker)
    calls(breaker, 3, error)
    calls(breaker, 10, DOWN)
    assert not opened(breaker)
    with pytest.raises(CircuitOpen):
        calls(breaker, 50, DOWN)
    clock.now += 10
    calls(breaker, 1, error)
    assert not opened(breaker)


def test_what_was_not_sent_does_not_count(breaker):
    """A client that fails before it reaches the network says nothing about the API; one that is answered does."""
    for _ in range(100):
        breaker.before_call().after_call(call(requests=0), ConnectionFailed("x"))
    assert not opened(breaker)


def test_without_sight_of_the_network_it_closes_too(breaker, clock):
    """Where the transport sees nothing (DEEPSEEK_TRANSPORT=0, a client of another library) an answer closes it."""
    for _ in range(10):
        breaker.before_call().after_call(call(SLOW_S, requests=0), None)
    assert opened(breaker)
    clock.now += 10
    breaker.before_call().after_call(call(requests=0), None)
    assert not opened(breaker)


def test_old_calls_are_forgotten(breaker, clock):
    """Failures of more than five minutes ago no longer count."""
    calls(breaker, 9, DOWN)
    clock.now += 301
    calls(breaker, 9, DOWN)
    assert not opened(breaker)


def test_one_probe_goes_through(breaker, clock):
    """After the pause one call goes through while the others are refused; its answer closes the breaker."""
    calls(breaker, 10, DOWN)
    clock.now += 10
    permit = breaker.before_call()
    with pytest.raises(CircuitOpen):
        breaker.before_call()
    permit.after_call(call(), None)
    calls(breaker, 9, DOWN)  # counted from nothing
    assert not opened(breaker)


def test_a_failed_probe_opens_it_anew(breaker, clock):
    """A probe that fails begins another pause."""
    calls(breaker, 10, DOWN)
    clock.now += 10
    calls(breaker, 1, DOWN)
    assert breaker.refusal().retry_after_s == 10.0


def test_a_slow_answer_closes_it(breaker, clock):
    """A probe that is answered closes it, however long that took."""
    calls(breaker, 10, DOWN)
    clock.now += 10
    calls(breaker, 1, None, SLOW_S)
    assert not opened(breaker)


def test_a_probe_that_hangs_opens_it_anew(breaker, clock):
    """A probe whose time is used up without an answer begins another pause."""
    calls(breaker, 10, DOWN)
    clock.now += 10
    calls(breaker, 1, DeadlineExceeded("x"), SLOW_S)
    assert breaker.refusal().retry_after_s == 10.0


def test_a_probe_that_tells_nothing_is_followed_by_another(breaker, clock):
    """A probe whose caller went away neither closes it nor begins another pause."""
    calls(breaker, 10, DOWN)
    clock.now += 10
    calls(breaker, 1, asyncio.CancelledError())
    permit = breaker.before_call()
    assert opened(breaker)
    permit.after_call(call(), None)
    assert not opened(breaker)


def test_a_probe_that_never_ends_is_followed_by_another(breaker, clock):
    """When a probe does not report within the time of a slow call, the next call is one."""
    calls(breaker, 10, DOWN)
    clock.now += 10
    breaker.before_call()
    clock.now += 19.9
    assert opened(breaker)
    clock.now += 0.1
    breaker.before_call()


def test_a_probe_of_an_hour_does_not_refuse_for_an_hour(clock):
    """However long the deadline is, a minute after a probe the next call is one."""
    breaker = Breaker(3_600.0, clock=clock)
    calls(breaker, 10, DOWN)
    clock.now += 10
    late = breaker.before_call()
    clock.now += 60
    breaker.before_call()
    late.after_call(call(), None)
    assert opened(breaker)


def test_what_waited_meanwhile_is_not_sent(breaker, clock):
    """An attempt of a call from before it opened is refused, also during the probe, and let through after it."""
    waiting = breaker.before_call()
    waiting.before_attempt(ATTEMPT)
    calls(breaker, 10, DOWN)
    with pytest.raises(CircuitOpen):
        waiting.before_attempt(ATTEMPT)
    clock.now += 10
    with pytest.raises(CircuitOpen):
        waiting.before_attempt(ATTEMPT)
    probe = breaker.before_call()
    probe.before_attempt(ATTEMPT)
    probe.after_call(call(), None)
    waiting.before_attempt(ATTEMPT)


def test_calls_from_before_it_opened_do_not_count(breaker, clock):
    """What was under way when it opened neither closes it nor opens it anew."""
    good, bad = breaker.before_call(), breaker.before_call()
    calls(breaker, 10, DOWN)
    clock.now += 5
    good.after_call(call(), None)
    bad.after_call(call(), DOWN)
    assert breaker.refusal().retry_after_s == 5.0


@pytest.mark.parametrize(("kind", "times"), [(AuthenticationFailed, 3), (InsufficientBalance, 1)])
def test_the_account_opens_it_for_long(breaker, clock, kind, times):
    """Three refused keys in a row, or one empty balance, open it for five minutes, and until a probe is answered."""
    calls(breaker, times - 1, kind("x"))
    assert not opened(breaker)
    calls(breaker, 1, kind("The account will not do (HTTP 4xx)."))
    assert str(breaker.refusal()) == "No call is made for now: The account will not do (HTTP 4xx)."
    assert breaker.refusal().retry_after_s == 300.0
    clock.now += 300
    calls(breaker, 1, kind("still."))
    assert breaker.refusal().retry_after_s == 300.0
    clock.now += 300
    calls(breaker, 1, None)
    assert not opened(breaker)
    calls(breaker, times - 1, kind("x"))  # counted from nothing
    assert not opened(breaker)


@pytest.mark.parametrize("error", [None, *ANSWERS], ids=lambda error: getattr(error, "code", "answered"))
def test_a_refused_key_now_and_then_is_one_calls_own(breaker, error):
    """Refused keys between which the API answered say nothing about the account."""
    for _ in range(50):
        calls(breaker, 2, AuthenticationFailed("x"))
        calls(breaker, 1, error)
    assert not opened(breaker)


@pytest.mark.parametrize(
    "error", [DOWN, Overloaded("x"), asyncio.CancelledError()], ids=lambda error: type(error).__name__
)
def test_refused_keys_are_in_a_row_across_what_is_no_answer(breaker, error):
    """A failure of the API, or a call that tells nothing, does not begin the row of refused keys anew."""
    calls(breaker, 2, AuthenticationFailed("x"))
    calls(breaker, 1, error)
    assert not opened(breaker)
    calls(breaker, 1, AuthenticationFailed("x"))
    assert opened(breaker)


def test_another_failure_than_the_account_is_another_pause(breaker, clock):
    """After refused keys, a probe that meets a broken API waits as for a broken API."""
    calls(breaker, 3, AuthenticationFailed("refused."))
    clock.now += 300
    calls(breaker, 1, DOWN)
    assert str(breaker.refusal()) == "No call is made for now: the API keeps failing."
    assert breaker.refusal().retry_after_s == 10.0


def test_what_changes_is_told(breaker, clock, caplog):
    """Opening, a failed probe and closing are each a line of the log; the state's change is an event."""
    seen: list[object] = []
    caplog.set_level(logging.WARNING, breaker_module.__name__)
    events.subscribe(seen.append)
    try:
        calls(breaker, 10, DOWN)
        for _ in range(5):
            with pytest.raises(CircuitOpen):
                breaker.before_call()
        clock.now += 10
        calls(breaker, 1, DOWN)
        clock.now += 10
        calls(breaker, 1, InsufficientBalance("no balance."))
        clock.now += 300
        calls(breaker, 1, None)
    finally:
        events.unsubscribe(seen.append)
    assert [event.state for event in seen] == ["open", "closed"]
    assert caplog.messages == [
        "breaker open for 10 s: 10 of the last 10 calls to the API failed or were slow",
        "breaker open for 10 s: the API keeps failing",
        "breaker open for 300 s: no balance",
        "breaker closed: the API answers again",
    ]


def test_no_hook_runs_under_the_lock(breaker, clock):
    """A hook of the event may ask the breaker itself."""
    seen: list[bool] = []

    def ask(event: object) -> None:
        seen.append(opened(breaker))

    events.subscribe(ask)
    try:
        calls(breaker, 10, DOWN)
    finally:
        events.unsubscribe(ask)
    assert seen == [True]


def test_a_fork_does_not_inherit_the_lock(breaker):
    """A child that was forked while another thread held the lock makes its calls all the same."""
    with held_elsewhere(breaker_module._lock):
        in_child(lambda: calls(breaker, 1, None))


def of(deadline_s: float, ran_s: float) -> SimpleNamespace:
    return SimpleNamespace(
        began=0.0,
        deadline=deadline_s,
        ran_s=ran_s,
        held_s=lambda error: ran_s,
        requests=1,
        first_chunk_s=None,
    )


@pytest.mark.parametrize(
    ("deadline_s", "ran_s", "error", "opens"),
    [
        (120.0, 60.0, None, False),
        (120.0, 100.0, None, True),
        (10.0, 10.0, DeadlineExceeded("x"), True),
        (0.3, 0.3, DeadlineExceeded("x"), False),
    ],
    ids=["long-and-answered", "long-and-slow", "short-and-hung", "too-short-to-tell"],
)
def test_a_deadline_of_the_callers_own_is_what_slow_means(clock, deadline_s, ran_s, error, opens):
    """Answers within a longer deadline are not slow; calls that hang through a shorter one of 5 s or more are."""
    breaker = Breaker(25.0, clock=clock)
    for _ in range(10):
        breaker.before_call().after_call(of(deadline_s, ran_s), error)
    assert (breaker.refusal() is not None) is opens
