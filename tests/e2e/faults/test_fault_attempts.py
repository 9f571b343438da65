"""What is tried again, when, and how often, on every way into the application."""

from __future__ import annotations

from collections import Counter
from unittest.mock import ANY

import pytest
from support.applications import client_of as app_client
from support.entries import leaves_nothing, over_entries, over_pool_entries, over_thread_entries
from support.faults import BUSY, IN_10_S, OK, counted

from deepseek_client.calls import retries as policy

pytestmark = pytest.mark.usefixtures("each_engine")


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
    # How long is left of the five minutes tells how busy the machine is.
    assert entry.told(entry.post(client)) == entry.expected(503, "circuit_open", ANY)
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
