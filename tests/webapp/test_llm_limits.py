"""What ends a request's call, or lets it not begin: its deadline, a full pool, the end of all calls."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.blocking import leaving_soon
from support.patience import GIVE_UP_S

from deepseek_client import Settings
from deepseek_client.calls.ending import end_calls
from deepseek_client.sandbox import running
from webapp.app import create_app


@pytest.mark.parametrize(
    ("path", "body"),
    [("chat", {"prompt": "x"}), ("parse", {"utterance": "x"})],
    ids=["chat", "parse"],
)
def test_deadline(path, body):
    """A call whose answer does not come is a 504 once LLM_DEADLINE_S is over."""
    with running() as sandbox:
        sandbox.script([{"fault": "hang"}])
        client = create_app(Settings(api_key="sk-test", base_url=sandbox.url, deadline_s=0.2)).test_client()
        answer = client.post(f"/api/llm/{path}", json=body)
    assert answer.get_json() == {
        "error": "The call's time is over.",
        "code": "deadline_exceeded",
        "text": "",
    }
    assert (answer.status_code, "Retry-After" in answer.headers) == (504, False)


def test_overload():
    """One call more than workers and queue hold is refused at once, whichever way it comes in."""
    with running() as sandbox, ThreadPoolExecutor(1) as threads:
        sandbox.script([{"fault": "hang"}])
        app = create_app(Settings(api_key="sk-test", base_url=sandbox.url, max_workers=1, queue_limit=0))
        running_call = threads.submit(app.test_client().post, "/api/llm/chat", json={"prompt": "x"})
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        refused = app.test_client().post("/api/llm/chat", json={"prompt": "x"})
        refused_too = app.test_client().post("/api/llm/chat/sync", json={"prompt": "x"})
        sandbox.stop()
        running_call.result(GIVE_UP_S)
    assert refused.get_json() == {
        "error": "All 1 workers are busy and 0 calls wait already.",
        "code": "overloaded",
        "text": "",
    }
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert (refused_too.status_code, refused_too.get_json()) == (503, refused.get_json())


def test_end_of_calls(monkeypatch):
    """The end of all calls answers those in flight with 503 at once, and those after it too."""
    leaving_soon(monkeypatch)
    with running() as sandbox, ThreadPoolExecutor(1) as threads:
        sandbox.script([{"fault": "hang"}])
        app = create_app(Settings(api_key="sk-test", base_url=sandbox.url, max_workers=3))
        call = threads.submit(app.test_client().post, "/api/llm/chat", json={"prompt": "x"})
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        end_calls()
        ended = call.result(GIVE_UP_S)
        following = app.test_client().post("/api/llm/chat", json={"prompt": "甲"})
    message = "The service is shutting down."
    assert ended.get_json() == {"error": message, "code": "closing", "text": ""}
    assert ended.status_code == 503
    assert (following.status_code, following.get_json()["code"]) == (503, "closing")


def test_requests_meet_in_the_pool():
    """Requests of several threads are in flight together: each waits on the loop, none blocks it."""
    with running() as sandbox, ThreadPoolExecutor(4) as threads:
        sandbox.script([{"fault": "hang", "times": 4}])
        app = create_app(Settings(api_key="sk-test", base_url=sandbox.url))
        asked = [
            threads.submit(app.test_client().post, "/api/llm/chat", json={"prompt": "x"}) for _ in range(4)
        ]
        sandbox.wait_until(lambda stats: stats["in_flight"] == 4)
        sandbox.stop()
        codes = [call.result(GIVE_UP_S).get_json()["code"] for call in asked]
    assert codes == ["connection_failed"] * 4
