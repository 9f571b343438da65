"""Prometheus metrics, fed by the events of the core."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import struct
from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector

from .. import events
from . import metric_files

__all__ = ["exposition", "install"]

_logger = logging.getLogger(__name__)

# From an answer out of a cache to the longest deadline that makes sense behind a web server.
_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 20, 30, 60)

_READ_TIMES = 5

# Source: the vendor's documentation of `usage`. Reasoning is part of completion, hits and misses are of prompt.
_TOKENS = {
    "prompt": ("prompt_tokens",),
    "completion": ("completion_tokens",),
    "reasoning": ("completion_tokens_details", "reasoning_tokens"),
    "cache_hit": ("prompt_cache_hit_tokens",),
    "cache_miss": ("prompt_cache_miss_tokens",),
}


class _Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("deepseek_requests_total", "Calls that ended.", "method", "mode")
        self._errors = self._counter("deepseek_errors_total", "Calls that failed.", "method", "mode", "code")
        self._duration = self._histogram(
            "deepseek_duration_seconds",
            "From a call's start to its end, queue and back-off included.",
            "method",
            "mode",
        )
        self._waited = self._histogram(
            "deepseek_waited_seconds", "Time of a call in the queue and between attempts.", "method", "mode"
        )
        self._attempts = self._counter(
            "deepseek_attempts_total", "Runs of the client's method, by the error's code or ok.", "outcome"
        )
        self._retries = self._counter("deepseek_retries_total", "Attempts that were not a call's first.")
        self._tokens = self._counter("deepseek_tokens_total", "Tokens as the API counts them.", "kind")
        self._aborted = self._counter("deepseek_aborted_total", "Running calls that were ended.", "reason")
        self._rejected = self._counter("deepseek_pool_rejected_total", "Calls that found no place.")
        self._workers = self._gauge("deepseek_pool_workers", "Threads that calls may use.")
        self._busy = self._gauge("deepseek_pool_busy", "Calls that run in a thread of the pool.")
        self._queued = self._gauge("deepseek_pool_queued", "Calls that wait for a thread of the pool.")
        self._breaker = self._gauge("deepseek_breaker_state", "Circuit breakers that are open.")
        self._http = self._counter(
            "http_requests_total", "Requests that were answered.", "method", "route", "status"
        )
        self._http_duration = self._histogram(
            "http_request_duration_seconds", "From a request's arrival in the application.", "method", "route"
        )
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.CallFinished: self._call_finished,
            events.AttemptFinished: self._attempt_finished,
            events.CallAborted: lambda event: self._aborted.labels(event.reason).inc(),
            events.PoolChanged: self._pool_changed,
            events.BreakerChanged: lambda event: self._breaker.inc(1 if event.state == "open" else -1),
            events.RequestFinished: self._request_finished,
        }

    def record(self, event: Any) -> None:
        self._handlers[type(event)](event)

    def _call_finished(self, event: events.CallFinished) -> None:
        self._requests.labels(event.method, event.mode).inc()
        if event.error is not None:
            self._errors.labels(event.method, event.mode, event.error).inc()
        self._duration.labels(event.method, event.mode).observe(event.waited_s + event.ran_s)
        self._waited.labels(event.method, event.mode).observe(event.waited_s)
        if event.attempts > 1:
            self._retries.inc(event.attempts - 1)

    def _attempt_finished(self, event: events.AttemptFinished) -> None:
        self._attempts.labels(event.error or "ok").inc()
        for kind, path in _TOKENS.items():
            if tokens := _number_at(event.usage, path):
                self._tokens.labels(kind).inc(tokens)

    def _pool_changed(self, event: events.PoolChanged) -> None:
        for metric, change in (
            (self._workers, event.workers),
            (self._busy, event.busy),
            (self._queued, event.queued),
            (self._rejected, event.rejected),
        ):
            if change:
                metric.inc(change)

    def _request_finished(self, event: events.RequestFinished) -> None:
        self._http.labels(event.method, event.route, str(event.status)).inc()
        self._http_duration.labels(event.method, event.route).observe(event.took_s)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=_BUCKETS_S, registry=self.registry)


def _number_at(usage: dict[str, Any], path: tuple[str, ...]) -> float:
    """What the API counts under these names; 0 if it says nothing, or nonsense."""
    value: Any = usage
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if type(value) is int and value > 0 else 0


@functools.cache
def _metrics() -> _Metrics:
    if _is_shared():
        try:
            metric_files.number()
        except OSError as error:
            _logger.warning("PROMETHEUS_MULTIPROC_DIR cannot be used (%s): this process counts alone", error)
            values.ValueClass = values.MutexValue
        else:
            values.ValueClass = values.MultiProcessValue(metric_files.number)
    return _Metrics()


def install() -> None:
    """Counts every call of this process from now on. Idempotent; once per process, also before a fork."""
    _metrics()  # now, while one thread runs: two that made it at once would count apart
    events.subscribe(_record)


def _record(event: Any) -> None:
    _metrics().record(event)


def exposition() -> tuple[bytes, str]:
    """The metrics as Prometheus text and its content type.

    With PROMETHEUS_MULTIPROC_DIR set before this module was imported, the sum over all processes that share it.
    """
    if not _is_shared():
        return generate_latest(_metrics().registry), CONTENT_TYPE_LATEST
    metric_files.forget_the_dead()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    for _ in range(_READ_TIMES):
        # The library reads files that another process makes or removes at that moment as if they were whole.
        with contextlib.suppress(struct.error, RuntimeError, OSError):
            return generate_latest(registry), CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _is_shared() -> bool:
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR")) and values.ValueClass is not values.MutexValue
