"""One look at the workers: what they have counted until now, brought into the form that the console calculates with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from deepseek_client.telemetry.metric_reading import Process, Reading
from deepseek_client.telemetry.testimony import Testimony

from .histograms import EMPTY, Histogram, histogram_of

__all__ = ["Sample", "Worker", "sample_of"]

_REFUSALS = ("overloaded", "circuit_open", "closing")
_Rows = Mapping[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True)
class Worker:
    """One process that makes calls.

    Attributes:
        pid: the process; 0 where the system does not tell.
        mode: "async", "sync" or "mixed"; "" for one that has not testified.
        engine: what runs its calls.
        since: when it said so.
        threads: its LLM_MAX_WORKERS; 0 before its first call.
        busy, queued: calls that run, and that wait.
        breakers: its circuit breakers that are open.
    """

    pid: int
    mode: str = ""
    engine: str = ""
    since: str = ""
    threads: int = 0
    busy: int = 0
    queued: int = 0
    breakers: int = 0


@dataclass(frozen=True)
class Sample:
    """What the workers had counted at one moment; counters only rise while `server` is the same.

    Attributes:
        at: the moment, in seconds since 1970.
        server: names what was read; () when there was nothing to read.
        workers: the processes that live.
        backlog: requests in gunicorn's own queue; None if that is not known.
        ended: calls, by "ok", "failed" or "refused".
        attempts, rate_limited, retries: attempts; those refused for their number; those that were not the first.
        account_waited_s: seconds in which attempts waited for a place in the account's limit.
        waited, ran, first_chunk, http_queued: seconds of calls, and of requests in gunicorn's own queue.
        http_s: seconds of all requests together.
        http_requests: requests that were answered.
        tokens, finish: tokens by kind, answers by why they ended.
    """

    at: float
    server: tuple[str, ...] = ()
    workers: tuple[Worker, ...] = ()
    backlog: int | None = None
    ended: Mapping[str, float] = field(default_factory=lambda: {"ok": 0.0, "failed": 0.0, "refused": 0.0})
    attempts: float = 0.0
    rate_limited: float = 0.0
    retries: float = 0.0
    account_waited_s: float = 0.0
    waited: Histogram = EMPTY
    ran: Histogram = EMPTY
    first_chunk: Histogram = EMPTY
    http_queued: Histogram = EMPTY
    http_s: float = 0.0
    http_requests: float = 0.0
    tokens: Mapping[str, float] = field(default_factory=dict)
    finish: Mapping[str, float] = field(default_factory=dict)

    # Kept once they are known: each is asked for again with each look at the page.

    @cached_property
    def total(self) -> float:
        """Calls that ended, however."""
        return sum(self.ended.values())

    @cached_property
    def peak(self) -> int:
        """The most calls that one process has, running and waiting."""
        return max((worker.busy + worker.queued for worker in self.workers), default=0)

    @cached_property
    def busy(self) -> int:
        """Calls that run."""
        return sum(worker.busy for worker in self.workers)

    @cached_property
    def queued(self) -> int:
        """Calls that wait for a thread."""
        return sum(worker.queued for worker in self.workers)

    @cached_property
    def threads(self) -> int:
        """Threads that calls may use."""
        return sum(worker.threads for worker in self.workers)


def sample_of(
    at: float,
    server: tuple[str, ...],
    reading: Reading,
    testimonies: Sequence[Testimony],
    backlog: int | None,
) -> Sample:
    """Returns what was read at a moment as a sample."""
    rows: dict[str, list[tuple[dict[str, str], float]]] = {}
    for (name, labels), value in reading.totals.items():
        rows.setdefault(name, []).append((dict(labels), value))
    errors = _by(rows, "deepseek_errors_total", "code")
    refused = sum(errors.get(code, 0.0) for code in _REFUSALS)
    failed = sum(errors.values()) - refused
    attempts = _by(rows, "deepseek_attempts_total", "outcome")
    return Sample(
        at=at,
        server=server,
        workers=_workers(reading.processes, testimonies),
        backlog=backlog,
        ended={
            "ok": max(0.0, _total(rows, "deepseek_requests_total") - failed - refused),
            "failed": failed,
            "refused": refused,
        },
        attempts=sum(attempts.values()),
        rate_limited=attempts.get("rate_limited", 0.0),
        account_waited_s=_total(rows, "deepseek_account_waited_seconds_total"),
        retries=_total(rows, "deepseek_retries_total"),
        waited=_histogram(rows, "deepseek_waited_seconds"),
        ran=_histogram(rows, "deepseek_ran_seconds"),
        first_chunk=_histogram(rows, "deepseek_first_chunk_seconds"),
        http_queued=_histogram(rows, "http_queued_seconds"),
        http_s=_total(rows, "http_request_duration_seconds_sum"),
        http_requests=_total(rows, "http_requests_total"),
        tokens=_by(rows, "deepseek_tokens_total", "kind"),
        finish=_by(rows, "deepseek_finish_total", "reason"),
    )


def _total(rows: _Rows, name: str) -> float:
    return sum(value for _, value in rows.get(name, ()))


def _by(rows: _Rows, name: str, label: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for labels, value in rows.get(name, ()):
        key = labels.get(label, "")
        sums[key] = sums.get(key, 0.0) + value
    return sums


def _histogram(rows: _Rows, name: str) -> Histogram:
    buckets = [(labels["le"], value) for labels, value in rows.get(f"{name}_bucket", ())]
    return histogram_of(buckets, _total(rows, f"{name}_sum")) if buckets else EMPTY


def _workers(processes: Sequence[Process], testimonies: Sequence[Testimony]) -> tuple[Worker, ...]:
    gauges = {process.pid: process.gauges for process in processes if process.pid}
    said = {testimony.pid: testimony for testimony in testimonies}
    found = [_worker(pid, gauges.get(pid, {}), said.get(pid)) for pid in sorted({*gauges, *said})]
    return (*found, *(_worker(0, process.gauges, None) for process in processes if not process.pid))


def _worker(pid: int, gauges: Mapping[str, float], said: Testimony | None) -> Worker:
    return Worker(
        pid=pid,
        mode=said.mode if said else "",
        engine=said.engine if said else "",
        since=said.since if said else "",
        threads=int(gauges.get("deepseek_pool_workers", 0)),
        busy=int(gauges.get("deepseek_pool_busy", 0)),
        queued=int(gauges.get("deepseek_pool_queued", 0)),
        breakers=int(gauges.get("deepseek_breaker_state", 0)),
    )
