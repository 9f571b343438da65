"""AccountLeases: what waits for a place of the account, what ends the wait, and what goes on without the server."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.blocking import Blocked, entered, in_child, until
from support.patience import GIVE_UP_S

from deepseek_client import (
    AsyncDeepSeekClient,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    Overloaded,
    PoolClosed,
    RateLimited,
    Settings,
    WorkerPool,
    events,
)
from deepseek_client.account_server import Standing
from deepseek_client.calls import leases as leases_module
from deepseek_client.calls.caller import Caller
from deepseek_client.calls.leases import AccountLeases, account_leases, limit_named_in
from deepseek_client.calls.retries import Policy

ROOT = Path(__file__).parents[2]


class LocalServer:
    """A server of this process's own: it grants up to a limit, the longest waiting first, unless it is away."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.is_away = False
        self.held: list[str] = []
        self.waiting: list[str] = []
        self.refusals: list[int] = []
        self.grants: queue.SimpleQueue[str] = queue.SimpleQueue()

    def exchange(self, process: str, news: dict[str, Any]) -> Standing:
        if self.is_away:
            raise ConnectionError("away")
        if news["joins"]:
            self.held, self.waiting = [], []
        self.waiting += news["wanted"]
        self.held += news["taken"]
        for token in news["gone"]:
            (self.held if token in self.held else self.waiting).remove(token)
        if news["refused_at"] is not None:
            self.refusals.append(news["refused_at"])
        while self.waiting and len(self.held) < self.limit:
            self.held.append(self.waiting.pop(0))
            self.grants.put(self.held[-1])
        return Standing(self.limit, 1, [])

    def next_grant(self, process: str) -> str | None:
        try:
            return self.grants.get(timeout=0.1)
        except queue.Empty:
            return None


@pytest.fixture
def server() -> LocalServer:
    return LocalServer(1)


@pytest.fixture
def leases(server):
    made = AccountLeases(10, lambda: server)
    yield made
    made.close()


def caller(leases: AccountLeases, pool: WorkerPool, method: Any) -> Caller:
    ours = Caller(SimpleNamespace(chat=method), Settings(), pool)
    ours._guards = (leases,)
    return ours


def called(ours: Caller, deadline_s: float = GIVE_UP_S) -> Any:
    return ours.run(ours.call("chat", (), {}, time.monotonic() + deadline_s))


@pytest.fixture
def pool():
    made = WorkerPool(workers=3, queue_limit=5)
    yield made
    made.close()


async def test_an_attempt_waits_for_a_place_that_another_leaves(leases, server, pool):
    """With one place in the account, the second call runs when the first has ended, and not before."""
    first, second = Blocked(), Blocked()
    one = asyncio.ensure_future(called(caller(leases, pool, first)))
    await entered(first)
    two = asyncio.ensure_future(called(caller(leases, pool, second)))
    await until(lambda: len(server.waiting) == 1)
    assert not second.entered.is_set()
    first.gate.set()
    assert await one == "let go"
    await entered(second)
    second.gate.set()
    assert await two == "let go"
    await until(lambda: not server.held)


async def test_the_deadline_ends_the_wait(leases, server, pool, reports):
    """A call whose time is over before it has a place is never made, and its worker is free again."""
    blocked, made = Blocked(), Blocked()
    one = asyncio.ensure_future(called(caller(leases, pool, blocked)))
    await entered(blocked)
    with pytest.raises(DeadlineExceeded):
        await called(caller(leases, pool, made), deadline_s=0.05)
    await until(lambda: pool.stats()["busy"] == 1 and not server.waiting)
    blocked.gate.set()
    await one
    assert not made.entered.is_set()
    assert [(report.error, report.attempts, report.ran_s) for report in reports[:1]] == [
        ("deadline_exceeded", 0, 0.0)
    ]


def test_the_deadline_ends_a_wait_in_the_own_thread(leases, server, pool):
    """As for a call on the pool: nothing is sent."""
    server.limit, made = 0, Blocked()
    ours = caller(leases, pool, made)
    with pytest.raises(DeadlineExceeded):
        ours.run_here(ours.call("chat", (), {}, time.monotonic() + 0.05))
    assert not made.entered.is_set()
    assert pool.stats()["busy"] == 0


@pytest.mark.parametrize("end", ["cancel", "close"])
async def test_a_waiting_call_can_be_ended(leases, server, pool, end):
    """A cancelled task, and a pool that closes, let go of a call that waits for a place, and of its thread."""
    server.limit, made = 0, Blocked()
    task = asyncio.ensure_future(called(caller(leases, pool, made)))
    await until(lambda: len(server.waiting) == 1)
    if end == "cancel":
        task.cancel()
    else:
        pool.close()
    with pytest.raises(asyncio.CancelledError if end == "cancel" else PoolClosed):
        await task
    await until(lambda: pool.stats()["busy"] == 0 and not server.waiting)
    assert not made.entered.is_set()


async def test_a_failed_attempt_leaves_its_place(leases, server, pool):
    """Whatever an attempt raises, its place is free afterwards."""
    for error in (ValueError("x"), SystemExit(1), DeadlineExceeded("x")):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises((ValueError, RuntimeError, DeadlineExceeded)):
            await called(caller(leases, pool, fail))
    await until(lambda: not server.held and not server.waiting)


class Refusing:
    """A guard behind the account's, and its permit, that lets the call begin and refuses its attempt."""

    def before_call(self) -> Refusing:
        return self

    def before_attempt(self, attempt: object) -> None:
        raise CircuitOpen("opened while it waited")

    def after_attempt(self, error: object) -> None: ...

    def after_call(self, call: object, error: object) -> None: ...


async def test_a_guard_that_refuses_after_the_wait_frees_the_place(leases, server, pool):
    """A breaker that opened while the attempt waited for its place leaves none taken; nothing is sent."""
    made = Blocked()
    ours = caller(leases, pool, made)
    ours._guards = (leases, Refusing())
    with pytest.raises(CircuitOpen):
        await called(ours)
    await until(lambda: not server.held and not server.waiting)
    assert not made.entered.is_set()


async def test_a_call_inside_of_an_attempt_uses_its_place(leases, server, pool):
    """A client that makes a call of the same account inside of its own method does not wait for itself."""
    inner = caller(leases, pool, lambda: list(server.held))
    outer = caller(leases, pool, lambda: asyncio.run(called(inner)))
    assert len(await called(outer)) == 1
    await until(lambda: not server.held)


async def test_what_outlives_an_attempt_needs_a_place_of_its_own(leases, server, pool):
    """Code that an attempt has left behind, and that makes a call later, waits as everybody does."""
    context = await called(caller(leases, pool, contextvars.copy_context))
    later = caller(leases, pool, lambda: list(server.held))
    assert len(context.run(lambda: later.run_here(later.call("chat", (), {})))) == 1
    await until(lambda: not server.held)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        pytest.param(
            "Your current concurrency is 40, which exceeds your concurrency limit of 39. Wait.",
            39,
            id="named",
        ),
        pytest.param("Concurrency limit: 7", 7, id="other-words"),
        pytest.param("You reached the rate limit of 60 requests per minute", None, id="rate"),
        pytest.param("concurrency limit of 0", None, id="zero"),
        pytest.param("Too Many Requests", None, id="nothing"),
        pytest.param("", None, id="blank"),
    ],
)
def test_the_api_may_name_its_limit(message, named):
    """Only a number that the API calls a concurrency limit is taken for one."""
    assert limit_named_in(message) == named


async def test_a_refusal_reaches_the_server(leases, server, pool):
    """A 429 of the API, and nothing else that fails, lowers the limit that all share."""
    for error in (Overloaded("x"), RateLimited("x", api_message="concurrency limit of 39"), RateLimited("x")):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            await called(caller(leases, pool, fail))
    await until(lambda: server.refusals == [39, 0])


async def test_it_goes_on_without_the_server_and_says_so_once(leases, server, pool, caplog):
    """While the server is away calls are made within the share; its coming and going are one line each."""
    caplog.set_level(logging.WARNING, "deepseek_client.calls.leases")
    seen: list[Any] = []
    events.subscribe(seen.append)
    try:
        server.is_away = True
        for _ in range(3):
            assert await called(caller(leases, pool, int)) == 0
        server.is_away = False
        await until(lambda: "is shared again" in caplog.text)
        await until(
            lambda: sum(event.away for event in seen if isinstance(event, events.AccountChanged)) == 0
        )
    finally:
        events.unsubscribe(seen.append)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "the account's limit cannot be shared: this process keeps to 1 calls at once (away)",
        "the account's limit is shared again: 1 calls in all processes",
    ]
    assert not caplog.records[0].exc_info


async def test_a_defect_of_ours_stops_no_call(leases, server, pool, caplog, monkeypatch):
    """Whatever goes wrong in the threads that speak to the server, calls go on, and the log has the traceback."""
    monkeypatch.setattr(server, "exchange", lambda process, news: {}["defect"])
    for _ in range(3):
        assert await called(caller(leases, pool, int)) == 0
    await until(lambda: "cannot be shared" in caplog.text)
    (record,) = [record for record in caplog.records if "cannot be shared" in record.getMessage()]
    assert record.exc_info


async def test_waiting_is_reported(leases, pool):
    """Each attempt tells how long it has waited for its place."""
    seen: list[Any] = []
    events.subscribe(seen.append)
    await called(caller(leases, pool, int))
    events.unsubscribe(seen.append)
    waits = [event.waited_s for event in seen if isinstance(event, events.AccountChanged) and event.waited_s]
    assert len(waits) == 1


async def test_a_child_has_threads_and_places_of_its_own(leases, server, pool):
    """A forked child whose parent holds the only place makes its calls by its own connection."""
    blocked = Blocked()
    one = asyncio.ensure_future(called(caller(leases, pool, blocked)))
    await entered(blocked)
    parent, own = os.getpid(), LocalServer(1)
    leases._connect = lambda: server if os.getpid() == parent else own

    def call_in_child() -> None:
        ours = caller(leases, WorkerPool(workers=1, queue_limit=0), lambda: list(own.held))
        assert len(ours.run_here(ours.call("chat", (), {}))) == 1

    await asyncio.to_thread(in_child, call_in_child)
    blocked.gate.set()
    await one


def test_no_thread_for_the_server_refuses_the_call(leases, pool, monkeypatch):
    """Where the process can start no thread, the call fails at once and leaves nothing behind."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ours = caller(leases, pool, int)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Overloaded, match="No thread can be started"):
            ours.run_here(ours.call("chat", (), {}))
    assert ours.run_here(ours.call("chat", (), {})) == 0


SERVER = "redis://127.0.0.1:1/0"
LIMITED = Settings(account_limit=10, celery_broker_url=SERVER)


def test_clients_of_one_account_share_their_leases():
    """All clients of a process under one limit have the same places; the breaker looks after the wait."""
    ours = account_leases(LIMITED)
    assert account_leases(replace(LIMITED, max_workers=7)) is ours
    policy = Policy(LIMITED)
    assert policy.guards == (ours, policy.breaker)


@pytest.mark.parametrize(
    "settings", [Settings(), replace(LIMITED, use_async=False)], ids=["no-limit", "rollback"]
)
def test_there_is_no_limit_unless_it_is_asked_for(settings):
    """Without LLM_ACCOUNT_LIMIT, and in the rollback, no call waits for the account."""
    assert account_leases(settings) is None


def test_a_wrong_address_is_refused_unseen():
    """The address may hold a password: the refusal does not show it."""
    with pytest.raises(ConfigError) as caught:
        AsyncDeepSeekClient(settings=replace(LIMITED, celery_broker_url="amqp://u:secret@127.0.0.1"))
    assert "LLM_ACCOUNT_LIMIT" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_missing_is_named(monkeypatch):
    """Without redis-py a limit is refused at the start, by what to install."""
    leases_module._leases_at.cache_clear()
    monkeypatch.setitem(sys.modules, "deepseek_client.account_server", None)
    with pytest.raises(ConfigError, match="install the extra `tasks`"):
        account_leases(LIMITED)


LOADED = """
import sys
from deepseek_client import AsyncDeepSeekClient, Settings
import deepseek_client.flask
AsyncDeepSeekClient(settings=Settings())
assert "redis" not in sys.modules
AsyncDeepSeekClient(settings=Settings(account_limit=10, celery_broker_url="redis://127.0.0.1:1/0"))
assert "redis" in sys.modules
"""


def test_a_process_without_the_limit_does_not_load_redis():
    """Who sets no LLM_ACCOUNT_LIMIT needs no redis-py, and pays nothing for it; a client alone connects to nothing."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, timeout=3 * GIVE_UP_S
    )
    assert done.returncode == 0, done.stderr
