"""Hundreds of calls over shared connections on which everything goes wrong: nobody gets another caller's answer.

SHARED_CONNECTIONS_SEED says which faults come and which calls are aborted; a failure names it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import Any

import pytest
from support.blocking import counts
from support.clients import build
from support.faults import meet

from deepseek_client import DeepSeekError, Settings, WorkerPool, call_options
from deepseek_client.calls.retries import Policy
from deepseek_client.sandbox import running

pytestmark = pytest.mark.usefixtures("each_engine")

CALLS = 450
AT_ONCE = 10
SEED = int(os.environ.get("SHARED_CONNECTIONS_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)

FAULTS: list[dict[str, Any]] = [
    *[{"fault": "ok"}] * 8,
    *[{"fault": "interim", "delay_s": delay_s} for delay_s in (0, 0.005, 0.02)],
    {"fault": "interim", "statuses": [100, 102, 103], "delay_s": 0.005},
    # A whole reply only together with another one: if it crosses the next request, nobody can tell whose it is.
    *[{"fault": "stray"}, {"fault": "stray"}, {"fault": "stray", "delay_s": 0.002, "text": "!?\r\n"}],
    {"fault": "lengths", "lengths": ["3"], "chunked": True},
    {"fault": "lengths", "lengths": ["right", "3"]},
    {"fault": "drip", "lines": 3, "every_s": 0.002},
    *[{"fault": name} for name in ("close_after_reply", "close_before_reply", "cut_body", "reset_in_body")],
    *[{"fault": name} for name in ("reset_before_reply", "html", "blank")],
    {"fault": "status", "status": 503},
]
HANG = {"fault": "hang_in_body"}


class Unguarded(Policy):
    """One without a breaker: all calls are made."""

    guards = ()


async def ask_all(client: Any, dice: random.Random) -> dict[int, Any]:
    """Each call's answer or failure; now and then the end of one call cancels another, which then has none."""
    ended: dict[int, Any] = {}
    numbers = iter(range(CALLS))
    under_way: set[asyncio.Future[None]] = set()

    async def ask(number: int) -> None:
        try:
            with call_options(deadline_s=dice.choice([1.0] * 6 + [0.02, 0.005])):
                ended[number] = await client.chat_async(f"第{number}问")
        except DeepSeekError as exc:
            ended[number] = exc

    async def ask_one_after_the_other() -> None:
        for number in numbers:
            task = asyncio.ensure_future(ask(number))
            under_way.add(task)
            await asyncio.wait([task])
            under_way.discard(task)
            if under_way and dice.random() < 0.05:
                dice.choice([*under_way]).cancel()

    await asyncio.gather(*(ask_one_after_the_other() for _ in range(AT_ONCE)))
    return ended


@pytest.mark.parametrize("latency_ms", [0, 5], ids=["at_once", "in_5_ms"])
def test_each_caller_gets_its_own_answer(caplog, latency_ms):
    """450 calls with aborts, interim replies, stray bytes, cuts and idle closes: each answer is of its own prompt."""
    caplog.set_level(logging.CRITICAL)
    dice = random.Random(SEED)
    pool = WorkerPool(workers=AT_ONCE, queue_limit=AT_ONCE)
    with running() as sandbox:
        replies = [{**dice.choice(FAULTS), "latency_ms": latency_ms} for _ in range(3 * CALLS)]
        for place in dice.sample(range(CALLS), 3):
            replies[place] = HANG
        sandbox.script(replies)
        settings = Settings(api_key="sk-test", base_url=sandbox.url, max_attempts=1)
        client = build(settings, pool=pool, policy=Unguarded(settings))
        ended = asyncio.run(ask_all(client, dice))
        sandbox.wait_until(lambda stats: stats["in_flight"] == 0)
        asyncio.run(meet(pool))
        opened, requests = sandbox.stats()["connections_opened"], sandbox.stats()["requests"]
    answers = {number: answer["text"] for number, answer in ended.items() if isinstance(answer, dict)}
    wrong = {number: text for number, text in answers.items() if f"「第{number}问」" not in text}
    assert not wrong, f"seed {SEED}: {wrong}"
    assert len(answers) > CALLS // 4, f"seed {SEED}"
    assert opened < requests, f"seed {SEED}: no connection was shared"
    assert counts(pool) == (0, 0)
    pool.close()
