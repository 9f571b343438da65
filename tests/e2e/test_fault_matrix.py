"""Every way to fail, through every way to call: what the caller is told, what is tried again, what stays behind."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import requests
import trustme
from flask.testing import FlaskClient
from support.clients import build
from support.faults import ENDLESS, FAULTS, GIVE_UP_S, IN_10_S, NOW, counted, meet

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
from deepseek_client.calls import ending
from deepseek_client.calls import retries as policy
from deepseek_client.engines.shared import default_pool
from deepseek_client.sandbox import SandboxConfig, running
from deepseek_client.settings import ENGINES
from deepseek_client.wire import adapter as transport
from deepseek_client.wire import failures
from webapp.app import create_app

pytestmark = pytest.mark.usefixtures("each_engine")

WORKERS, QUEUE_LIMIT = 3, 50
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
OK = {"fault": "ok"}
BUSY = {"fault": "status", "status": 503}


class Entry(NamedTuple):
    """One way into the application."""

    path: str
    use_async: bool = True

    @property
    def mode(self) -> str:
        return "async" if self.use_async and not self.path.endswith("/sync") else "sync"

    @property
    def name(self) -> str:
        return self.path + ("" if self.use_async else "-async_disabled")

    @property
    def method(self) -> str:
        return "parse" if self.path.startswith("parse") else "chat"

    def post(self, client: FlaskClient) -> Any:
        text = "打坐修炼"
        return client.post(
            f"/api/llm/{self.path}",
            json={"prompt": text, "utterance": text, "requests": [{"prompt": text}]},
        )

    def told(self, answer: Any) -> tuple[int, str | None, str | None]:
        """The status, the code and the Retry-After that the caller of one call got; a batch has none of its own."""
        body = answer.get_json()
        if self.path == "batch":
            assert (answer.status_code, body["total"]) == (200, 1)
            return 200, body["results"][0].get("code"), answer.headers.get("Retry-After")
        assert answer.status_code == 200 or body["text"] == ""
        return answer.status_code, body.get("code"), answer.headers.get("Retry-After")

    def expected(self, status: int, code: str | None, retry_after: str | None = None) -> tuple[Any, ...]:
        return (200, code, None) if self.path == "batch" else (status, code, retry_after)


ENTRIES = [
    Entry(path, use_async)
    for use_async in (True, False)
    for path in ("chat", "chat/sync", "parse", "parse/sync", "batch")
]


def over(entries: list[Entry]) -> pytest.MarkDecorator:
    """Each entry on each engine that it knows: a call in the thread of its request knows none, and goes once."""
    ways = [
        pytest.param(engine, entry, id=f"{engine}-{entry.name}")
        for entry in entries
        for engine in (ENGINES if entry.mode == "async" else ENGINES[:1])
    ]
    return pytest.mark.parametrize(("each_engine", "entry"), ways, indirect=["each_engine"])


over_entries = over(ENTRIES)
over_pool_entries = over([entry for entry in ENTRIES if entry.mode == "async"])
over_thread_entries = over([entry for entry in ENTRIES if entry.mode == "sync"])
over_faults = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@pytest.fixture(autouse=True)
def fresh_connections(sandbox):
    """No connection is kept from an earlier test: the transport would send a request that it loses once more."""
    transport._shared_adapter().close()


@pytest.fixture(autouse=True)
def a_day(monkeypatch):
    """An HTTP date is read at a known time."""
    monkeypatch.setattr(failures, "time", SimpleNamespace(time=lambda: NOW))


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """What calls would wait between attempts, in seconds, each random part the whole; nothing waits."""
    noted: list[float] = []

    async def note(wait_s: float) -> None:
        noted.append(wait_s)

    monkeypatch.setattr(ending, "back_off", note)
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: high)
    return noted


@pytest.fixture(scope="module")
def addresses(shared_sandbox, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Where a fault is met."""
    certificate = tmp_path_factory.mktemp("tls") / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    with (
        socket.socket() as nobody,
        running(SandboxConfig(port=0, latency_ms=0, certfile=str(certificate))) as untrusted,
    ):
        nobody.bind(("127.0.0.1", 0))  # and never listens
        yield {
            "sandbox": shared_sandbox.url,
            "nobody": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "plain": f"https://127.0.0.1:{shared_sandbox.port}",
            "untrusted": untrusted.url,
        }


@pytest.fixture
def settings(addresses) -> Settings:
    return Settings(
        api_key="sk-test", base_url=addresses["sandbox"], max_workers=WORKERS, queue_limit=QUEUE_LIMIT
    )


def app_client(settings: Settings, **changes: Any) -> FlaskClient:
    """A client of a new application: its breaker is closed, its budget full."""
    return create_app(replace(settings, **changes)).test_client()


def leaves_nothing(sandbox) -> None:
    """Each thread of the pool is idle, each slot is free, and the API works on nothing."""
    pool = default_pool(WORKERS, QUEUE_LIMIT)
    asyncio.run(meet(pool))
    assert (pool.stats()["busy"], pool.stats()["queued"]) == (0, 0)
    sandbox.wait_until(lambda stats: stats["in_flight"] == 0)


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


@over_pool_entries
@pytest.mark.parametrize(
    ("failures", "waited"),
    [
        ([BUSY], [0.5]),
        ([BUSY, BUSY], [0.5, 1.0]),
        ([{**BUSY, "status": 429}, {"fault": "reset_in_body"}], [0.5, 1.0]),
        ([{**BUSY, "headers": {"Retry-After": "1"}}], [1.5]),
        ([{**BUSY, "status": 429, "headers": {"Retry-After": "1"}}], [1.5]),
        ([{**BUSY, "status": 429, "headers": {"Retry-After": IN_10_S}}], [10.5]),
        ([{"fault": "html"}], [0.5]),
        ([{"fault": "html"}, BUSY], [0.5, 1.0]),
        ([BUSY, {"fault": "html"}], [0.5, 1.0]),
    ],
    ids=[
        "503", "503_twice", "429_and_reset", "503_in_1_s", "429_in_1_s", "429_on_a_date", "html", "html_and_503",
        "503_and_html",
    ],
)  # fmt: skip
def test_an_answer_after_failures(sandbox, settings, waits, failures, waited, entry):
    """A call that fails in a way that passes is answered all the same, after the waits that were asked for."""
    sandbox.script([*failures, OK])
    client = app_client(settings)
    before = counted(client)
    assert entry.told(entry.post(client)) == entry.expected(200, None)
    assert (sandbox.stats()["requests"], waits) == (len(failures) + 1, waited)
    counts = counted(client) - before
    assert (counts["deepseek_attempts_total", "ok"], counts["deepseek_retries_total",]) == (1, len(failures))
    assert not any(name == "deepseek_errors_total" for name, *_ in counts)


@over_thread_entries
def test_no_second_attempt_in_the_callers_thread(sandbox, settings, waits, entry):
    """What runs in the caller's thread is tried once: a retry there would hold a whole worker of the web server."""
    sandbox.script([BUSY, OK])
    client = app_client(settings, use_async=entry.use_async)
    assert entry.told(entry.post(client)) == entry.expected(502, "upstream_unavailable")
    assert (sandbox.stats()["requests"], sandbox.stats()["scripted"], waits) == (1, 1, [])


@over_pool_entries
@pytest.mark.parametrize(
    ("reply", "deadline_s", "told"),
    [
        ({**BUSY, "status": 429, "headers": {"Retry-After": "30"}}, 25.0, (503, "rate_limited", "30")),
        ({**BUSY, "status": 429, "headers": {"Retry-After": IN_10_S}}, 10.4, (503, "rate_limited", "10")),
        (BUSY, 0.5, (502, "upstream_unavailable")),
    ],
    ids=["seconds", "date", "back_off"],
)
def test_a_wait_beyond_the_deadline_is_not_begun(sandbox, settings, waits, entry, reply, deadline_s, told):
    """When the next attempt would come after the deadline the call fails at once, and says when to come again."""
    sandbox.script([reply, OK])
    client = app_client(settings, deadline_s=deadline_s)
    assert entry.told(entry.post(client)) == entry.expected(*told)
    assert (sandbox.stats()["requests"], waits) == (1, [])


@over_pool_entries
def test_the_deadline_covers_every_attempt(sandbox, settings, monkeypatch, entry):
    """A second attempt that hangs is ended by the deadline of the call, not by one of its own."""
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: low)
    sandbox.script([{"fault": "reset_in_body"}, {"fault": "hang"}])
    client = app_client(settings, deadline_s=0.6)
    before = counted(client)
    assert entry.told(entry.post(client)) == entry.expected(504, "deadline_exceeded")
    attempts = {key: count for key, count in (counted(client) - before).items() if "attempts" in key[0]}
    assert attempts == {
        ("deepseek_attempts_total", "connection_failed"): 1,
        ("deepseek_attempts_total", "deadline_exceeded"): 1,
    }
    leaves_nothing(sandbox)


@over_entries
@pytest.mark.parametrize("resets", [1, 2])
def test_a_kept_connection_that_dies(sandbox, settings, waits, entry, resets):
    """A request that is lost on a kept connection is sent anew within its attempt; one on a new connection is not."""
    client = app_client(settings, use_async=entry.use_async)
    entry.post(client)
    sandbox.script([{"fault": "reset_before_reply", "times": resets}])
    before = counted(client)
    told = entry.told(entry.post(client))
    failed = Counter({("deepseek_attempts_total", "connection_failed"): resets - 1})
    answered = Counter({("deepseek_attempts_total", "ok"): 1 if resets == 1 or entry.mode == "async" else 0})
    is_answered = bool(answered.total())
    assert told == (entry.expected(200, None) if is_answered else entry.expected(502, "connection_failed"))
    attempts = {key: count for key, count in (counted(client) - before).items() if "attempts" in key[0]}
    assert attempts == failed + answered
    assert sandbox.stats()["requests"] == 1 + resets + is_answered


@over_entries
@pytest.mark.parametrize("status", [401, 402, 403])
def test_an_account_that_is_refused(sandbox, settings, entry, status):
    """After an empty balance, or three refused keys in a row, calls are refused for five minutes; nothing is sent."""
    refusals = 1 if status == 402 else 3
    sandbox.script([{"fault": "status", "status": status, "times": refusals}])
    client = app_client(settings, use_async=entry.use_async)
    for _ in range(refusals):
        entry.post(client)
    before = counted(client)
    assert entry.told(entry.post(client)) == entry.expected(503, "circuit_open", "300")
    assert counted(client) - before == Counter(
        {
            ("deepseek_requests_total", entry.method, entry.mode): 1,
            ("deepseek_errors_total", "circuit_open", entry.method, entry.mode): 1,
        }
    )
    assert sandbox.stats()["requests"] == refusals


def test_each_prompt_of_a_batch_has_its_attempts(sandbox, settings):
    """In a batch each prompt fails, is tried again and is answered by itself."""
    lost, wrong = {"fault": "reset_in_body"}, {"fault": "status", "status": 422}
    sandbox.script([OK, BUSY, OK, {"fault": "html"}, {"fault": "blank"}, wrong, lost, lost, lost, OK])
    client = app_client(settings, max_workers=1)
    answer = client.post("/api/llm/batch", json={"requests": [{"prompt": "x"}] * 6}).get_json()
    told = [result.get("code", "ok") for result in answer["results"]]
    assert told == ["ok", "ok", "bad_reply", "upstream_rejected", "connection_failed", "ok"]
    assert (answer["successful"], answer["failed"]) == (3, 3)
    assert sandbox.stats()["requests"] == 10
