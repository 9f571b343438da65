"""How a body comes: its encoding, its length, its chunks; and how an answer's text goes out."""

import gzip
import io
import json
import sys
from unittest.mock import Mock

import pytest
from flask import Request
from support.routes import ALL, CHATS, over, table

from deepseek_client import InvalidRequest
from webapp.bodies import BODY_LIMIT_BYTES, object_from

NOT_AN_OBJECT = {
    "empty": (b"", 'The body is empty: need a JSON object such as {"prompt": "..."}.'),
    "white": (b" \t\r\n", 'The body is empty: need a JSON object such as {"prompt": "..."}.'),
    "text": (b"hello", "The body is not JSON: Expecting value: line 1 column 1 (char 0)."),
    "form": (b"prompt=hello", "The body is not JSON: Expecting value: line 1 column 1 (char 0)."),
    "cut": (b'{"prompt": "x"', "The body is not JSON: Expecting ',' delimiter: line 1 column 15 (char 14)."),
    "two_objects": (b"{} {}", "The body is not JSON: Extra data: line 1 column 4 (char 3)."),
    "latin1": (b'{"prompt": "\xe9"}', "The body is not UTF-8: byte 12 cannot be decoded."),
    "utf16": ('{"prompt": "x"}'.encode("utf-16"), "The body is not UTF-8: byte 0 cannot be decoded."),
    "gzip": (b"\x1f\x8b\x08\x00", "The body is not UTF-8: byte 1 cannot be decoded."),
    "surrogate_bytes": (b'{"prompt": "\xed\xa0\x80"}', "The body is not UTF-8: byte 12 cannot be decoded."),
    "list": (b"[]", "The body is []: need a JSON object."),
    "string": (b'"hello"', 'The body is "hello": need a JSON object.'),
    "number": (b"17", "The body is 17: need a JSON object."),
    "true": (b"true", "The body is true: need a JSON object."),
    "null": (b"null", "The body is null: need a JSON object."),
    "nan": (b"NaN", "The body is NaN: need a JSON object."),
    "infinity": (b"-Infinity", "The body is -Infinity: need a JSON object."),
    "lone_surrogate": (b'"\\ud800"', 'The body is "\\ud800": need a JSON object.'),
    "long_list": (json.dumps([7] * 99).encode(), f"The body is [{'7, ' * 13}...: need a JSON object."),
    "deep": (b"[" * 200_000, "The body is not usable JSON: it is nested too deeply."),
    "deep_closed": (
        # below the body's limit, and deep enough for Python 3.14, which asks how much stack is left
        b'{"":' * 170_000 + b"1" + b"}" * 170_000,
        "The body is not usable JSON: it is nested too deeply.",
    ),
}


def in_chunks(body):
    """What a server hands to the app for a body that comes without a Content-Length."""
    return {
        "input_stream": io.BytesIO(body),
        "headers": {"Transfer-Encoding": "chunked"},
        "environ_overrides": {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    }


@over(ALL)
@pytest.mark.parametrize(("body", "message"), table(NOT_AN_OBJECT))
def test_body_is_not_an_object(refused, route, body, message):
    """A body that is not a JSON object in UTF-8 is a 400 that says what it is instead."""
    refused(route, body, message)


@over(ALL)
def test_body_over_the_limit_with_a_length(refused, route):
    """A body of one byte over 1 MiB is a 413 when its Content-Length says so."""
    message = "The body is too large: need at most 1048576 bytes."
    refused(route, b" " * (BODY_LIMIT_BYTES + 1), message, status=413)


@over(ALL)
@pytest.mark.parametrize("beginning", [b"", b'{"prompt": "x"}'], ids=["white", "object_that_fits"])
def test_body_over_the_limit_in_chunks(refused, route, beginning):
    """A body over 1 MiB that comes in chunks, without a Content-Length, is a 413 and not read in part."""
    message = "The body is too large: need at most 1048576 bytes."
    body = beginning.ljust(BODY_LIMIT_BYTES) + b" "
    refused(route, None, message, status=413, **in_chunks(body))


@over(CHATS)
def test_body_in_chunks(client, route):
    """A body that comes in chunks, without a Content-Length, is read like any other."""
    answer = client.open(route[1], method=route[0], **in_chunks(b'{"prompt": "x"}'))
    assert (answer.status_code, answer.get_json()["text"]) == (200, "沙盒已收到：「x」")


@over(CHATS)
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "with_a_length"])
def test_body_at_the_limit(client, route, chunked):
    """A body of exactly 1 MiB is served."""
    body = b'{"prompt": "x"}'.ljust(BODY_LIMIT_BYTES)
    options = in_chunks(body) if chunked else {"data": body}
    answer = client.open(route[1], method=route[0], **options)
    assert (answer.status_code, answer.get_json()["text"]) == (200, "沙盒已收到：「x」")


@over(ALL)
def test_body_that_ends_early(client, sandbox, route):
    """A body that is shorter than its Content-Length is a 400 in JSON: its sender has gone."""
    answer = client.open(
        route[1],
        method=route[0],
        input_stream=io.BytesIO(b'{"prompt": "x"}'),
        environ_overrides={"CONTENT_LENGTH": "1000"},
    )
    assert (answer.status_code, answer.get_json()["code"]) == (400, "bad_request")
    assert answer.get_json()["text"] == ""
    assert sandbox.stats()["requests"] == 0


@pytest.mark.skipif(
    not hasattr(sys, "get_int_max_str_digits"), reason="this Python converts integers of any length"
)
@over(ALL)
def test_integer_of_too_many_digits(refused, route):
    """An integer literal that Python refuses to convert is a 400 that does not talk about Python."""
    message = "The body is not usable JSON: a number in it has too many digits."
    refused(route, '{"prompt": ' + "9" * 100_000 + "}", message)


@over(CHATS)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param('\ufeff{"prompt": "你好"}'.encode(), id="byte_order_mark"),
        pytest.param(b'{"prompt": "\\u4f60\\u597d"}', id="escaped"),
        pytest.param('{"prompt": "你好", "temperature": 2, "n": {}}'.encode(), id="unknown_fields"),
    ],
)
@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain", "multipart/form-data"])
def test_readable_bodies(client, route, body, content_type):
    """A JSON object is read whatever its Content-Type says, with a byte order mark and with unknown fields."""
    answer = client.open(route[1], method=route[0], data=body, content_type=content_type)
    assert (answer.status_code, answer.get_json()["text"]) == (200, "沙盒已收到：「你好」")


def test_answer_of_half_a_surrogate_pair(client, sandbox):
    """A model's text that is cut inside a surrogate pair is answered as JSON and not as a 500."""
    raw = '{"choices": [{"message": {"content": "半\\ud83d"}}]}'
    sandbox.script([{"fault": "status", "status": 200, "body": raw}])
    answer = client.post("/api/llm/chat", json={"prompt": "x"})
    assert (answer.status_code, answer.get_json()["text"]) == (200, "半\ud83d")


def test_chinese_is_answered_as_chinese(client):
    """Answers hold Chinese as UTF-8 and not as escapes, and keep the order of their fields."""
    answer = client.post("/api/llm/chat", json={"prompt": "你好"})
    assert answer.data.decode().split(",")[0].strip() == '{"text":"沙盒已收到：「你好」"'


@over(ALL)
def test_a_compressed_body_is_refused(refused, route):
    """A body that is compressed is refused by that, not by the bytes that it begins with."""
    message = "The body is compressed (gzip): need it plain."
    refused(route, gzip.compress(b'{"prompt": "x"}'), message, headers={"Content-Encoding": "gzip"})


def test_a_body_whose_sender_stopped_is_refused():
    """A body that gunicorn hands on shorter than its Content-Length is refused, although it is JSON."""
    request = Request({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "100"})
    request.get_data = Mock(return_value=b'{"prompt": "x"}')
    with pytest.raises(InvalidRequest, match="The body ended after 15 of 100 bytes"):
        object_from(request)


def test_chunks_that_are_malformed_are_refused():
    """What gunicorn raises for a malformed chunk is the sender's fault: InvalidRequest, no traceback."""
    request = Request({"REQUEST_METHOD": "POST"})
    request.get_data = Mock(side_effect=OSError("Invalid chunk size: 'zz'"))
    with pytest.raises(InvalidRequest, match="The body cannot be read: its chunks are malformed"):
        object_from(request)
