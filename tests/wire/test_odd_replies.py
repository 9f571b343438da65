"""Replies that are framed, encoded or addressed in odd ways: each is an answer, or an error in its own words."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from support.clients import build
from support.patience import GIVE_UP_S
from support.serving import exchanged, reply

from deepseek_client import (
    AsyncDeepSeekClient,
    BadReply,
    ConnectionFailed,
    DeepSeekError,
    Settings,
    UpstreamRejected,
)

ANSWER = json.dumps({"choices": [{"message": {"content": "答"}}]}, ensure_ascii=False)


@pytest.fixture
def client(sandbox) -> AsyncDeepSeekClient:
    return build(Settings(api_key="sk-test", base_url=sandbox.url))


class TestLengths:
    """Content-Length."""

    @pytest.mark.parametrize("lengths", [["7", "right"], ["right", "7"], ["7, 8"]], ids=str)
    def test_differing_ones(self, sandbox, client, lengths, caplog):
        """Nobody can say where the reply ends: ConnectionFailed, in words that say why, without the header's own."""
        sandbox.script([{"fault": "lengths", "lengths": lengths}])
        with pytest.raises(ConnectionFailed, match="The API's reply states two different lengths"):
            client.chat("hi")
        assert ", " not in caplog.messages[-1].partition(": ")[2]
        assert client.chat("next")["text"] == "沙盒已收到：「next」"

    @pytest.mark.parametrize("lengths", [["right"], ["right", "right"]], ids=str)
    def test_equal_ones(self, sandbox, client, lengths):
        """A length that is said twice is a length."""
        sandbox.script([{"fault": "lengths", "lengths": lengths}])
        assert client.chat("hi")["text"] == "沙盒已收到：「hi」"

    @pytest.mark.parametrize("length", ["-1", "ten", "", "1 0"])
    def test_no_lengths(self, serve, length):
        """What is no length is none: the reply ends with its connection."""

        def answer(handler: Any) -> None:
            handler.close_connection = True
            handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{ANSWER}".encode())

        server = serve(answer)
        client = build(Settings(api_key="sk-test", base_url=server.url))
        assert [client.chat("hi")["text"] for _ in range(2)] == ["答", "答"]
        assert server.connections == 2


class TestTime:
    """What takes long to decode or to parse must not hold a thread after its deadline."""

    def test_no_charset_is_guessed_for_a_large_reply(self, serve, monkeypatch):
        """Guessing takes seconds for megabytes, so a large reply that names no charset is UTF-8."""
        monkeypatch.setattr(
            requests.Response, "apparent_encoding", property(lambda response: pytest.fail("guessed"))
        )
        body = b'{"choices": [{"message": {"content": "' + b"\xe9" * 100_000 + b'"}}]}'
        server = serve(lambda handler: reply(handler, body=body))
        client = build(Settings(api_key="sk-test", base_url=server.url))
        assert client.chat("hi")["text"] == "\ufffd" * 100_000

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-be"])
    def test_json_in_any_utf(self, serve, encoding):
        """JSON without a charset may be in any UTF, however large it is."""
        body = ANSWER.replace("答", "答" * 100_000).encode(encoding)
        server = serve(lambda handler: reply(handler, body=body))
        client = build(Settings(api_key="sk-test", base_url=server.url))
        assert client.chat("hi")["text"] == "答" * 100_000

    def test_a_small_reply_is_guessed(self, serve):
        """As `requests` has it: a gateway's GBK is read although it does not say so."""
        text = "沙盒已收到：你好，世界。今天天气不错，我们去散步吧。" * 10
        body = ANSWER.replace("答", text).encode("gbk")
        server = serve(lambda handler: reply(handler, body=body))
        assert exchanged(lambda: requests.get(server.url, timeout=GIVE_UP_S).json()).result["choices"]

    def test_a_reply_of_many_keys_is_too_large(self, serve):
        """What takes a second to parse is not parsed."""
        body = b'{"0":[]%b}' % b"".join(b',"%d":[]' % number for number in range(400_000))
        server = serve(lambda handler: reply(handler, body=body, Content_Type="application/json"))
        client = build(Settings(api_key="sk-test", base_url=server.url))
        with pytest.raises(BadReply, match="larger than 4194304 bytes"):
            client.chat("hi")


class TestRedirects:
    """A prompt does not leave the configured origin."""

    @pytest.mark.parametrize("status", [307, 308])
    def test_a_prompt_is_not_sent_to_another_origin(self, sandbox, client, serve, status):
        """Neither to another host nor to another port, and the error says where it should have gone."""
        other = serve(reply)
        sandbox.script([{"fault": "redirect", "status": status, "location": f"{other.url}/secret/path"}])
        with pytest.raises(UpstreamRejected) as caught:
            client.chat("hi")
        host = other.url.removeprefix("http://")
        assert str(caught.value) == f"The API redirected the request to {host}, where no prompt is sent."
        assert not other.requests

    @pytest.mark.parametrize("spelling", ["%6cocalhost", "LOCALHOST", "localhost.", "127.1"])
    def test_a_host_may_be_spelt_in_many_ways(self, sandbox, client, serve, spelling):
        """What the redirect calls the other origin does not matter: it is where the request goes that counts."""
        other = serve(reply)
        port = other.url.rpartition(":")[2]
        sandbox.script([{"fault": "redirect", "status": 307, "location": f"http://{spelling}:{port}/x"}])
        with pytest.raises(UpstreamRejected, match="where no prompt is sent"):
            client.chat("hi")
        assert not other.requests

    @pytest.mark.parametrize("status", [307, 308])
    def test_a_prompt_is_sent_elsewhere_on_its_origin(self, sandbox, client, status):
        """Another path of the same server is as good."""
        sandbox.script([{"fault": "redirect", "status": status, "location": "/v1/chat/completions"}])
        assert client.chat("hi")["text"] == "沙盒已收到：「hi」"

    @pytest.mark.parametrize("status", [301, 302, 303])
    def test_a_redirect_that_asks_for_a_page(self, sandbox, client, serve, status):
        """`requests` goes there without the prompt, and what comes of it names the redirect."""
        other = serve(lambda handler: reply(handler, 405))
        sandbox.script([{"fault": "redirect", "status": status, "location": f"{other.url}/secret/path"}])
        with pytest.raises(UpstreamRejected) as caught:
            client.chat("hi")
        host = other.url.removeprefix("http://")
        assert str(caught.value).endswith(f"(HTTP 405). It had redirected the request to {host}.")
        assert "secret" not in str(caught.value)
        assert "Authorization" not in other.requests[0][1]

    def test_a_redirect_to_a_login_page(self, sandbox, client, serve):
        """Also when that page answers 200."""
        other = serve(lambda handler: reply(handler, 200, b"<html>log in</html>"))
        sandbox.script([{"fault": "redirect", "location": other.url}])
        with pytest.raises(BadReply, match=r"It had redirected the request to 127\.0\.0\.1:"):
            client.chat("hi")

    def test_a_redirect_that_leads_to_an_answer(self, sandbox, client, serve):
        """A gateway may keep the answer elsewhere: then it is the answer."""
        other = serve(lambda handler: reply(handler, 200, ANSWER.encode(), Content_Type="application/json"))
        sandbox.script([{"fault": "redirect", "status": 303, "location": other.url}])
        assert client.chat("hi")["text"] == "答"

    def test_another_request_is_no_redirect(self, sandbox, serve):
        """A client that was redirected, and then posts somewhere else of its own accord, may."""
        other = serve(reply)
        sandbox.script([{"fault": "redirect", "status": 307, "location": "http://127.0.0.1:9/"}])

        def ask_both() -> int:
            requests.post(
                f"{sandbox.url}/chat/completions", json={}, allow_redirects=False, timeout=GIVE_UP_S
            )
            return requests.post(other.url, json={}, timeout=GIVE_UP_S).status_code

        assert exchanged(ask_both).result == 200

    @pytest.mark.parametrize(
        "location", ["http://[", "http://user:secret@127.0.0.1:9/", "//", "ftp://x/", "\xe9"]
    )
    def test_odd_places(self, serve, location):
        """Whatever a redirect names, it is an error that shows no more than a host."""
        server = serve(lambda handler: reply(handler, 307, Location=location))
        client = build(Settings(api_key="sk-test", base_url=server.url))
        with pytest.raises(DeepSeekError) as caught:
            client.chat("hi")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "logged"),
    [
        ("HTTP/1.1 400 \x1b[31m" + "x" * 60_000, r"400 Client Error: \x1b[31mxxx"),
        ("HTTP/1.1 400 a\x00b\x9bc", r"400 Client Error: a\x00b\x9bc for"),
        ("\x1b[31mno status line" + "x" * 60_000, r"BadStatusLine"),
    ],
    ids=["reason", "controls", "no_status_line"],
)
def test_no_reply_writes_into_the_log(sandbox, client, caplog, head, logged):
    """What a server says on its status line is cut and escaped before the client logs it."""
    sandbox.script([{"fault": "raw", "head": f"{head}\r\nContent-Length: 2\r\n\r\n", "body": "{}"}])
    with pytest.raises(DeepSeekError):
        client.chat("hi")
    lines = [message for message in caplog.messages if "request failed" in message]
    assert logged in lines[0]
    assert all(len(message) < 1000 and message.isprintable() for message in lines)


def test_a_reply_in_gbk(sandbox, client):
    """A charset that is named is used, and asked for once."""
    sandbox.script([{"fault": "charset", "charset": "gbk"}])
    assert client.chat("你好")["text"] == "沙盒已收到：「你好」"
    assert sandbox.stats()["requests"] == 1
