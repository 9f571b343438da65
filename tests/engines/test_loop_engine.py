"""Calls on the event loop: a blocking client yields at its sockets, and the contract is that of the pool."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import ssl
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import greenlet
import pytest
import requests
import trustme
from support.loop_calls import client_of, facade_of, seen
from support.patience import GIVE_UP_S

from deepseek_client import Overloaded, WorkerPool, asyncify, call_options

pytestmark = pytest.mark.usefixtures("on_the_loop")


class TestConcurrency:
    """Many calls, one thread."""

    async def test_no_thread_for_a_call(self, sandbox):
        """Twenty calls are at the API at once, and all of them run in the loop's thread."""
        threads: set[int] = set()

        def ask(number: int) -> int:
            threads.add(threading.get_ident())
            return requests.get(f"{sandbox.url}/sandbox/stats", timeout=GIVE_UP_S).status_code + number

        facade = facade_of(ask, workers=20)
        assert await asyncio.gather(*map(facade.ask_async, range(20))) == list(range(200, 220))
        assert threads == {threading.get_ident()}

    async def test_all_at_once(self, sandbox):
        """As many are in flight as there are slots, the rest waits, and each gets its own answer."""
        client = client_of(sandbox, pool=WorkerPool(8, 100))
        sandbox.script([{"fault": "hang"}] * 8)
        calls = [asyncio.ensure_future(client.chat_async(f"hangs {number}")) for number in range(8)]
        waiting = [asyncio.ensure_future(client.chat_async(f"题{number}")) for number in range(12)]
        stats = await seen(sandbox, lambda stats: stats["in_flight"] == 8)
        assert stats["requests"] == 8
        assert client.pool.stats()["queued"] == 12
        for call in calls:
            call.cancel()
        for number, answer in enumerate(await asyncio.gather(*waiting)):
            assert f"「题{number}」" in answer["text"]
        assert client.pool.stats() == {
            "workers": 8,
            "busy": 0,
            "queued": 0,
            "queue_limit": 100,
            "rejected": 0,
        }

    async def test_full_queue(self, sandbox):
        """One call more than slots and queue hold is refused at once."""
        client = client_of(sandbox, pool=WorkerPool(1, 0))
        sandbox.script([{"fault": "hang"}])
        first = asyncio.ensure_future(client.chat_async("x"))
        await seen(sandbox, lambda stats: stats["in_flight"] == 1)
        with pytest.raises(Overloaded):
            await client.chat_async("y")
        first.cancel()

    async def test_the_loop_goes_on(self, sandbox):
        """A call that hangs, one that sleeps and one that looks a name up hold nobody up."""
        sandbox.script([{"fault": "hang"}])
        hanging = asyncio.ensure_future(client_of(sandbox).chat_async("x"))
        sleeping = asyncio.ensure_future(facade_of(lambda: time.sleep(GIVE_UP_S)).ask_async())
        await seen(sandbox, lambda stats: stats["in_flight"] == 1)
        for call in (hanging, sleeping):
            assert not call.done()
            call.cancel()
        await asyncio.wait([hanging, sleeping], timeout=GIVE_UP_S)
        assert hanging.cancelled()
        assert sleeping.cancelled()

    async def test_a_name_is_looked_up_elsewhere(self, sandbox, monkeypatch):
        """The system's resolver runs in another thread, an address is not looked up at all."""
        asked: list[int] = []
        original = socket.getaddrinfo.__wrapped__

        def counting(host: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(threading.get_ident())
            return original("127.0.0.1", *args, **kwargs)

        from deepseek_client.wire import waiting

        monkeypatch.setattr(socket, "getaddrinfo", waiting.looking_up(counting))
        facade = facade_of(
            lambda host: requests.get(f"http://{host}:{sandbox.port}/v1/models", timeout=GIVE_UP_S)
        )
        await facade.ask_async("somewhere.test")
        assert asked
        assert threading.get_ident() not in asked
        asked.clear()
        await facade.ask_async("127.0.0.1")
        assert set(asked) <= {threading.get_ident()}

    def test_several_loops(self, sandbox):
        """One client serves event loops one after the other, and at once in several threads."""
        client = client_of(sandbox)
        results: list[str] = []

        def serve(name: str) -> None:
            async def ask() -> None:
                results.extend([answer["text"] for answer in await client.chat_many_async([name] * 5)])

            with call_options(engine="loop"):
                asyncio.run(ask())

        threads = [threading.Thread(target=serve, args=(f"线{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GIVE_UP_S)
        serve("尾")
        assert sorted(text[text.index("「") + 1 : text.index("」")] for text in results) == sorted(
            ["线0", "线1", "线2", "尾"] * 5
        )

    async def test_engines_share_connections_and_slots(self, sandbox):
        """A connection that a call on the loop has used carries one in a thread next, and the other way round."""
        client = client_of(sandbox)
        for engine in ("loop", "threads", "loop", "threads"):
            with call_options(engine=engine):
                assert f"「{engine}」" in (await client.chat_async(engine))["text"]
        assert "「这」" in await asyncio.to_thread(lambda: client.chat("这")["text"])
        assert sandbox.stats()["connections_opened"] <= 2


class TestReplies:
    """A call waits for a reply before it asks for it, and asks first for what may have come already."""

    async def test_what_tls_has_decrypted_is_not_waited_for(self):
        """A second message of the record that brought the first one is read, though no further byte will come."""
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        over = threading.Event()

        def serve() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as sock:
                sock.recv(1)
                sock.sendall(b"ab")
                over.wait(GIVE_UP_S)

        def ask() -> list[bytes]:
            plain = socket.create_connection(listener.getsockname(), GIVE_UP_S / 2)  # the server leaves later
            with trusting.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
                replies = []
                for _ in range(2):
                    sock.sendall(b"?")
                    replies.append(sock.recv(1))
                return replies

        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = threading.Thread(target=serve)
            serving.start()
            try:
                assert await facade_of(ask).ask_async() == [b"a", b"b"]
            finally:
                over.set()
                serving.join(GIVE_UP_S)

    async def test_one_that_came_before_its_wait(self):
        """A reply that is there before its call waits ends the wait at once."""

        def ask() -> bytes:
            with socket.create_connection(listener.getsockname(), GIVE_UP_S) as sock:
                theirs, _ = listener.accept()
                with theirs:
                    theirs.send(b"early")
                    sock.sendall(b"?")
                    return sock.recv(10)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            assert await facade_of(ask).ask_async() == b"early"


class TestGreenlets:
    """What a call runs in, and what is left of it."""

    async def test_one_serves_many_calls(self):
        """Calls one after the other run in the same greenlet, those at once each in one of its own."""
        facade = facade_of(lambda: (greenlet.getcurrent(), time.sleep(0.001))[0])
        one_by_one = [await facade.ask_async() for _ in range(5)]
        assert len(set(one_by_one)) == 1
        assert len(set(await asyncio.gather(*(facade.ask_async() for _ in range(5))))) == 5

    async def test_one_goes_on_after_a_failure(self):
        """A greenlet whose call has raised, or was cancelled, serves the next one."""
        facade = facade_of(lambda number: 1 / number)
        with pytest.raises(ZeroDivisionError):
            await facade.ask_async(0)
        sleeping = asyncio.ensure_future(facade_of(lambda: time.sleep(GIVE_UP_S)).ask_async())
        await asyncio.sleep(0)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert await facade.ask_async(2) == 0.5

    @pytest.mark.parametrize("kind", [StopIteration, SystemExit, GeneratorExit, asyncio.CancelledError])
    async def test_what_would_break_an_event_loop_arrives_as_a_runtime_error(self, kind):
        """A client that raises SystemExit ends no event loop, and one that raises CancelledError no task."""

        def ask() -> None:
            raise kind

        facade = facade_of(ask)
        with (
            call_options(engine="loop"),
            pytest.raises(RuntimeError, match=f"the call raised {kind.__name__}"),
        ):
            await facade.ask_async()

    async def test_one_that_is_to_end(self):
        """A greenlet whose client ends it says so to the caller, and another one serves the next call."""

        def end() -> None:
            raise greenlet.GreenletExit

        with pytest.raises(greenlet.GreenletExit):
            await facade_of(end).ask_async()
        assert await facade_of(lambda: 1).ask_async() == 1

    def test_they_end_with_their_thread(self):
        """Threads that each ran fifty calls at once, as some servers have one for each request, leave no greenlets."""
        greenlets: list[weakref.ref[Any]] = []

        def ask() -> None:
            greenlets.append(weakref.ref(greenlet.getcurrent()))
            time.sleep(0.001)

        facade = facade_of(ask, workers=50)

        async def ask_all() -> None:
            with call_options(engine="loop"):
                await asyncio.gather(*(facade.ask_async() for _ in range(50)))

        for _ in range(4):
            thread = threading.Thread(target=asyncio.run, args=(ask_all(),))
            thread.start()
            thread.join(GIVE_UP_S)
        gc.collect()
        assert len(greenlets) == 200
        # greenlet itself ends the last ones of a thread at its next occasion
        assert sum(reference() is not None for reference in greenlets) < 50


class TestStreams:
    """Whoever makes the chunks and whoever reads them share the loop."""

    async def test_a_reader_that_is_behind(self):
        """A stream that is ahead waits for its reader without holding the loop up, on which that one runs."""
        with call_options(deadline_s=2.0):
            client = asyncify(SimpleNamespace(talk=lambda: iter(range(500))))
            assert [chunk async for chunk in client.talk()] == list(range(500))

    async def test_a_reader_that_leaves(self):
        """One that is left while it waits for its reader ends, and gives its slot back."""
        pool = WorkerPool(1, 0)
        client = asyncify(SimpleNamespace(talk=lambda: iter(range(500))), pool=pool)
        for _ in range(2):
            async with client.talk() as stream:
                assert await anext(stream) == 0
        assert pool.stats()["busy"] == 0


class TestWatchdog:
    """What holds the loop up is said."""

    async def test_code_that_blocks_is_named(self):
        """A lock that nobody gives back for a while is named, with the place, while it still blocks."""
        lock, told, said = threading.Lock(), threading.Event(), []

        class Noting(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if (
                    os.path.basename(__file__) in record.getMessage()
                ):  # a busy machine may hold other steps up
                    said.append(record.getMessage())
                    told.set()

        lock.acquire()
        logger = logging.getLogger("deepseek_client.engines.loop_watchdog")
        logger.addHandler(handler := Noting())
        releasing = threading.Thread(target=lambda: (told.wait(GIVE_UP_S), lock.release()))
        releasing.start()
        try:
            await facade_of(lambda: lock.acquire(timeout=GIVE_UP_S)).ask_async()
        finally:
            logger.removeHandler(handler)
            releasing.join(GIVE_UP_S)
        assert "has held the event loop up for 0." in said[0]
        assert 'call_options(engine="threads")' in said[0]
