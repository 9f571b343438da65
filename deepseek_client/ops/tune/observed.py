"""What a running deployment's metrics say of its load."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from ...settings import is_loopback
from ..refusal import Refusal
from .workload import Latency, Workload

__all__ = ["Scrape", "observe", "workload_between"]

_RAN = "deepseek_ran_seconds"
_FEWEST_CALLS = 20
_TIMEOUT_S = 10.0

Scrape = Mapping[float, float]
"""Calls so far whose model took at most so many seconds, by that bound; infinity counts all."""


def observe(
    url: str, watch_s: float, processes: int, sleep: Callable[[float], None] = time.sleep
) -> Workload:
    """Reads the metrics twice and returns the load of one process between.

    Args:
        url: of the metrics page.
        watch_s: how long to look.
        processes: that share the load.

    Raises:
        Refusal: the page cannot be read, holds no such metrics, or saw too few calls.
    """
    if not re.match("https?://.", url):
        need = "need an address such as http://127.0.0.1:5000/metrics"
        raise Refusal(f"--from-metrics {url!r}: {need}", exit_code=2)
    before, began = _scrape(url), time.monotonic()
    sleep(watch_s)
    after, ended = _scrape(url), time.monotonic()
    return workload_between(before, after, ended - began, processes)


def workload_between(before: Scrape, after: Scrape, seconds: float, processes: int) -> Workload:
    """The load of one process that explains what was counted between two scrapes.

    Raises:
        Refusal: there were too few calls to tell.
    """
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    calls = counts.get(math.inf, 0.0)
    if calls < _FEWEST_CALLS:
        raise Refusal(
            f"{calls:.0f} calls ended in {seconds:.0f} s: need at least {_FEWEST_CALLS} (--watch SECONDS looks longer)"
        )
    p50_ms, p95_ms = (1000 * _quantile(counts, calls * share) for share in (0.5, 0.95))
    return Workload(calls / seconds / processes, Latency(p50_ms, max(p50_ms, p95_ms)))


def _scrape(url: str) -> Scrape:
    try:
        is_here = is_loopback(urlsplit(url).hostname or "")
        # A proxy of the environment has a loopback of its own.
        proxies = urllib.request.ProxyHandler({} if is_here else None)
        with urllib.request.build_opener(proxies).open(url, timeout=_TIMEOUT_S) as page:
            text = page.read().decode()
        counts: dict[float, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"{_RAN}_bucket":
                    counts[float(sample.labels["le"])] += sample.value
    except (OSError, ValueError) as error:
        raise Refusal(f"cannot read the metrics at {url}: {error}") from None
    if not counts:
        raise Refusal(
            f"the page at {url} has no {_RAN}: need the metrics of an application with DeepSeek(app)"
        )
    return counts


def _quantile(counts: Mapping[float, float], rank: float) -> float:
    """The value at a rank, as Prometheus's histogram_quantile estimates it: evenly spread within a bucket."""
    low, below = 0.0, 0.0
    for bound, count in counts.items():
        if count >= rank:
            if bound == math.inf:
                break
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low
