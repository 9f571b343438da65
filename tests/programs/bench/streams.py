"""Part `streams`: what a chunk costs, how long streams hold the event loop, and how soon one that is left ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from deepseek_client import Settings, WorkerPool, asyncify

__all__ = ["measure"]

_AT_ONCE = 20
_TICK_S = 0.001
_WORD = b"word\n"
_GIVE_UP_S = 5


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Of the chunks of a generator that never waits: CPU of each (of all threads), and the loop's longest delay.

    The peer "left early" is another measurement: milliseconds from the end of an `async with` around the stream of a
    server to the moment at which that server sees its connection closed.
    """
    if spec["peer"] == "left early":
        return asyncio.run(_leave(spec["count"]))
    return asyncio.run(_read(spec))


async def _read(spec: dict[str, Any]) -> dict[str, float]:
    streams = _AT_ONCE if "20" in spec["peer"] else 1
    each = spec["count"] // streams
    with _pool() as pool:
        read = _READERS[spec["peer"]](pool)
        await read(1)
        delays: list[float] = []
        watch = asyncio.ensure_future(_watch(delays))
        cpu_s = time.process_time()
        await asyncio.gather(*(read(each) for _ in range(streams)))
        cpu_s = time.process_time() - cpu_s
        watch.cancel()
    return {"cpu_us": cpu_s / (streams * each) * 1e6, "longest_ms": max(delays, default=0.0) * 1000}


async def _watch(delays: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_TICK_S)
        delays.append(time.perf_counter() - began - _TICK_S)


def _numbers(count: int) -> Iterator[int]:
    yield from range(count)


def _of_ours(pool: WorkerPool) -> Callable[[int], Any]:
    numbers = asyncify(_numbers, pool=pool, settings=Settings(deadline_s=60))

    async def read(count: int) -> None:
        async for _ in numbers(count):
            pass

    return read


def _by_hops(_: WorkerPool) -> Callable[[int], Any]:
    async def each(count: int) -> AsyncIterator[int]:
        numbers = _numbers(count)
        while (number := await asyncio.to_thread(next, numbers, None)) is not None:
            yield number

    async def read(count: int) -> None:
        async for _ in each(count):
            pass

    return read


_READERS: dict[str, Callable[[WorkerPool], Callable[[int], Any]]] = {
    "one stream": _of_ours,
    "20 streams": _of_ours,
    "a hop for each chunk": _by_hops,
}


async def _leave(count: int) -> dict[str, float]:
    gone_ms: list[float] = []
    with _pool() as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_GIVE_UP_S)
        # `requests` reads the stream, as most clients do that are wrapped.
        lines = asyncify(_lines, pool=pool, settings=Settings(deadline_s=60))
        for _ in range(count):
            server = _Server(listener)
            async with lines(listener.getsockname()[1]) as chunks:
                await anext(chunks)
                await asyncio.sleep(0.005)  # the reader waits in its socket by now
                left = time.perf_counter()
            gone_ms.append((await asyncio.to_thread(server.gone) - left) * 1000)
    percentiles = statistics.quantiles(gone_ms, n=100, method="inclusive")
    return {"p50_ms": percentiles[49], "p99_ms": percentiles[98], "max_ms": max(gone_ms)}


def _lines(port: int) -> Iterator[bytes]:
    import requests  # late: the other peers have no use for it

    with requests.get(f"http://127.0.0.1:{port}/", stream=True, timeout=60) as reply:
        yield from reply.iter_lines(chunk_size=1)


class _Server:
    """Answers one request with one line of a stream that goes on, and waits for its client to go."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._gone_at = 0.0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def gone(self) -> float:
        """When the client had gone."""
        self._thread.join(_GIVE_UP_S)
        if not self._gone_at:
            raise RuntimeError("a stream that was left went on")
        return self._gone_at

    def _serve(self) -> None:
        conn, _ = self._listener.accept()
        with conn:
            conn.settimeout(_GIVE_UP_S)
            conn.recv(65536)
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + _WORD)
            with contextlib.suppress(ConnectionError):
                conn.recv(1)
            self._gone_at = time.perf_counter()


@contextlib.contextmanager
def _pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(_AT_ONCE, queue_limit=0)
    try:
        yield pool
    finally:
        pool.close()
