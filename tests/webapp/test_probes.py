import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.clients import counted
from support.patience import GIVE_UP_S

from deepseek_client import Settings, __version__
from deepseek_client.sandbox import running
from webapp.app import create_app
from webapp.extensions import deepseek

KEY = "sk-SECRET-0123-tail"


def client_with(**env):
    """A client of an app with these settings."""
    return create_app(Settings.from_env(env)).test_client()


@pytest.fixture
def full():
    """A client whose pool, of one worker and no queue, runs a call that does not end."""
    with running() as sandbox, ThreadPoolExecutor(1) as threads:
        sandbox.script([{"fault": "hang"}])
        app = create_app(
            Settings(
                api_key=KEY, base_url=sandbox.url, max_workers=1, queue_limit=0, deadline_s=60, max_attempts=1
            )
        )
        call = threads.submit(app.test_client().post, "/api/llm/chat", json={"prompt": "x"})
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        yield app.test_client()
        sandbox.stop()
        assert call.result(GIVE_UP_S).get_json()["code"] == "connection_failed"


def test_health(client, sandbox):
    """/health says that this process answers, and asks nothing else."""
    answer = client.get("/health")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "healthy"})
    assert sandbox.stats()["requests"] == 0


def test_health_of_what_is_not_ready(full):
    """/health does not care about the key or the pool."""
    assert client_with().get("/health").status_code == 200
    assert full.get("/health").status_code == 200


def test_ready(client, sandbox):
    """/ready is 200 with a key and room in the pool; nothing is sent to find out."""
    answer = client.get("/ready")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ready"})
    assert sandbox.stats()["requests"] == 0


def test_ready_without_a_key():
    """/ready is 503 with its reason while there is no key."""
    answer = client_with().get("/ready")
    assert answer.status_code == 503
    assert answer.get_json() == {"status": "unready", "reason": "no API key is configured"}


def test_ready_with_a_full_pool(full):
    """/ready is 503 with its reason while no call could get a slot."""
    answer = full.get("/ready")
    assert answer.status_code == 503
    assert answer.get_json() == {"status": "unready", "reason": "the pool is full"}


@pytest.mark.parametrize("enabled", [True, False], ids=["async_enabled", "async_disabled"])
def test_ready_with_an_open_breaker(settings, sandbox, enabled):
    """/ready is 503 with its reason while the breaker refuses calls, which /metrics shows too."""
    client = create_app(replace(settings, use_async=enabled)).test_client()
    before = counted(client, "deepseek_breaker_state")
    sandbox.script([{"fault": "status", "status": 402}])
    client.post("/api/llm/chat", json={"prompt": "x"})
    refused = client.post("/api/llm/chat", json={"prompt": "x"})
    assert (refused.status_code, refused.get_json()["code"]) == (503, "circuit_open")
    assert 1 <= int(refused.headers["Retry-After"]) <= 300
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.get_json() == {
        "status": "unready",
        "reason": "the breaker is open: No call is made for now: The API reports an insufficient balance (HTTP 402).",
    }
    assert counted(client, "deepseek_breaker_state") == before + 1
    assert sandbox.stats()["requests"] == 1


def test_ready_without_async(full):
    """With USE_ASYNC_DEEPSEEK=0 no call needs a slot, so a full pool is ready."""
    with full.application.app_context():
        settings = deepseek.settings
    answer = create_app(replace(settings, use_async=False)).test_client().get("/ready")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ready"})


def test_status(client, sandbox):
    """/api/llm/status tells how this process is set up and what its pool does."""
    answer = client.get("/api/llm/status").get_json()
    endpoints = answer.pop("endpoints")
    pool = answer.pop("pool")
    assert answer == {
        "status": "ok",
        "api_key_configured": True,
        "version": __version__,
        "async_enabled": True,
        "engine": "threads",
        "pid": os.getpid(),
        "upstream": "sandbox",
    }
    assert {name: pool[name] for name in ("workers", "busy", "queued", "queue_limit")} == {
        "workers": 5,
        "busy": 0,
        "queued": 0,
        "queue_limit": 100,
    }
    assert set(endpoints) >= {
        "/api/llm/batch",
        "/api/llm/chat",
        "/api/llm/chat/sync",
        "/api/llm/parse",
        "/api/llm/parse/sync",
        "/api/llm/status",
        "/health",
        "/metrics",
        "/ready",
    }
    assert sandbox.stats()["requests"] == 0


def test_status_of_a_busy_pool(full):
    """/api/llm/status shows the calls that run and those that were refused."""
    before = full.get("/api/llm/status").get_json()["pool"]
    assert full.post("/api/llm/chat", json={"prompt": "x"}).get_json()["code"] == "overloaded"
    after = full.get("/api/llm/status").get_json()["pool"]
    assert after == {**before, "busy": 1, "workers": 1, "queue_limit": 0, "rejected": before["rejected"] + 1}


@pytest.mark.parametrize(
    ("base_url", "upstream"),
    [
        ("", "deepseek"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://gateway.example:8443/v1", "deepseek"),
        ("http://10.0.0.1", "deepseek"),
        ("http://127.0.0.1:8765", "sandbox"),
        ("http://127.8.9.10/v1", "sandbox"),
        ("http://[::1]:8765", "sandbox"),
        ("http://localhost:8765", "sandbox"),
        ("http://127.0.0.1.example.com", "deepseek"),
    ],
)
def test_upstream(base_url, upstream):
    """`upstream` is "sandbox" for an address of this machine and "deepseek" for any other."""
    client = client_with(DEEPSEEK_BASE_URL=base_url)
    assert client.get("/api/llm/status").get_json()["upstream"] == upstream


def test_status_without_key_and_async():
    """/api/llm/status tells that there is no key and that async is off."""
    answer = client_with(USE_ASYNC_DEEPSEEK="0").get("/api/llm/status").get_json()
    assert (answer["api_key_configured"], answer["async_enabled"]) == (False, False)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/api/llm/status"])
def test_key_is_not_shown(path):
    """No probe shows the key, nor its end."""
    answer = client_with(DEEPSEEK_API_KEY=KEY, DEEPSEEK_BASE_URL="http://127.0.0.1:1").get(path)
    assert answer.status_code == 200
    assert KEY[-6:] not in answer.text
    assert "pass@" not in answer.text


def test_metrics_are_prometheus_text(client):
    """/metrics is text in Prometheus' format, with its version."""
    client.post("/api/llm/chat", json={"prompt": "x"})
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    types = {family.name: family.type for family in text_string_to_metric_families(answer.text)}
    assert types["deepseek_requests"] == "counter"
    assert types["deepseek_duration_seconds"] == "histogram"


@pytest.mark.parametrize(
    ("path", "body", "labels"),
    [
        ("chat", {"prompt": "x"}, {"method": "chat", "mode": "async"}),
        ("chat", {"prompt": "x", "async": False}, {"method": "chat", "mode": "sync"}),
        ("chat/sync", {"prompt": "x"}, {"method": "chat", "mode": "sync"}),
        ("parse", {"utterance": "x"}, {"method": "parse", "mode": "async"}),
        ("parse/sync", {"utterance": "x"}, {"method": "parse", "mode": "sync"}),
    ],
    ids=["chat", "chat_sync_mode", "chat_sync", "parse", "parse_sync"],
)
def test_metrics_count_calls(client, sandbox, path, body, labels):
    """/metrics counts each call once by method and mode, with its duration, and a failed one also by its code."""
    names = ("deepseek_requests_total", "deepseek_duration_seconds_count")
    before = {name: counted(client, name, **labels) for name in names}
    failed = counted(client, "deepseek_errors_total", code="authentication_failed", **labels)
    all_failed = counted(client, "deepseek_errors_total")

    assert client.post(f"/api/llm/{path}", json=body).status_code == 200
    assert {name: counted(client, name, **labels) - before[name] for name in names} == dict.fromkeys(names, 1)
    assert counted(client, "deepseek_errors_total") == all_failed

    sandbox.script([{"fault": "status", "status": 401}])
    assert client.post(f"/api/llm/{path}", json=body).status_code == 502
    assert {name: counted(client, name, **labels) - before[name] for name in names} == dict.fromkeys(names, 2)
    assert counted(client, "deepseek_errors_total", code="authentication_failed", **labels) == failed + 1
    assert counted(client, "deepseek_errors_total") == all_failed + 1


def test_metrics_count_a_batch(client):
    """Each prompt of a batch is a call; an entry that was never sent is none."""
    before = counted(client, "deepseek_requests_total", method="chat", mode="async")
    client.post("/api/llm/batch", json={"requests": [{"prompt": "x"}] * 7 + [{}]})
    assert counted(client, "deepseek_requests_total", method="chat", mode="async") == before + 7


def test_metrics_count_a_refusal(full):
    """A call that the full pool refuses is counted with the code overloaded."""
    before = counted(full, "deepseek_errors_total", code="overloaded")
    full.post("/api/llm/chat", json={"prompt": "x"})
    assert counted(full, "deepseek_errors_total", code="overloaded") == before + 1


def test_metrics_do_not_count_bad_input(client):
    """A request that was refused for its body is not a call."""
    before = counted(client, "deepseek_requests_total")
    assert client.post("/api/llm/chat", json={}).status_code == 400
    assert counted(client, "deepseek_requests_total") == before


def test_metrics_of_two_apps(settings):
    """Two apps of one process count each call once, not twice."""
    first, second = (create_app(settings).test_client() for _ in range(2))
    before = counted(first, "deepseek_requests_total")
    first.post("/api/llm/chat", json={"prompt": "x"})
    assert counted(second, "deepseek_requests_total") == before + 1
