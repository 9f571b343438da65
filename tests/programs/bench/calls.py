"""Parts a and b: what a call costs, one after the other and many at a time."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any

from .peers import PEERS, Peer
from .wire import is_answer, prompts

__all__ = ["measure", "peak_bytes"]

_WARM_UP = 20


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Wall and CPU time (user and system, of all threads of this process) of `count` calls, and its peak memory.

    Outside of the clock are imports, the building of the client and its first calls: one before a fan-out, whose
    other connections are made inside; 20 before calls in sequence.
    """
    logging.disable(logging.CRITICAL)  # a failed call is counted, not told
    if not spec["peer"].endswith("uvloop"):
        return asyncio.run(_measure(spec))
    import uvloop

    result: dict[str, float] = uvloop.run(_measure(spec))
    return result


async def _measure(spec: dict[str, Any]) -> dict[str, float]:
    async with PEERS[spec["peer"]](spec) as peer:
        questions = prompts(spec["count"])
        is_fan = spec["part"] == "b"
        for prompt in questions[: 1 if is_fan else _WARM_UP]:
            await (peer.ask_many([prompt]) if is_fan else peer.ask(prompt))
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        texts = await peer.ask_many(questions) if is_fan else await _ask_each(peer, questions)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    good = sum(map(is_answer, texts, questions))
    if not good:
        raise RuntimeError(f"none of {len(questions)} calls was answered")
    return {
        "calls_per_s": good / wall_s,
        "wall_ms": wall_s / good * 1000,
        "cpu_ms": cpu_s / good * 1000,
        "peak_mb": peak_bytes() / 1e6,
        "failed": len(questions) - good,
    }


async def _ask_each(peer: Peer, questions: list[str]) -> list[str]:
    return [await peer.ask(prompt) for prompt in questions]


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        # In kilobytes, also from before this program took the place of the one that started it.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
