"""What queueing theory says of a number of workers: arithmetic, no clock and no I/O."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Sequence

from ...queueing import NOTED_WAIT_SHARE, calls_at_a_time, enough_for
from .workload import Workload

__all__ = ["counts_to_try", "percentile", "typical_seed", "waits_s", "with_headroom", "workers_needed"]

_CALLS = 20_000
_SEED = 1
_MOST_WORKERS = 1000  # what LLM_MAX_WORKERS allows
_SEEDS = 100
_SEARCHED_CALLS = 60_000  # in all: a tenth of a second
_RATE_WEIGHT = 10  # a rate that is off by a tenth is as bad as one p95 of three that is off by a factor of e
_SLIGHT_S = 0.01  # shorter waits are as good as none


def waits_s(workers: int, arrivals_s: Sequence[float], durations_s: Sequence[float]) -> list[float]:
    """Returns how long each call waits for one of the workers, first come, first served.

    Args:
        arrivals_s: in their order.
        durations_s: of the same calls.
    """
    free_at = [0.0] * workers
    waits = []
    for arrival, duration in zip(arrivals_s, durations_s, strict=True):
        begins = max(arrival, free_at[0])
        waits.append(begins - arrival)
        heapq.heapreplace(free_at, begins + duration)
    return waits


def percentile(values: Sequence[float], percent: int) -> float:
    """Returns the percentile of at least one value, without interpolation."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def workers_needed(workload: Workload) -> int:
    """Returns the smallest number of workers for which the model's p95 of waiting is accepted, 1000 at most."""
    arrivals, durations = workload.arrivals_s(_CALLS, _SEED), workload.durations_s(_CALLS, _SEED)
    accepted_s = NOTED_WAIT_SHARE * workload.latency.p50_ms / 1000
    # Little's law: fewer workers than calls in flight on average, and the queue grows for ever.
    low = min(max(1, math.floor(calls_at_a_time(workload.rate, statistics.fmean(durations)))), _MOST_WORKERS)
    high = low
    while high < _MOST_WORKERS and percentile(waits_s(high, arrivals, durations), 95) >= accepted_s:
        low, high = high, min(2 * high, _MOST_WORKERS)
    while low < high:
        middle = (low + high) // 2
        if percentile(waits_s(middle, arrivals, durations), 95) < accepted_s:
            high = middle
        else:
            low = middle + 1
    return high


def with_headroom(workload: Workload) -> int:
    """Returns the number that the console recommends for this load, which leaves room for most moments."""
    return min(enough_for(calls_at_a_time(workload.rate, workload.latency.mean_ms / 1000)), _MOST_WORKERS)


def typical_seed(workload: Workload, calls: int, needed: int) -> int:
    """Returns the seed of so few calls that wait as many of them do.

    A measurement has time for some hundred calls. By chance these may come closer together, or take longer, than the
    load that they stand for, and want two workers more than it does.

    Args:
        needed: the workers with which the many do not wait.
    """
    counts = [max(1, needed - 2), max(1, needed - 1), needed]

    def waits_of(amount: int, seed: int) -> tuple[float, list[float]]:
        arrivals, durations = workload.arrivals_s(amount, seed), workload.durations_s(amount, seed)
        waits = [percentile(waits_s(count, arrivals, durations), 95) for count in counts]
        return amount / arrivals[-1], waits

    _, truth = waits_of(_CALLS, _SEED)

    def distance(seed: int) -> float:
        rate, waits = waits_of(calls, seed)
        off = (
            abs(math.log((few + _SLIGHT_S) / (many + _SLIGHT_S)))
            for few, many in zip(waits, truth, strict=True)
        )
        return sum(off) + _RATE_WEIGHT * abs(math.log(rate / workload.rate))

    return min(range(max(1, min(_SEEDS, _SEARCHED_CALLS // calls))), key=distance)


def counts_to_try(needed: int, spacious: int = 1) -> list[int]:
    """Returns the numbers of workers of a sweep, around the model's answer and densest there.

    Args:
        spacious: one more, which the console recommends.
    """
    around = range(max(1, needed - 2), min(needed + 3, _MOST_WORKERS + 1))
    further = {max(1, needed // 2), max(1, needed * 3 // 4), min(2 * needed, _MOST_WORKERS)}
    return sorted({*further, *around, max(spacious, needed)})
