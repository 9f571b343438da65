"""What a load needs, and what stands in its way: arithmetic alone, on numbers that somebody else has measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from deepseek_client.queueing import NOTED_WAIT_SHARE, calls_at_a_time, enough_for

__all__ = ["Load", "Sizing", "size"]

_FEWEST_CALLS = 20
_RATE_LIMITED_SHARE = 0.02  # of the attempts: more than a retry hides
_REFUSED_SHARE = 0.005
_SHORTEST_WAIT_S = 0.05
_BUSY_SHARE = 0.8
_IDLE_SHARE = 0.5


@dataclass(frozen=True)
class Load:
    """What was measured over some time; sums over all processes.

    Attributes:
        seconds: how long.
        arrived: calls that came, those included that were refused or are not done.
        refused: calls that found no place.
        ran: calls that had a thread and ended.
        ran_s: seconds in a thread, of all of them together.
        ran_p95_s: 95 % of them ran no longer.
        waited_s: mean wait of a call for a thread.
        attempts, rate_limited: attempts that ended, and those among them that the API refused for their number (429).
        account_waited_s: mean wait of an attempt for a place in the account's limit (LLM_ACCOUNT_LIMIT).
        processes: worker processes that make calls.
        workers: LLM_MAX_WORKERS, of one process.
        peak: the most calls that one process had, running and waiting; when it is between two looks it is not seen.
        http_busy: requests that gunicorn's workers had at a time, on average, and those that joined its own queue.
        http_slots: requests that they can have at a time; 0 if that is not known.
        backlog: requests in gunicorn's own queue, on average; 0 if that is not known.

    Threads: immutable.
    """

    seconds: float
    arrived: float
    refused: float
    ran: float
    ran_s: float
    ran_p95_s: float
    waited_s: float
    attempts: float
    rate_limited: float
    processes: int
    workers: int
    account_waited_s: float = 0.0
    peak: float = 0.0
    http_busy: float = 0.0
    http_slots: int = 0
    backlog: float = 0.0


@dataclass(frozen=True)
class Sizing:
    """What a load needs, and what to do.

    Attributes:
        rate: calls that arrive per second.
        ran_mean_s, ran_p95_s: seconds that a call runs, on average, and 95 % of them at most.
        waited_s: mean wait of a call for a thread.
        in_flight: calls that would run at a time if none had to wait, on average: Little's law.
        needed: workers of each process that are enough for them in 99 % of all moments.
        workers: what each process has now.
        idle_share: how much of the pools' time no call ran, from 0 to 1.
        account_waited_s: mean wait of an attempt for a place in the account's limit.
        verdict: "no_pool", "too_few_calls", "account_limit" (the API refuses), "account_full" (ours holds calls up),
            "too_small", "server_limit", "too_large" or "fits".
        values: the numbers of the verdict's sentence.

    Threads: immutable.
    """

    rate: float
    ran_mean_s: float
    ran_p95_s: float
    waited_s: float
    in_flight: float
    needed: int
    workers: int
    idle_share: float
    account_waited_s: float
    verdict: str
    values: dict[str, float] = field(default_factory=dict)


def size(load: Load) -> Sizing:
    """Returns what the load needs beside what it has, and one verdict: the first thing that stands in its way."""
    processes = max(1, load.processes)
    rate = load.arrived / load.seconds if load.seconds else 0.0
    ran_mean_s = load.ran_s / load.ran if load.ran else 0.0
    in_flight = calls_at_a_time(rate, ran_mean_s)
    needed = enough_for(in_flight / processes)
    busy = load.ran_s / load.seconds if load.seconds else 0.0
    slots = load.workers * processes
    idle_share = min(1.0, max(0.0, 1 - busy / slots)) if slots else 0.0
    verdict, values = _verdict(load, needed, idle_share, ran_mean_s)
    return Sizing(
        rate=rate,
        ran_mean_s=ran_mean_s,
        ran_p95_s=load.ran_p95_s,
        waited_s=load.waited_s,
        in_flight=in_flight,
        needed=int(values.get("needed", needed)),
        workers=load.workers,
        idle_share=idle_share,
        account_waited_s=load.account_waited_s,
        verdict=verdict,
        values=values,
    )


def _verdict(load: Load, needed: int, idle_share: float, ran_mean_s: float) -> tuple[str, dict[str, float]]:
    if not load.workers:
        return "no_pool", {}
    if load.arrived < _FEWEST_CALLS:
        return "too_few_calls", {"calls": load.arrived, "fewest": _FEWEST_CALLS}
    if load.rate_limited > _RATE_LIMITED_SHARE * load.attempts:
        # More workers would be refused more often.
        return "account_limit", {"percent": 100 * load.rate_limited / load.attempts}
    if load.account_waited_s > _notable_wait_s(ran_mean_s):
        return "account_full", {}
    if _is_too_small(load, ran_mean_s):
        if needed <= load.workers:  # calls come in bursts, which the mean does not show
            needed = max(load.workers + 1, math.ceil(load.peak))
        return "too_small", {"waited_s": load.waited_s, "refused": load.refused, "needed": needed}
    if _is_server_full(load) and idle_share > 1 - _BUSY_SHARE:
        processes = max(1, load.processes)
        threads = max(enough_for(load.http_busy / processes), load.http_slots // processes + 1)
        return "server_limit", {
            "backlog": load.backlog,
            "slots": load.http_slots,
            "idle_percent": 100 * idle_share,
            "threads": threads,
            "needed": max(needed, threads),
        }
    if idle_share > _IDLE_SHARE and load.workers >= 2 * needed:
        return "too_large", {"idle_percent": 100 * idle_share, "needed": needed}
    return "fits", {"busy_percent": 100 * (1 - idle_share), "waited_s": load.waited_s}


def _is_too_small(load: Load, ran_mean_s: float) -> bool:
    return load.waited_s > _notable_wait_s(ran_mean_s) or load.refused > _REFUSED_SHARE * load.arrived


def _notable_wait_s(ran_mean_s: float) -> float:
    return max(_SHORTEST_WAIT_S, NOTED_WAIT_SHARE * ran_mean_s)


def _is_server_full(load: Load) -> bool:
    """Whether requests wait for gunicorn's workers, or all of those are taken."""
    return load.backlog >= 1 or 0 < _BUSY_SHARE * load.http_slots < load.http_busy
