import logging

import pytest
from support.clients import counted

from deepseek_client import request_id
from deepseek_client.telemetry import logs
from webapp import create_app

GIVE_UP_S = 5
BODIES = {
    "chat": {"prompt": "x"},
    "chat/sync": {"prompt": "x"},
    "parse": {"utterance": "x"},
    "parse/sync": {"utterance": "x"},
    "batch": {"requests": [{"prompt": "x"}]},
}


@pytest.fixture
def client(settings):
    """A client of the app over the sandbox."""
    return create_app(settings).test_client()


@pytest.mark.parametrize("path", BODIES)
def test_the_id_goes_all_the_way(client, sandbox, path):
    """The caller's id is in the answer, and in the headers that the API gets."""
    answer = client.post(f"/api/llm/{path}", json=BODIES[path], headers={"X-Request-ID": "r-1"})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (200, "r-1")
    assert sandbox.stats()["last_request_headers"]["X-Request-ID"] == "r-1"


def test_the_id_is_in_the_legacy_clients_own_lines(client, sandbox, capsys):
    """What the legacy client logs in the pool's thread has the id of the request."""
    handler = logs.handler(as_json=False, secrets=())
    logging.getLogger("deepseek_client").addHandler(handler)
    try:
        sandbox.script([{"fault": "status", "status": 422}])
        client.post("/api/llm/chat", json={"prompt": "x"}, headers={"X-Request-ID": "r-1"})
    finally:
        logging.getLogger("deepseek_client").removeHandler(handler)
    lines = [line for line in capsys.readouterr().err.splitlines() if "deepseek_client.client" in line]
    assert lines
    assert all("[r-1]" in line for line in lines)


def test_the_id_ends_with_its_request(client):
    """What a thread logs between two requests has no id."""
    client.get("/health", headers={"X-Request-ID": "r-1"})
    assert request_id.current() is None


def test_each_request_has_an_id_of_its_own(client):
    """Without one of the caller's, or with one that could forge a line, an answer has a new id."""
    ids = [client.get("/health", headers=headers).headers["X-Request-ID"]
           for headers in ({}, {}, {"X-Request-ID": "a b"})]  # fmt: skip
    assert len({*ids, "a b"}) == 4


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/no/such", 404),
        ("DELETE", "/api/llm/chat", 405),
        ("POST", "/api/llm/chat", 400),
    ],
)
def test_every_answer_is_sealed(client, method, path, status):
    """Errors too have an id, and say that browsers must neither render, embed nor keep them."""
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("POST", "/api/llm/chat", {"method": "POST", "route": "/api/llm/chat", "status": "400"}),
        ("GET", "/no/such", {"method": "GET", "route": "unmatched", "status": "404"}),
        ("BREW", "/health", {"method": "other", "route": "unmatched", "status": "405"}),
    ],
    ids=["route", "unmatched", "method"],
)
def test_requests_are_counted_by_their_route(client, method, path, labels):
    """Each answer counts once under its pattern; what strangers ask for makes no new label."""
    before = counted(client, "http_requests_total", **labels)
    assert client.open(path, method=method).status_code == int(labels.pop("status"))
    assert counted(client, "http_requests_total", **labels) >= before + 1


def test_requests_are_timed_by_their_route(client):
    """The duration of an answer is observed once under its pattern."""
    labels = {"method": "POST", "route": "/api/llm/chat"}
    before = counted(client, "http_request_duration_seconds_count", **labels)
    client.post("/api/llm/chat", json={"prompt": "x"})
    assert counted(client, "http_request_duration_seconds_count", **labels) == before + 1


def test_tokens_are_counted(client):
    """What the API counts for an answer is added up by its kind."""
    kinds = ("prompt", "completion", "cache_miss")
    before = {kind: counted(client, "deepseek_tokens_total", kind=kind) for kind in kinds}
    client.post("/api/llm/chat", json={"prompt": "x"})
    assert all(counted(client, "deepseek_tokens_total", kind=kind) > before[kind] for kind in kinds)
