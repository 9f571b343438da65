"""The sandbox inside another program: its own event loop in a daemon thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from .config import SandboxConfig
from .server import SandboxServer

__all__ = ["RunningSandbox", "running", "start_in_thread"]

_GIVE_UP_S = 20.0  # long on a busy machine, short when a test hangs
# Of its loop, before it does what it is asked: by then every request that has arrived, over a new connection too, has
# come to its handler. A busy machine lets one lie for long.
_TURNS = 10
_T = TypeVar("_T")


class RunningSandbox:
    """A sandbox that serves in a thread of this process; only `start_in_thread` builds one.

    Threads: every method may be called from any thread but the sandbox's own, and blocks for at most 20 s
        while the sandbox's loop does it. After `stop` they raise RuntimeError. It does not survive a fork.
    """

    def __init__(
        self, server: SandboxServer, loop: asyncio.AbstractEventLoop, stopping: asyncio.Event
    ) -> None:
        self.url = server.url
        self.port = server.port
        self._server = server
        self._loop = loop
        self._stopping = stopping
        self._thread = threading.current_thread()

    def stats(self) -> dict[str, Any]:
        """What ``GET /sandbox/stats`` answers."""
        return self._on_loop(self._server.stats)

    def script(self, replies: list[dict[str, Any]]) -> None:
        """Queue scripted replies, as the list under "replies" of ``POST /sandbox/script``.

        Raises:
            ValueError: names the entry, the value and what is known; nothing was queued.
        """
        self._on_loop(lambda: self._server.script({"replies": replies}))

    def reset(self) -> None:
        """Zero the stats and drop what is scripted."""
        self._on_loop(self._server.reset)

    def wait_until(
        self, fact: Callable[[dict[str, Any]], bool], give_up_s: float = _GIVE_UP_S
    ) -> dict[str, Any]:
        """Block until `fact` is true of the stats; return those stats.

        Every change of the traffic is looked at, in order, also one that lasts for a moment only.

        Args:
            fact: called in the caller's thread with the stats as they are now, then after each change.

        Raises:
            TimeoutError: it was not true within `give_up_s`.
        """
        seen: SimpleQueue[dict[str, Any]] = SimpleQueue()

        def look() -> None:
            seen.put(self._server.stats())

        def watch() -> None:
            self._server.add_watcher(look)
            look()

        ends_at = time.monotonic() + give_up_s
        self._on_loop(watch)
        try:
            while not fact(stats := seen.get(timeout=max(0.0, ends_at - time.monotonic()))):
                pass
            return stats
        except Empty:
            raise TimeoutError(f"not true within {give_up_s} s; the stats are {self.stats()}") from None
        finally:
            self._on_loop(lambda: self._server.remove_watcher(look))

    def stop(self) -> None:
        """Cut every connection and end the thread; a second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_GIVE_UP_S)

    def _on_loop(self, function: Callable[[], _T]) -> _T:
        async def run() -> _T:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            return function()

        if not self._thread.is_alive():
            raise RuntimeError("this sandbox is stopped")
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_GIVE_UP_S)


def start_in_thread(config: SandboxConfig | None = None) -> RunningSandbox:
    """Start a sandbox; when this returns, it accepts connections.

    Args:
        config: None means any free port and no latency.

    Raises:
        OSError: the address cannot be bound.
        ValueError: the certificate cannot be loaded.

    Threads: any; it blocks until the sandbox listens.
    """
    started: Future[RunningSandbox] = Future()
    config = config or SandboxConfig(port=0, latency_ms=0)
    threading.Thread(target=_run, args=(config, started), name="sandbox", daemon=True).start()
    return started.result(_GIVE_UP_S)


@contextmanager
def running(config: SandboxConfig | None = None) -> Iterator[RunningSandbox]:
    """`start_in_thread`, and stop at the end of the block."""
    sandbox = start_in_thread(config)
    try:
        yield sandbox
    finally:
        sandbox.stop()


def _run(config: SandboxConfig, started: Future[RunningSandbox]) -> None:
    try:
        asyncio.run(_serve(config, started))
    except Exception as exc:
        if started.done():
            raise
        started.set_exception(exc)


async def _serve(config: SandboxConfig, started: Future[RunningSandbox]) -> None:
    server = SandboxServer(config)
    await server.start()
    stopping = asyncio.Event()
    try:
        started.set_result(RunningSandbox(server, asyncio.get_running_loop(), stopping))
        await stopping.wait()
    finally:
        await server.stop()
