"""What a client that is not the legacy one made of an exchange is believed where it can be right."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from support.attempts import CLIENT, completion, finished

from deepseek_client import BadReply, RateLimited, UpstreamUnavailable
from deepseek_client.answers import outcome_of

THEIRS = SimpleNamespace(api_key="sk-test", base_url="https://api.example.test")


def test_another_clients_results_are_its_own():
    """A client that is not the legacy one may return what it likes: its shapes are not judged."""
    body = completion('{"intent": "talk"}')
    for result in (
        "just text",
        {"intent": 7, "slots": [], "allowed": "no", "reason": None},
        {"text": "trimmed"},
    ):
        assert outcome_of(finished("parse", result=result, status=200, body=body), THEIRS) == result
        assert outcome_of(finished("chat", result=result, status=200, body=body), THEIRS) == result


@pytest.mark.parametrize("body", [b'{"answer": "hi"}', b"plain text", b"[1]"])
def test_a_client_of_another_api_is_believed(body):
    """A client whose last request was not for a completion, and which found an answer, is right."""
    exchange = finished(result={"text": "hi"}, status=200, body=body, path="/v2/answers")
    assert outcome_of(exchange, CLIENT) == {"text": "hi"}


def test_a_client_of_another_api_that_found_nothing_is_judged():
    """The same client with nothing to show for a refusal is not believed."""
    exchange = finished(result={"text": ""}, status=503, path="/v2/answers")
    with pytest.raises(UpstreamUnavailable):
        outcome_of(exchange, CLIENT)


def test_a_client_without_requests_is_believed():
    """A client that does not use `requests` is taken at its word, success and exception."""
    assert outcome_of(finished(result={"text": "from elsewhere"}), CLIENT) == {"text": "from elsewhere"}
    with pytest.raises(ZeroDivisionError):
        outcome_of(finished(raised=ZeroDivisionError()), CLIENT)


def test_a_client_that_streams_is_believed():
    """When the client reads the body itself, its result counts."""
    assert outcome_of(finished(result={"text": "streamed"}, status=200), CLIENT) == {"text": "streamed"}


@pytest.mark.parametrize("raised", [ValueError("of the SDK"), LookupError("of the SDK"), KeyError("x")])
def test_what_another_client_raises_without_requests_is_its_own(raised):
    """A client that does not use `requests` knows what went wrong: its exception is not dressed up, nor tried again."""
    for client in (SimpleNamespace(), SimpleNamespace(api_key="sk-test")):
        with pytest.raises(type(raised), match=re.escape(str(raised))):
            outcome_of(finished(raised=raised), client)


def test_another_client_may_answer_without_a_request():
    """A blank from a client that has no key and sent nothing over `requests` is that client's answer."""
    for result in ({"text": ""}, None, ""):
        assert outcome_of(finished(result=result), SimpleNamespace()) == result


@pytest.mark.parametrize("result", [None, "", " \n"], ids=["none", "empty", "blanks"])
@pytest.mark.parametrize("method", ["chat", "parse"])
def test_nothing_that_another_client_made_of_a_bad_reply(method, result):
    """A client whose answers are plain texts gives an empty one, or None, for a reply without an answer: a failure."""
    for body in (b"<html>busy</html>", b"", completion(""), completion("hi")[:-9], b'{"choices": []}'):
        with pytest.raises(BadReply):
            outcome_of(finished(method, result, status=200, body=body), THEIRS)


def test_nothing_that_another_client_made_of_a_good_reply():
    """It stays what it is where the reply has an answer, calls tools, is a stream, or was not read for us."""
    tools = {"choices": [{"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}]}
    stream = {"Content-Type": "text/event-stream; charset=utf-8"}
    for result in (None, ""):
        for body, headers in (
            (completion("hi"), {}),
            (json.dumps(tools).encode(), {}),
            (b"data: {}\n\n", stream),
            (None, {}),
        ):
            attempt = finished(result=result, status=200, body=body, headers=headers)
            assert outcome_of(attempt, THEIRS) is result


def test_another_clients_good_answer_is_not_judged():
    """A reply that the legacy client could not read is a good one if the client has found its answer in it."""
    tools = {"choices": [{"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}]}
    for body in (json.dumps(tools).encode(), b"data: {}\n\n", completion("")):
        attempt = finished(result={"answer": 42}, status=200, body=body)
        assert outcome_of(attempt, THEIRS) == {"answer": 42}
    error = b'{"error": {"code": 429, "message": "slow down"}}'
    with pytest.raises(RateLimited):
        outcome_of(finished(result={"answer": None}, status=200, body=error), THEIRS)
