"""Measures one number of workers; a process of its own, so that memory and CPU are those of this number alone.

`python -m deepseek_client.ops.tune.measure` reads an Order as JSON from standard input and prints a Measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from ... import AsyncDeepSeekClient, DeepSeekError, Settings, WorkerPool, call_options
from ...events import CallFinished, subscribe
from ...settings import is_loopback

__all__ = ["Measured", "Order", "measured"]

_arrival_s: ContextVar[float | None] = ContextVar(
    "_arrival_s", default=None
)  # of the call that an event is about


@dataclass(frozen=True)
class Order:
    """What is to be measured.

    Attributes:
        arrivals_s: when calls begin.
        base_url, api_key, model: of the API.
        deadline_s: of each call.

    Threads: immutable.
    """

    workers: int
    engine: str
    arrivals_s: list[float]
    base_url: str
    api_key: str
    model: str
    deadline_s: float


@dataclass(frozen=True)
class Measured:
    """What was seen.

    Attributes:
        arrivals_s, waited_s, ran_s: of each call that was answered, in the order of their arrival.
        failed: calls that were not, refused ones included.
        calls_per_s: answered ones, from the first arrival to the last answer.
        cpu_ms: of this process, for each answered call.
        memory_mb: of this process at its largest.

    Threads: immutable.
    """

    workers: int
    engine: str
    arrivals_s: list[float]
    waited_s: list[float]
    ran_s: list[float]
    failed: int
    calls_per_s: float
    cpu_ms: float
    memory_mb: float


def measured(order: Order) -> Measured:
    """Measures in a child process.

    Raises:
        RuntimeError: it has ended badly; the last line of what it said.
    """
    # As the command line of a process is everybody's to read, the key goes by its standard input.
    child = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(asdict(order)), capture_output=True, text=True,
        env=_environment_for(order.base_url),
    )  # fmt: skip
    if child.returncode:
        raise RuntimeError((child.stderr.strip().splitlines() or ["the measuring process ended"])[-1])
    return Measured(**json.loads(child.stdout))


def _environment_for(base_url: str) -> dict[str, str]:
    """This process's, without its proxies for an API of this machine, which a proxy cannot reach."""
    host = urlsplit(base_url).hostname or ""
    direct = {"no_proxy": host, "NO_PROXY": host} if is_loopback(host) else {}
    return {**os.environ, **direct}


async def _measure(order: Order) -> Measured:
    settings = Settings(
        max_workers=order.workers, queue_limit=10_000, deadline_s=order.deadline_s, api_key=order.api_key,
        base_url=order.base_url, model=order.model, max_attempts=1,
    )  # fmt: skip
    pool = WorkerPool(settings.max_workers, settings.queue_limit)
    client = AsyncDeepSeekClient(settings=settings, pool=pool, errors="raise")
    await client.chat_async("warm up: what is made once belongs to no call")
    ended: list[tuple[float, CallFinished]] = []

    def note(event: object) -> None:
        arrival_s = _arrival_s.get()
        if isinstance(event, CallFinished) and arrival_s is not None:
            ended.append((arrival_s, event))

    subscribe(note)
    loop = asyncio.get_running_loop()
    began, cpu_began = loop.time(), time.process_time()

    async def call(arrival_s: float) -> None:
        _arrival_s.set(arrival_s)
        await asyncio.sleep(began + arrival_s - loop.time())
        try:
            await client.chat_async("How far is it to the nearest star?")
        except DeepSeekError:
            pass  # counted by its event

    with call_options(engine=order.engine):
        await asyncio.gather(*map(call, order.arrivals_s))
    took_s, cpu_s = loop.time() - began, time.process_time() - cpu_began
    # They end in another order than they begin.
    answered = sorted((pair for pair in ended if pair[1].error is None), key=lambda pair: pair[0])
    pool.close()
    return Measured(
        order.workers, order.engine, [arrival_s for arrival_s, _ in answered],
        [event.waited_s for _, event in answered], [event.ran_s for _, event in answered],
        len(order.arrivals_s) - len(answered), len(answered) / took_s, 1000 * cpu_s / max(1, len(answered)),
        _memory_mb(),
    )  # fmt: skip


def _memory_mb() -> float:
    largest: float = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _main() -> None:
    order: dict[str, Any] = json.load(sys.stdin)
    json.dump(asdict(asyncio.run(_measure(Order(**order)))), sys.stdout)


if __name__ == "__main__":
    _main()
