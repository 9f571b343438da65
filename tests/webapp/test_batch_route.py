"""The route of a batch: each entry in its place, in turns, within one deadline."""

import pytest
from support.applications import client_of, use_async

from deepseek_client import Settings
from deepseek_client.sandbox import SandboxConfig, running
from webapp.app import create_app


@use_async
def test_batch(settings, sandbox, use_async):
    """A batch answers each entry in its place and counts; a bad entry and a failed call spoil no other."""
    sandbox.script([{"fault": "ok"}, {"fault": "status", "status": 422}, {"fault": "ok"}])
    client = client_of(settings, use_async=use_async, max_workers=1)
    answer = client.post(
        "/api/llm/batch",
        json={"requests": [{"prompt": "甲"}, {"prompt": " "}, {"prompt": "乙"}, {"prompt": "丙"}]},
    )
    assert answer.status_code == 200
    assert answer.get_json() == {
        "results": [
            {"text": "沙盒已收到：「甲」", "success": True},
            {
                "error": "prompt is blank: need a text of 1 to 20000 characters.",
                "code": "invalid_request",
                "success": False,
            },
            {
                "error": "The API refused a parameter of the request (HTTP 422).",
                "code": "upstream_rejected",
                "success": False,
            },
            {"text": "沙盒已收到：「丙」", "success": True},
        ],
        "total": 4,
        "successful": 2,
        "failed": 2,
    }


def test_batch_of_bad_entries(client, sandbox):
    """A batch without one good entry is answered too, and sends nothing."""
    answer = client.post("/api/llm/batch", json={"requests": [{}, {}]})
    assert answer.status_code == 200
    assert {name: answer.get_json()[name] for name in ("total", "successful", "failed")} == {
        "total": 2,
        "successful": 0,
        "failed": 2,
    }
    assert sandbox.stats()["requests"] == 0


@pytest.mark.parametrize(("enabled", "peak"), [(True, 5), (False, 1)], ids=["five_workers", "async_disabled"])
def test_fifty_prompts(enabled, peak):
    """Fifty prompts come back as fifty texts in order, with exactly LLM_MAX_WORKERS in flight, or one without pool."""
    prompts = [f"测试提示词 {number}" for number in range(50)]
    with running(SandboxConfig(port=0, latency_ms=30 if enabled else 0)) as sandbox:
        env = {
            "DEEPSEEK_API_KEY": "sk-test",
            "DEEPSEEK_BASE_URL": sandbox.url,
            "LLM_MAX_WORKERS": "5",
            "USE_ASYNC_DEEPSEEK": str(int(enabled)),
        }
        client = create_app(Settings.from_env(env)).test_client()
        answer = client.post("/api/llm/batch", json={"requests": [{"prompt": prompt} for prompt in prompts]})
        stats = sandbox.stats()
    assert answer.get_json() == {
        "results": [{"text": f"沙盒已收到：「{prompt}」", "success": True} for prompt in prompts],
        "total": 50,
        "successful": 50,
        "failed": 0,
    }
    assert (stats["requests"], stats["peak_in_flight"]) == (50, peak)


def test_batch_larger_than_the_queue(settings, sandbox):
    """A batch takes turns: its size is not bound by the queue."""
    client = client_of(settings, max_workers=2, queue_limit=0)
    answer = client.post("/api/llm/batch", json={"requests": [{"prompt": "x"}] * 20}).get_json()
    assert (answer["successful"], sandbox.stats()["requests"]) == (20, 20)


def test_deadline_of_a_batch():
    """A batch has one deadline for all: what has not ended by then fails alone, what has stays."""
    with running() as sandbox:
        sandbox.script([{"fault": "ok"}, {"fault": "hang"}])
        settings = Settings(api_key="sk-test", base_url=sandbox.url, deadline_s=0.8, max_workers=1)
        client = create_app(settings).test_client()
        answer = client.post("/api/llm/batch", json={"requests": [{"prompt": "甲"}] + [{"prompt": "x"}] * 3})
        requests = sandbox.stats()["requests"]
    assert answer.status_code == 200
    first, *rest = answer.get_json()["results"]
    assert first == {"text": "沙盒已收到：「甲」", "success": True}
    assert [result["code"] for result in rest] == ["deadline_exceeded"] * 3
    assert requests == 2


def test_a_blank_answer_in_a_batch_is_no_success(sandbox):
    """Without the transport a failed call shows only in its blank text: a batch does not count it as a success."""
    env = {"DEEPSEEK_API_KEY": "k", "DEEPSEEK_BASE_URL": sandbox.url, "DEEPSEEK_TRANSPORT": "0"}
    answer = (
        create_app(Settings.from_env(env))
        .test_client()
        .post("/api/llm/batch", json={"requests": [{"prompt": "x"}]})
    )
    assert answer.get_json() == {
        "results": [{"error": "The call failed; see the log.", "code": "bad_reply", "success": False}],
        "total": 1,
        "successful": 0,
        "failed": 1,
    }
