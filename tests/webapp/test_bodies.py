import bisect
import gzip
import io
import json
import sys
from unittest.mock import Mock

import pytest
from flask import Request

from deepseek_client import InvalidRequest, Settings
from webapp.app import create_app
from webapp.bodies import BODY_LIMIT_BYTES, object_from

CHATS = [("POST", "/api/llm/chat"), ("GET", "/api/llm/chat"), ("POST", "/api/llm/chat/sync")]
PARSES = [("POST", "/api/llm/parse"), ("POST", "/api/llm/parse/sync")]
ALL = [*CHATS, *PARSES, ("POST", "/api/llm/batch")]

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
NOT_A_TEXT = {
    "null": ("null", "null"),
    "number": ("17", "17"),
    "float": ("1.5", "1.5"),
    "true": ("true", "true"),
    "list": ('["hello"]', '["hello"]'),
    "object": ('{"text": "hello"}', '{"text": "hello"}'),
    "nan": ("NaN", "NaN"),
    "infinity": ("1e999", "Infinity"),
    "long_integer": ("9" * 4000, "9" * 40 + "..."),
}
NEED_PROMPT = "need a text of 1 to 20000 characters."
NO_TEXT = {
    "missing": ("{}", "{name} is missing: " + NEED_PROMPT),
    "blank": ('{"NAME": ""}', "{name} is blank: " + NEED_PROMPT),
    "white": ('{"NAME": " \\n\\t\\u3000"}', "{name} is blank: " + NEED_PROMPT),
    "too_long": (
        '{"NAME": "' + "长" * 20_001 + '"}',
        "{name} has 20001 characters: need at most 20000.",
    ),
    "half_pair_first": (
        '{"NAME": "a\\ud83db"}',
        "{name} holds half of a surrogate pair: need valid Unicode.",
    ),
    "half_pair_last": ('{"NAME": "\\udca9"}', "{name} holds half of a surrogate pair: need valid Unicode."),
    **{
        f"is_{kind}": (
            '{"NAME": ' + sent + "}",
            f"{{name}} is {shown.replace('{', '{{').replace('}', '}}')}: need a text.",
        )
        for kind, (sent, shown) in NOT_A_TEXT.items()
    },
}
LAW_SHAPE = 'need an object with "code" and "enabled".'
WRONG_CONTEXT = {
    "list": ([], "context is []: need an object."),
    "string": ("主城", 'context is "\\u4e3b\\u57ce": need an object.'),
    "false": (False, "context is false: need an object."),
    "zero": (0, "context is 0: need an object."),
    "scene_number": ({"scene": 1}, "context.scene is 1: need a text."),
    "scene_list": ({"scene": ["主"]}, 'context.scene is ["\\u4e3b"]: need a text.'),
    "scene_long": ({"scene": "x" * 20_001}, "context.scene has 20001 characters: need at most 20000."),
    "scene_half_pair": (
        {"scene": "\ud800"},
        "context.scene holds half of a surrogate pair: need valid Unicode.",
    ),
    "target_realm_true": ({"target_realm": True}, "context.target_realm is true: need a text."),
    "target_realm_long": (
        {"target_realm": "x" * 20_001},
        "context.target_realm has 20001 characters: need at most 20000.",
    ),
    "player_string": ({"player": "炼气"}, 'context.player is "\\u70bc\\u6c14": need an object.'),
    "player_list": ({"player": []}, "context.player is []: need an object."),
    "realm_number": ({"player": {"realm": 3}}, "context.player.realm is 3: need a text."),
    "realm_long": (
        {"player": {"realm": "x" * 20_001}},
        "context.player.realm has 20001 characters: need at most 20000.",
    ),
    "laws_object": ({"laws": {}}, "context.laws is {}: need a list."),
    "laws_string": ({"laws": "FORBIDDEN_ARTS"}, 'context.laws is "FORBIDDEN_ARTS": need a list.'),
    "laws_false": ({"laws": False}, "context.laws is false: need a list."),
    "law_string": ({"laws": ["X"]}, f'context.laws[0] is "X": {LAW_SHAPE}'),
    "law_null": ({"laws": [{"code": "X"}, None]}, f"context.laws[1] is null: {LAW_SHAPE}"),
    "law_without_code": (
        {"laws": [{"enabled": True}]},
        f'context.laws[0] is {{"enabled": true}}: {LAW_SHAPE}',
    ),
    "law_code_number": ({"laws": [{"code": 1}]}, f'context.laws[0] is {{"code": 1}}: {LAW_SHAPE}'),
    "law_enabled_number": (
        {"laws": [{"code": "X", "enabled": 1}]},
        "context.laws[0].enabled is 1: need true or false.",
    ),
    "law_enabled_null": (
        {"laws": [{"code": "X", "enabled": None}]},
        "context.laws[0].enabled is null: need true or false.",
    ),
}
WRONG_BATCH = {
    "missing": ({}, 'requests is missing: need a list such as [{"prompt": "..."}].'),
    "prompt_instead": ({"prompt": "x"}, 'requests is missing: need a list such as [{"prompt": "..."}].'),
    "null": ({"requests": None}, "requests is null: need a list."),
    "string": ({"requests": "x"}, 'requests is "x": need a list.'),
    "object": ({"requests": {"prompt": "x"}}, 'requests is {"prompt": "x"}: need a list.'),
    "number": ({"requests": 5}, "requests is 5: need a list."),
    "empty": ({"requests": []}, "requests is an empty list: need 1 to 100 entries."),
    "over": ({"requests": [{"prompt": "x"}] * 101}, "requests has 101 entries: need at most 100."),
    "over_and_wrong": ({"requests": [None] * 5000}, "requests has 5000 entries: need at most 100."),
}
WRONG_FLAG = {
    "string": ('"yes"', '"yes"'),
    "false_string": ('"false"', '"false"'),
    "one": ("1", "1"),
    "zero": ("0", "0"),
    "null": ("null", "null"),
    "list": ("[]", "[]"),
    "nan": ("NaN", "NaN"),
}


def table(cases):
    """The cases as parameters, with their names as ids."""
    return [pytest.param(*case, id=name) for name, case in cases.items()]


def in_chunks(body):
    """What a server hands to the app for a body that comes without a Content-Length."""
    return {
        "input_stream": io.BytesIO(body),
        "headers": {"Transfer-Encoding": "chunked"},
        "environ_overrides": {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    }


def over(routes):
    """Runs a test for each of the routes."""
    ids = [f"{method}_{path.removeprefix('/api/llm/').replace('/', '_')}" for method, path in routes]
    return pytest.mark.parametrize("route", routes, ids=ids)


@pytest.fixture
def client(settings):
    """A client of the app over the sandbox."""
    return create_app(settings).test_client()


@pytest.fixture
def refused(client, sandbox):
    """Sends a body and checks that it was refused with this message and that nothing went to the API."""

    def check(route, body, message, *, status=400, **options):
        method, path = route
        if body is not None:
            options["data"] = body if isinstance(body, (bytes, str)) else json.dumps(body)
        answer = client.open(path, method=method, **options)
        assert answer.get_json() == {"error": message, "code": "invalid_request", "text": ""}
        assert answer.status_code == status
        assert sandbox.stats()["requests"] == 0

    return check


def name_of(route):
    """What the route calls its text."""
    return "utterance" if route in PARSES else "prompt"


@over(ALL)
@pytest.mark.parametrize(("body", "message"), table(NOT_AN_OBJECT))
def test_body_is_not_an_object(refused, route, body, message):
    """A body that is not a JSON object in UTF-8 is a 400 that says what it is instead."""
    refused(route, body, message)


@over([*CHATS, *PARSES])
@pytest.mark.parametrize(("body", "message"), table(NO_TEXT))
def test_text_is_missing_or_wrong(refused, route, body, message):
    """A prompt or utterance that is missing, blank, too long or not a text is a 400 that names it."""
    refused(route, body.replace("NAME", name_of(route)), message.format(name=name_of(route)))


@pytest.mark.parametrize("use_async", ["1", "0"], ids=["async_enabled", "async_disabled"])
@over(CHATS[:2])
@pytest.mark.parametrize(("sent", "shown"), table(WRONG_FLAG))
def test_async_is_not_a_boolean(sandbox, route, sent, shown, use_async):
    """`async` takes JSON's true and false and nothing else, also while USE_ASYNC_DEEPSEEK is 0."""
    env = {"USE_ASYNC_DEEPSEEK": use_async, "DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
    client = create_app(Settings.from_env(env)).test_client()
    answer = client.open(route[1], method=route[0], data=f'{{"prompt": "x", "async": {sent}}}')
    message = f"async is {shown}: need true or false."
    assert answer.get_json() == {"error": message, "code": "invalid_request", "text": ""}
    assert (answer.status_code, sandbox.stats()["requests"]) == (400, 0)


@over(PARSES)
@pytest.mark.parametrize(("context", "message"), table(WRONG_CONTEXT))
def test_context_is_wrong(refused, route, context, message):
    """A context of the wrong shape is a 400 that gives the path of the wrong value."""
    refused(route, {"utterance": "打开背包", "context": context}, message)


@pytest.mark.parametrize(("body", "message"), table(WRONG_BATCH))
def test_batch_is_wrong(refused, body, message):
    """A batch that is not a list of 1 to LLM_BATCH_LIMIT entries is a 400 as a whole."""
    refused(("POST", "/api/llm/batch"), body, message)


@pytest.mark.parametrize(("body", "message"), table(NO_TEXT))
def test_batch_entry_is_wrong(client, body, message):
    """A wrong entry of a batch fails alone, with the message that its prompt would get on the chat route."""
    entry = body.replace("NAME", "prompt")
    answer = client.post("/api/llm/batch", data=f'{{"requests": [{{"prompt": "甲"}}, {entry}]}}')
    assert answer.status_code == 200
    assert answer.get_json()["results"] == [
        {"text": "沙盒已收到：「甲」", "success": True},
        {"error": message.format(name="prompt"), "code": "invalid_request", "success": False},
    ]


@pytest.mark.parametrize("entry", ["null", '"x"', "17", "[]", "NaN", "true"])
def test_batch_entry_is_not_an_object(client, entry):
    """An entry of a batch that is not an object fails alone and says what is needed."""
    answer = client.post("/api/llm/batch", data=f'{{"requests": [{entry}]}}')
    assert answer.status_code == 200
    assert answer.get_json() == {
        "results": [
            {
                "error": 'The entry is not an object: need {"prompt": "..."}.',
                "code": "invalid_request",
                "success": False,
            }
        ],
        "total": 1,
        "successful": 0,
        "failed": 1,
    }


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


@over([*CHATS, *PARSES])
def test_nesting_just_below_the_limit(client, route):
    """A value that is nested as deeply as the decoder can bear is a 400 too, although a message repeats it."""

    def answer_at(depth):
        body = f'{{"{name_of(route)}": {"[" * depth}{"]" * depth}}}'
        return client.open(route[1], method=route[0], data=body)

    def is_refused_as_too_deep(depth):
        return "nested too deeply" in answer_at(depth).get_json()["error"]

    limit = bisect.bisect_left(range(100_000), True, key=is_refused_as_too_deep)
    statuses = {depth: answer_at(depth).status_code for depth in range(limit - 12, limit + 3)}
    assert statuses == dict.fromkeys(statuses, 400)


def test_deep_context_of_a_parse(client):
    """A law that is nested as deeply as the decoder can bear is a 400 too."""
    statuses = set()
    for depth in range(800, 1000):
        laws = "[" * depth + "]" * depth
        answer = client.post("/api/llm/parse", data=f'{{"utterance": "x", "context": {{"laws": [{laws}]}}}}')
        statuses.add(answer.status_code)
    assert statuses == {400}


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


@over(CHATS)
def test_prompt_at_the_limit(client, sandbox, route):
    """A prompt of exactly LLM_PROMPT_LIMIT characters goes out whole, surrogate pairs counted as one."""
    prompt = "💡" * 20_000
    answer = client.open(route[1], method=route[0], json={"prompt": prompt})
    assert answer.status_code == 200
    assert sandbox.stats()["last_request_body"]["messages"][-1]["content"] == prompt


@pytest.mark.parametrize(
    ("name", "value", "path", "body", "message"),
    [
        pytest.param(
            "LLM_PROMPT_LIMIT", "3", "chat", {"prompt": "四个字符"},
            "prompt has 4 characters: need at most 3.", id="prompt",
        ),
        pytest.param(
            "LLM_PROMPT_LIMIT", "3", "parse", {"utterance": "四个字符"},
            "utterance has 4 characters: need at most 3.", id="utterance",
        ),
        pytest.param(
            "LLM_BATCH_LIMIT", "1", "batch", {"requests": [{}, {}]},
            "requests has 2 entries: need at most 1.", id="batch",
        ),
    ],
)  # fmt: skip
def test_limits_are_settings(name, value, path, body, message):
    """LLM_PROMPT_LIMIT and LLM_BATCH_LIMIT move the limits, and the messages with them."""
    client = create_app(Settings.from_env({name: value})).test_client()
    answer = client.post(f"/api/llm/{path}", json=body)
    assert (answer.status_code, answer.get_json()["error"]) == (400, message)


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
