"""Calls on an event loop that would keep it, or their slots, for ever."""

from __future__ import annotations

import asyncio
import gc
import gzip
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support.blocking import in_child, other_task
from support.clients import build
from support.patience import GIVE_UP_S
from support.serving import Server

from deepseek_client import AsyncDeepSeekClient, DeadlineExceeded, Settings, WorkerPool, call_options
from deepseek_client.calls.call import calls_in_flight

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "interim_replies": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "fields_of_one": (b"HTTP/1.1 103 Early Hints\r\n", b"Link: </a>\r\n"),
    "blank_lines": (b"", b"\r\n"),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "trailers": (CHUNKED + b"0\r\n", b"X-After: 1\r\n"),
    "empty_gzip": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(b"")),
}
"""What begins a reply, and what it goes on with for ever."""


def endless(begin: bytes, piece: bytes) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.close_connection = True
        try:
            handler.wfile.write(begin)
            while True:
                handler.wfile.write(piece * 1000)
        except OSError:  # the client has left
            pass

    return answer


@pytest.mark.parametrize("shape", ENDLESS)
def test_a_reply_without_end_ends_at_the_deadline(shape):
    """The call ends, and other tasks of its loop have run meanwhile; in a child, which can be left."""

    async def ask(client: AsyncDeepSeekClient) -> None:
        async with other_task() as turns:
            with call_options(engine="loop"), pytest.raises(DeadlineExceeded):
                await client.chat_async("hi")
        assert turns.count > 10
        assert client.pool.stats()["busy"] == 0

    def work() -> None:
        server = Server(endless(*ENDLESS[shape]))
        client = build(Settings(api_key="sk-test", base_url=server.url, deadline_s=0.5, max_attempts=1))
        asyncio.run(ask(client))

    in_child(work)


def test_a_loop_that_is_closed_under_its_call(sandbox):
    """The call can never go on: its slot is another call's, on any engine, and it has ended when its task is gone."""
    pool, others = WorkerPool(1, 100), calls_in_flight()
    client = build(Settings(api_key="sk-test", base_url=sandbox.url, max_attempts=1), pool=pool)
    loop = asyncio.new_event_loop()
    sandbox.script([{"fault": "hang"}])
    with call_options(engine="loop"):
        lost = loop.create_task(client.chat_async("hangs"))
    loop.run_until_complete(
        asyncio.to_thread(sandbox.wait_until, lambda stats: stats["in_flight"] == 1, GIVE_UP_S)
    )
    loop.close()
    with call_options(deadline_s=GIVE_UP_S):
        assert client.chat("next")["text"] == "沙盒已收到：「next」"
    assert pool.stats()["busy"] == 0
    assert not lost.done()
    del lost, loop
    gc.collect()
    if sys.version_info < (3, 14):  # since then a collection sees nothing of what a suspended greenlet holds
        assert calls_in_flight() <= others
