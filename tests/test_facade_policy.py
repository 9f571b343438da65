"""AsyncDeepSeekClient under its policy: which calls are tried again, and whose breaker refuses them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.clients import build, called

from deepseek_client import (
    AsyncDeepSeekClient,
    AsyncFacade,
    CircuitOpen,
    ConnectionFailed,
    DeadlineExceeded,
    DeepSeekClient,
    InsufficientBalance,
    RateLimited,
    UpstreamUnavailable,
    WorkerPool,
    call_options,
)
from deepseek_client.calls import ending
from deepseek_client.calls import retries as policy
from deepseek_client.calls.retries import Policy

DOWN = {"fault": "status", "status": 503}
NO_BALANCE = {"fault": "status", "status": 402}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing waits between two attempts, and the process has no policy yet."""
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: low)
    policy.default_policy.cache_clear()


@pytest.fixture
def of_the_environment(monkeypatch, sandbox):
    """Clients that are configured by the environment alone."""
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-test")
    monkeypatch.setenv("DEEPSEEK_BASE_URL", sandbox.url)
    return lambda: AsyncDeepSeekClient(errors="raise")


@pytest.mark.parametrize("way", ["chat_async", "parse_async"])
def test_a_call_on_the_pool_is_tried_again(sandbox, settings, way):
    """Two failures that pass cost the caller nothing but time."""
    sandbox.script([{**DOWN, "times": 2}])
    called(build(replace(settings, max_attempts=3)), way)
    assert sandbox.stats()["requests"] == 3


@pytest.mark.parametrize("way", ["chat", "parse"])
def test_a_call_in_the_own_thread_is_made_once(sandbox, settings, way):
    """A blocking call is not tried again: its caller's thread would sleep meanwhile."""
    sandbox.script([DOWN])
    with pytest.raises(UpstreamUnavailable):
        called(build(replace(settings, max_attempts=3)), way)
    assert sandbox.stats()["requests"] == 1


async def test_no_thread_is_held_between_attempts(sandbox, settings, monkeypatch):
    """While a call waits for its next attempt the only worker serves another call."""
    may_go_on = asyncio.Event()
    client = build(replace(settings, max_attempts=2, max_workers=1, queue_limit=0))

    async def back_off(wait_s: float, pool: WorkerPool) -> None:
        await may_go_on.wait()

    monkeypatch.setattr(ending, "back_off", back_off)
    sandbox.script([DOWN])
    first = asyncio.ensure_future(client.chat_async("first"))
    await asyncio.to_thread(
        sandbox.wait_until, lambda stats: stats["requests"] == 1 and not stats["in_flight"]
    )
    while client.pool.stats()["busy"]:
        await asyncio.wait([first], timeout=0.01)
    assert "second" in (await client.chat_async("second"))["text"]
    may_go_on.set()
    assert "first" in (await first)["text"]


async def test_the_attempts_share_one_deadline(sandbox, settings):
    """An attempt after a failure gets what is left of the deadline, not the whole."""
    seen: list[tuple[float, float]] = []
    pool = WorkerPool(workers=1, queue_limit=0)
    run = pool.run

    async def noting(attempt, *, deadline):
        seen.append((attempt.exchange.deadline, deadline))
        return await run(attempt, deadline=deadline)

    pool.run = noting
    client = build(replace(settings, max_attempts=3), pool=pool)
    sandbox.script([{**DOWN, "times": 2}])
    with call_options(deadline_s=9.0):
        await client.chat_async("hi")
    assert len(seen) == 3
    assert len(set(seen)) == 1


async def test_any_other_client_is_called_once(settings):
    """AsyncFacade knows nothing of what its client's failures mean: it tries nothing again and has no breaker."""
    made: list[str] = []

    def ask(text: str) -> None:
        made.append(text)
        raise ConnectionFailed("x")

    facade = AsyncFacade(SimpleNamespace(ask=ask), settings=replace(settings, max_attempts=3))
    for _ in range(20):
        with pytest.raises(ConnectionFailed):
            await facade.ask_async("hi")
    assert len(made) == 20


@pytest.mark.parametrize("way", ["chat_async", "parse_async", "chat", "parse"])
def test_an_open_breaker_refuses_every_way(sandbox, settings, way):
    """After an empty balance no call is sent, however it is made."""
    client = build(settings)
    sandbox.script([NO_BALANCE])
    with pytest.raises(InsufficientBalance):
        client.chat("hi")
    with pytest.raises(CircuitOpen, match="reports an insufficient balance"):
        called(client, way)
    assert sandbox.stats()["requests"] == 1


def test_clients_of_the_environment_share_a_breaker(sandbox, of_the_environment):
    """An application that builds a client for each request has a breaker all the same."""
    sandbox.script([NO_BALANCE])
    with pytest.raises(InsufficientBalance):
        of_the_environment().chat("hi")
    with pytest.raises(CircuitOpen):
        of_the_environment().chat("hi")


def test_a_client_with_settings_has_its_own_breaker(sandbox, settings):
    """What one client with settings meets does not open another's breaker."""
    sandbox.script([NO_BALANCE])
    with pytest.raises(InsufficientBalance):
        build(settings).chat("hi")
    assert build(settings).chat("hi")["text"]


def test_a_wrapped_client_has_its_own_breaker(sandbox, of_the_environment):
    """What a client that was handed in meets does not open that of the environment."""
    legacy = DeepSeekClient("sk-test")
    legacy.base_url = sandbox.url
    sandbox.script([NO_BALANCE])
    with pytest.raises(InsufficientBalance):
        AsyncDeepSeekClient(client=legacy, errors="raise").chat("hi")
    assert of_the_environment().chat("hi")["text"]


def test_another_key_has_its_own_breaker(sandbox, of_the_environment):
    """An account without balance does not keep another key from being used."""
    sandbox.script([NO_BALANCE])
    with pytest.raises(InsufficientBalance):
        of_the_environment().chat("hi")
    assert AsyncDeepSeekClient("sk-other", errors="raise").chat("hi")["text"]


async def test_clients_of_the_environment_share_a_budget(sandbox, of_the_environment):
    """An application that builds a client for each request does not multiply an outage either."""
    sandbox.script([{"fault": "status", "status": 429, "times": 1_000}])
    for _ in range(20):
        with pytest.raises(RateLimited):
            await of_the_environment().chat_async("hi")
    assert sandbox.stats()["requests"] <= 20 + 12


def test_a_policy_may_be_handed_in(sandbox, settings):
    """Clients that are given one policy share its breaker."""
    shared = Policy(settings)
    sandbox.script([NO_BALANCE])
    with pytest.raises(InsufficientBalance):
        build(settings, policy=shared).chat("hi")
    with pytest.raises(CircuitOpen):
        build(settings, policy=shared).chat("hi")


async def test_what_waits_when_it_opens_is_not_sent(sandbox, settings):
    """Calls that queue behind one that finds the balance empty are refused: no more than the next one is still sent."""
    client = build(replace(settings, max_workers=1))
    # The next call may begin before the failure is told; while that one takes its time, it is.
    sandbox.script([{**NO_BALANCE, "latency_ms": 50}, {"fault": "ok", "latency_ms": 500, "times": 5}])
    chats = (client.chat_async("hi") for _ in range(6))
    first, _, *rest = await asyncio.gather(*chats, return_exceptions=True)
    assert type(first) is InsufficientBalance
    assert {type(error) for error in rest} == {CircuitOpen}
    assert sandbox.stats()["requests"] <= 2


async def test_calls_that_hang_open_it(sandbox, settings):
    """Ten calls whose deadline passes while they run open the breaker, and none that no thread began in time."""
    client = build(replace(settings, deadline_s=0.05))
    sandbox.script([{"fault": "hang", "times": 200}])
    answers = [await asyncio.gather(client.chat_async("hi"), return_exceptions=True) for _ in range(200)]
    kinds = [type(error) for (error,) in answers]
    opened = kinds.index(CircuitOpen)
    assert kinds[:opened] == [DeadlineExceeded] * opened
    assert opened >= 10
