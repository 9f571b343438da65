"""Replies that are answers although they look odd, and others that only look like one: through the public API."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from support.clients import build
from support.faults import NOW
from support.patience import GIVE_UP_S
from support.serving import reply

from deepseek_client import (
    AsyncDeepSeekClient,
    AuthenticationFailed,
    BadReply,
    ConnectionFailed,
    DeepSeekError,
    RateLimited,
    Settings,
    UpstreamRejected,
    UpstreamUnavailable,
)
from deepseek_client.wire import failures

ANSWER = json.dumps({"choices": [{"message": {"content": "答"}}]}, ensure_ascii=False).encode()


@pytest.fixture
def answering(serve):
    """A client of a server that answers with a status, a body and headers."""

    def start(status: int, body: bytes, **headers: str) -> AsyncDeepSeekClient:
        server = serve(lambda handler: reply(handler, status, body, **headers))
        return build(Settings(api_key="sk-test", base_url=server.url))

    return start


def saying(content: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


class TestStatuses:
    """What the frozen client takes for an answer is one: `requests` calls only 4xx and 5xx failures."""

    @pytest.mark.parametrize("status", [300, 305, 307, 600, 999])
    def test_an_answer_under_an_odd_status(self, answering, status):
        """A completion is one, where no redirect was to be followed."""
        assert answering(status, ANSWER).chat("hi") == {"text": "答"}

    def test_a_redirect_to_nowhere(self, answering):
        """An empty Location is none."""
        assert answering(302, ANSWER, Location="").chat("hi") == {"text": "答"}

    @pytest.mark.parametrize("body", [b"", b"{}", b"<html></html>", b'{"choices": []}'])
    def test_no_answer_under_an_odd_status(self, answering, body):
        """Without a completion the status is what went wrong."""
        with pytest.raises(UpstreamRejected, match=r"HTTP 307"):
            answering(307, body).chat("hi")


class TestErrorsUnder200:
    """An error object says by its own number what it is, wherever that stands."""

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            ({"error": {"code": 429}, "choices": []}, RateLimited),
            ({"error": {"code": "429"}, "choices": None}, RateLimited),
            ({"error": {"code": "slow_down", "status": 429}}, RateLimited),
            ({"code": 503, "message": "busy"}, UpstreamUnavailable),
            ({"status": "error", "code": "429", "msg": "busy"}, RateLimited),
            ({"code": 401, "message": "no"}, UpstreamRejected),
            ({"error": None, "code": 401}, UpstreamRejected),
            ({"error": {}, "status": "429"}, RateLimited),
            ({"error": "", "code": 503}, UpstreamUnavailable),
            ({"error": "Unauthorized", "status": 401}, UpstreamRejected),
            ({"error": True, "code": 402}, UpstreamRejected),
            ({"error": {"code": "no"}, "code": 403}, UpstreamRejected),
            ({"error": {"code": 401}, "code": 503}, AuthenticationFailed),
            ({"error": None}, BadReply),
            ({"error": {"code": "slow_down", "status": "bad"}}, BadReply),
            ({"code": 200, "message": "ok"}, BadReply),
            ({"error": {"status_code": 503, "message": "busy"}}, UpstreamUnavailable),
            ({"error": {"http_status": "429"}}, RateLimited),
            ({"statusCode": 429, "message": "busy"}, RateLimited),
            ([{"error": {"code": 429, "message": "busy"}}], RateLimited),
            ({"choices": [{"error": {"code": 502}, "finish_reason": "error"}]}, UpstreamUnavailable),
            ({"choices": [{"error": {"code": 429}, "message": {"content": ""}}]}, RateLimited),
            ({"choices": [{"error": {"message": "no"}, "message": {"content": None}}]}, BadReply),
            ({"choices": [{"message": {"content": ""}}]}, BadReply),
        ],
        ids=str,
    )
    def test_its_number_says_what_it_is(self, answering, body, kind):
        """Beside empty choices, under another name, and as the whole body, which is not the API's own way."""
        with pytest.raises(DeepSeekError) as caught:
            answering(200, json.dumps(body).encode()).chat("hi")
        assert type(caught.value) is kind

    @pytest.mark.parametrize("error", [None, "", {}], ids=repr)
    def test_an_empty_error_is_none(self, answering, error):
        """Nor does it make a gateway's refusal the API's own: the key of other calls is not in doubt."""
        with pytest.raises(UpstreamRejected):
            answering(401, json.dumps({"error": error, "message": "no"}).encode()).chat("hi")

    def test_a_router_that_broke_off(self, answering):
        """What the model had said before its provider failed is an answer, as the frozen client has it."""
        choice = {"error": {"code": 502}, "finish_reason": "error", "message": {"content": "前"}}
        assert answering(200, json.dumps({"choices": [choice]}).encode()).chat("hi") == {"text": "前"}

    def test_an_answer_with_a_number_is_an_answer(self, answering):
        """Choices come before whatever stands beside them."""
        body = json.dumps({"code": 429, **json.loads(ANSWER)}).encode()
        assert answering(200, body).chat("hi") == {"text": "答"}


class TestWords:
    """What a refusal says is in `.api_message`, whoever says it and in whatever shape."""

    @pytest.mark.parametrize(
        ("status", "body", "kind", "words"),
        [
            (400, {"message": "too long"}, UpstreamRejected, "too long"),
            (422, {"detail": "no such model"}, UpstreamRejected, "no such model"),
            (
                422,
                {"detail": [{"msg": "field required", "input": "打坐"}]},
                UpstreamRejected,
                "field required",
            ),
            (503, {"msg": "busy", "data": None}, UpstreamUnavailable, "busy"),
            (401, {"error": True, "message": "no"}, UpstreamRejected, "no"),
            (401, [{"error": {"message": "API key not valid"}}], AuthenticationFailed, "API key not valid"),
            (403, [{"message": "no"}], UpstreamRejected, "Forbidden"),
            (400, {"message": {"input": "打坐"}}, UpstreamRejected, "Bad Request"),
        ],
        ids=str,
    )
    def test_whoever_says_them(self, answering, status, body, kind, words):
        """A gateway's JSON has no `error`; Google's has it in a list; what may quote a prompt is left out."""
        with pytest.raises(DeepSeekError) as caught:
            answering(status, json.dumps(body).encode()).chat("hi")
        assert (type(caught.value), caught.value.api_message) == (kind, words)

    def test_no_terminal_obeys_them(self, answering):
        """Whoever logs them writes one line, in one colour and one direction."""
        message = "a\n\x1b[31mb\x00\x9b\u202ec"
        with pytest.raises(UpstreamRejected) as caught:
            answering(400, json.dumps({"error": {"message": message}}).encode()).chat("hi")
        assert caught.value.api_message == r"a \x1b[31mb\x00\x9b\u202ec"


@pytest.mark.parametrize(
    ("name", "values", "retry_after_s"),
    [
        ("retry-after-ms", ["100", "1500"], 1.5),
        ("Retry-After", [".5"], 0.5),
        ("Retry-After", ["3,"], 3.0),
        ("Retry-After", ["-3"], None),
        ("retry-after-ms", ["soon"], None),
        ("retry-after-ms", ["9" * 400], 1e9),
    ],
    ids=str,
)
def test_waits_that_servers_ask_for(serve, name, values, retry_after_s):
    """Of several the longest counts, whatever its unit; what is no time is none."""

    def answer(handler):
        fields = "".join(f"{name}: {value}\r\n" for value in values)
        handler.wfile.write(f"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n{fields}\r\n".encode())

    client = build(Settings(api_key="sk-test", base_url=serve(answer).url))
    with pytest.raises(RateLimited) as caught:
        client.chat("hi")
    assert caught.value.retry_after_s == retry_after_s


@pytest.mark.parametrize("charset", ["punycode", "idna", "Punycode"])
def test_a_large_reply_in_a_charset_of_hosts_is_utf8(answering, charset):
    """Host names are short: to decode megabytes so would hold the thread for minutes after its deadline."""
    text = "答" * 40_000
    client = answering(200, saying(text), Content_Type=f"application/json; charset={charset}")
    assert client.chat("hi") == {"text": text}


def test_a_date_without_a_zone(answering, monkeypatch):
    """The oldest form of an HTTP date counts from UTC, wherever this machine is."""
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        monkeypatch.setattr(failures, "time", SimpleNamespace(time=lambda: NOW))
        with pytest.raises(RateLimited) as caught:
            answering(429, b"{}", Retry_After="Fri Jan 15 08:01:30 2027").chat("hi")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert caught.value.retry_after_s == 90.0


@pytest.mark.parametrize(("status", "attempts"), [(407, 1), (403, 1), (502, 2)])
def test_a_proxy_that_gives_no_tunnel(monkeypatch, status, attempts):
    """Its refusal has a sentence; one that will not change soon is not tried again."""
    asked: list[bytes] = []

    def refuse(listener: socket.socket) -> None:
        for _ in range(attempts):
            connection, _address = listener.accept()
            with connection:
                asked.append(connection.recv(1000).partition(b" ")[0])
                connection.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = threading.Thread(target=refuse, args=(listener,), daemon=True)
        proxy.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        settings = Settings(api_key="sk-test", base_url="https://api.example.test", max_attempts=2)
        with pytest.raises(ConnectionFailed, match=rf"The proxy refuses .* \(HTTP {status}\)") as caught:
            asyncio.run(build(settings).chat_async("hi"))
        proxy.join(GIVE_UP_S)
    assert asked == [b"CONNECT"] * attempts
    assert caught.value.retryable is (attempts > 1)
