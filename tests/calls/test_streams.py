"""Streams: who makes the chunks, how far ahead, and for which reader."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from support.blocking import counts, other_task, until
from support.callers import caller, stream
from support.chunks import Watched, lines_of, numbers
from support.patience import GIVE_UP_S

from deepseek_client import Overloaded, WorkerPool
from deepseek_client.calls.call import calls_in_flight
from deepseek_client.calls.streams import AsyncStream
from deepseek_client.wire.exchange import current


async def test_every_chunk_arrives_in_its_order(pool):
    """A stream that is longer than the buffer arrives whole."""
    assert [chunk async for chunk in stream(caller(pool, talk=numbers), "talk", 1000)] == list(range(1000))
    assert counts(pool) == (0, 0)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 31, 32, 33, 65])
async def test_lengths_around_the_bounds(pool, count):
    """Whatever its length is beside the buffer's, nothing is lost and it ends."""
    assert [chunk async for chunk in stream(caller(pool, talk=numbers), "talk", count)] == list(range(count))


async def test_one_worker_makes_and_closes_it(pool):
    """One thread, which is not the event loop's, asks for every chunk, and the same one closes the stream."""
    watched = Watched(200)
    assert len([chunk async for chunk in stream(caller(pool, talk=lambda: watched))]) == 200
    assert watched.threads == {watched.closed_by}
    assert threading.get_ident() not in watched.threads


async def test_a_worker_is_only_so_far_ahead(pool):
    """While nobody reads, 32 chunks are made and no more."""
    ahead: list[int] = []
    read = 0

    def talk() -> Iterator[int]:
        for number in range(1000):
            ahead.append(number - read)
            yield number

    async for _ in stream(caller(pool, talk=talk)):
        read += 1
        if read == 1:
            await until(lambda: len(ahead) >= 32)
    assert read == 1000
    assert max(ahead) <= 34  # the buffer, the chunk in each side's hand


async def test_other_tasks_go_on_beside_a_stream_that_is_always_ready(pool):
    """A reader that never has to wait lets the event loop do something else all the same."""
    async with other_task() as turns:
        async for _ in stream(caller(pool, talk=numbers), "talk", 2000):
            pass
    assert turns.count >= 50


async def test_a_stream_of_a_server(pool, sandbox):
    """A lazy generator over `requests` gives the events of the server; its connection is made on the worker."""
    lines = [line async for line in stream(caller(pool, talk=lines_of), "talk", sandbox.url)]
    assert lines[-1] == b"data: [DONE]"
    assert len(lines) > 3


async def test_contextvars_are_there(pool):
    """The stream's code sees its caller's contextvars at every chunk, and keeps what it sets itself."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("the caller's")

    def talk() -> Iterator[str]:
        yield variable.get()
        variable.set("its own")
        yield variable.get()

    assert [chunk async for chunk in stream(caller(pool, talk=talk))] == ["the caller's", "its own"]
    assert variable.get() == "the caller's"


@pytest.mark.parametrize(("use_async", "mode"), [(True, "async"), (False, "sync")], ids=["pool", "rollback"])
async def test_a_stream_is_one_call(pool, reports, use_async, mode):
    """It is reported once, with one attempt and the time to its first chunk; one without chunks has no such time."""
    ours = caller(pool, use_async=use_async, talk=numbers)
    assert len([chunk async for chunk in stream(ours, "talk", 100)]) == 100
    assert [chunk async for chunk in stream(ours, "talk", 0)] == []
    first, second = reports
    assert (first.method, first.mode, first.error, first.attempts) == ("talk", mode, None, 1)
    assert 0 <= first.first_chunk_s <= first.waited_s + first.ran_s
    assert second.first_chunk_s is None
    assert calls_in_flight() == set()


async def test_the_rollback_runs_in_the_own_thread(pool, reports):
    """With USE_ASYNC_DEEPSEEK=0 the reader's thread makes each chunk as it is asked for, and closes the stream."""
    watched = Watched()
    async for chunk in stream(caller(pool, use_async=False, talk=lambda: watched)):
        assert watched.made == chunk
        if chunk == 3:
            break
    assert watched.threads == {threading.get_ident()} == {watched.closed_by}
    assert [(report.mode, report.error) for report in reports] == [("sync", "cancelled")]
    assert calls_in_flight() == set()


async def test_between_chunks_the_rollbacks_thread_is_its_readers(pool):
    """What the reader's thread blocks on between two chunks belongs to no call: ending this one must not end that."""
    inside: list[int] = []

    def talk() -> Iterator[int]:
        for number in range(3):
            exchange = current()
            assert exchange is not None
            inside.append(exchange.thread_id)
            yield number

    ours = caller(pool, use_async=False, talk=talk)
    call = ours.call("talk", (), {})
    async for _ in AsyncStream(ours, call):
        assert call.last is not None
        assert call.last.exchange.thread_id == 0
        assert current() is None
    assert inside == [threading.get_ident()] * 3


@pytest.mark.parametrize("use_async", [True, False], ids=["pool", "rollback"])
async def test_a_context_manager_is_entered(pool, use_async):
    """What gives its stream inside of `with` is entered, iterated and left, all in one thread."""
    threads: list[int] = []

    @contextlib.contextmanager
    def talk() -> Iterator[Iterator[int]]:
        threads.append(threading.get_ident())
        try:
            yield iter(range(3))
        finally:
            threads.append(threading.get_ident())

    assert [chunk async for chunk in stream(caller(pool, use_async=use_async, talk=talk))] == [0, 1, 2]
    assert len(threads) == 2
    assert len(set(threads)) == 1


@pytest.mark.parametrize("result", [[1], {"text": ""}, "text", None, range(3)], ids=repr)
async def test_what_is_no_stream_is_not_iterated(pool, result):
    """A list, a dict and a text are results: to iterate them is a mistake that says how to write it."""
    with pytest.raises(TypeError, match=f"gave no stream but a {type(result).__name__}: await it"):
        await anext(stream(caller(pool, talk=lambda: result)))


@pytest.mark.parametrize("use_async", [True, False], ids=["pool", "rollback"])
async def test_a_stream_is_not_awaited(pool, reports, use_async):
    """A stream never reaches a coroutine: the await fails, says how to write it, and the stream is closed."""
    watched = Watched()
    ours = caller(pool, use_async=use_async, talk=lambda: watched)
    with pytest.raises(
        TypeError, match=r"async for chunk in asyncify\(client\).talk\(...\)`, without `await`"
    ):
        await ours.run(ours.call("talk", (), {}))
    assert watched.closed.is_set()
    assert watched.made == 0
    assert [report.error for report in reports] == ["unexpected"]


@pytest.mark.parametrize("result", [io.BytesIO(b"x"), [1], MagicMock()], ids=["file", "list", "mock"])
async def test_plain_results_are_awaited(pool, result):
    """A file, a list and a mock, which has every method, are results as any other."""
    ours = caller(pool, talk=lambda: result)
    assert await ours.run(ours.call("talk", (), {})) is result


async def test_a_full_pool_refuses_a_stream(pool):
    """A stream holds its worker for as long as it lasts: the next one is refused, and finds a place after it."""
    ours = caller(pool, talk=lambda: Watched())
    async with stream(ours) as first:
        assert await anext(first) == 1
        with pytest.raises(Overloaded):
            await anext(stream(ours))
    await until(lambda: counts(pool) == (0, 0))
    assert await anext(stream(ours)) == 1


async def test_two_readers_at_once_are_refused(pool):
    """A second task that waits for the same stream is told so; the first one gets all of it, not an end before that."""
    gate = threading.Event()
    chunks = stream(caller(pool, talk=lambda: (gate.wait(GIVE_UP_S) for _ in range(2))))
    first = asyncio.ensure_future(anext(chunks))
    await until(lambda: counts(pool) == (1, 0))
    with pytest.raises(RuntimeError, match="two tasks read one stream"):
        await anext(chunks)
    gate.set()
    assert await first is True
    assert [chunk async for chunk in chunks] == [True]


@pytest.mark.parametrize("seed", range(3))
async def test_no_chunk_is_lost_at_any_pace(seed):
    """Whoever is ahead, and wherever threads are switched, streams arrive whole and nobody sleeps for ever."""
    pool, interval = WorkerPool(workers=4, queue_limit=0), sys.getswitchinterval()
    pace = random.Random(seed)

    def talk() -> Iterator[int]:
        for number in range(4000):
            for _ in range(pace.randrange(60)):
                pass
            yield number

    async def read() -> list[int]:
        return [chunk async for chunk in stream(caller(pool, talk=talk))]

    sys.setswitchinterval(1e-5)
    try:
        assert await asyncio.gather(*(read() for _ in range(4))) == [list(range(4000))] * 4
    finally:
        sys.setswitchinterval(interval)
        pool.close()


async def test_many_streams_at_once():
    """Twenty streams of a thousand chunks each, on twenty workers, arrive whole and apart."""
    pool = WorkerPool(workers=20, queue_limit=0)
    ours = caller(pool, talk=lambda name: ((name, number) for number in range(1000)))

    async def read(name: int) -> list[Any]:
        return [chunk async for chunk in stream(ours, "talk", name)]

    results = await asyncio.gather(*map(read, range(20)))
    assert results == [[(name, number) for number in range(1000)] for name in range(20)]
    assert counts(pool) == (0, 0)
    pool.close()
