"""Ways in which an API fails, each with what a caller is told; and looks at what a call leaves behind."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any, NamedTuple

from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from deepseek_client import (
    AuthenticationFailed,
    BadReply,
    ConnectionFailed,
    DeepSeekError,
    InsufficientBalance,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
    WorkerPool,
)

from .patience import GIVE_UP_S

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 GMT
"""Time of the day for whoever reads an HTTP date."""
IN_90_S = "Fri, 15 Jan 2027 08:01:30 GMT"
IN_10_S = "Fri, 15 Jan 2027 08:00:10 GMT"


class Fault(NamedTuple):
    """One way to fail."""

    kind: type[DeepSeekError]
    reply: dict[str, Any] | None  # as the sandbox's script has it; None: it is never asked
    attempts: int = 1  # that the policy makes of it, of 3 at most
    retry_after_s: float | None = None
    address: str = "sandbox"


def _status(
    kind: type[DeepSeekError], status: int, attempts: int, retry_after: str = "", seconds: float | None = None
) -> Fault:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Fault(kind, {"fault": "status", "status": status, "headers": headers}, attempts, seconds)


def _no_answer(name: str) -> Fault:
    return Fault(BadReply, {"fault": name}, attempts=2)


FAULTS = {
    "refused": Fault(ConnectionFailed, None, 3, address="nobody"),
    "tls_of_a_plain_server": Fault(ConnectionFailed, None, 3, address="plain"),
    "tls_of_an_unknown_authority": Fault(ConnectionFailed, None, 1, address="untrusted"),
    "reset_before_reply": Fault(ConnectionFailed, {"fault": "reset_before_reply"}, 3),
    "reset_in_body": Fault(ConnectionFailed, {"fault": "reset_in_body"}, 3),
    "cut_body": Fault(ConnectionFailed, {"fault": "cut_body"}, 3),
    "400": _status(UpstreamRejected, 400, 1),
    "401": _status(AuthenticationFailed, 401, 1),
    "402": _status(InsufficientBalance, 402, 1),
    "403": _status(AuthenticationFailed, 403, 1),
    "404": _status(UpstreamRejected, 404, 1),
    "422": _status(UpstreamRejected, 422, 1),
    "429": _status(RateLimited, 429, 3),
    "429_in_0_s": _status(RateLimited, 429, 3, "0", 0.0),
    "429_in_90_s": _status(RateLimited, 429, 1, "90", 90.0),
    "429_on_a_date": _status(RateLimited, 429, 1, IN_90_S, 90.0),
    "500": _status(UpstreamUnavailable, 500, 3),
    "502": _status(UpstreamUnavailable, 502, 3),
    "503": _status(UpstreamUnavailable, 503, 3),
    "503_in_90_s": _status(UpstreamUnavailable, 503, 1, "90", 90.0),
    "504": _status(UpstreamUnavailable, 504, 3),
    "html": _no_answer("html"),
    "truncated_json": _no_answer("truncated_json"),
    "blank": _no_answer("blank"),
    "no_choices": _no_answer("no_choices"),
    "spaces": _no_answer("blank_content"),
    "no_resources": _no_answer("insufficient_system_resource"),
    "fifty_mebibytes": _no_answer("huge_body"),
}
ENDLESS = ["hang", "hang_in_body", "drip", "slow_body"]
"""Faults of the sandbox in which a reply is not complete before any deadline of a test."""
OK = {"fault": "ok"}
BUSY = {"fault": "status", "status": 503}
"""What the sandbox's script has for an answer, and for a refusal that passes."""


_OF_CALLS = {f"deepseek_{what}_total" for what in ("requests", "errors", "attempts", "retries")}


def counted(client: FlaskClient) -> Counter[tuple[str, ...]]:
    """The calls that GET /metrics counts: (name, value of each label, in the order of the labels' names)."""
    found: Counter[tuple[str, ...]] = Counter()
    lines = [line for line in client.get("/metrics").text.splitlines() if "_total" in line]
    for family in text_string_to_metric_families("\n".join(lines)):
        for sample in family.samples:
            if sample.name in _OF_CALLS:
                found[(sample.name, *(value for _, value in sorted(sample.labels.items())))] += int(
                    sample.value
                )
    return found


async def meet(pool: WorkerPool) -> None:
    """Occupies every thread of the pool at the same moment: none is lost, and none still works for somebody."""
    workers = pool.stats()["workers"]
    barrier = threading.Barrier(workers, timeout=GIVE_UP_S)
    await asyncio.gather(*(pool.run(barrier.wait) for _ in range(workers)))
