"""Prometheus metrics, fed by the events of the core.

They are ours alone: nothing of prometheus_client that the application shares is touched, neither its default registry
nor where its own metrics keep their values.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from .. import errors, events
from ..fork_safe import ForkSafeLock
from . import metric_files
from .metric_values import Family, Values

__all__ = ["exposition", "exposition_of", "install"]

# From an answer out of a cache to the longest deadline that makes sense behind a web server.
_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 20, 30, 60)

# What a pool is sized by. The middle of a bucket is within a tenth of the truth; the bounds above are among these.
_FINE_BUCKETS_S = (
    *(0.01, 0.012, 0.0145, 0.0175, 0.021, 0.025, 0.03, 0.036, 0.043, 0.05, 0.06, 0.072, 0.085),
    *(0.1, 0.12, 0.145, 0.175, 0.21, 0.25, 0.3, 0.36, 0.43, 0.5, 0.6, 0.72, 0.85),
    *(1, 1.2, 1.4, 1.68, 2, 2.4, 2.9, 3.5, 4.2, 5, 6, 7.2, 8.5),
    *(10, 12, 13.5, 15, 17.5, 20, 24, 27, 30, 36, 43, 50, 60, 72, 85, 100, 120),
)

_READ_TIMES = 5

# Source: the vendor's documentation of `usage`. Reasoning is part of completion, hits and misses are of prompt.
_TOKENS = {
    "prompt": ("prompt_tokens",),
    "completion": ("completion_tokens",),
    "reasoning": ("completion_tokens_details", "reasoning_tokens"),
    "cache_hit": ("prompt_cache_hit_tokens",),
    "cache_miss": ("prompt_cache_miss_tokens",),
}

# Source: the vendor's documentation of `finish_reason`.
_FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls", "insufficient_system_resource", "other")
_METHODS, _MODES = ("chat", "parse"), ("async", "sync")
_SUBMITTED = ("accepted", "repeated", "overloaded", "queue_unavailable")
_FINISHED = ("completed", "failed", "cancelled", "dropped")
_REASONS = ("deadline", "cancelled", "closing")
_CODES = sorted({"cancelled", "unexpected"} | {
    kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DeepSeekError)
})  # fmt: skip

_lock = ForkSafeLock()
_of_process: _Metrics | None = None  # guarded by _lock


class _Metrics:
    """The metrics of one process."""

    def __init__(self, values: Values) -> None:
        self.pid = os.getpid()
        self.values = values
        self.families: list[Family] = []
        self._requests = self._counter("deepseek_requests_total", "Calls that ended.", "method", "mode")
        self._errors = self._counter("deepseek_errors_total", "Calls that failed.", "method", "mode", "code")
        self._swallowed = self._counter(
            "deepseek_swallowed_total",
            "Failed calls whose caller got a blank and no error.",
            "method",
            "code",
        )
        self._duration = self._histogram(
            "deepseek_duration_seconds",
            "From a call's start to its end, queue and back-off included.",
            "method",
            "mode",
        )
        self._waited = self._histogram(
            "deepseek_waited_seconds",
            "Time of a call in the queue and between attempts.",
            "method",
            "mode",
            bounds=_FINE_BUCKETS_S,
        )
        self._ran = self._histogram(
            "deepseek_ran_seconds", "Time of a call in a thread, all attempts.", bounds=_FINE_BUCKETS_S
        )
        self._first_chunk = self._histogram(
            "deepseek_first_chunk_seconds",
            "From a call's start to the first chunk of its stream.",
            "method",
            "mode",
        )
        self._attempts = self._counter(
            "deepseek_attempts_total", "Runs of the client's method, by the error's code or ok.", "outcome"
        )
        self._retries = self._counter("deepseek_retries_total", "Attempts that were not a call's first.")
        self._tokens = self._counter("deepseek_tokens_total", "Tokens as the API counts them.", "kind")
        self._finish = self._counter(
            "deepseek_finish_total", "Answers, by why the model ended them.", "reason"
        )
        self._aborted = self._counter("deepseek_aborted_total", "Running calls that were ended.", "reason")
        self._rejected = self._counter("deepseek_pool_rejected_total", "Calls that found no place.")
        self._workers = self._gauge("deepseek_pool_workers", "Threads that calls may use.")
        self._busy = self._gauge("deepseek_pool_busy", "Calls that run in a thread of the pool.")
        self._queued = self._gauge("deepseek_pool_queued", "Calls that wait for a thread of the pool.")
        self._breaker = self._gauge("deepseek_breaker_state", "Circuit breakers that are open.")
        self._submitted = self._counter(
            "deepseek_tasks_submitted_total", "Submissions, by what came of them.", "outcome"
        )
        self._finished = self._counter(
            "deepseek_tasks_finished_total", "Tasks that workers have ended.", "status"
        )
        self._requeued = self._counter("deepseek_tasks_requeued_total", "Lost tasks that were queued again.")
        self._account_limit = self._gauge(
            "deepseek_account_limit", "Calls in flight of the whole account, this server's part of the limit."
        )
        self._account_away = self._gauge(
            "deepseek_account_away",
            "Processes that keep to a share, cut off from the account's other processes.",
        )
        self._account_waited = self._counter(
            "deepseek_account_waited_seconds_total",
            "Time in which attempts waited for a place of the account.",
        )
        self._http = self._counter(
            "http_requests_total", "Requests that were answered.", "method", "route", "status"
        )
        self._http_duration = self._histogram(
            "http_request_duration_seconds", "From a request's arrival in the application.", "method", "route"
        )
        self._http_queued = self._histogram(
            "http_queued_seconds",
            "Time of a request in the kernel's and the server's queues, where it is known.",
        )
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.CallFinished: self._call_finished,
            events.AttemptFinished: self._attempt_finished,
            events.FailureSwallowed: lambda event: self._swallowed.add(event.method, event.code),
            events.CallAborted: lambda event: self._aborted.add(event.reason),
            events.PoolChanged: self._pool_changed,
            events.AccountChanged: self._account_changed,
            events.BreakerChanged: lambda event: self._breaker.add(amount=1 if event.state == "open" else -1),
            events.RequestFinished: self._request_finished,
            events.TaskSubmitted: lambda event: self._submitted.add(event.outcome),
            events.TaskFinished: lambda event: self._finished.add(event.status),
            events.TaskRequeued: lambda event: self._requeued.add(),
        }
        self._expose_what_is_known()

    def record(self, event: Any) -> None:
        self._handlers[type(event)](event)
        self.values.settle()

    def in_memory(self) -> list[Metric]:
        return [family.in_memory() for family in self.families]

    def _counter(self, name: str, text: str, *labels: str) -> Family:
        return self._known(Family(self.values, "counter", name, text, labels))

    def _gauge(self, name: str, text: str) -> Family:
        return self._known(Family(self.values, "gauge", name, text))

    def _histogram(self, name: str, text: str, *labels: str, bounds: Sequence[float] = _BUCKETS_S) -> Family:
        return self._known(Family(self.values, "histogram", name, text, labels, bounds))

    def _known(self, family: Family) -> Family:
        self.families.append(family)
        return family

    def _expose_what_is_known(self) -> None:
        """Shows 0 before the first count: rate() does not see a counter that begins with 1."""
        for family in (
            *(self._retries, self._rejected, self._ran, self._http_queued, self._requeued),
            *(self._workers, self._busy, self._queued, self._breaker),
            *(self._account_limit, self._account_away, self._account_waited),
        ):
            family.expose()
        for labels in product(_METHODS, _MODES):
            for family in (self._requests, self._duration, self._waited):
                family.expose(*labels)
            for code in _CODES:
                self._errors.expose(*labels, code)
        for labels in product(_METHODS, _CODES):
            self._swallowed.expose(*labels)
        for family, known in (
            (self._attempts, ("ok", *_CODES)),
            (self._aborted, _REASONS),
            (self._finish, _FINISH_REASONS),
            (self._tokens, tuple(_TOKENS)),
            (self._submitted, _SUBMITTED),
            (self._finished, _FINISHED),
        ):
            for label in known:
                family.expose(label)

    def _call_finished(self, event: events.CallFinished) -> None:
        self._requests.add(event.method, event.mode)
        if event.error is not None:
            self._errors.add(event.method, event.mode, event.error)
        self._duration.observe(event.waited_s + event.ran_s, event.method, event.mode)
        self._waited.observe(event.waited_s, event.method, event.mode)
        if event.attempts:
            self._ran.observe(event.ran_s)
        if event.first_chunk_s is not None:
            self._first_chunk.observe(event.first_chunk_s, event.method, event.mode)
        if event.attempts > 1:
            self._retries.add(amount=event.attempts - 1)
        if event.finish_reason:
            self._finish.add(event.finish_reason if event.finish_reason in _FINISH_REASONS else "other")

    def _attempt_finished(self, event: events.AttemptFinished) -> None:
        self._attempts.add(event.error or "ok")
        for kind, path in _TOKENS.items():
            if tokens := _number_at(event.usage, path):
                self._tokens.add(kind, amount=tokens)

    def _pool_changed(self, event: events.PoolChanged) -> None:
        for family, change in (
            (self._workers, event.workers),
            (self._busy, event.busy),
            (self._queued, event.queued),
            (self._rejected, event.rejected),
        ):
            if change:
                family.add(amount=change)

    def _account_changed(self, event: events.AccountChanged) -> None:
        for family, change in (
            (self._account_limit, event.limit),
            (self._account_away, event.away),
            (self._account_waited, event.waited_s),
        ):
            if change:
                family.add(amount=change)

    def _request_finished(self, event: events.RequestFinished) -> None:
        self._http.add(event.method, event.route, str(event.status))
        self._http_duration.observe(event.took_s, event.method, event.route)
        if event.queued_s is not None:
            self._http_queued.observe(event.queued_s)


def _number_at(usage: dict[str, Any], path: tuple[str, ...]) -> float:
    """What the API counts under these names; 0 if it says nothing, or nonsense."""
    value: Any = usage
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if type(value) is int and value > 0 else 0


def install() -> None:
    """Counts every call of this process from now on. Idempotent; once per process, also before a fork.

    Threads: any.
    """
    events.subscribe(_record)


def exposition() -> tuple[bytes, str]:
    """The metrics as Prometheus text and its content type: the sum over all processes of this server.

    Of a process that counts alone its own, beside those of the others if their files can be read.

    Threads: any.
    """
    with _lock:
        metrics = _metrics_locked()
        metrics.values.settle(look=True)
        where = metrics.values.directory
        if where is not None:
            _forget_the_dead_locked(where)
        parts = metrics.in_memory()
        if metrics.values.is_alone and where is not None:
            parts += _in_files(where)  # now: what moves into files in between would be in both
            where = None
    return _text([*parts, *(_in_files(where) if where is not None else ())])


def exposition_of(*directories: Path) -> tuple[bytes, str]:
    """The metrics of servers, for a process that counts nothing itself, e.g. while all workers are busy.

    Args:
        directories: what `metric_directory.directory()` is in a process of each server.

    Threads: any.
    """
    with _lock:
        for directory in directories:
            _forget_the_dead_locked(directory)
    return _text([*_at_zero(), *(metric for directory in directories for metric in _in_files(directory))])


def _record(event: Any) -> None:
    with _lock:
        _metrics_locked().record(event)


def _metrics_locked() -> _Metrics:
    """Those of this process; a forked child begins anew, with files of its own in the same directory."""
    global _of_process
    if _of_process is None:
        _of_process = _Metrics(Values())
    elif _of_process.pid != os.getpid():
        parents = _of_process.values
        _of_process = _Metrics(Values(parents.directory))
        parents.close()
    return _of_process


@atexit.register
def _close() -> None:
    with _lock:
        if _of_process is not None:
            _of_process.values.close()


def _forget_the_dead_locked(directory: Path) -> None:
    own = _of_process.values.files if _of_process is not None and _of_process.pid == os.getpid() else None
    with contextlib.suppress(OSError):  # it is gone
        is_here = own is not None and own.directory.samefile(directory)
        metric_files.forget_the_dead(directory, own if is_here else None)


@functools.cache
def _at_zero() -> list[Metric]:
    return _Metrics(Values()).in_memory()


def _in_files(directory: Path) -> list[Metric]:
    """What all processes of the server have counted; nothing if the directory is gone."""
    for attempt in range(_READ_TIMES):
        # The library reads files that another process removes at that moment as if they were there.
        with contextlib.suppress(*metric_files.UNUSABLE):
            files = metric_files.files_in(directory)
            if attempt == _READ_TIMES - 1:
                files = [file for file in files if metric_files.is_whole(file)]
            return list(MultiProcessCollector.merge(files))
    return []


class _Sum(Collector):
    """What several sources say together; the first one that names a metric gives its text."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        sums: dict[str, tuple[Metric, dict[Any, float]]] = {}
        for metric in self._metrics:
            if metric.name not in sums:
                sums[metric.name] = Metric(metric.name, metric.documentation, metric.type), {}
            totals = sums[metric.name][1]
            for sample in metric.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                totals[key] = totals.get(key, 0.0) + sample.value
        for metric, totals in sums.values():
            for (name, labels), total in totals.items():
                metric.add_sample(name, dict(labels), total)
            yield metric


def _text(metrics: Iterable[Metric]) -> tuple[bytes, str]:
    registry = CollectorRegistry()
    registry.register(_Sum(metrics))
    return generate_latest(registry), CONTENT_TYPE_LATEST
