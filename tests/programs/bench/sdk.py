"""`bin/bench --only sdk`: how soon the threads of others' clients are back from calls that have ended."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import statistics
import sys
import time
import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

from deepseek_client import AsyncFacade, DeadlineExceeded, DeepSeekError, WorkerPool, call_options

from .arguments import Options
from .sdk_clients import CLIENTS, Client
from .sdk_stub import StubServer

__all__ = ["main"]

_AT_ONCE = 4
_ROUNDS, _QUICK_ROUNDS = 5, 1
_DEADLINE_S = 0.3  # by then all of them hang
_GIVE_UP_S = 5.0
_WAYS = ("connect", "tls", "headers", "drip", "cancel")
_LIMIT_MS = 50
_RANDOM = (
    "urllib",
    "requests, pool_block",
    "httpx",
    "openai",
    "anthropic",
    "boto3",
    "redis",
    "elasticsearch",
)
_RANDOM_CALLS, _RANDOM_AT_ONCE = 450, 10


def main(options: Options) -> int:
    """The exit code: 0 measured, 1 a thread did not come back, or an abort broke something."""
    # litellm would ask the internet; boto3 the cloud that this machine is not in.
    os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", AWS_EC2_METADATA_DISABLED="true")
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    rows, all_ms = [], []
    for name, client in CLIENTS.items():
        _warm_up(client)
        found = {way: _measured(client, way, rounds) for way in _WAYS if _phase_of(way) in client.phases}
        all_ms += [late_ms for times in found.values() for late_ms in times if client.has_python_sockets]
        release = version(client.package) if client.package else sys.version.split()[0]
        rows.append([name, release, *(_text(found.get(way)) for way in _WAYS)])
        print(f"{name}: {rows[-1][1:]}", file=sys.stderr)
    rows.append(["**all with Python's sockets**", "", _text(all_ms), *[""] * (len(_WAYS) - 1)])
    print("\n## From a call's end to its thread: p50 / p99 in ms\n")
    print("\n".join(_table(["client", "version", *_WAYS], rows)))
    broken = [_random_aborts(name) for name in _RANDOM]
    print(f"\n## {_RANDOM_CALLS} calls of one client, most of them ended at a random moment\n")
    print("\n".join(_table(["client", "ended", "answered", "wrong", "descriptors lost"], broken)))
    is_sound = all(row[3] == "0" for row in broken)
    return 0 if is_sound and _percentiles(all_ms)[1] < _LIMIT_MS else 1


def _phase_of(way: str) -> str:
    return "headers" if way == "cancel" else way


def _warm_up(client: Client) -> None:
    """The first call imports for up to a second, which nothing ends."""
    if "headers" in client.phases:
        with StubServer() as stub:
            client.make(stub).ask("tok-1")
    else:
        import_module(client.package.lower())


def _measured(client: Client, way: str, rounds: int) -> list[float]:
    """Milliseconds from each call's end to its thread's return."""
    with StubServer(_phase_of(way)) as stub:
        return asyncio.run(_measure(client, stub, way, rounds))


async def _measure(client: Client, stub: StubServer, way: str, rounds: int) -> list[float]:
    probes = [_Probe(client.make(stub)) for _ in range(_AT_ONCE)]
    late_ms: list[float] = []
    for _ in range(rounds):
        late_ms += await asyncio.gather(
            *(probe.late_ms(stub, is_cancelled=way == "cancel") for probe in probes)
        )
    return late_ms


class _Probe:
    """One client on a pool of its own, which notes when its method has come back."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool = WorkerPool(1, queue_limit=0)
        self._facade = AsyncFacade(self, pool=self._pool)
        self._back_at = 0.0

    def ask(self, token: str) -> str:
        try:
            answer: str = self._client.ask(token)
            return answer
        finally:
            self._back_at = time.monotonic()

    async def late_ms(self, stub: StubServer, *, is_cancelled: bool) -> float:
        self._back_at = 0.0
        deadline_s = 60 if is_cancelled else _DEADLINE_S
        end_at = time.monotonic() + deadline_s
        with call_options(deadline_s=deadline_s):
            task = asyncio.create_task(self._facade.ask_async("tok-1"))
        if is_cancelled:
            await asyncio.to_thread(stub.reached.wait, _GIVE_UP_S)
            await asyncio.sleep(_DEADLINE_S / 2)
            end_at = time.monotonic()
            task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(outcome, (DeadlineExceeded, asyncio.CancelledError)):
            raise RuntimeError(f"a call that hangs has ended: {outcome!r}")
        give_up_at = time.monotonic() + _GIVE_UP_S
        while self._pool.stats()["busy"]:
            if time.monotonic() > give_up_at:
                return float("inf")
            await asyncio.sleep(0.001)
        return max(0.0, self._back_at - end_at) * 1000


def _random_aborts(name: str) -> list[str]:
    """One client object under calls that end at random moments: its row of the table."""
    return asyncio.run(_abort_at_random(name))


async def _abort_at_random(name: str) -> list[str]:
    dice = random.Random(name)
    counts = {"ended": 0, "answered": 0, "wrong": 0}
    with StubServer(delay_s=lambda: dice.random() * 0.02) as stub:
        before = len(os.listdir("/dev/fd"))
        facade = AsyncFacade(CLIENTS[name].make(stub), pool=WorkerPool(_RANDOM_AT_ONCE, queue_limit=100))

        async def ask(number: int, deadline_s: float) -> None:
            try:
                with call_options(deadline_s=deadline_s):
                    answer = await facade.ask_async(f"tok-{number}")
            except DeepSeekError:
                counts["ended"] += 1
            else:
                counts["answered" if answer == f"tok-{number}" else "wrong"] += 1

        for start in range(0, _RANDOM_CALLS, _RANDOM_AT_ONCE):
            numbers = range(start, start + _RANDOM_AT_ONCE)
            await asyncio.gather(*(ask(number, dice.random() * 0.04) for number in numbers))
        ended = counts["ended"]
        await asyncio.gather(*(ask(number, 60.0) for number in range(_RANDOM_AT_ONCE)))
        counts["wrong"] += counts["ended"] - ended
        # As many connections as calls at once may be kept, at both ends.
        more = len(os.listdir("/dev/fd")) - before - 2 * _RANDOM_AT_ONCE
    return [name, *(str(number) for number in counts.values()), str(max(0, more))]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    # Not report.py's, which needs what measures servers.
    marks = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, marks, *rows)]


def _percentiles(times: list[float]) -> tuple[float, float]:
    in_order = sorted(times)
    return statistics.median(in_order), in_order[min(len(in_order) - 1, round(len(in_order) * 0.99))]


def _text(times: list[float] | None) -> str:
    return "" if not times else " / ".join(f"{value:.1f}" for value in _percentiles(times))
