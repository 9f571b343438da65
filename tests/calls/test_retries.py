"""Policy: what is tried again, when, and how often in all. The waits are numbers here; nothing sleeps."""

from __future__ import annotations

import asyncio
import time
from itertools import count

import pytest

from deepseek_client import (
    AuthenticationFailed,
    BadReply,
    CircuitOpen,
    ConnectionFailed,
    DeadlineExceeded,
    DeepSeekError,
    InvalidRequest,
    Overloaded,
    PoolClosed,
    RateLimited,
    Settings,
    UpstreamRejected,
    UpstreamUnavailable,
)
from deepseek_client.calls import retries
from deepseek_client.calls.retries import Policy

NEVER = float("inf")


class Attempts:
    """Attempts that fail as listed, then answer with their number."""

    def __init__(self, *failures: DeepSeekError) -> None:
        self.failures = list(failures)
        self.made = 0

    async def __call__(self) -> int:
        self.made += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.made


@pytest.fixture
def waits(monkeypatch):
    """What was slept, in seconds; each random part is the whole."""
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: high)
    return slept


def rules(max_attempts: int = 3) -> Policy:
    return Policy(Settings(max_attempts=max_attempts))


async def asleep(attempts: Attempts) -> asyncio.Task[int]:
    """A call that waits for its second attempt."""
    failed = asyncio.Event()

    async def attempt() -> int:
        try:
            return await attempts()
        finally:
            failed.set()

    task = asyncio.ensure_future(rules().run(attempt, NEVER))
    await failed.wait()
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("kind", [ConnectionFailed, UpstreamUnavailable, RateLimited])
async def test_a_passing_failure_is_tried_again(waits, kind):
    """A failure that may pass is tried again until it does, within LLM_MAX_ATTEMPTS."""
    attempts = Attempts(kind("1"), kind("2"))
    assert await rules().run(attempts, NEVER) == 3
    assert waits == [0.5, 1.0]


async def test_the_last_failure_is_raised(waits):
    """When no attempt succeeds the failure of the last one is raised, after LLM_MAX_ATTEMPTS of them."""
    attempts = Attempts(ConnectionFailed("1"), UpstreamUnavailable("2"), RateLimited("3"))
    with pytest.raises(RateLimited, match="3"):
        await rules().run(attempts, NEVER)
    assert attempts.made == 3


async def test_one_attempt_is_one_attempt(waits):
    """LLM_MAX_ATTEMPTS=1 tries nothing again."""
    attempts = Attempts(ConnectionFailed("1"))
    with pytest.raises(ConnectionFailed):
        await rules(max_attempts=1).run(attempts, NEVER)
    assert (attempts.made, waits) == (1, [])


@pytest.mark.parametrize(
    "kind",
    [AuthenticationFailed, CircuitOpen, DeadlineExceeded, InvalidRequest, Overloaded, PoolClosed, UpstreamRejected],
)  # fmt: skip
async def test_a_lasting_failure_is_not_tried_again(waits, kind):
    """A failure that a second attempt would meet too is raised at once."""
    attempts = Attempts(kind("1"))
    with pytest.raises(kind):
        await rules().run(attempts, NEVER)
    assert (attempts.made, waits) == (1, [])


@pytest.mark.parametrize(
    ("failures", "made"),
    [
        ([BadReply("1"), BadReply("2")], 2),
        ([BadReply("1"), ConnectionFailed("2"), BadReply("3")], 3),
        ([ConnectionFailed("1"), BadReply("2"), BadReply("3")], 3),
    ],
    ids=["twice", "with-another-between", "after-another"],
)
async def test_a_bad_reply_is_tried_again_once(waits, failures, made):
    """A second bad reply of a call is raised, although more attempts are allowed."""
    attempts = Attempts(*failures)
    with pytest.raises(BadReply):
        await rules(max_attempts=9).run(attempts, NEVER)
    assert attempts.made == made


async def test_the_waits_double_up_to_eight_seconds(waits):
    """The n-th wait is a random part of 0.5 s doubled n - 1 times, of 8 s at most."""
    attempts = Attempts(*(ConnectionFailed("x") for _ in range(7)))
    await rules(max_attempts=8).run(attempts, NEVER)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


async def test_the_jitter_is_full(waits, monkeypatch):
    """The random part may be nothing and may be all."""
    bounds: list[tuple[float, float]] = []
    monkeypatch.setattr(retries.random, "uniform", lambda *both: bounds.append(both) or 0.25)
    await rules().run(Attempts(ConnectionFailed("1"), ConnectionFailed("2")), NEVER)
    assert bounds == [(0, 0.5), (0, 1.0)]
    assert waits == [0.25, 0.25]


@pytest.mark.parametrize("kind", [RateLimited, UpstreamUnavailable])
async def test_retry_after_is_honoured(waits, kind):
    """The wait begins after what Retry-After asks for, so that not all come back at that moment."""
    assert await rules().run(Attempts(kind("1", retry_after_s=4.0)), NEVER) == 2
    assert waits == [4.5]


async def test_retry_after_beyond_the_deadline(waits, monkeypatch):
    """A wait that would end after the deadline is not begun: the failure is raised at once, Retry-After with it."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    attempts = Attempts(RateLimited("1", retry_after_s=4.0))
    with pytest.raises(RateLimited) as caught:
        await rules().run(attempts, 104.5)
    assert (attempts.made, waits, caught.value.retry_after_s) == (1, [], 4.0)
    assert await rules().run(Attempts(RateLimited("1", retry_after_s=4.0)), 104.6) == 2


@pytest.mark.parametrize("kind", [CircuitOpen, Overloaded])
async def test_what_is_not_sent_hides_no_failure(waits, kind):
    """When pool or breaker refuse a further attempt the call fails by what the API did: it may have been billed."""
    attempts = Attempts(ConnectionFailed("by the API"), kind("refused"), kind("refused"))
    with pytest.raises(ConnectionFailed, match="by the API"):
        await rules().run(attempts, NEVER)
    assert attempts.made == 3


async def test_a_queue_that_empties_lets_the_retry_through(waits):
    """A further attempt that the pool refused is made when the pool has room again."""
    attempts = Attempts(ConnectionFailed("by the API"), Overloaded("full"))
    assert await rules().run(attempts, NEVER) == 3


async def test_retries_are_ten_and_a_tenth_of_the_calls(waits):
    """In an outage 1,000 calls make 1,110 attempts at most, and 1,109 at least."""
    ours = rules()
    made = 0
    for _ in range(1_000):
        attempts = Attempts(*(UpstreamUnavailable("x") for _ in range(3)))
        with pytest.raises(UpstreamUnavailable):
            await ours.run(attempts, NEVER)
        made += attempts.made
    assert made in (1_109, 1_110)


async def test_the_budget_does_not_pile_up(waits):
    """After any number of good calls no more than ten retries are free."""
    ours = rules(max_attempts=100)
    for _ in range(1_000):
        await ours.run(Attempts(), NEVER)
    attempts = Attempts(*(UpstreamUnavailable("x") for _ in range(99)))
    with pytest.raises(UpstreamUnavailable):
        await ours.run(attempts, NEVER)
    assert attempts.made == 11


async def test_an_open_breaker_ends_the_attempts(waits):
    """While the breaker is open nothing is tried again."""
    ours = rules()
    ours.breaker.leave(ours.breaker.enter(), AuthenticationFailed("x"), 0.0)
    attempts = Attempts(ConnectionFailed("1"))
    with pytest.raises(ConnectionFailed):
        await ours.run(attempts, NEVER)
    assert attempts.made == 1


async def test_a_cancelled_wait_makes_no_further_attempt():
    """A task that is cancelled between two attempts is cancelled then and there."""
    attempts = Attempts(RateLimited("1", retry_after_s=3_600.0))
    task = await asleep(attempts)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempts.made == 1


async def test_no_wait_begins_when_the_process_leaves(waits):
    """A call that fails when the process is about to leave is not tried again."""
    attempts = Attempts(ConnectionFailed("1"))
    with pytest.raises(ConnectionFailed):
        await rules().run(attempts, NEVER, lambda: True)
    assert (attempts.made, waits) == (1, [])
    assert not retries._asleep


async def test_waits_are_ended_when_the_process_leaves():
    """A call that waits for its next attempt ends with PoolClosed, and one that does not wait is left alone."""
    attempts = Attempts(RateLimited("1", retry_after_s=3_600.0))
    task = await asleep(attempts)
    await asyncio.to_thread(retries.end_waits)
    with pytest.raises(PoolClosed):
        await task
    assert attempts.made == 1
    assert not retries._asleep
    assert not retries._ended
    retries.end_waits()
    await asyncio.sleep(0)


async def test_what_is_not_ours_is_raised_as_it_is(waits):
    """A defect is neither tried again nor translated."""
    numbers = count()

    async def broken() -> None:
        next(numbers)
        raise LookupError("defect")

    with pytest.raises(LookupError, match="defect"):
        await rules().run(broken, NEVER)
    assert next(numbers) == 1
