"""Prometheus metrics, fed by the events of the core."""

from __future__ import annotations

import functools
import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from .events import AttemptFinished, BreakerChanged, CallFinished, subscribe

__all__ = ["exposition", "install"]

# From an answer out of a cache to the longest deadline that makes sense behind a web server.
_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 20, 30, 60)


class _Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "deepseek_requests_total", "Calls that ended.", ["method", "mode"], registry=self.registry
        )
        self._errors = Counter(
            "deepseek_errors_total", "Calls that failed.", ["method", "mode", "code"], registry=self.registry
        )
        self._duration = Histogram(
            "deepseek_duration_seconds",
            "From a call's start to its end, queue included.",
            ["method", "mode"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )

        self._attempts = Counter(
            "deepseek_attempts_total",
            "Runs of the client's method, by the code of the error or ok.",
            ["outcome"],
            registry=self.registry,
        )
        self._retries = Counter(
            "deepseek_retries_total", "Attempts that were not a call's first.", registry=self.registry
        )
        self._breaker = Gauge(
            "deepseek_breaker_state",
            "Circuit breakers that are open.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def record(self, event: CallFinished | AttemptFinished | BreakerChanged) -> None:
        if isinstance(event, AttemptFinished):
            self._attempts.labels(event.error or "ok").inc()
        elif isinstance(event, BreakerChanged):
            self._breaker.inc(1 if event.state == "open" else -1)
        else:
            self._record_call(event)

    def _record_call(self, event: CallFinished) -> None:
        self._requests.labels(event.method, event.mode).inc()
        if event.error is not None:
            self._errors.labels(event.method, event.mode, event.error).inc()
        self._duration.labels(event.method, event.mode).observe(event.waited_s + event.ran_s)
        if event.attempts > 1:
            self._retries.inc(event.attempts - 1)


@functools.cache
def _metrics() -> _Metrics:
    return _Metrics()


def install() -> None:
    """Counts every call of this process from now on. Idempotent; once per process, also before a fork."""
    _metrics()  # now, while one thread runs: two that made it at once would count apart
    subscribe(_record)


def _record(event: CallFinished | AttemptFinished | BreakerChanged) -> None:
    _metrics().record(event)


def exposition() -> tuple[bytes, str]:
    """The metrics as Prometheus text and its content type.

    With PROMETHEUS_MULTIPROC_DIR set before this module was imported, the sum over all processes that share it.
    """
    registry = _metrics().registry
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST
