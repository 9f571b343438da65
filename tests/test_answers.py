"""Which replies of status 200 are answers, and what they say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.attempts import CLIENT, completion, failure_of, finished
from support.clients import UNKNOWN

from deepseek_client import BadReply
from deepseek_client.answers import blank_result, outcome_of


def test_slots_without_end_are_a_bad_reply():
    """An object that nests so deep that nobody can write it again is no answer."""
    slots: dict[str, Any] = {}
    for _ in range(980):
        slots = {"a": slots}
    content = "x"
    result = {**UNKNOWN, "intent": "talk", "slots": slots}
    attempt = finished("parse", result=result, status=200, body=completion(content))
    assert type(failure_of(attempt)) is BadReply


def test_content_in_parts_is_joined():
    """The API's schema allows content as a list of parts; their texts are the answer."""
    parts = [{"type": "text", "text": "你"}, {"type": "image"}, {"type": "text", "text": "好"}]
    attempt = finished(result={"text": parts}, status=200, body=completion(parts))
    assert outcome_of(attempt, CLIENT) == {"text": "你好"}


def test_what_is_not_used_is_not_judged():
    """NaN in a field that nobody reads spoils no answer."""
    body = completion("hi").replace(b'"choices"', b'"logprobs": NaN, "choices"')
    assert outcome_of(finished(result={"text": "hi"}, status=200, body=body), CLIENT) == {"text": "hi"}


@pytest.mark.parametrize("charset", ["gbk", "utf-8", "big5"])
def test_a_body_is_decoded_as_requests_does_it(charset):
    """One decoding rule: the charset that the reply names, as the client has read it."""
    body = completion("你好").decode("unicode_escape").encode(charset)
    headers = {"Content-Type": f"application/json; charset={charset}"}
    attempt = finished(result={"text": "你好"}, status=200, body=body, headers=headers)
    assert outcome_of(attempt, CLIENT) == {"text": "你好"}


def test_a_good_chat_is_what_the_client_returned():
    """With a usable reply on the wire the client's own result is the outcome."""
    result = {"text": "你好"}
    assert outcome_of(finished(result=result, status=200, body=completion("你好")), CLIENT) is result


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="blank"),
        pytest.param(b"\n\n\n", id="only blank lines"),
        pytest.param(b"<html>busy</html>", id="HTML"),
        pytest.param(completion("hi")[:-9], id="cut JSON"),
        pytest.param(b"\xff\xfe\xfa", id="not UTF-8"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"[" * 100_000, id="nested too deeply"),
        pytest.param(b'{"ok": true}', id="no choices"),
        pytest.param(b'{"choices": []}', id="empty choices"),
        pytest.param(b'{"choices": {}}', id="choices not a list"),
        pytest.param(b'{"choices": [null]}', id="null choice"),
        pytest.param(b'{"choices": [{}]}', id="no message"),
        pytest.param(b'{"choices": [{"message": null}]}', id="null message"),
        pytest.param(b'{"choices": [{"message": {}}]}', id="no content"),
        pytest.param(completion(None), id="null content"),
        pytest.param(completion(["text"]), id="content not a text"),
        pytest.param(completion("", "length"), id="empty content"),
        pytest.param(completion("  \n "), id="content of blanks"),
        pytest.param(completion("half of", "insufficient_system_resource"), id="cut by the server"),
    ],
)
@pytest.mark.parametrize("method", ["chat", "parse"])
def test_a_200_without_an_answer_is_a_bad_reply(method, body):
    """Status 200 is no success when the body holds no answer, whatever the client made of it."""
    exchange = finished(method, result=blank_result(method), status=200, body=body)
    with pytest.raises(BadReply):
        outcome_of(exchange, CLIENT)


def test_blank_lines_before_the_reply_are_no_fault():
    """The API's keep-alive lines before the JSON do not spoil it."""
    exchange = finished(result={"text": "hi"}, status=200, body=b"\n\n" + completion("hi"))
    assert outcome_of(exchange, CLIENT) == {"text": "hi"}


@pytest.mark.parametrize("content", ["我不知道", "[1]", '"talk"', "```\n```", "```", "``````", "{"])
def test_a_parse_reply_that_is_no_object_is_a_bad_reply(content):
    """A parse reply must hold a JSON object."""
    exchange = finished("parse", result=dict(UNKNOWN), status=200, body=completion(content))
    with pytest.raises(BadReply):
        outcome_of(exchange, CLIENT)


@pytest.mark.parametrize(
    "fields",
    [
        '"intent": 1',
        '"intent": NaN',
        '"slots": []',
        '"slots": {"a": Infinity}',
        '"allowed": "no"',
        '"allowed": 0',
        '"reason": {}',
    ],
)
def test_a_parse_field_of_the_wrong_type_is_a_bad_reply(fields):
    """What would lie to a caller ("no" counts as true) or break its JSON (NaN) is not passed on."""
    result = {**UNKNOWN, **json.loads(f"{{{fields}}}")}
    exchange = finished("parse", result=result, status=200, body=completion(f"{{{fields}}}"))
    with pytest.raises(BadReply):
        outcome_of(exchange, CLIENT)


def test_a_null_in_a_parse_reply_stays():
    """Models write null for what does not apply; null is no permission, and stays as the legacy client has it."""
    content = '{"intent": "talk", "slots": null, "allowed": null, "reason": null}'
    result = {"intent": "talk", "slots": None, "allowed": None, "reason": None}
    exchange = finished("parse", result=result, status=200, body=completion(content))
    assert outcome_of(exchange, CLIENT) == result


def test_an_answer_that_the_client_could_not_decode():
    """A reply with a byte order mark, at which the legacy client fails, is read all the same."""
    body = b"\xef\xbb\xbf" + completion("hi")
    assert outcome_of(finished(result={"text": ""}, status=200, body=body), CLIENT) == {"text": "hi"}


def test_an_honest_unknown_is_a_success():
    """A model that answers "unknown" is believed, with its own reason."""
    content = '{"intent": "unknown", "slots": {}, "allowed": true, "reason": ""}'
    exchange = finished("parse", result=dict(UNKNOWN), status=200, body=completion(content))
    assert outcome_of(exchange, CLIENT) == UNKNOWN


@pytest.mark.parametrize(
    ("more", "usage"), [({"usage": {"total_tokens": 18}}, {"total_tokens": 18}), ({}, {}), ({"usage": 7}, {})]
)
def test_usage(more, usage):
    """The token counts are those of the reply, and none where it has none."""
    exchange = finished(result={"text": "hi"}, status=200, body=completion("hi", **more))
    outcome_of(exchange, CLIENT)
    assert exchange.usage == usage
