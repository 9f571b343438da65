"""What the console sends is told from what others ask."""

from __future__ import annotations

import pytest
from support.clients import counted

from webapp.app import create_app

FROM_CONSOLE = {"X-LLM-Source": "console"}


@pytest.fixture
def client(settings):
    """A client of the app over the sandbox."""
    return create_app(settings).test_client()


def test_counted_apart(client):
    """A request of the console counts under its own route, and another one as ever."""
    before = counted(client, "http_requests_total", route="console /api/llm/chat")
    others = counted(client, "http_requests_total", route="/api/llm/chat")
    client.post("/api/llm/chat", json={"prompt": "x"}, headers=FROM_CONSOLE)
    client.post("/api/llm/chat", json={"prompt": "x"})
    assert counted(client, "http_requests_total", route="console /api/llm/chat") == before + 1
    assert counted(client, "http_requests_total", route="/api/llm/chat") == others + 1


@pytest.mark.parametrize(
    ("path", "body", "calls"),
    [
        ("chat", {"prompt": "x"}, 1),
        ("chat/sync", {"prompt": "x"}, 1),
        ("parse", {"utterance": "x"}, 1),
        ("batch", {"requests": [{"prompt": "x"}, {"prompt": "y"}]}, 2),
    ],
)
def test_answer_says_what_its_calls_did(client, path, body, calls):
    """Its answer has the process, the calls and their attempts; that of another caller has no such header."""
    told = client.post(f"/api/llm/{path}", json=body, headers=FROM_CONSOLE).headers["X-LLM-Calls"]
    facts = dict(word.split("=") for word in told.split())
    assert (facts["calls"], facts["attempts"]) == (str(calls), str(calls))
    assert facts["mode"] == ("sync" if path.endswith("/sync") else "async")
    assert int(facts["ran_ms"]) >= 0
    assert "X-LLM-Calls" not in client.post(f"/api/llm/{path}", json=body).headers


def test_failed_call_is_told_too(client, sandbox):
    """The attempts of a call that failed stand beside its error."""
    sandbox.script([{"fault": "status", "status": 422}])
    answer = client.post("/api/llm/chat", json={"prompt": "x"}, headers=FROM_CONSOLE)
    assert answer.status_code == 502
    assert "attempts=1" in answer.headers["X-LLM-Calls"]
