"""Thousands of calls while the API fails at random, or altogether: nothing is lost, and no outage is multiplied."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.blocking import counts
from support.clients import build
from support.faults import ENDLESS, FAULTS, meet

from deepseek_client import CircuitOpen, Settings, WorkerPool, events
from deepseek_client.calls import retries as policy
from deepseek_client.calls.breaker import Breaker
from deepseek_client.calls.retries import Policy
from deepseek_client.events import AttemptFinished, CallFinished
from deepseek_client.sandbox import RunningSandbox, running
from deepseek_client.wire import adapter as transport

pytestmark = pytest.mark.usefixtures("each_engine")

STORM_GIVE_UP_S = 120.0
"""Bound of the long storm, which takes 10 s on an idle machine."""

STATUSES = ["429", "500", "502", "503", "504"]
# All that does not close the account for five minutes, and does not take long to send.
PASSING = [*STATUSES, "400", "404", "422", "reset_before_reply", "reset_in_body", "cut_body", "html", "truncated_json",
           "blank", "no_choices", "spaces", "no_resources"]  # fmt: skip


def reply(name: str) -> dict[str, Any]:
    """What the sandbox's script calls it."""
    return FAULTS[name].reply or {} if name in FAULTS else {"fault": name}


def code(name: str) -> str:
    """What it makes of an attempt."""
    if name == "ok":
        return "ok"
    return "deadline_exceeded" if name in ENDLESS else FAULTS[name].kind.code


def outcome(answer: Any) -> str:
    return "ok" if isinstance(answer, dict) else answer.code


class Tally:
    """What the client reports: attempts and calls by their outcome."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __call__(self, event: Any) -> None:
        if isinstance(event, AttemptFinished):
            self.attempts[event.error or "ok"] += 1
        elif isinstance(event, CallFinished):
            self.calls[event.error or "ok"] += 1


@pytest.fixture
def tally() -> Iterator[Tally]:
    made = Tally()
    events.subscribe(made)
    yield made
    events.unsubscribe(made)


@pytest.fixture(autouse=True)
def quick(monkeypatch, caplog):
    """No back-off, no log."""
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: low)
    caplog.set_level(logging.CRITICAL)


@pytest.fixture
def api() -> Iterator[RunningSandbox]:
    """A sandbox of the test's own, to which no connection is kept yet."""
    transport._shared_adapter().close()
    with running() as sandbox:
        yield sandbox


@pytest.fixture
def pool(request) -> Iterator[WorkerPool]:
    made = WorkerPool(workers=request.param, queue_limit=100)
    yield made
    made.close()


def ask(client: Any, calls: int) -> list[Any]:
    """The answers and failures of that many calls, each with a prompt of its own."""
    prompts = [f"第{number}问" for number in range(calls)]
    work = client.chat_many_async(prompts, return_exceptions=True)
    return asyncio.run(asyncio.wait_for(work, STORM_GIVE_UP_S))


def half_failing(names: list[str], endless: int, length: int) -> list[str]:
    """Fifty good replies, which fill the breaker's window, then one in two fails, in the same order each time."""
    dice = random.Random(20260101)
    replies = [dice.choice(names) if dice.random() < 0.5 else "ok" for _ in range(length)]
    for place in dice.sample(range(length // 2), endless):
        replies[place] = dice.choice(ENDLESS)
    return ["ok"] * 50 + replies


@pytest.mark.parametrize("pool", [10], indirect=True)
@pytest.mark.parametrize(
    ("names", "endless", "calls"),
    [pytest.param(STATUSES, 0, 1_000, id="statuses"), pytest.param(PASSING, 4, 2_000, id="every_kind")],
)
def test_half_of_the_replies_fail(api, pool, tally, names, endless, calls):
    """Each call ends once, as its last reply says, and all retries together are a tenth of the calls, and ten.

    The sandbox counts more requests than there were attempts, if any, only where a connection died before a byte of
    the reply: when it was a kept one the transport sends the request anew, within the attempt. Those are counted
    apart, and there are none when the replies fail by their status alone. The breaker opens at four bad calls of
    five in the last fifty, which this storm never comes near to: at most 37 of fifty replies in a row fail.
    """
    script = half_failing(names, endless, calls * 5 // 4)
    for start in range(0, len(script), 5_000):
        api.script([reply(name) for name in script[start : start + 5_000]])
    settings = Settings(api_key="sk-test", base_url=api.url, deadline_s=5.0)
    answers = ask(build(settings, pool=pool), calls)

    outcomes = Counter(map(outcome, answers))
    assert outcomes == tally.calls
    assert outcomes.total() == calls
    assert "circuit_open" not in outcomes
    for number, answer in enumerate(answers):
        assert outcome(answer) != "ok" or f"「第{number}问」" in answer["text"]

    stats = api.wait_until(lambda stats: stats["in_flight"] == 0)
    asyncio.run(meet(pool))
    assert counts(pool) == (0, 0)

    came = script[: stats["requests"]]
    resent = stats["requests"] - tally.attempts.total()
    assert stats["scripted"] == len(script) - len(came) > 0
    assert Counter(map(code, came)) == tally.attempts + Counter({"connection_failed": resent})
    assert 0 <= resent <= came.count("reset_before_reply")
    assert outcomes["ok"] == came.count("ok")
    assert 0.09 * calls < tally.attempts.total() - calls <= 0.1 * calls + 10


def rules_by(settings: Settings, clock: Callable[[], float]) -> Policy:
    """A policy whose breaker has this clock."""
    rules = Policy(settings)
    rules.breaker = Breaker(settings.deadline_s, clock=clock)
    return rules


@pytest.mark.parametrize("pool", [5], indirect=True)
@pytest.mark.parametrize("name", ["503", "html", "reset_before_reply", "hang"])
def test_an_outage(api, pool, tally, name):
    """A thousand calls to an API that is down are a handful of requests; the rest is told when to come again."""
    api.script([{**reply(name), "times": 2_000}])
    settings = Settings(api_key="sk-test", base_url=api.url, deadline_s=0.4 if name == "hang" else 25.0)
    rules = rules_by(settings, lambda: 100.0)  # the breaker's pause is not over before the test is
    answers = ask(build(settings, pool=pool, policy=rules), 1_000)
    outcomes = Counter(map(outcome, answers))
    assert (
        outcomes
        == tally.calls
        == {code(name): outcomes[code(name)], "circuit_open": outcomes["circuit_open"]}
    )
    assert outcomes.total() == 1_000
    assert 10 <= outcomes[code(name)] <= 10 + 4  # the tenth opens it, while four others are under way
    assert all(answer.retry_after_s == 10 for answer in answers if isinstance(answer, CircuitOpen))
    stats = api.wait_until(lambda stats: stats["in_flight"] == 0)
    made = tally.attempts.total()
    assert made <= outcomes[code(name)] + 11  # the budget: ten, and a tenth
    # A call whose time is over before its request is written was an attempt all the same.
    assert stats["requests"] <= made if name == "hang" else stats["requests"] == made
    asyncio.run(meet(pool))
    assert counts(pool) == (0, 0)


@pytest.mark.parametrize("pool", [5], indirect=True)
def test_the_end_of_an_outage(api, pool):
    """After each pause a single request asks the API; the first that is answered lets all others through again."""
    now = [100.0]
    settings = Settings(api_key="sk-test", base_url=api.url)
    client = build(settings, pool=pool, policy=rules_by(settings, lambda: now[0]))
    api.script([{**reply("503"), "times": 500}])
    ask(client, 100)
    for _ in range(3):
        now[0] += 10.0
        before = api.stats()["requests"]
        outcomes = Counter(map(outcome, ask(client, 100)))
        assert outcomes == {"upstream_unavailable": 1, "circuit_open": 99}
        assert api.stats()["requests"] == before + 1
    api.reset()
    assert Counter(map(outcome, ask(client, 100))) == {"circuit_open": 100}
    now[0] += 10.0
    assert outcome(ask(client, 1)[0]) == "ok"
    assert Counter(map(outcome, ask(client, 100))) == {"ok": 100}
    assert api.stats()["requests"] == 101
