"""Connections whose packets nobody takes any more: they end, and their calls go out again on new ones."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from support.clients import build
from support.patience import GIVE_UP_S
from support.serving import exchanged

from deepseek_client import Settings
from deepseek_client.sandbox import SandboxConfig, running
from deepseek_client.wire import connections, replies, tcp
from deepseek_client.wire.sockets import WatchedSocket

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel tells of acknowledgements on Linux alone"
)

QUICK_MS = 250


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are given up after a fraction of a second."""
    quick = [(level, name, QUICK_MS if name == socket.TCP_USER_TIMEOUT and level == socket.IPPROTO_TCP else value)
             for level, name, value in tcp.SOCKET_OPTIONS]  # fmt: skip
    monkeypatch.setattr(connections, "SOCKET_OPTIONS", quick)
    monkeypatch.setattr(connections, "_LOST_AFTER_S", 0.1)


@contextlib.contextmanager
def connected() -> Any:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), timeout=GIVE_UP_S)
        other, _ = listener.accept()
    with one, other:
        other.settimeout(GIVE_UP_S)
        yield one, other


def drop_packets(sock: socket.socket) -> None:
    """From now on nothing that comes for this socket is taken, or acknowledged."""
    instructions = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", 1, ctypes.addressof(instructions)))


def settings_of(box: Any) -> Settings:
    return Settings(api_key="sk-test", base_url=box.url, max_workers=5)


@pytest.mark.usefixtures("impatient")
class TestForgotten:
    """A NAT has forgotten a kept connection, and drops its packets without a word."""

    @pytest.mark.parametrize("way", ["chat", "chat_async"])
    def test_the_call_goes_out_again_on_a_new_one(self, fresh_box, way):
        """The request reached nobody, so it is sent again, within its attempt."""
        client = build(settings_of(fresh_box))
        fresh_box.script([{"fault": "vanish_after_reply"}])
        client.chat("一")
        answer = client.chat("二") if way == "chat" else asyncio.run(client.chat_async("二"))
        assert answer["text"] == "沙盒已收到：「二」"
        assert fresh_box.stats()["requests"] == 2
        assert fresh_box.stats()["connections_opened"] == 2

    def test_one_discovery_is_enough(self, fresh_box, monkeypatch):
        """Whoever finds a connection forgotten distrusts all that have been idle as long: none is waited for again."""
        found: list[bool] = []
        look = replies.has_unacknowledged
        monkeypatch.setattr(replies, "has_unacknowledged", lambda sock: found.append(look(sock)) or found[-1])
        client = build(settings_of(fresh_box))
        fresh_box.script([{"fault": "vanish_after_reply", "latency_ms": 100, "times": 5}])
        asyncio.run(client.chat_many_async("一二三四五"))
        assert fresh_box.stats()["connections_opened"] == 5
        for prompt in "六七八":
            assert f"「{prompt}」" in client.chat(prompt)["text"]
        assert found == [True]
        assert fresh_box.stats()["connections_opened"] == 6

    def test_first_connections_made_at_once_share_their_distrust(self, monkeypatch):
        """Two threads that open the first connections of a pool at the same moment tell each other what they find."""
        pool = connections.POOL_CLASSES["http"]("127.0.0.1")
        both = threading.Barrier(2)

        class Slow(connections._Trust):
            def __init__(self) -> None:
                both.wait(GIVE_UP_S)

        monkeypatch.setattr(connections, "_Trust", Slow)
        with ThreadPoolExecutor(2) as threads:
            one, other = threads.map(lambda _: pool._new_conn(), range(2))
        assert one.trust is other.trust

    def test_a_long_thought_is_not_cut(self, fresh_box):
        """A server that has acknowledged the request may be silent for longer than that."""
        client = build(settings_of(fresh_box))
        client.chat("一")
        fresh_box.script([{"fault": "ok", "latency_ms": 3 * QUICK_MS}])
        assert client.chat("二")["text"] == "沙盒已收到：「二」"
        assert fresh_box.stats()["requests"] == 2


def test_a_reply_that_left_before_its_request_came(serve, monkeypatch):
    """A whole reply that the server sent before it had a byte of the request is not taken for its answer."""
    is_sent = threading.Event()

    class Telling(WatchedSocket):
        def sendall(self, data: Any) -> None:
            super().sendall(data)
            if data.startswith(b"POST"):
                is_sent.set()

    def answer(handler: Any) -> None:
        if len(server.requests) == 1:
            drop_packets(handler.connection)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[%d]" % len(server.requests))
        if len(server.requests) == 1:
            assert is_sent.wait(GIVE_UP_S)
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[7]")

    def ask() -> Any:
        first = requests.get(server.url, timeout=GIVE_UP_S).json()
        return first, requests.post(server.url, json={}, timeout=GIVE_UP_S).json()

    monkeypatch.setattr(connections, "WatchedSocket", Telling)
    server = serve(answer)
    assert exchanged(ask).result == ([1], [2])
    assert server.connections == 2


class TestWhatTheKernelKnows:
    """Bytes are acknowledged, or not."""

    def test_what_is_acknowledged(self):
        """Bytes that the other end has are acknowledged, whether or not it answers."""
        with connected() as (one, other):
            one.sendall(b"question")
            other.recv(8)
            assert not tcp.has_unacknowledged(one)

    def test_what_is_not_acknowledged(self):
        """Bytes that nobody takes are not, while the kernel sends them again and after it has given up."""
        with connected() as (one, other):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, QUICK_MS)
            drop_packets(other)
            one.sendall(b"question")
            assert tcp.has_unacknowledged(one)
            with pytest.raises(TimeoutError, match="Connection timed out"):
                one.recv(1)
            assert tcp.has_unacknowledged(one)

    def test_what_cannot_be_known(self):
        """Nothing is claimed of what is no TCP socket, or none any more."""
        with socket.socket(socket.AF_UNIX) as sock:
            assert not tcp.has_unacknowledged(sock)
        assert not tcp.has_unacknowledged(sock)
        assert not tcp.has_unacknowledged(None)


def test_a_request_that_was_acknowledged_is_not_sent_again(serve, impatient):
    """A connection that is lost while the server works costs the call: it may be billed."""
    lost = threading.Event()

    def answer(handler: Any) -> None:
        if len(server.requests) == 1:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return
        drop_packets(handler.connection)
        lost.set()
        released.wait(GIVE_UP_S)

    released = threading.Event()
    server = serve(answer)
    exchanged(requests.post, server.url, json={}, timeout=GIVE_UP_S)
    exchange = exchanged(requests.post, server.url, json={}, timeout=1.5)
    released.set()
    assert lost.is_set()
    assert isinstance(exchange.error, requests.ReadTimeout)
    assert (exchange.requests, len(server.requests)) == (1, 2)


def test_connections_are_probed():
    """Idle connections send probes, and unacknowledged bytes end a connection after five seconds."""
    with running(SandboxConfig(port=0, latency_ms=0)) as box:

        def options() -> list[int]:
            with requests.get(box.url, stream=True, timeout=GIVE_UP_S) as response:
                sock = response.raw.connection.sock
                names = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
                names += [
                    (socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)
                ]
                return [sock.getsockopt(*name) for name in names]

        assert exchanged(options).result == [1, 10, 5000]


def test_a_kernel_without_such_options(sandbox, monkeypatch):
    """A connection whose kernel knows none of them is made all the same."""
    monkeypatch.setattr(connections, "SOCKET_OPTIONS", [(socket.IPPROTO_TCP, 9999, 1)])
    assert exchanged(requests.get, sandbox.url, timeout=GIVE_UP_S).status == 200
