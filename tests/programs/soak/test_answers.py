import json

import pytest

from deepseek_client import errors

from .answers import CODES, HUNG_UP, OK, WRONG, group_of, outcome_of
from .calls import Call

CHAT = Call("chat", "POST", "/api/llm/chat", b"", ("#7#",))
BATCH = Call("batch", "POST", "/api/llm/batch", b"", ("#8#0#", "#8#1#"))
PARSE = Call("parse", "POST", "/api/llm/parse", b"")
BAD = Call("bad", "POST", "/api/llm/chat", b"{")
READY = Call("probe", "GET", "/ready", b"")
HEALTH = Call("probe", "GET", "/health", b"")

PARSED = {"intent": "attack", "slots": {}, "allowed": True, "reason": ""}
LATE = {"error": "The call's time is over.", "code": "deadline_exceeded", "success": False}


def failure(code, text=""):
    """The body of a failed call."""
    return {"error": "A sentence.", "code": code, "text": text}


def results(*entries):
    """The body of a batch."""
    good = sum(entry["success"] for entry in entries)
    return {"results": entries, "total": len(entries), "successful": good, "failed": len(entries) - good}


def echo(prompt):
    """What the sandbox answers, as an entry of a batch."""
    return {"text": f"沙盒已收到：「{prompt}」", "success": True}


def outcome(call, status, body):
    """The outcome of an answer, without the words after WRONG."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return outcome_of(call, status, content).partition(" ")[0]


@pytest.mark.parametrize(
    ("call", "status", "body", "expected"),
    [
        pytest.param(CHAT, 200, {"text": "沙盒已收到：「#7#」", "mode": "async"}, OK, id="echo"),
        pytest.param(CHAT, 200, {"text": "上游说了别的话"}, OK, id="other_words"),
        pytest.param(CHAT, 200, {"text": "沙盒已收到：「#70#」"}, WRONG, id="answer_to_another"),
        pytest.param(CHAT, 200, {"text": " "}, WRONG, id="blank"),
        pytest.param(CHAT, 200, {"answer": "x"}, WRONG, id="no_text"),
        pytest.param(CHAT, 200, b"<html>", WRONG, id="not_json"),
        pytest.param(CHAT, 503, failure("overloaded"), "overloaded", id="refused"),
        pytest.param(CHAT, 502, failure("overloaded"), WRONG, id="code_with_another_status"),
        pytest.param(CHAT, 502, failure("authentication_failed"), WRONG, id="code_without_a_cause"),
        pytest.param(CHAT, 500, failure("internal_server_error"), WRONG, id="unknown_code"),
        pytest.param(CHAT, 502, failure("bad_reply", "half"), WRONG, id="failure_with_a_text"),
        pytest.param(CHAT, 400, failure("invalid_request"), WRONG, id="good_body_refused"),
        pytest.param(BAD, 400, failure("invalid_request"), "invalid_request", id="bad_body_refused"),
        pytest.param(BAD, 200, {"text": "x"}, WRONG, id="bad_body_answered"),
        pytest.param(PARSE, 200, PARSED, OK, id="parsed"),
        pytest.param(PARSE, 200, {**PARSED, "allowed": "no"}, WRONG, id="parsed_as_another_type"),
        pytest.param(BATCH, 200, results(echo("#8#0#"), LATE), OK, id="batch"),
        pytest.param(BATCH, 200, results(echo("#8#1#"), echo("#8#0#")), WRONG, id="batch_out_of_order"),
        pytest.param(BATCH, 200, results(LATE), WRONG, id="batch_too_short"),
        pytest.param(
            BATCH, 200, results(LATE, {**LATE, "code": "error"}), WRONG, id="batch_with_unknown_code"
        ),
        pytest.param(READY, 503, {"status": "unready"}, OK, id="not_ready"),
        pytest.param(HEALTH, 503, {}, WRONG, id="not_healthy"),
    ],
)
def test_outcome(call, status, body, expected):
    """An answer is what its route promises, a code of the contract with its own status, or wrong."""
    assert outcome(call, status, body) == expected


def test_codes_are_the_products():
    """Each code that is expected is one of the product's, with its status."""
    of_the_product = {
        kind.code: kind.http_status for kind in vars(errors).values() if hasattr(kind, "http_status")
    }
    assert CODES.items() <= of_the_product.items()


def test_groups():
    """The progress line counts by what happened, not by code."""
    outcomes = [OK, HUNG_UP, "overloaded", "circuit_open", "bad_reply", "invalid_request", f"{WRONG} GET /x"]
    assert [group_of(outcome) for outcome in outcomes] == [
        *("ok", "hung up", "refused", "refused", "failed", "bad body", WRONG)
    ]
