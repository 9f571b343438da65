"""The frozen client alone, on the same bytes, is never right where a caller of this package is told otherwise.

DIFFERENTIAL_REPLIES says how many replies are tried (of each method), DIFFERENTIAL_SEED which ones; both are in the
message of a failure.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from types import SimpleNamespace
from typing import Any

import pytest
from support.clients import UNKNOWN
from support.replying import ByteServer, Reply, random_reply

from deepseek_client import AsyncDeepSeekClient, DeepSeekClient, DeepSeekError, Settings
from deepseek_client.calls.retries import Policy

REPLIES = int(os.environ.get("DIFFERENTIAL_REPLIES", "300"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)

Answers = list[Any]


class Unguarded(Policy):
    """One without a breaker: no reply may keep another question from being asked."""

    guards = ()


def questions(replies: list[Reply]) -> list[str]:
    return [f"第{number}问" for number in range(len(replies))]


def is_right(method: str, answer: Any) -> bool:
    """Whether what the frozen client gave is an answer: not its blank, and of the types that its callers know."""
    if method == "chat":
        return isinstance(answer["text"], str) and bool(answer["text"].strip())
    return answer != UNKNOWN and all(
        answer[name] is None or type(answer[name]) is type(value) for name, value in UNKNOWN.items()
    )


def of_the_frozen_client(settings: Settings, method: str, replies: list[Reply]) -> Answers:
    client = DeepSeekClient(settings.api_key)
    client.base_url = settings.base_url
    more = (SimpleNamespace(),) if method == "parse" else ()
    return [getattr(client, method)(question, *more) for question in questions(replies)]


def one_after_the_other(client: AsyncDeepSeekClient, method: str, replies: list[Reply]) -> Answers:
    more = (SimpleNamespace(),) if method == "parse" else ()
    answers: Answers = []
    for question in questions(replies):
        try:
            answers.append(getattr(client, method)(question, *more))
        except DeepSeekError as exc:
            answers.append(exc)
    return answers


def many_at_once(client: AsyncDeepSeekClient, method: str, replies: list[Reply]) -> Answers:
    more = (SimpleNamespace(),) if method == "parse" else ()

    async def ask(some: list[str]) -> Answers:
        calls = [getattr(client, f"{method}_async")(question, *more) for question in some]
        return await asyncio.gather(*calls, return_exceptions=True)

    asked = questions(replies)
    return [answer for at in range(0, REPLIES, 100) for answer in asyncio.run(ask(asked[at : at + 100]))]


def in_a_batch(client: AsyncDeepSeekClient, method: str, replies: list[Reply]) -> Answers:
    return client.chat_many(questions(replies), return_exceptions=True)


@pytest.mark.parametrize(
    ("method", "way"),
    [
        ("chat", one_after_the_other),
        ("chat", in_a_batch),
        ("parse", one_after_the_other),
        ("parse", many_at_once),
    ],
    ids=["chat", "batch", "parse", "parse_async"],
)
def test_the_frozen_client_is_never_right_where_we_are_wrong(caplog, method, way):
    """Replies of any status, framing, encoding and shape: what the frozen client takes for an answer is our answer."""
    caplog.set_level(logging.CRITICAL)
    dice = random.Random(SEED)
    replies = [random_reply(dice, number, is_parse=method == "parse") for number in range(REPLIES)]
    server = ByteServer(replies.__getitem__)
    settings = Settings(api_key="sk-test", base_url=server.url, max_attempts=1)
    try:
        legacy = of_the_frozen_client(settings, method, replies)
        ours = way(
            AsyncDeepSeekClient(settings=settings, errors="raise", policy=Unguarded(settings)),
            method,
            replies,
        )
    finally:
        server.close()
    wrong = [
        f"{replies[number].shape}\n  frozen: {expected!r:.300}\n  ours:   {got!r:.300}"
        for number, (expected, got) in enumerate(zip(legacy, ours, strict=True))
        if is_right(method, expected) and got != expected
    ]
    right = sum(is_right(method, answer) for answer in legacy)
    assert right > REPLIES // 10, f"seed {SEED}: the frozen client understood only {right} of {REPLIES}"
    assert not wrong, f"seed {SEED}: {len(wrong)} of {REPLIES}, first {chr(10).join(wrong[:5])}"
