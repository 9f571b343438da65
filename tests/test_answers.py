"""What an exchange means, case by case."""

from __future__ import annotations

import email.utils
import json
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from requests.utils import get_encoding_from_headers

from deepseek_client import (
    AuthenticationFailed,
    BadReply,
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    DeepSeekClient,
    DeepSeekError,
    InsufficientBalance,
    PoolClosed,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from deepseek_client.answers import blank_result, outcome_of
from deepseek_client.calls.call import Attempt, Call
from deepseek_client.wire.exchange import Exchange

CLIENT = DeepSeekClient("sk-test")
THEIRS = SimpleNamespace(api_key="sk-test", base_url="https://api.example.test")
UNKNOWN = {"intent": "unknown", "slots": {}, "allowed": True, "reason": ""}


def finished(
    method: str = "chat",
    result: Any = None,
    raised: Exception | None = None,
    *,
    status: int | None = None,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    deadline: float | None = None,
    **wire: Any,
) -> Attempt:
    """An attempt that has run, as the wire would leave it."""
    exchange = Exchange(deadline)
    exchange.requests = 1 if wire or status else 0
    exchange.path = "/v1/chat/completions"
    exchange.body = body
    if status is not None:
        exchange.response = response = requests.Response()
        response.status_code, response._content = status, body or b""
        response.headers.update(headers or {})
        response.encoding = get_encoding_from_headers(response.headers)
    for name, value in wire.items():
        setattr(exchange, name, value)
    attempt = Attempt(None, Call(method, (), {}, 0.0, 0.0), exchange)
    attempt.result, attempt.raised = result, raised
    return attempt


def failure_of(attempt: Attempt) -> DeepSeekError:
    """What a failed attempt is."""
    with pytest.raises(DeepSeekError) as caught:
        outcome_of(attempt, CLIENT)
    return caught.value


def completion(content: Any, finish_reason: str = "stop", **more: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], **more}).encode()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, UpstreamRejected),
        (401, AuthenticationFailed),
        (402, InsufficientBalance),
        (403, AuthenticationFailed),
        (404, UpstreamRejected),
        (418, UpstreamRejected),
        (422, UpstreamRejected),
        (429, RateLimited),
        (500, UpstreamUnavailable),
        (502, UpstreamUnavailable),
        (503, UpstreamUnavailable),
        (504, UpstreamUnavailable),
        (529, UpstreamUnavailable),
        (302, UpstreamRejected),
    ],
)
def test_the_status_classifies(status, kind):
    """A status outside of 2xx is its class, whatever the client returned and whatever the body says."""
    body = b'{"error": {"code": "invalid_request_error", "message": "key ****1234"}}'
    exchange = finished(result={"text": "all is well"}, status=status, body=body)
    with pytest.raises(kind) as caught:
        outcome_of(exchange, CLIENT)
    assert f"HTTP {status}" in str(caught.value)
    assert "1234" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (requests.ConnectionError("refused"), ConnectionFailed),
        (requests.exceptions.ProxyError(), ConnectionFailed),
        (requests.exceptions.SSLError(), ConnectionFailed),
        (requests.ConnectTimeout(), ConnectionFailed),
        (requests.ReadTimeout(), ConnectionFailed),
        (requests.exceptions.ChunkedEncodingError(), ConnectionFailed),
        (TimeoutError(), ConnectionFailed),
        (ConnectionResetError(), ConnectionFailed),
        (requests.exceptions.ContentDecodingError(), BadReply),
        (requests.exceptions.InvalidURL(), ConfigError),
        (requests.exceptions.InvalidProxyURL(), ConfigError),
        (OSError("Could not find a suitable TLS CA certificate bundle"), ConfigError),
        (RuntimeError("of a mock"), ConnectionFailed),
    ],
    ids=lambda value: getattr(value, "__name__", None) or repr(value),
)
def test_a_broken_exchange_is_translated_once(error, kind):
    """What `requests` raised becomes one of our errors with the cause chained, also after status 200."""
    failure = failure_of(finished(status=200, error=error))
    assert type(failure) is kind
    assert failure.__cause__ is error


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("text/html", b"<html><body>Forbidden</body></html>"),
        ("text/plain; charset=utf-8", b"Forbidden"),
        ("application/json", b'{"message": "Forbidden"}'),
        ("application/json", b"[]"),
    ],
)
@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_gateway_does_not_speak_for_the_account(status, media_type, body):
    """A refusal that is not in the API's words concerns this request alone, not the key or the balance."""
    attempt = finished(status=status, body=body, headers={"Content-Type": media_type})
    assert type(failure_of(attempt)) is UpstreamRejected


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("Content Exists Risk", "Content Exists Risk"),
        ("Your api key: ****_KEY is invalid", "Your api key: *** is invalid"),
        ("sk-0123456789abcdef is wrong", "*** is wrong"),
        ("sk-test\nforged line", "sk-test forged line"),
        ("long " * 200, ("long " * 200)[:297] + "..."),
    ],
)
def test_the_apis_words_are_kept_for_the_log(words, shown):
    """What the API says of a failure is kept on one line, cut, without a key, and apart from the sentence."""
    body = json.dumps({"error": {"message": words, "code": "invalid_request_error"}}).encode()
    error = failure_of(finished(status=400, body=body))
    assert error.api_message == shown
    assert words[:10] not in str(error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "slow down"}, RateLimited),
        ({"code": "503", "message": "busy"}, UpstreamUnavailable),
        ({"status": 402, "message": "pay"}, InsufficientBalance),
        ({"code": "invalid_request_error", "message": "x"}, BadReply),
        ({"message": "x"}, BadReply),
    ],
)
def test_an_error_under_status_200(error, kind):
    """A reply with status 200 and an error object is classified by that object's number, if it has one."""
    body = json.dumps({"error": error}).encode()
    failure = failure_of(finished(result={"text": ""}, status=200, body=body))
    assert type(failure) is kind
    assert failure.api_message == error["message"]


@pytest.mark.parametrize("status", [408, 409, 425, 499])
def test_what_passes_is_tried_again(status):
    """A timeout, a lock and a gateway that gave up are about the moment, not about the request."""
    assert type(failure_of(finished(status=status))) is UpstreamUnavailable


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "5, 10"}, 10.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "2"}, 2.0),
        ({"Retry-After": "9" * 400}, 1e9),
        ({"Retry-After": "1e9"}, None),
        ({"Retry-After": "nan"}, None),
    ],
)
def test_other_shapes_of_retry_after(headers, seconds):
    """Fractions, milliseconds and the header twice are understood; the longest wait counts."""
    assert failure_of(finished(status=429, headers=headers)).retry_after_s == seconds


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


NOW_S = 1_800_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        (email.utils.formatdate(NOW_S + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW_S - 90, usegmt=True), 0.0),
        ("soon", None),
        ("-1", None),
        ("1.5", 1.5),
        ("٧", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_in_seconds(monkeypatch, header, seconds):
    """Retry-After is understood as whole seconds and as an HTTP date; anything else is as if it were absent."""
    monkeypatch.setattr(time, "time", lambda: NOW_S)
    failure = failure_of(finished(status=429, headers={"Retry-After": header} if header else {}))
    assert failure is not None
    assert failure.retry_after_s == seconds


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


@pytest.mark.parametrize("method", ["chat", "parse"])
@pytest.mark.parametrize(
    ("client", "sentence"),
    [
        (SimpleNamespace(api_key="", base_url="https://x"), "the API key is missing"),
        (SimpleNamespace(api_key="sk\n", base_url="https://x"), "the API key is missing or has characters"),
        (SimpleNamespace(api_key="sk", base_url="nonsense"), "the base URL is not an address"),
    ],
    ids=["no key", "odd key", "odd address"],
)
def test_a_call_that_could_not_leave_is_a_config_error(method, client, sentence):
    """A blank result with nothing on the wire, from a client that cannot send, says what it lacks."""
    with pytest.raises(ConfigError, match=f"Nothing was sent: {sentence}"):
        outcome_of(finished(method, result=blank_result(method)), client)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (None, ConnectionFailed),
        (requests.ConnectTimeout(), ConnectionFailed),
        (requests.exceptions.MissingSchema(), ConfigError),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
    ids=["swallowed", "of requests", "unbuildable", "a defect"],
)
def test_a_call_that_did_not_leave_although_it_could(raised, kind):
    """With key and address in place, a call that sent nothing failed below the client (a mock, say) or in it."""
    with pytest.raises(kind):
        outcome_of(finished(result={"text": ""}, raised=raised), CLIENT)


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


@pytest.mark.parametrize(
    ("status", "kind"), [(402, InsufficientBalance), (429, RateLimited), (401, AuthenticationFailed)]
)
def test_a_refusal_with_a_broken_body_is_still_that_refusal(status, kind):
    """The status classifies also when the error's own body was cut; the breakage is chained."""
    error = requests.exceptions.ChunkedEncodingError()
    failure = failure_of(finished(status=status, error=error, headers={"Retry-After": "7"}))
    assert type(failure) is kind
    assert failure.retry_after_s == 7.0
    assert failure.__cause__ is error


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("closing", PoolClosed), ("deadline", DeadlineExceeded), ("cancelled", DeadlineExceeded)],
)
def test_an_aborted_exchange_is_its_reason(reason, kind):
    """What the abort itself broke on the wire is not blamed on the API."""
    exchange = finished(status=200, error=requests.ConnectionError(), aborted=reason)
    assert type(failure_of(exchange)) is kind


def test_a_timeout_at_the_deadline_is_the_deadline():
    """A read that the deadline cut short is DeadlineExceeded; one before it is ConnectionFailed."""
    late = finished(error=requests.ReadTimeout(), deadline=10.0, ended=10.0)
    early = finished(error=requests.ReadTimeout(), deadline=10.0, ended=9.0)
    assert type(failure_of(late)) is DeadlineExceeded
    assert type(failure_of(early)) is ConnectionFailed


def test_a_client_without_requests_is_believed():
    """A client that does not use `requests` is taken at its word, success and exception."""
    assert outcome_of(finished(result={"text": "from elsewhere"}), CLIENT) == {"text": "from elsewhere"}
    with pytest.raises(ZeroDivisionError):
        outcome_of(finished(raised=ZeroDivisionError()), CLIENT)


def test_a_client_that_streams_is_believed():
    """When the client reads the body itself, its result counts."""
    assert outcome_of(finished(result={"text": "streamed"}, status=200), CLIENT) == {"text": "streamed"}


def test_a_defect_of_the_client_stays_what_it_is():
    """An exception of the client after a good reply is not dressed up as a failure of the API."""
    with pytest.raises(ZeroDivisionError):
        outcome_of(finished(raised=ZeroDivisionError(), status=200, body=completion("hi")), CLIENT)


@pytest.mark.parametrize(
    ("more", "usage"), [({"usage": {"total_tokens": 18}}, {"total_tokens": 18}), ({}, {}), ({"usage": 7}, {})]
)
def test_usage(more, usage):
    """The token counts are those of the reply, and none where it has none."""
    exchange = finished(result={"text": "hi"}, status=200, body=completion("hi", **more))
    outcome_of(exchange, CLIENT)
    assert exchange.usage == usage


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
