"""Policy: what is tried again, when, and how often in all, as numbers; then the loop of a call over a stub client."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from support.blocking import Blocked, entered, until
from support.patience import GIVE_UP_S

from deepseek_client import (
    AuthenticationFailed,
    BadReply,
    CallerLeft,
    CircuitOpen,
    ConnectionFailed,
    DeadlineExceeded,
    DeepSeekError,
    InsufficientBalance,
    InvalidRequest,
    Overloaded,
    PoolClosed,
    RateLimited,
    Settings,
    UpstreamRejected,
    UpstreamUnavailable,
    WorkerPool,
)
from deepseek_client.calls import ending
from deepseek_client.calls import retries as policy
from deepseek_client.calls.call import Attempt, Call, calls_in_flight
from deepseek_client.calls.caller import Caller
from deepseek_client.calls.options import set_request
from deepseek_client.calls.retries import Policy

NEVER = float("inf")


def rules(max_attempts: int = 3) -> Policy:
    return Policy(Settings(max_attempts=max_attempts))


def fails(times: int, kind: type[DeepSeekError] = ConnectionFailed) -> list[DeepSeekError]:
    return [kind("x") for _ in range(times)]


def attempts_made(ours: Policy, failures: list[DeepSeekError]) -> int:
    """How many attempts a call makes whose attempts fail so."""
    ours.note_call()
    for made in range(1, len(failures) + 1):
        if ours.seconds_to_next(failures[:made], NEVER) is None:
            return made
    return len(failures) + 1


@pytest.fixture
def whole(monkeypatch):
    """Each random part is the whole."""
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: high)


@pytest.mark.parametrize("kind", [ConnectionFailed, UpstreamUnavailable, RateLimited, BadReply])
def test_a_passing_failure_is_tried_again(whole, kind):
    """A failure that may pass is tried again."""
    assert rules().seconds_to_next([kind("1")], NEVER) == 0.5


@pytest.mark.parametrize(
    "kind",
    [AuthenticationFailed, CircuitOpen, DeadlineExceeded, InsufficientBalance, InvalidRequest, Overloaded, PoolClosed,
     UpstreamRejected],
)  # fmt: skip
def test_a_lasting_failure_is_not_tried_again(kind):
    """A failure that a second attempt would meet too is not tried again, and takes nothing from the budget."""
    ours = rules()
    for _ in range(100):
        assert ours.seconds_to_next([kind("1")], NEVER) is None
    assert ours.seconds_to_next(fails(1), NEVER) is not None


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_attempts_are_at_most_so_many(max_attempts):
    """A call makes LLM_MAX_ATTEMPTS attempts, the first counted."""
    assert attempts_made(rules(max_attempts), fails(9)) == max_attempts


@pytest.mark.parametrize(
    ("failures", "made"),
    [
        ([BadReply("1"), BadReply("2")], 2),
        ([BadReply("1"), ConnectionFailed("2"), BadReply("3")], 3),
        ([ConnectionFailed("1"), BadReply("2"), BadReply("3")], 3),
    ],
    ids=["twice", "with-another-between", "after-another"],
)
def test_a_bad_reply_is_tried_again_once(failures, made):
    """A second bad reply of a call is its end, although more attempts are allowed."""
    assert attempts_made(rules(max_attempts=9), failures) == made


def test_the_waits_double_up_to_eight_seconds(whole):
    """The n-th wait is a random part of 0.5 s doubled n - 1 times, of 8 s at most."""
    ours = rules(max_attempts=8)
    waits = [ours.seconds_to_next(fails(number), NEVER) for number in range(1, 8)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_the_jitter_is_full(monkeypatch):
    """The random part may be nothing and may be all."""
    bounds: list[tuple[float, float]] = []
    monkeypatch.setattr(policy.random, "uniform", lambda *both: bounds.append(both) or 0.25)
    ours = rules()
    assert [ours.seconds_to_next(fails(number), NEVER) for number in (1, 2)] == [0.25, 0.25]
    assert bounds == [(0, 0.5), (0, 1.0)]


@pytest.mark.parametrize("kind", [RateLimited, UpstreamUnavailable])
def test_retry_after_is_honoured(whole, kind):
    """The wait begins after what Retry-After asks for, so that not all come back at that moment."""
    assert rules().seconds_to_next([kind("1", retry_after_s=4.0)], NEVER) == 4.5


def test_a_wait_beyond_the_deadline_is_not_begun(whole, monkeypatch):
    """A wait that would end at the deadline or after it is not begun, and takes nothing from the budget."""
    monkeypatch.setattr(policy, "time", SimpleNamespace(monotonic=lambda: 100.0))
    ours, failures = rules(), [RateLimited("1", retry_after_s=4.0)]
    for _ in range(100):
        assert ours.seconds_to_next(failures, 104.5) is None
    assert ours.seconds_to_next(failures, 104.6) == 4.5


def test_retries_are_ten_and_a_tenth_of_the_calls():
    """In an outage 1,000 calls make 1,110 attempts at most, and 1,109 at least."""
    ours = rules()
    made = sum(attempts_made(ours, fails(3, UpstreamUnavailable)) for _ in range(1_000))
    assert made in (1_109, 1_110)


def test_the_budget_does_not_pile_up():
    """After any number of good calls no more than ten retries are free."""
    ours = rules(max_attempts=100)
    for _ in range(1_000):
        ours.note_call()
    assert attempts_made(ours, fails(99)) == 11


def test_an_open_breaker_ends_the_attempts():
    """While the breaker is open nothing is tried again."""
    ours = rules()
    open_breaker(ours)
    assert ours.seconds_to_next(fails(1), NEVER) is None


# The loop of a call, in Caller.run.


class Client:
    """Its `chat` fails as listed, then answers with how often it was called."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.made = 0

    def chat(self) -> int:
        self.made += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.made


@pytest.fixture
def at_once(monkeypatch):
    """No wait lasts."""
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: 0.0)


def open_breaker(ours: Policy) -> None:
    permit = ours.breaker.before_call()
    permit.after_call(Call("chat", (), {}, 0.0, NEVER), InsufficientBalance("x"))


def called(client: Any, pool: WorkerPool, ours: Policy | None = None) -> asyncio.Task[int]:
    caller = Caller(client, Settings(), pool, ours or rules())
    deadline = time.monotonic() + 7_200.0
    return asyncio.ensure_future(caller.run(caller.call("chat", (), {}, deadline)))


def between_attempts(monkeypatch: pytest.MonkeyPatch, *steps: Any) -> list[float]:
    """Each wait of a call is one of these coroutine functions instead; returns the waits in seconds."""
    waits: list[float] = []
    following = iter(steps)

    async def back_off(wait_s: float, pool: WorkerPool) -> None:
        waits.append(wait_s)
        await next(following)()

    monkeypatch.setattr(ending, "back_off", back_off)
    return waits


async def waiting(client: Client, pool: WorkerPool) -> asyncio.Task[int]:
    """A call that waits an hour for its second attempt."""
    client.failures = [RateLimited("1", retry_after_s=3_600.0)]
    task = called(client, pool)
    await until(lambda: bool(ending._sleepers))
    return task


async def test_a_call_is_tried_until_it_succeeds(at_once, pool, reports):
    """What fails and may pass is called again, until it answers; the call is reported once, with its attempts."""
    client = Client(ConnectionFailed("1"), RateLimited("2"))
    assert await called(client, pool) == 3
    assert [(report.attempts, report.error) for report in reports] == [(3, None)]


async def test_the_last_failure_is_raised(at_once, pool):
    """When no attempt succeeds the failure of the last one is raised, after LLM_MAX_ATTEMPTS of them."""
    client = Client(ConnectionFailed("1"), UpstreamUnavailable("2"), RateLimited("3", retry_after_s=0.0))
    with pytest.raises(RateLimited, match="3"):
        await called(client, pool)
    assert client.made == 3


@pytest.mark.parametrize(
    "failure", [UpstreamRejected("defect"), LookupError("defect")], ids=["ours", "foreign"]
)
async def test_what_is_not_tried_again_is_raised_as_it_is(pool, failure):
    """A failure that lasts, and a defect of the client, are raised themselves, after one attempt."""
    client = Client(failure)
    with pytest.raises(type(failure), match="defect") as caught:
        await called(client, pool)
    assert caught.value is failure
    assert client.made == 1


async def test_without_a_policy_nothing_is_tried_again(pool):
    """A facade over any client makes one attempt, whatever it meets."""
    client = Client(ConnectionFailed("1"))
    caller = Caller(client, Settings(), pool)
    with pytest.raises(ConnectionFailed):
        await caller.run(caller.call("chat", (), {}))
    assert client.made == 1


async def test_a_wait_that_does_not_fit_gives_the_failure_at_once(pool):
    """A Retry-After beyond the deadline is not waited for: the failure is raised, Retry-After with it."""
    client = Client(RateLimited("1", retry_after_s=10_000.0))
    with pytest.raises(RateLimited) as caught:
        await called(client, pool)
    assert caught.value.retry_after_s == 10_000.0


async def test_a_wait_holds_no_slot(pool):
    """While a call waits for its next attempt, the only worker serves others."""
    client = Client()
    task = await waiting(client, pool)
    assert await pool.run(int) == 0
    task.cancel()
    await asyncio.wait([task])


async def test_an_open_breaker_hides_no_failure(monkeypatch, pool):
    """When the breaker opens while a call waits, the call fails by what the API did: it may have been billed."""
    ours, client = rules(), Client(ConnectionFailed("by the API"))

    async def opens() -> None:
        open_breaker(ours)

    between_attempts(monkeypatch, opens)
    with pytest.raises(ConnectionFailed, match="by the API"):
        await called(client, pool, ours)
    assert client.made == 1


async def test_a_full_pool_hides_no_failure(monkeypatch, pool, reports):
    """When the pool refuses every further attempt, the call fails by what the API did: it may have been billed."""
    client, blocked = Client(ConnectionFailed("by the API")), Blocked()
    others: list[asyncio.Task[str]] = []

    async def fills() -> None:
        others.append(asyncio.ensure_future(pool.run(blocked)))
        await entered(blocked)

    async def stays() -> None: ...

    waits = between_attempts(monkeypatch, fills, stays)
    with pytest.raises(ConnectionFailed, match="by the API"):
        await called(client, pool)
    assert (client.made, len(waits)) == (1, 2)
    assert [(report.attempts, report.error) for report in reports] == [(1, "connection_failed")]
    blocked.gate.set()
    await asyncio.gather(*others)


class Leaving:
    """A web request whose caller leaves between two attempts."""

    has_left = False

    def admit(self, call: Call) -> None:
        call.permits.append(self)

    def before_attempt(self, attempt: Attempt) -> None:
        if self.has_left:
            raise CallerLeft("gone")

    def after_attempt(self, error: BaseException | None) -> None: ...

    def after_call(self, call: Call, error: BaseException | None) -> None: ...


async def test_a_caller_that_leaves_hides_no_failure(monkeypatch, pool):
    """When its caller leaves while a call waits, the call fails by what the API did, and is not tried again."""
    client, request = Client(ConnectionFailed("by the API")), Leaving()

    async def leaves() -> None:
        request.has_left = True

    waits = between_attempts(monkeypatch, leaves)
    set_request(request)
    with pytest.raises(ConnectionFailed, match="by the API"):
        await called(client, pool)
    assert (client.made, len(waits)) == (1, 1)


async def test_a_pool_that_empties_lets_the_retry_through(monkeypatch, pool):
    """A further attempt that the pool refused is made when the pool has room again."""
    client, blocked = Client(ConnectionFailed("by the API")), Blocked()
    others: list[asyncio.Task[str]] = []

    async def fills() -> None:
        others.append(asyncio.ensure_future(pool.run(blocked)))
        await entered(blocked)

    async def empties() -> None:
        blocked.gate.set()
        await asyncio.gather(*others)

    between_attempts(monkeypatch, fills, empties)
    assert await called(client, pool) == 2


async def test_a_first_attempt_that_is_refused_is_not_tried_again(pool):
    """A call that finds the pool full is refused at once: its caller is to know."""
    blocked = Blocked()
    other = asyncio.ensure_future(pool.run(blocked))
    await entered(blocked)
    client = Client()
    with pytest.raises(Overloaded):
        await called(client, pool)
    assert client.made == 0
    blocked.gate.set()
    await other


async def test_a_cancelled_wait_makes_no_further_attempt(pool, reports):
    """A task that is cancelled between two attempts is cancelled then and there, and reported so."""
    client = Client()
    task = await waiting(client, pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.made == 1
    assert not ending._sleepers
    assert not calls_in_flight()
    assert [(report.attempts, report.error) for report in reports] == [(1, "cancelled")]


async def test_waits_are_ended_when_the_process_leaves(alone, pool):
    """A call that waits for its next attempt ends with PoolClosed."""
    client = Client()
    task = await waiting(client, pool)
    assert len(calls_in_flight()) == 1
    await asyncio.to_thread(ending.end_calls)
    with pytest.raises(PoolClosed):
        await task
    assert client.made == 1
    assert not ending._sleepers
    assert not calls_in_flight()


async def test_no_wait_begins_on_a_closing_pool(at_once, pool):
    """A call that fails within the grace of a closing pool is not tried again, and keeps its own failure."""
    blocked = Blocked()

    def chat() -> None:
        blocked()
        raise ConnectionFailed("by the API")

    task = called(SimpleNamespace(chat=chat), pool)
    await entered(blocked)
    closing = asyncio.ensure_future(asyncio.to_thread(pool.close, GIVE_UP_S))
    await until(pool.is_closed)
    blocked.gate.set()
    with pytest.raises(ConnectionFailed, match="by the API"):
        await task
    await closing
