"""Shared connections: each caller gets the answer to its own question, whatever else comes over the connection."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from typing import Any

import pytest
import requests
from support.clients import build, called
from support.patience import GIVE_UP_S
from support.serving import exchanged

from deepseek_client import AsyncDeepSeekClient, DeepSeekError, Settings, UpstreamUnavailable
from deepseek_client.sandbox import RunningSandbox
from deepseek_client.wire import connections
from deepseek_client.wire.sockets import WatchedSocket


@pytest.fixture
def client(fresh_box: RunningSandbox) -> AsyncDeepSeekClient:
    return build(Settings(api_key="sk-test", base_url=fresh_box.url))


def echoes(client: AsyncDeepSeekClient, prompts: str) -> list[bool]:
    """Whether each prompt's answer, one after the other, is its own."""
    return [f"「{prompt}」" in client.chat(prompt)["text"] for prompt in prompts]


class TestInterimReplies:
    """1xx is no answer."""

    @pytest.mark.parametrize(
        "statuses", [[100], [102], [103], [100, 100], [103, 102, 100, 103], [199]], ids=str
    )
    def test_they_are_read_past(self, fresh_box, client, statuses):
        """Three callers in turn get their own answers, over one connection, however many interim replies come."""
        fresh_box.script([{"fault": "interim", "statuses": statuses, "delay_s": 0.01, "times": 3}])
        assert echoes(client, "甲乙丙") == [True, True, True]
        assert fresh_box.stats()["connections_opened"] == 1

    def test_each_entry_reads_past_them(self, fresh_box, client):
        """On the pool, too."""
        fresh_box.script([{"fault": "interim", "delay_s": 0.01, "times": 2}])
        assert [called(client, way)["text"] for way in ("chat_async", "chat")] == ["沙盒已收到：「hi」"] * 2

    def test_an_end_after_an_interim_reply_is_not_sent_again(self, fresh_box, client):
        """A byte of a reply has come: the server had the request, and may have worked on it."""
        echoes(client, "一")
        fresh_box.script(
            [{"fault": "raw", "head": "HTTP/1.1 103 Early Hints\r\n\r\n", "body": "", "closes": True}]
        )
        with pytest.raises(DeepSeekError, match="The connection to the API failed"):
            client.chat("二")
        assert fresh_box.stats()["requests"] == 2

    def test_a_switch_of_protocols_ends_the_connection(self, fresh_box, client):
        """101 is final: what follows on that connection is not HTTP."""
        fresh_box.script([{"fault": "raw", "head": "HTTP/1.1 101 Switching Protocols\r\n\r\n", "body": ""}])
        with pytest.raises(DeepSeekError, match="HTTP 101"):
            client.chat("一")
        assert echoes(client, "二") == [True]
        assert fresh_box.stats()["connections_opened"] == 2


class TestIdleEnds:
    """A server that gives a connection up says so just when the next request is on its way."""

    BUSY = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"

    def test_a_timeout_of_a_kept_connection_is_no_reply(self, serve):
        """A 408 right after the request meant the time before it: the request goes out again, and costs no attempt."""

        def answer(handler: Any) -> None:
            if len(server.requests) == 3:
                handler.close_connection = True
                handler.wfile.write(self.BUSY)
                return
            body = json.dumps({"choices": [{"message": {"content": str(len(server.requests))}}]}).encode()
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        server = serve(answer)
        client = build(Settings(api_key="sk-test", base_url=server.url, max_attempts=1))
        assert [client.chat("hi")["text"] for _ in range(4)] == ["1", "2", "4", "5"]
        assert server.connections == 2

    def test_a_timeout_of_a_new_connection_is_one(self, serve):
        """It is the reply to the request; on kept connections it is believed when it comes a second time."""
        server = serve(lambda handler: handler.wfile.write(self.BUSY.replace(b"close", b"keep-alive")))
        client = build(Settings(api_key="sk-test", base_url=server.url, max_attempts=1))
        for requests_so_far in (1, 3, 5):
            with pytest.raises(UpstreamUnavailable, match="HTTP 408"):
                client.chat("hi")
            assert len(server.requests) == requests_so_far

    def test_a_blank_line_before_a_reply(self, serve):
        """A line break that a server adds to a body belongs to nobody, also when it comes after the next request."""

        def answer(handler: Any) -> None:
            body = json.dumps({"choices": [{"message": {"content": str(len(server.requests))}}]}).encode()
            handler.wfile.write(b"\r\n\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        server = serve(answer)
        client = build(Settings(api_key="sk-test", base_url=server.url))
        assert [client.chat("hi")["text"] for _ in range(3)] == ["1", "2", "3"]
        assert server.connections == 1

    def test_a_line_that_only_begins_blank(self, serve):
        """What follows a lone carriage return is no status line."""
        server = serve(
            lambda handler: handler.wfile.write(b"\rHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        )
        client = build(Settings(api_key="sk-test", base_url=server.url))
        with pytest.raises(DeepSeekError, match="The connection to the API failed"):
            client.chat("hi")


class TestStrayBytes:
    """What follows a reply is nobody's answer."""

    @pytest.mark.parametrize("delay_s", [0, 0.02], ids=["with_it", "late"])
    def test_a_connection_with_stray_bytes_is_dropped(self, fresh_box, client, delay_s):
        """The caller after a reply with another whole reply behind it gets its own answer, over a new connection."""
        for prompt in "甲乙丙":
            fresh_box.script([{"fault": "stray", "delay_s": delay_s}])
            assert echoes(client, prompt) == [True]
            fresh_box.wait_until(lambda stats: stats["in_flight"] == 0)
        assert echoes(client, "丁") == [True]
        assert fresh_box.stats()["connections_opened"] == 4

    def test_stray_bytes_in_the_readers_buffer(self, serve):
        """They may have been read with the reply, and lie in no socket any more."""
        answers = iter("甲乙丙")

        def answer(handler: Any) -> None:
            body = json.dumps({"choices": [{"message": {"content": next(answers)}}]}).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            handler.wfile.write(head + body + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        server = serve(answer)
        client = build(Settings(api_key="sk-test", base_url=server.url))
        assert [client.chat("hi")["text"] for _ in range(3)] == ["甲", "乙", "丙"]
        assert server.connections == 3

    def test_a_length_beside_chunks(self, fresh_box, client):
        """A reply with both is answered, as chunks; others may see two ends, so its connection is not used again."""
        fresh_box.script([{"fault": "lengths", "lengths": ["5"], "chunked": True, "times": 2}])
        assert echoes(client, "甲乙丙") == [True, True, True]
        assert fresh_box.stats()["connections_opened"] == 3

    def test_a_reply_that_is_given_back_unread(self, fresh_box):
        """A client that streams and gives its connection back before the end of the reply costs the connection."""

        def leave_early() -> None:
            response = requests.get(f"{fresh_box.url}/models", stream=True, timeout=GIVE_UP_S)
            response.raw.release_conn()

        def ask() -> str:
            return requests.get(fresh_box.url, timeout=GIVE_UP_S).text

        exchanged(leave_early)
        assert exchanged(ask).result.startswith("sandbox: speaks the DeepSeek API")


class TestKeptConnections:
    """A kept connection is used again while it is known to be good."""

    def test_one_serves_call_after_call(self, fresh_box, client):
        """Ten good replies need one connection."""
        assert all(echoes(client, "一二三四五六七八九十"))
        assert fresh_box.stats()["connections_opened"] == 1

    def test_one_that_was_idle_for_long_is_not_used(self, fresh_box, client, monkeypatch):
        """After thirty seconds of idleness a NAT may have forgotten it."""
        assert connections._IDLE_LIMIT_S == 30
        echoes(client, "一")
        monkeypatch.setattr(connections, "_IDLE_LIMIT_S", 0.0)
        echoes(client, "二")
        monkeypatch.setattr(connections, "_IDLE_LIMIT_S", 30.0)
        echoes(client, "三")
        assert fresh_box.stats()["connections_opened"] == 2

    @pytest.mark.parametrize("fault", ["close_before_reply", "reset_before_reply"])
    def test_one_that_ends_costs_no_attempt(self, fresh_box, fault):
        """With LLM_MAX_ATTEMPTS=1 a request that a kept connection lost before any reply goes out again on a new one.

        A client that shares no connections would never have met that end.
        """
        client = build(Settings(api_key="sk-test", base_url=fresh_box.url, max_attempts=1))
        asyncio.run(client.chat_async("一"))
        fresh_box.script([{"fault": fault}])
        assert asyncio.run(client.chat_async("二"))["text"] == "沙盒已收到：「二」"
        assert fresh_box.stats()["requests"] == 3

    @pytest.mark.parametrize("fault", ["cut_body", "reset_in_body"])
    def test_one_that_ends_within_a_reply_costs_the_attempt(self, fresh_box, fault):
        """After a byte of a reply nothing is sent again."""
        client = build(Settings(api_key="sk-test", base_url=fresh_box.url, max_attempts=1))
        asyncio.run(client.chat_async("一"))
        fresh_box.script([{"fault": fault}])
        with pytest.raises(DeepSeekError):
            asyncio.run(client.chat_async("二"))
        assert fresh_box.stats()["requests"] == 2

    @pytest.mark.parametrize("part", ["HTTP/1", "HTTP/1.1 200 OK\r\nContent-Le"], ids=["line", "head"])
    def test_one_that_ends_within_a_head_costs_the_attempt(self, serve, monkeypatch, part):
        """Also when it was reset, in the middle of the head."""
        has_read = threading.Event()

        def answer(handler: Any) -> None:
            if len(server.requests) == 1:
                body = b'{"choices": [{"message": {"content": "ok"}}]}'
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                return
            handler.wfile.write(part.encode())
            assert has_read.wait(GIVE_UP_S)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True

        class Reading(WatchedSocket):
            def recv_into(self, *args: Any) -> int:
                received = super().recv_into(*args)
                if received == len(part):
                    has_read.set()
                return received

        monkeypatch.setattr(connections, "WatchedSocket", Reading)
        server = serve(answer)
        client = build(Settings(api_key="sk-test", base_url=server.url))
        client.chat("一")
        with pytest.raises(DeepSeekError):
            client.chat("二")
        assert len(server.requests) == 2
