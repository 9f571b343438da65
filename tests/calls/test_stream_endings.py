"""What ends a stream before its last chunk, and what its reader has of it then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from support.blocking import counts, until
from support.callers import caller, stream
from support.chunks import Watched, collect, lines_of, numbers
from support.patience import GIVE_UP_S

from deepseek_client import DeadlineExceeded, PoolClosed, WorkerPool
from deepseek_client.calls.call import calls_in_flight
from deepseek_client.calls.streams import AsyncStream


async def test_break_ends_the_call(pool):
    """After `break` the worker closes the stream and is free, although nothing was said."""
    watched = Watched()
    async for chunk in stream(caller(pool, talk=lambda: watched)):
        if chunk == 100:
            break
    await until(lambda: counts(pool) == (0, 0))
    assert watched.closed.is_set()
    assert watched.threads == {watched.closed_by}


async def test_leaving_the_block_ends_the_call(pool, reports):
    """`async with` ends a stream where the block ends, and its call is reported once, as cancelled."""
    watched = Watched()
    async with stream(caller(pool, talk=lambda: watched)) as chunks:
        assert await anext(chunks) == 1
    assert [report.error for report in reports] == ["cancelled"]
    await until(lambda: counts(pool) == (0, 0))
    assert watched.closed.is_set()
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    await chunks.aclose()


async def test_a_cancelled_reader_ends_the_call(pool, sandbox):
    """A task that is cancelled while it waits for a chunk frees the worker and the socket of a silent server."""
    sandbox.script([{"fault": "hang_in_body"}])
    first = asyncio.Event()

    async def read() -> None:
        async for _ in stream(caller(pool, talk=lines_of), "talk", sandbox.url):
            first.set()

    reading = asyncio.ensure_future(read())
    await first.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: counts(pool) == (0, 0))
    await asyncio.to_thread(sandbox.wait_until, lambda stats: stats["in_flight"] == 0, GIVE_UP_S)


async def test_the_deadline_ends_a_stream_that_stalls(pool, sandbox, reports):
    """The deadline is the whole stream's: the chunks before a silence arrive, then DeadlineExceeded is raised."""
    sandbox.script([{"fault": "hang_in_body"}])
    ours = caller(pool, talk=lines_of)
    lines: list[bytes] = []
    call = ours.call("talk", (sandbox.url,), {})
    call.deadline = call.began + 1.0
    with pytest.raises(DeadlineExceeded):
        await collect(AsyncStream(ours, call), lines)
    assert lines
    assert [report.error for report in reports] == ["deadline_exceeded"]
    await until(lambda: counts(pool) == (0, 0))
    await asyncio.to_thread(sandbox.wait_until, lambda stats: stats["in_flight"] == 0, GIVE_UP_S)


async def test_the_deadline_ends_a_stream_whose_reader_is_slow(pool):
    """A worker that waits for room ends at the deadline; what it had made can still be read."""
    watched = Watched()
    ours = caller(pool, talk=lambda: watched)
    call = ours.call("talk", (), {})
    call.deadline = call.began + 0.3
    chunks = AsyncStream(ours, call)
    read = [await anext(chunks)]
    await until(lambda: counts(pool) == (0, 0))
    with pytest.raises(DeadlineExceeded):
        await collect(chunks, read)
    assert read == list(range(1, len(read) + 1))
    assert len(read) >= 32


async def test_an_error_comes_after_the_chunks_before_it(pool, reports):
    """What the client raises in the middle is raised as it is, after every chunk before it; then it has ended."""

    def talk() -> Iterator[int]:
        yield from range(100)
        raise LookupError("of the client")

    read: list[int] = []
    chunks = stream(caller(pool, talk=talk))
    with pytest.raises(LookupError, match="of the client"):
        await collect(chunks, read)
    assert read == list(range(100))
    assert [report.error for report in reports] == ["unexpected"]
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_an_error_that_looks_like_the_end_is_an_error(pool):
    """A StopAsyncIteration of the client's own does not pass for the end of its stream."""

    def talk() -> Iterator[int]:
        yield 1
        raise StopAsyncIteration

    read: list[int] = []
    with pytest.raises(RuntimeError, match="the call raised StopAsyncIteration"):
        await collect(stream(caller(pool, talk=talk)), read)
    assert read == [1]


async def test_an_error_in_the_rollback(pool, reports):
    """In the rollback, too, an error comes after its chunks and as it is."""

    def talk() -> Iterator[int]:
        yield 1
        raise LookupError

    chunks = stream(caller(pool, use_async=False, talk=talk))
    assert await anext(chunks) == 1
    with pytest.raises(LookupError):
        await anext(chunks)
    assert [report.error for report in reports] == ["unexpected"]
    await chunks.aclose()


async def test_a_closed_pool_ends_a_stream(pool):
    """When the pool closes, the chunks that were made can be read, and then PoolClosed is raised."""
    chunks = stream(caller(pool, talk=lambda: Watched()))
    assert await anext(chunks) == 1
    pool.close()
    with pytest.raises(PoolClosed):
        await collect(chunks, [])
    await until(lambda: counts(pool) == (0, 0))


async def test_a_stream_that_nobody_began(pool, reports):
    """One that is closed, or forgotten, before its first chunk makes no call."""
    chunks = stream(caller(pool, talk=numbers), "talk", 3)
    await chunks.aclose()
    assert [chunk async for chunk in chunks] == []
    stream(caller(pool, talk=numbers), "talk", 3)
    assert reports == []
    assert counts(pool) == (0, 0)


def test_a_loop_that_ends_ends_its_streams(pool):
    """A stream that is left when its event loop ends frees its worker."""
    watched = Watched()
    held: list[AsyncStream] = []

    async def read() -> None:
        held.append(stream(caller(pool, talk=lambda: watched)))
        assert await anext(held[0]) == 1

    asyncio.run(read())
    assert watched.closed.wait(GIVE_UP_S)


async def test_streams_that_are_left_anywhere_cost_no_worker(reports):
    """Two hundred streams that end by a break, a cancel or a close at any chunk leave every worker free."""
    pool, pace = WorkerPool(workers=2, queue_limit=0), random.Random(1)
    ours = caller(pool, talk=numbers)

    async def read(chunks: AsyncStream, stop_at: int) -> None:
        async for chunk in chunks:
            if chunk == stop_at:
                return

    for number in range(200):
        await until(lambda: counts(pool) == (0, 0))
        chunks, stop_at = stream(ours, "talk", 200), pace.randrange(210)
        reading = asyncio.ensure_future(read(chunks, stop_at))
        if number % 3 == 0:
            for _ in range(pace.randrange(10)):
                await asyncio.sleep(0)
            reading.cancel()
        await asyncio.wait([reading])
        if number % 3 == 1:
            await chunks.aclose()
        del chunks, reading
    await until(lambda: counts(pool) == (0, 0))
    assert calls_in_flight() == set()
    assert {report.error for report in reports} <= {None, "cancelled"}
    assert await anext(stream(ours, "talk", 1)) == 0
    pool.close()
