"""Which of our errors a failed exchange is: by its status, by what broke, and by the API's own words."""

from __future__ import annotations

import email.utils
import json
import time
from types import SimpleNamespace

import pytest
import requests
from support.attempts import CLIENT, completion, failure_of, finished

from deepseek_client import (
    AuthenticationFailed,
    BadReply,
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    InsufficientBalance,
    PoolClosed,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from deepseek_client.answers import blank_result, outcome_of


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
    attempt = finished(result={"text": ""}, raised=raised)
    attempt.exchange.swallowed = None if raised else ZeroDivisionError()
    with pytest.raises(kind):
        outcome_of(attempt, CLIENT)


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


def test_a_defect_of_the_client_stays_what_it_is():
    """An exception of the client after a good reply is not dressed up as a failure of the API."""
    with pytest.raises(ZeroDivisionError):
        outcome_of(finished(raised=ZeroDivisionError(), status=200, body=completion("hi")), CLIENT)
