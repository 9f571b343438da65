"""A call on the event loop ends when it must, whatever its client does."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest
from support.loop_calls import client_of, facade_of, seen
from support.patience import GIVE_UP_S

from deepseek_client import AsyncFacade, DeadlineExceeded, PoolClosed, WorkerPool, call_options

pytestmark = pytest.mark.usefixtures("on_the_loop")

WORD = contextvars.ContextVar("word", default="")


class TestEnd:
    """A call ends when it must, whatever its client does."""

    @pytest.mark.parametrize("fault", ["hang", "drip", "hang_in_body", "slow_body"])
    async def test_deadline(self, sandbox, fault):
        """At the deadline the call is over, its slot is free, and the next one gets an answer."""
        client = client_of(sandbox, pool=WorkerPool(1, 0))
        sandbox.script([{"fault": fault}])
        with call_options(deadline_s=0.2), pytest.raises(DeadlineExceeded):
            await client.chat_async("x")
        assert client.pool.stats()["busy"] == 0
        sandbox.reset()  # on a busy machine the deadline may have been over before the request was sent
        assert "「再」" in (await client.chat_async("再"))["text"]

    async def test_close(self, sandbox):
        """Closing the pool ends what runs and what waits."""
        pool = WorkerPool(1, 5)
        client = client_of(sandbox, pool=pool)
        sandbox.script([{"fault": "hang"}])
        calls = [asyncio.ensure_future(client.chat_async("x")) for _ in range(3)]
        await seen(sandbox, lambda stats: stats["in_flight"] == 1)
        await asyncio.to_thread(pool.close)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, PoolClosed)
        with pytest.raises(PoolClosed):
            await client.chat_async("y")

    @pytest.mark.parametrize("way", ["deadline", "close"])
    async def test_a_pause_of_the_client(self, way):
        """A client that sleeps is woken when its call's time is over, and when its pool is closed."""
        pool = WorkerPool(1, 0)
        facade = AsyncFacade(SimpleNamespace(ask=lambda: time.sleep(10 * GIVE_UP_S)), pool=pool)
        with call_options(deadline_s=0.1 if way == "deadline" else 10 * GIVE_UP_S):
            call = asyncio.ensure_future(facade.ask_async())
        if way == "close":
            await asyncio.sleep(0)
            await asyncio.to_thread(pool.close)
        await asyncio.wait([call], timeout=GIVE_UP_S)
        assert isinstance(call.exception(), PoolClosed if way == "close" else DeadlineExceeded)

    # urllib lets the collector close what it was using
    @pytest.mark.filterwarnings(
        "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    )
    async def test_a_client_that_catches_everything(self, sandbox):
        """A client that tries again and again, with pauses, ends with its call, and gets no further request out."""
        tries: list[int] = []

        def ask() -> None:
            while True:
                tries.append(1)
                try:
                    urllib.request.urlopen(f"{sandbox.url}/v1/chat/completions", b"{}", timeout=GIVE_UP_S)
                except Exception:
                    time.sleep(0.01)

        facade = facade_of(ask)
        with call_options(deadline_s=0.2), pytest.raises(DeadlineExceeded):
            await facade.ask_async()
        count, requests_seen = len(tries), sandbox.stats()["requests"]
        await asyncio.sleep(0)
        assert (len(tries), sandbox.stats()["requests"]) == (count, requests_seen)
        gc.collect()

    async def test_cancelled_in_the_queue(self, sandbox):
        """A call that waits and is cancelled leaves the queue, and was not sent."""
        client = client_of(sandbox, pool=WorkerPool(1, 5))
        sandbox.script([{"fault": "hang"}])
        first = asyncio.ensure_future(client.chat_async("x"))
        await seen(sandbox, lambda stats: stats["in_flight"] == 1)
        second = asyncio.ensure_future(client.chat_async("y"))
        await asyncio.sleep(0)
        assert client.pool.stats()["queued"] == 1
        second.cancel()
        await asyncio.wait([second], timeout=GIVE_UP_S)
        assert client.pool.stats()["queued"] == 0
        first.cancel()
        await asyncio.wait([first], timeout=GIVE_UP_S)
        assert sandbox.stats()["requests"] == 1

    def test_a_loop_that_ends(self, sandbox):
        """Calls under way when their loop ends are ended, and their slots are free."""
        client = client_of(sandbox, pool=WorkerPool(2, 0))
        calls: list[asyncio.Future[Any]] = []

        async def leave() -> None:
            sandbox.script([{"fault": "hang"}] * 2)
            calls.extend(asyncio.ensure_future(client.chat_async("x")) for _ in range(2))
            await seen(sandbox, lambda stats: stats["in_flight"] == 2)

        asyncio.run(leave())
        assert all(call.cancelled() for call in calls)
        assert client.pool.stats()["busy"] == 0

    async def test_what_the_client_raises(self):
        """Its own exception comes back, and its contextvars are a copy of the caller's."""

        def ask() -> None:
            assert WORD.get() == "outside"
            WORD.set("inside")
            raise LookupError("theirs")

        WORD.set("outside")
        with pytest.raises(LookupError, match="theirs"):
            await facade_of(ask).ask_async()
        assert WORD.get() == "outside"
