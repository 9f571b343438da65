"""Whether the worker process is at the end what it was after the first stretch, and whether all answers were right."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from .answers import CODES, HUNG_UP, OK
from .plan import THREADS, WORKERS
from .soaking import Rest

__all__ = ["MEMORY_BYTES", "Row", "judge", "seen_from_bytes"]

MEMORY_BYTES = 10 * 1024 * 1024
"""By how much memory may grow. A run without a leak grew by 3 MiB in 2 minutes, by 6 MiB in 35, with 1 byte a request
in the second half of those, and with no more Python objects than before: caches fill (regular expressions, label sets),
and Python gives memory back in arenas of 1 MiB only, those in which nothing is left. The limit does not grow with the
run, so a longer one sees a smaller leak."""

_SLOPE_BYTES = 512
"""For each request, in the second half of a run, when caches are full: half of the leak that must be found."""

_SLOPE_NOISE_BYTES = 2 * 1024 * 1024
"""By how much memory may grow there all the same: in a run of a minute the caches still fill."""

_SLOPE_RESTS = 3

_LATE_THREADS = 3  # that a process starts once, when it first needs them, such as a watchdog
_DESCRIPTORS = 2
"""What is opened once, at a rare event, such as the file of a metric that had no value before."""

_CONNECTIONS = THREADS + WORKERS
"""Upstream connections are kept for the next call, as many as there ever were calls at once: one in each thread of the
web server (the sync routes) and in each of the pool."""

_OK_SHARE = 0.1
"""Of all requests; a server that refuses everything leaks nothing."""


class Row(NamedTuple):
    """One figure of the table; `first` is blank where there is nothing to compare with."""

    figure: str
    first: str
    last: str
    allowed: str
    is_fine: bool


def judge(rests: Sequence[Rest], outcomes: Counter[str], tracebacks: int, exit_code: int) -> list[Row]:
    """The verdict, figure by figure.

    Args:
        rests: at least two; the first is what the last is compared with.
    """
    return [*_process_rows(rests), *_request_rows(rests, outcomes, tracebacks, exit_code)]


def seen_from_bytes(rests: Sequence[Rest]) -> float:
    """The least leak for each request that the run would have shown."""
    requests = rests[-1].sent - rests[0].sent
    return min(MEMORY_BYTES / max(1, requests), _allowed_slope(_second_half(rests)))


def _process_rows(rests: Sequence[Rest]) -> list[Row]:
    first, last = rests[0], rests[-1]
    rows = [
        _at_most("threads", first.sample.threads, last.sample.threads, first.sample.threads + _LATE_THREADS),
        _at_most(
            "descriptors, upstream connections apart",
            first.sample.descriptors,
            last.sample.descriptors,
            first.sample.descriptors + _DESCRIPTORS,
        ),
        _at_most(
            "upstream connections kept", first.sample.connections, last.sample.connections, _CONNECTIONS
        ),
        _memory_row(first, last),
        *_slope_rows(rests),
    ]
    for figure, name in (("slots taken", "slots"), ("requests in flight upstream", "in_flight")):
        values = [getattr(rest, name) for rest in rests]
        rows.append(Row(figure, str(values[0]), str(values[-1]), "0 at every rest", not any(values)))
    pids = {rest.pid for rest in rests}
    rows.append(Row("worker process", str(first.pid), str(last.pid), "the same", len(pids) == 1))
    return rows


def _request_rows(
    rests: Sequence[Rest], outcomes: Counter[str], tracebacks: int, exit_code: int
) -> list[Row]:
    unanswered = rests[-1].unanswered
    strange = sum(count for name, count in outcomes.items() if name not in {OK, HUNG_UP, *CODES})
    share = outcomes[OK] / max(1, sum(outcomes.values()))
    return [
        Row("requests sent, without an outcome", "", str(unanswered), "0", unanswered == 0),
        Row("answers that are none of the contract", "", str(strange), "0", strange == 0),
        Row("requests answered 200", "", f"{share:.0%}", f"at least {_OK_SHARE:.0%}", share >= _OK_SHARE),
        Row("tracebacks in the log", "", str(tracebacks), "0", tracebacks == 0),
        Row("exit code after SIGTERM", "", str(exit_code), "0", exit_code == 0),
    ]


def _at_most(figure: str, first: int, last: int, allowed: int) -> Row:
    return Row(figure, str(first), str(last), f"at most {allowed}", last <= allowed)


def _memory_row(first: Rest, last: Rest) -> Row:
    before, after = first.sample.memory_bytes, last.sample.memory_bytes
    limit = before + MEMORY_BYTES
    return Row("memory, MiB", _mib(before), _mib(after), f"at most {_mib(limit)}", after <= limit)


def _slope_rows(rests: Sequence[Rest]) -> list[Row]:
    """How memory grows in the second half; nothing for a run that is too short to say."""
    half = _second_half(rests)
    if len(half) < _SLOPE_RESTS:
        return []
    slope, allowed = _slope(half), _allowed_slope(half)
    figure = "memory growth in the second half, bytes a request"
    return [Row(figure, "", f"{slope:.0f}", f"at most {allowed:.0f}", slope <= allowed)]


def _second_half(rests: Sequence[Rest]) -> Sequence[Rest]:
    middle = (rests[0].sent + rests[-1].sent) / 2
    return [rest for rest in rests if rest.sent >= middle]


def _slope(rests: Sequence[Rest]) -> float:
    """Theil and Sen's: the median of the slopes between any two, which one odd rest does not move."""
    step = max(1, len(rests) // 60)  # half a day has 720, which are a quarter of a million pairs
    pairs = combinations(rests[::step], 2)
    return statistics.median(
        (late.sample.memory_bytes - early.sample.memory_bytes) / max(1, late.sent - early.sent)
        for early, late in pairs
    )


def _allowed_slope(rests: Sequence[Rest]) -> float:
    if len(rests) < _SLOPE_RESTS:
        return float("inf")
    return max(_SLOPE_BYTES, _SLOPE_NOISE_BYTES / max(1, rests[-1].sent - rests[0].sent))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024 / 1024:.1f}"
