"""What is measured and how often: the units of a run, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "DRIPPING",
    "FULL",
    "LATENCY_MS",
    "PER_WIDTH",
    "QUICK",
    "TASK_CONNECTIONS",
    "TASK_LATENCY_MS",
    "TASK_THREADS",
    "TASK_WORKERS",
    "Scale",
    "units_of",
]

LATENCY_MS = 100
TASK_LATENCY_MS = 500
TASK_WORKERS = (1, 2, 4)
TASK_CONNECTIONS = 10
TASK_THREADS = 10
"""LLM_MAX_WORKERS of each of them."""
PER_WIDTH = 6
"""Fan-out prompts for each call that may be under way."""
DRIPPING = 200
"""Replies that never end, for each scheme."""

_CALLERS = ["legacy", "ours chat", "ours chat_async", "httpx2", "httpx", "aiohttp", "AsyncOpenAI"]
_FANS = ["ours", "ours loop", "ours loop, uvloop", "httpx2", "aiohttp", "AsyncOpenAI"]
# A call of these costs so much CPU that they take most of a run: they have fewer rounds, and in --quick no wide fans.
_SLOW_FANS = ["legacy executor", "legacy to_thread", "httpx"]
_ROUTES = ["sync view", "Flask async view", "SharedLoop async view"]
_STREAMS = {"one stream": 200_000, "20 streams": 200_000, "a hop for each chunk": 4_000, "left early": 100}
_SERVERS = ["sync, sync view", "sync, async view", "gthread", "gevent", "quart", "batch"]


@dataclass(frozen=True)
class Scale:
    """How much of everything; `calls` and `requests` are those of a unit that is not slow."""

    name: str
    widths: tuple[int, ...]
    slow_widths: tuple[int, ...]
    rounds: int
    slow_rounds: int
    calls: int
    legacy_calls: int
    route_chunks: int
    requests: int
    slow_requests: int
    batches: int
    server_rounds: int
    drip_rounds: int
    ceiling_requests: int
    task_calls: int
    submissions: int


FULL = Scale(
    name="full",
    widths=(5, 20, 50, 100, 200, 500, 1000),
    slow_widths=(5, 20, 50, 100, 200),
    rounds=5,
    slow_rounds=3,
    calls=400,
    legacy_calls=60,
    route_chunks=30,
    requests=1500,
    slow_requests=100,
    batches=20,
    server_rounds=3,
    drip_rounds=3,
    ceiling_requests=4000,
    task_calls=20,
    submissions=3000,
)
QUICK = Scale(
    name="quick",
    widths=(5, 20, 50, 200),
    slow_widths=(5, 20, 50),
    rounds=2,
    slow_rounds=1,
    calls=150,
    legacy_calls=30,
    route_chunks=10,
    requests=400,
    slow_requests=40,
    batches=8,
    server_rounds=1,
    drip_rounds=1,
    ceiling_requests=1500,
    task_calls=8,
    submissions=1000,
)


def units_of(parts: tuple[str, ...], scale: Scale) -> Iterator[dict[str, Any]]:
    """Every unit as a dictionary: its part, peer, width and round, and what its module needs to know.

    A round runs each peer once before the next round does, from another peer on each time: what the machine does
    meanwhile hits all of them.
    """
    for part in parts:
        yield from _OF_PART[part](scale)


def _rotated(peers: list[str], by: int) -> list[str]:
    by %= len(peers)
    return peers[by:] + peers[:by]


def _calls(scale: Scale) -> Iterator[dict[str, Any]]:
    for turn in range(scale.rounds):
        for peer in _rotated(_CALLERS, turn):
            count = scale.legacy_calls if peer == "legacy" else scale.calls
            yield {"part": "a", "peer": peer, "round": turn, "upstream": "fast", "width": 1, "count": count}


def _fan_out(scale: Scale) -> Iterator[dict[str, Any]]:
    for turn in range(scale.rounds):
        for width in scale.widths:
            is_short = turn >= scale.slow_rounds or width not in scale.slow_widths
            for peer in _rotated(_FANS if is_short else _FANS + _SLOW_FANS, turn):
                count = PER_WIDTH * width
                yield {
                    "part": "b",
                    "peer": peer,
                    "round": turn,
                    "upstream": "slow",
                    "width": width,
                    "count": count,
                }


def _routes(scale: Scale) -> Iterator[dict[str, Any]]:
    for turn in range(scale.rounds):
        for peer in _rotated(_ROUTES, turn):
            yield {"part": "c", "peer": peer, "round": turn, "count": scale.route_chunks}


def _servers(scale: Scale) -> Iterator[dict[str, Any]]:
    counts = {
        "sync, sync view": scale.slow_requests,
        "sync, async view": scale.slow_requests,
        "batch": scale.batches,
    }
    for turn in range(scale.server_rounds):
        for peer in _rotated(_SERVERS, turn):
            count = counts.get(peer, scale.requests)
            yield {"part": "d", "peer": peer, "round": turn, "upstream": "slow", "count": count}


def _deadlines(scale: Scale) -> Iterator[dict[str, Any]]:
    for turn in range(scale.drip_rounds):
        for scheme, upstream in (("https", "fast"), ("http", "plain")):
            yield {"part": "e", "peer": scheme, "round": turn, "upstream": upstream, "count": DRIPPING}


def _ceiling(scale: Scale) -> Iterator[dict[str, Any]]:
    for turn in range(scale.rounds):
        for upstream, width in (("fast", 16), ("slow", 200)):
            count = scale.ceiling_requests
            yield {
                "part": "f",
                "peer": upstream,
                "round": turn,
                "upstream": upstream,
                "width": width,
                "count": count,
            }


def _streams(scale: Scale) -> Iterator[dict[str, Any]]:
    for turn in range(scale.drip_rounds):
        for peer in _rotated([*_STREAMS], turn):
            yield {"part": "streams", "peer": peer, "round": turn, "count": _STREAMS[peer]}


def _tasks(scale: Scale) -> Iterator[dict[str, Any]]:
    common = {"part": "tasks", "upstream": "patient"}
    for turn in range(scale.server_rounds):
        yield {**common, "peer": "submit", "round": turn, "count": scale.submissions}
        for workers in TASK_WORKERS:
            count = scale.task_calls * TASK_THREADS * workers
            yield {**common, "peer": "work", "round": turn, "width": workers, "count": count}


_OF_PART = {
    "a": _calls,
    "b": _fan_out,
    "c": _routes,
    "d": _servers,
    "e": _deadlines,
    "f": _ceiling,
    "streams": _streams,
    "tasks": _tasks,
}
