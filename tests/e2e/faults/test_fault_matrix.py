"""Every way to fail, through every way to call: what the caller is told, and what stays behind."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from support.applications import client_of as app_client
from support.clients import build
from support.entries import ENTRIES, Entry, leaves_nothing, over_entries
from support.faults import BUSY, ENDLESS, FAULTS, counted
from support.patience import GIVE_UP_S

from deepseek_client import (
    AuthenticationFailed,
    BadReply,
    ConnectionFailed,
    DeadlineExceeded,
    InsufficientBalance,
    RateLimited,
    Settings,
    UpstreamRejected,
    UpstreamUnavailable,
    WorkerPool,
)
from deepseek_client.sandbox import running
from deepseek_client.settings import ENGINES

pytestmark = pytest.mark.usefixtures("each_engine")

# Source: section 6 of the design.
TOLD = {
    AuthenticationFailed: (502, "authentication_failed"),
    BadReply: (502, "bad_reply"),
    ConnectionFailed: (502, "connection_failed"),
    DeadlineExceeded: (504, "deadline_exceeded"),
    InsufficientBalance: (502, "insufficient_balance"),
    RateLimited: (503, "rate_limited"),
    UpstreamRejected: (502, "upstream_rejected"),
    UpstreamUnavailable: (502, "upstream_unavailable"),
}

over_faults = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@over_entries
@over_faults
def test_a_fault(sandbox, settings, addresses, waits, fault, entry):
    """A fault has its status, code and Retry-After, as many attempts as make sense and its counts, and leaves nothing.

    Nothing is: a slot that is taken, a thread that is blocked, a request that the API still works on.
    """
    if fault.reply is not None:
        sandbox.script([{**fault.reply, "times": 5}])
    address = addresses[fault.address]
    client = app_client(settings, base_url=address, use_async=entry.use_async)
    attempts = fault.attempts if entry.mode == "async" else 1
    before = counted(client)
    answer = entry.post(client)
    status, code = TOLD[fault.kind]
    retry_after = f"{max(1, fault.retry_after_s or 1):.0f}" if status == 503 else None
    assert entry.told(answer) == entry.expected(status, code, retry_after)
    assert sandbox.stats()["requests"] == (0 if fault.reply is None else attempts)
    assert counted(client) - before == Counter(
        {
            ("deepseek_requests_total", entry.method, entry.mode): 1,
            ("deepseek_errors_total", code, entry.method, entry.mode): 1,
            ("deepseek_attempts_total", code): attempts,
            **({("deepseek_retries_total",): attempts - 1} if attempts > 1 else {}),
        }
    )
    assert waits == [0.5, 1.0][: attempts - 1]
    assert client.get("/ready").status_code == (503 if fault.kind is InsufficientBalance else 200)
    leaves_nothing(sandbox)


@pytest.mark.parametrize("each_engine", ENGINES[1:], indirect=True)
@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.mode == "sync"], ids=lambda entry: entry.name
)
def test_the_callers_thread_knows_no_engine(sandbox, settings, monkeypatch, each_engine, entry):
    """A call in the thread of its request runs there whatever the engine is: above, one stands for both."""
    ran_in = []
    send = requests.Session.send
    monkeypatch.setattr(
        requests.Session,
        "send",
        lambda *args, **more: (ran_in.append(threading.get_ident()), send(*args, **more))[1],
    )
    sandbox.script([BUSY])
    client = app_client(settings, use_async=entry.use_async)
    assert entry.told(entry.post(client)) == entry.expected(502, "upstream_unavailable")
    assert ran_in == [threading.get_ident()]


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_reply(settings, name):
    """A reply that does not end is deadline_exceeded on every route, tried once, and blocks no thread after that."""
    with ThreadPoolExecutor(len(ENTRIES)) as threads, running() as sandbox:
        sandbox.script([{"fault": name, "times": len(ENTRIES)}])
        here = replace(settings, base_url=sandbox.url, deadline_s=1.0, max_workers=2 * len(ENTRIES))
        clients = [app_client(here, use_async=entry.use_async) for entry in ENTRIES]
        before = counted(clients[0])
        answers = list(threads.map(Entry.post, ENTRIES, clients, timeout=GIVE_UP_S))
        leaves_nothing(sandbox)
        requests = sandbox.stats()["requests"]
    for entry, answer in zip(ENTRIES, answers, strict=True):
        assert entry.told(answer) == entry.expected(504, "deadline_exceeded")
    expected = Counter({("deepseek_attempts_total", "deadline_exceeded"): len(ENTRIES)})
    for entry in ENTRIES:
        expected["deepseek_requests_total", entry.method, entry.mode] += 1
        expected["deepseek_errors_total", "deadline_exceeded", entry.method, entry.mode] += 1
    assert counted(clients[0]) - before == expected
    assert requests == len(ENTRIES)


async def every_way(settings: Settings) -> list[Any]:
    """What the client's five methods raise that call the API at the same time, each with a breaker of its own."""
    pool = WorkerPool(workers=5, queue_limit=0)
    one, two, three, four, five = (build(settings, pool=pool) for _ in range(5))
    context = SimpleNamespace()
    ways = (
        one.chat_async("x"),
        two.parse_async("打坐", context),
        asyncio.to_thread(three.chat, "x"),
        asyncio.to_thread(four.parse, "打坐", context),
        five.chat_many_async(["x"], return_exceptions=True),
    )
    *errors, many = await asyncio.wait_for(asyncio.gather(*ways, return_exceptions=True), GIVE_UP_S)
    return [*errors, *many]


@over_faults
async def test_the_class_of_a_fault(sandbox, settings, addresses, fault):
    """With errors="raise" a fault is its class with its Retry-After, whichever method of the client meets it."""
    if fault.reply is not None:
        sandbox.script([{**fault.reply, "times": 20}])
    errors = await every_way(replace(settings, base_url=addresses[fault.address]))
    assert [(type(error), error.retry_after_s) for error in errors] == [(fault.kind, fault.retry_after_s)] * 5
    assert sandbox.stats()["requests"] == (0 if fault.reply is None else 3 * fault.attempts + 2)


@pytest.mark.parametrize("name", ENDLESS)
async def test_the_class_of_an_endless_reply(settings, name):
    """A reply that does not end is DeadlineExceeded, whichever method of the client waits for it."""
    with running() as sandbox:
        sandbox.script([{"fault": name, "times": 5}])
        errors = await every_way(replace(settings, base_url=sandbox.url, deadline_s=1.0))
        assert [type(error) for error in errors] == [DeadlineExceeded] * 5
        assert sandbox.stats()["requests"] == 5
