"""What this project claims, each claim with the figure of this run and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .figures import Figures, Spread
from .plan import TASK_LATENCY_MS, TASK_THREADS

__all__ = ["claims_of"]

_LEGACY_CPU = 1 / 20
_HTTPX2_CPU = {"ours chat": 0.70, "ours chat_async": 0.95}
# Calls per second over theirs, by the calls that are under way.
_THREADS_TO_HTTPX2 = {50: 1.15, 100: 1.3, 200: 1.4}
_LOOP_TO_HTTPX2 = {200: 2.0, 500: 3.5}
_LOOP_TO_AIOHTTP = {100: 0.95, 200: 0.72, 500: 0.47}
_LOOP_MEMORY_WIDTH, _LOOP_MEMORY = 500, 0.5  # of aiohttp's
_WIDEST_CPU = 1.3  # of a call at W=1000, over that at W=50
_HTTPX_TIMES = 4
_AIOHTTP_SHARE = 0.95
_THREAD_MB = 16 * 1024 / 1e6
_ROUTE_SHARE = 0.4
_FREE_MS = 50
_CHUNK_US, _LOOP_MS = 5, 10
_SUBMIT_MS, _SUBMISSIONS, _SUBMIT_P99_MS = 3, 200, 100
_TASK_MS, _TASK_SHARE = 8, 0.8


def claims_of(figures: Figures) -> list[dict[str, Any]]:
    """Each as its sentence, the figure that was seen (a text) and `holds`; those that were not measured are absent."""
    found = [
        *_of_calls(figures),
        *_of_fan_out(figures),
        *_of_memory(figures),
        *_of_the_rest(figures),
        *_of_tasks(figures),
    ]
    return [{"claim": claim, "seen": seen, "holds": holds} for claim, seen, holds in found]


_Claim = tuple[str, str, bool]


def _at_least(what: str, ratio: Spread | None, limit: float) -> Iterator[_Claim]:
    if ratio is not None:
        yield f"{what}: at least {limit:g}", f"{ratio.median:.2f}", ratio.median >= limit


def _at_most(what: str, ratio: Spread | None, limit: float, unit: str = "") -> Iterator[_Claim]:
    if ratio is not None:
        yield f"{what}: at most {limit:g}{unit}", f"{ratio.median:.3g}{unit}", ratio.median <= limit


def _of_calls(figures: Figures) -> Iterator[_Claim]:
    for ours in ("ours chat", "ours chat_async"):
        for theirs, limit in (("legacy", _LEGACY_CPU), ("httpx2", _HTTPX2_CPU[ours])):
            ratio = figures.ratio("cpu_ms", "a", ours, theirs, 1)
            yield from _at_most(f"HTTPS CPU of a call, {ours} / {theirs}", ratio, limit)


def _of_fan_out(figures: Figures) -> Iterator[_Claim]:
    limits = {"AsyncOpenAI": 1.0, "httpx": _HTTPX_TIMES, "aiohttp": _AIOHTTP_SHARE}
    applies = {"httpx": lambda width: width >= 50, "aiohttp": lambda width: width <= 100}
    for theirs, limit in limits.items():
        for width in figures.widths("b"):
            if width >= 20 and applies.get(theirs, lambda width: True)(width):
                ratio = figures.ratio("calls_per_s", "b", "ours", theirs, width)
                yield from _at_least(f"calls per second at W={width}, ours / {theirs}", ratio, limit)
    for ours, theirs, by_width in (
        ("ours", "httpx2", _THREADS_TO_HTTPX2),
        ("ours loop", "httpx2", _LOOP_TO_HTTPX2),
        ("ours loop", "aiohttp", _LOOP_TO_AIOHTTP),
    ):
        for width, limit in by_width.items():
            ratio = figures.ratio("calls_per_s", "b", ours, theirs, width)
            yield from _at_least(f"calls per second at W={width}, {ours} / {theirs}", ratio, limit)
    for ours in ("ours", "ours loop"):
        wide, narrow = (figures.of("cpu_ms", "b", ours, width) for width in (1000, 50))
        if wide and narrow:
            times = wide.median / narrow.median
            claim = f"CPU of a call at W=1000 / at W=50, {ours}: at most {_WIDEST_CPU:g}"
            yield claim, f"{times:.2f}", times <= _WIDEST_CPU


def _of_memory(figures: Figures) -> Iterator[_Claim]:
    ratio = figures.ratio("peak_mb", "b", "ours loop", "aiohttp", _LOOP_MEMORY_WIDTH)
    yield from _at_most(f"peak memory at W={_LOOP_MEMORY_WIDTH}, ours loop / aiohttp", ratio, _LOOP_MEMORY)
    for width in figures.widths("b"):
        ours, theirs = (figures.of("peak_mb", "b", peer, width) for peer in ("ours", "httpx2"))
        if width >= 20 and ours and theirs:
            limit = theirs.median + width * _THREAD_MB
            claim = f"peak memory at W={width}: at most httpx2's and 16 KiB a thread, {limit:.1f} MB"
            yield claim, f"{ours.median:.1f} MB", ours.median <= limit


def _of_the_rest(figures: Figures) -> Iterator[_Claim]:
    kinds = ("sync view", "SharedLoop async view", "Flask async view")
    for time, name in (("wall time", "wall_us"), ("CPU", "cpu_us")):
        added = figures.ratio_above(name, "c", *kinds)
        yield from _at_most(f"{time} of an async route over a sync one, ours / Flask's", added, _ROUTE_SHARE)
    for scheme in ("https", "http"):
        late = figures.of("p99_ms", "e", scheme)
        yield from _at_most(f"deadline to thread free over {scheme}, p99", late, _FREE_MS, " ms")
    for peer in ("one stream", "20 streams"):
        chunk, delay = (figures.of(name, "streams", peer) for name in ("cpu_us", "longest_ms"))
        yield from _at_most(f"CPU of a chunk, {peer}", chunk, _CHUNK_US, " µs")
        yield from _at_most(f"longest delay of the event loop, {peer}", delay, _LOOP_MS, " ms")
    left = figures.of("p99_ms", "streams", "left early")
    yield from _at_most("a stream that is left to its server's knowing it, p99", left, _FREE_MS, " ms")
    ceiling = figures.of("calls_per_s", "f", "slow", 200)
    fans = [figures.of("calls_per_s", "b", peer, 200) for peer in figures.peers("b")]
    fastest = max((fan.median for fan in fans if fan), default=0)
    if ceiling and fastest:
        seen = f"{ceiling.median / fastest:.2f}"
        yield "the sandbox's ceiling / the fastest peer at W=200: above 1", seen, ceiling.median > fastest


def _of_tasks(figures: Figures) -> Iterator[_Claim]:
    submit = {name: figures.of(name, "tasks", "submit") for name in ("cpu_ms", "submissions_per_s", "p99_ms")}
    yield from _at_most("CPU of a submission", submit["cpu_ms"], _SUBMIT_MS, " ms")
    yield from _at_least("submissions per second", submit["submissions_per_s"], _SUBMISSIONS)
    yield from _at_most("a submission, p99", submit["p99_ms"], _SUBMIT_P99_MS, " ms")
    for workers in figures.widths("tasks"):
        cpu, done = (figures.of(name, "tasks", "work", workers) for name in ("cpu_ms", "tasks_per_s"))
        yield from _at_most(f"CPU of a task in {workers} workers", cpu, _TASK_MS, " ms")
        if done:
            share = done.median / (workers * TASK_THREADS / TASK_LATENCY_MS * 1000)
            what = f"tasks per second of {workers} workers / the ideal: at least {_TASK_SHARE:g}"
            yield what, f"{share:.2f}", share >= _TASK_SHARE
