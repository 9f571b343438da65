"""The run as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .arguments import PARTS
from .figures import Figures, Spread
from .plan import DRIPPING, LATENCY_MS, PER_WIDTH, TASK_CONNECTIONS, TASK_LATENCY_MS, TASK_THREADS
from .servers import BATCH, CONNECTIONS, THREADS, WORKERS

__all__ = ["spread_text", "table", "text_of"]

_SERVERS = {
    "sync, sync view": "gunicorn sync, sync view",
    "sync, async view": "gunicorn sync, async view",
    "gthread": f"gunicorn gthread, {THREADS} threads, async view",
    "gevent": "gunicorn gevent, USE_ASYNC_DEEPSEEK=0",
    "quart": "Quart, uvicorn, httpx2",
    "batch": f"gunicorn sync, batches of {BATCH}, LLM_MAX_WORKERS={BATCH}",
}
_CEILINGS = {"fast": "no latency", "slow": f"{LATENCY_MS} ms latency"}


def text_of(figures: Figures, machine: dict[str, Any]) -> str:
    """All tables of the parts that were measured."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"{machine['cores']} cores, Python {machine['python']}, {machine['system']}; {versions}.",
        "",
        "A cell is the median of the rounds, with the least and the most of them in brackets.",
    ]
    for part in PARTS:
        if figures.peers(part):
            lines += ["", f"## {PARTS[part][0].upper()}{PARTS[part][1:]}", "", *_OF_PART[part](figures)]
    unanswered = figures.unanswered()
    if unanswered:
        lines += ["", "Calls that failed (not counted above):", "", *(f"- {line}" for line in unanswered)]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first column to the left."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, marks, *rows)]


def spread_text(spread: Spread | None, digits: int = 0) -> str:
    """12 (11-14); a dash when there is none."""
    if spread is None:
        return "-"
    if spread.rounds == 1:
        return f"{spread.median:.{digits}f}"
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def _calls(figures: Figures) -> list[str]:
    rows = [
        [
            peer,
            spread_text(figures.of("cpu_ms", "a", peer, 1), 2),
            spread_text(figures.of("wall_ms", "a", peer, 1), 2),
            spread_text(figures.ratio("cpu_ms", "a", "ours chat_async", peer, 1), 3),
        ]
        for peer in figures.peers("a")
    ]
    return table(["", "CPU, ms a call", "wall, ms a call", "CPU, chat_async / this"], rows)


def _fan_out(figures: Figures) -> list[str]:
    widths, peers = figures.widths("b"), figures.peers("b")
    ideal = {width: width / LATENCY_MS * 1000 for width in widths}

    def rows(name: str, digits: int) -> Iterator[list[str]]:
        for peer in peers:
            yield [peer, *(spread_text(figures.of(name, "b", peer, width), digits) for width in widths)]

    def share(peer: str, width: int) -> str:
        spread = figures.of("calls_per_s", "b", peer, width)
        return "-" if spread is None else f"{spread.median / ideal[width]:.0%}"

    header = ["", *(f"W={width}" for width in widths)]
    shares = [[peer, *(share(peer, width) for width in widths)] for peer in peers]
    ratios = [
        [peer, *(spread_text(figures.ratio("calls_per_s", "b", "ours", peer, width), 2) for width in widths)]
        for peer in peers
        if peer != "ours"
    ]
    ideals = ["ideal", *(f"{ideal[width]:.0f}" for width in widths)]
    return [
        f"{PER_WIDTH} x W prompts, W at a time, latency {LATENCY_MS} ms, HTTPS; the connections are made meanwhile.",
        *["", "Calls per second:", "", *table(header, [*rows("calls_per_s", 0), ideals])],
        *["", "Share of the ideal, W / latency:", "", *table(header, shares)],
        *["", "Calls per second, ours / this (median of the rounds' ratios):", "", *table(header, ratios)],
        *["", "CPU, ms a call:", "", *table(header, list(rows("cpu_ms", 2)))],
        *["", "Peak memory of the process, MB:", "", *table(header, list(rows("peak_mb", 1)))],
    ]


def _routes(figures: Figures) -> list[str]:
    rows = [
        [
            peer,
            spread_text(figures.of("wall_us", "c", peer), 0),
            spread_text(figures.of("cpu_us", "c", peer), 0),
        ]
        for peer in figures.peers("c")
    ]
    return table(["", "wall, µs a request", "CPU, µs a request"], rows)


def _servers(figures: Figures) -> list[str]:
    rows = [
        [
            _SERVERS[peer],
            *(spread_text(figures.of(name, "d", peer)) for name in ("prompts_per_s", "p50_ms", "p99_ms")),
        ]
        for peer in figures.peers("d")
    ]
    return [
        f"{WORKERS} workers, {CONNECTIONS} connections ({2 * WORKERS} for batches), latency {LATENCY_MS} ms.",
        "",
        *table(["", "prompts per second", "p50 of a request, ms", "p99 of a request, ms"], rows),
    ]


def _deadlines(figures: Figures) -> list[str]:
    rows = [
        [peer, *(spread_text(figures.of(name, "e", peer), 1) for name in ("p50_ms", "p99_ms", "max_ms"))]
        for peer in figures.peers("e")
    ]
    return [
        f"{DRIPPING} replies that drip for ever, 20 at a time; the pool is looked at every 0.2 ms.",
        "The legacy client in a plain executor is not in the table: its thread is never free again.",
        "",
        *table(["", "p50, ms", "p99, ms", "max, ms"], rows),
    ]


def _ceiling(figures: Figures) -> list[str]:
    rows = [
        [f"{_CEILINGS[peer]}, {width} connections", spread_text(figures.of("calls_per_s", "f", peer, width))]
        for peer in figures.peers("f")
        for width in figures.widths("f")
        if figures.of("calls_per_s", "f", peer, width)
    ]
    return [
        "A bare load generator over TLS with connections that are kept; no peer can have more.",
        "",
        *table(["", "requests per second"], rows),
    ]


def _streams(figures: Figures) -> list[str]:
    rows = [
        [peer, *(spread_text(figures.of(name, "streams", peer), 1) for name in ("cpu_us", "longest_ms"))]
        for peer in figures.peers("streams")
        if peer != "left early"
    ]
    left = [
        spread_text(figures.of(name, "streams", "left early"), 1) for name in ("p50_ms", "p99_ms", "max_ms")
    ]
    return [
        "A generator that never waits, read on an event loop; its own CPU counts, too.",
        *["", *table(["", "CPU, µs a chunk", "longest delay of the loop, ms"], rows)],
        *["", "From leaving a silent server's stream to that server's knowing it:", ""],
        *table(["", "p50, ms", "p99, ms", "max, ms"], [["left early", *left]]),
    ]


def _tasks(figures: Figures) -> list[str]:
    web = [
        spread_text(figures.of(name, "tasks", "submit"), digits)
        for name, digits in (("submissions_per_s", 0), ("p50_ms", 0), ("p99_ms", 0), ("cpu_ms", 2))
    ]
    rows = []
    for workers in figures.widths("tasks"):
        done = figures.of("tasks_per_s", "tasks", "work", workers)
        if done:
            ideal = workers * TASK_THREADS / TASK_LATENCY_MS * 1000
            share = f"{done.median / ideal:.2f}"
            costs = [
                spread_text(figures.of(name, "tasks", "work", workers), digits)
                for name, digits in (("cpu_ms", 1), ("server_ms", 2))
            ]
            rows.append([str(workers), spread_text(done), f"{ideal:.0f}", share, *costs])
    return [
        f"{WORKERS} sync web workers, {TASK_CONNECTIONS} clients, a new connection each time, the worker full:",
        "",
        *table(["submissions per second", "p50, ms", "p99, ms", "CPU, ms each"], [web]),
        "",
        f"Workers of LLM_MAX_WORKERS={TASK_THREADS}, latency {TASK_LATENCY_MS} ms:",
        "",
        *table(["workers", "tasks per second", "ideal", "share", "CPU, ms a task", "the server's, ms"], rows),
    ]


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
