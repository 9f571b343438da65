"""What the sandbox is told to answer: mostly what was asked for, now and then each fault that it knows."""

from __future__ import annotations

import random
from typing import Any

from deepseek_client.sandbox.script import FAULT_NAMES

__all__ = ["FAULT_SHARE", "NOT_FOR_HERE", "SAID", "mixed", "outage", "warm_up"]

FAULT_SHARE = 0.3
"""Of replies; far below what opens the breaker."""

SAID = "上游说了别的话"
"""What the fault "content" says."""

NOT_FOR_HERE = ("raw", "vanish_after_reply")
"""What a test gives byte by byte, and what needs a packet filter of Linux."""

_NAMES = [name for name in FAULT_NAMES if name not in ("ok", *NOT_FOR_HERE)]
_HOLDING = {
    "drip",
    "hang",
    "hang_in_body",
    "slow_body",
}  # a thread, until the deadline: rarer, or nothing else goes on
_WEIGHTS = [1 if name in _HOLDING else 4 for name in _NAMES]
_HUGE_BYTES = 512 * 1024
_STATUSES = (400, 404, 422, 429, 500, 502, 503, 504)  # 401 and 402 open the breaker for 5 minutes
_PARAMETERS: dict[str, dict[str, Any]] = {
    "charset": {"charset": "gbk"},
    "content": {"text": SAID},
    "huge_body": {"bytes": _HUGE_BYTES},
    "lengths": {"lengths": ["5", "7"]},
    "redirect": {"location": "/nowhere"},
}
_OUTAGES: tuple[dict[str, Any], ...] = (
    {"fault": "status", "status": 503},
    {"fault": "reset_before_reply"},
    {"fault": "hang"},
    {"fault": "html"},
)
_PLENTY = 5000


def mixed(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """The next `count` replies; about FAULT_SHARE of them are faults."""
    return [_fault(rng) if rng.random() < FAULT_SHARE else {"fault": "ok"} for _ in range(count)]


def outage(number: int) -> list[dict[str, Any]]:
    """Replies of an API that is down, each outage in another way; more than will be asked for."""
    return [{**_OUTAGES[number % len(_OUTAGES)], "times": _PLENTY}]


def warm_up(count: int, latency_ms: int) -> list[dict[str, Any]]:
    """Good replies that are late enough for all of them to be under way at once."""
    return [{"fault": "ok", "latency_ms": latency_ms, "times": count}]


def _fault(rng: random.Random) -> dict[str, Any]:
    name = rng.choices(_NAMES, _WEIGHTS)[0]
    if name != "status":
        return {"fault": name, **_PARAMETERS.get(name, {})}
    status = rng.choice(_STATUSES)
    headers = {"headers": {"Retry-After": "1"}} if status in (429, 503) else {}
    return {"fault": name, "status": status, **headers}
