"""What happened between two samples: the points of the charts, and the load that the sizing is made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .histograms import Histogram
from .sample import Sample
from .sizing import Load

__all__ = ["POINT", "load_between", "point_of", "start_of_load"]

POINT = (
    *("at", "ok", "failed", "refused", "waited_p50", "waited_p95", "ran_p50", "ran_p95"),
    *(
        "first_p50",
        "first_p95",
        "prompt",
        "completion",
        "stop",
        "length",
        "filter",
        "other",
        "busy",
        "queued",
    ),
)
"""The names of a point's numbers, in their order; None is a gap."""

_RATE_OVER_S = 5.0
_QUANTILES_OVER_S = 10.0
_GROWTH_SHARE = 0.1


def point_of(samples: Sequence[Sample]) -> list[float | None]:
    """Returns the newest sample's point: rates of the last five seconds, quantiles of the last ten."""
    now = samples[-1]
    before = _base(samples, _RATE_OVER_S)
    if before is None or not now.workers:
        return [round(now.at, 1), *[None] * (len(POINT) - 1)]
    seconds = now.at - before.at
    ended, tokens, finish = (
        {name: _rise(new, old, name) / seconds for name in new}
        for new, old in ((now.ended, before.ended), (now.tokens, before.tokens), (now.finish, before.finish))
    )
    known = ("stop", "length", "content_filter")
    base = _base(samples, _QUANTILES_OVER_S) or before
    numbers = [
        *(ended["ok"], ended["failed"], ended["refused"]),
        *_quantiles(now.waited, base.waited),
        *_quantiles(now.ran, base.ran),
        *_quantiles(now.first_chunk, base.first_chunk),
        *(tokens.get(kind, 0.0) for kind in ("prompt", "completion")),
        *(finish.get(reason, 0.0) for reason in known),
        sum(rate for reason, rate in finish.items() if reason not in known),
        *(now.busy, now.queued),
    ]
    return [round(now.at, 1), *(None if number is None else round(number, 4) for number in numbers)]


def start_of_load(samples: Sequence[Sample], seconds: float) -> int:
    """Returns the place of the sample that a window of so many seconds begins with.

    It is of the newest one's server, and no call had begun before it: an idle beginning would hide the load.
    """
    now = samples[-1]
    place = len(samples) - 1
    while place > 0 and _are_of_one_server(samples[place - 1], now):
        place -= 1
    while place < len(samples) - 2 and now.at - samples[place].at > seconds:
        place += 1
    while place < len(samples) - 2 and not _has_work(samples[place], samples[place + 1]):
        place += 1
    return place


def load_between(samples: Sequence[Sample], http_slots: int = 0) -> Load:
    """Returns the load from the first of these samples to the last one.

    Args:
        samples: of one server, in their order.
        http_slots: requests that gunicorn serves at a time; 0 if that is not known.
    """
    old, new = samples[0], samples[-1]
    seconds = new.at - old.at
    ended = {name: _rise(new.ended, old.ended, name) for name in new.ended}
    arrived = sum(ended.values()) + (new.busy + new.queued - old.busy - old.queued)
    ran, waited = new.ran.since(old.ran), new.waited.since(old.waited)
    retries = max(0.0, new.retries - old.retries)
    queued = sum(sample.queued for sample in samples) / len(samples)
    # `waited` holds back-offs too. Little's law gives the wait in the queue alone, but from few looks at it.
    waited_s = waited.mean if not retries or not arrived else min(waited.mean, queued * seconds / arrived)
    backlogs = [sample.backlog or 0 for sample in samples]
    answered = max(0.0, new.http_requests - old.http_requests)
    http_s = max(0.0, new.http_s - old.http_s)
    threads = [worker.threads for worker in new.workers if worker.threads]
    attempts = max(0.0, new.attempts - old.attempts)
    account_s = max(0.0, new.account_waited_s - old.account_waited_s)
    return Load(
        seconds=seconds,
        arrived=max(0.0, arrived),
        refused=ended["refused"],
        ran=ran.count,
        ran_s=ran.total,
        ran_p95_s=ran.quantile(0.95) or 0.0,
        waited_s=waited_s,
        attempts=attempts,
        rate_limited=max(0.0, new.rate_limited - old.rate_limited),
        account_waited_s=account_s / attempts if attempts else 0.0,
        processes=len(threads),
        workers=max(threads, default=0),
        peak=max(sample.peak for sample in samples),
        http_busy=_http_demand(http_s, answered, backlogs, seconds),
        http_slots=http_slots,
        backlog=sum(backlogs) / len(backlogs),
    )


def _http_demand(http_s: float, answered: float, backlogs: list[int], seconds: float) -> float:
    """How many requests would be served at a time if none had to wait for a worker."""
    if seconds <= 0:
        return 0.0
    joined = backlogs[-1] - backlogs[0]
    if joined > _GROWTH_SHARE * answered:  # more arrive than are answered: Little's law for those that arrive
        return (http_s + joined * (http_s / answered if answered else 0.0)) / seconds
    # As many wait as ever: they are people who send the next request once they have their answer.
    return http_s / seconds + sum(backlogs) / len(backlogs)


def _base(samples: Sequence[Sample], seconds: float) -> Sample | None:
    """The sample to compare the newest one with: so many seconds older, or the oldest that it may be compared with."""
    now, found = samples[-1], None
    for sample in reversed(samples[:-1]):
        if not _are_of_one_server(sample, now):
            break
        found = sample
        if now.at - sample.at >= seconds:
            break
    return found


def _are_of_one_server(older: Sample, newer: Sample) -> bool:
    # Before its first count a server has workers and nothing to read, and its counters begin at 0.
    return older.server == newer.server or bool(older.workers and not older.server)


def _has_work(older: Sample, newer: Sample) -> bool:
    in_flight = older.busy or older.queued or newer.busy or newer.queued or older.backlog
    return bool(in_flight or newer.total > older.total)


def _rise(new: Mapping[str, float], old: Mapping[str, float], name: str) -> float:
    return max(0.0, new[name] - old.get(name, 0.0))


def _quantiles(new: Histogram, old: Histogram) -> tuple[float | None, float | None]:
    recent = new.since(old)
    return recent.quantile(0.5), recent.quantile(0.95)
