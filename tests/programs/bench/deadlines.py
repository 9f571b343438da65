"""Part e: how long after a call's deadline its thread is free, when the reply drips for ever."""

from __future__ import annotations

import asyncio
import json
import ssl
import statistics
import threading
import time
import urllib.request
from typing import Any

from deepseek_client import AsyncDeepSeekClient, DeadlineExceeded, Settings, WorkerPool, call_options

from .wire import KEY, prompts

__all__ = ["measure"]

_AT_ONCE = 20
_DEADLINE_S = 0.5  # by then all of them have their connection and are in the reply's body
_EVERY_S = 0.05
_LOOK_EVERY_S = 0.0002
_GIVE_UP_S = 5


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Milliseconds from the deadline until `WorkerPool.stats()` shows the slot free: p50, p99, max.

    Twenty calls at a time, each on a pool of its own, so that every slot is seen by itself.
    """
    _control(spec, "script", {"replies": [{"fault": "drip", "every_s": _EVERY_S, "times": spec["count"]}]})
    try:
        late_ms = asyncio.run(_measure(spec))
    finally:
        _control(spec, "reset", {})
    percentiles = statistics.quantiles(late_ms, n=100, method="inclusive")
    return {
        "p50_ms": percentiles[49],
        "p99_ms": percentiles[98],
        "max_ms": max(late_ms),
        "calls": len(late_ms),
    }


async def _measure(spec: dict[str, Any]) -> list[float]:
    settings = Settings(api_key=KEY, base_url=spec["url"])
    pools = [WorkerPool(1, queue_limit=0) for _ in range(_AT_ONCE)]
    clients = [AsyncDeepSeekClient(pool=pool, settings=settings, errors="raise") for pool in pools]
    late_ms: list[float] = []
    for _ in range(spec["count"] // _AT_ONCE):
        watch = _Watch(pools)
        calls = zip(clients, prompts(_AT_ONCE), strict=True)
        deadlines = await asyncio.gather(*(_call(client, prompt) for client, prompt in calls))
        free = await asyncio.to_thread(watch.times)
        late_ms += [(end - deadline) * 1000 for end, deadline in zip(free, deadlines, strict=True)]
    for pool in pools:
        pool.close()
    return late_ms


async def _call(client: AsyncDeepSeekClient, prompt: str) -> float:
    deadline = time.monotonic() + _DEADLINE_S
    try:
        with call_options(deadline_s=_DEADLINE_S):
            await client.chat_async(prompt)
    except DeadlineExceeded:
        return deadline
    raise RuntimeError("a reply that never ends has ended")


class _Watch:
    """Looks at the pools from just before their calls' deadline on."""

    def __init__(self, pools: list[WorkerPool]) -> None:
        self._pools = pools
        self._from = time.monotonic() + _DEADLINE_S * 0.9
        self._free: dict[int, float] = {}
        self._was_busy = False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def times(self) -> list[float]:
        """When each pool's slot was free again."""
        self._thread.join(_GIVE_UP_S)
        if not self._was_busy or len(self._free) < len(self._pools):
            raise RuntimeError("the calls did not begin, or some thread was not free after 5 s")
        return [self._free[place] for place in range(len(self._pools))]

    def _look(self) -> None:
        time.sleep(self._from - time.monotonic())
        self._was_busy = all(pool.stats()["busy"] == 1 for pool in self._pools)
        give_up = time.monotonic() + _GIVE_UP_S
        while len(self._free) < len(self._pools) and time.monotonic() < give_up:
            for place, pool in enumerate(self._pools):
                if place not in self._free and pool.stats()["busy"] == 0:
                    self._free[place] = time.monotonic()
            time.sleep(_LOOK_EVERY_S)


def _control(spec: dict[str, Any], what: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{spec['url']}/sandbox/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    context = ssl.create_default_context(cafile=spec["bundle"]) if spec["url"].startswith("https") else None
    with urllib.request.urlopen(request, timeout=_GIVE_UP_S, context=context) as reply:
        reply.read()
