import logging

import pytest
from flask import Flask, Response, request, stream_with_context
from support.clients import counted

from deepseek_client import request_id
from deepseek_client.flask import DeepSeek
from deepseek_client.telemetry import logs
from webapp.app import create_app

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


def test_the_id_is_there_while_an_answer_is_streamed():
    """What `stream_with_context` makes after the view's end has the request's id, and the thread has none behind it."""
    app = Flask("theirs")
    DeepSeek(app)

    @app.get("/stream")
    def view():
        return Response(stream_with_context(f"{request.path} {request_id.current()};" for _ in range(2)))

    answer = app.test_client().get("/stream", headers={"X-Request-ID": "r-1"})
    assert answer.text == "/stream r-1;/stream r-1;"
    assert request_id.current() is None


def test_each_request_has_an_id_of_its_own(client):
    """Without one of the caller's, or with one that could forge a line, an answer has a new id."""
    ids = [client.get("/health", headers=headers).headers["X-Request-ID"]
           for headers in ({}, {}, {"X-Request-ID": "a b"})]  # fmt: skip
    assert len({*ids, "a b"}) == 4


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
