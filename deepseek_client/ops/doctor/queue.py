"""What hurts between the application and the server of its tasks: its version, memory, persistence, clock, access."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...settings import is_loopback
from ..worker import missing_packages, place_of
from .finding import Finding, found
from .situation import Situation

if TYPE_CHECKING:
    import redis

__all__ = ["examine_queue"]

_OLDEST = (6, 2)
_CLOCKS_DIFFER_S = 2


def examine_queue(situation: Situation) -> Iterator[Finding]:
    """The findings of this module; asks the queue's server, if there is one, and waits a few seconds at most."""
    url = situation.settings.celery_broker_url
    if not url:
        return
    if missing := missing_packages():
        yield found("queue_extra", packages=missing)
        return
    yield from _access(url)
    yield from _server(url)


def _access(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    host = parts.hostname or ""  # none: a socket in the file system
    if not host or is_loopback(host):
        return
    if not parts.password:
        yield found("queue_without_password", host=host)
    if parts.scheme == "redis":
        yield found("queue_in_clear", host=host)


def _server(url: str) -> Iterator[Finding]:
    from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

    from ...tasks.ledger import connect

    server = connect(url)
    place = place_of(server)
    try:
        difference_s = _clock_difference_s(server)
        facts: dict[str, Any] = {**server.info(), "appendfsync": _appendfsync(server)}
    except AuthenticationError:
        yield found("queue_unreachable/password", place=place)
    except (NoPermissionError, ResponseError) as error:
        yield found("queue_unreadable", place=place, error=error)
    except (RedisError, OSError) as error:
        yield found("queue_unreachable", place=place, error=error)
    else:
        yield from _facts(place, facts, difference_s)
    finally:
        server.close()


def _appendfsync(server: redis.Redis) -> str:
    """When the server writes to its file; "" where it keeps that to itself, as hosted ones do."""
    from redis.exceptions import ResponseError

    try:
        return str(server.config_get("appendfsync").get("appendfsync", ""))
    except ResponseError:
        return ""


def _clock_difference_s(server: redis.Redis) -> float:
    """How much later it is on the server; half of what the question takes is its way there."""
    asked = time.time()
    seconds, microseconds = server.time()
    return seconds + microseconds / 1e6 - (asked + time.time()) / 2


def _facts(place: str, facts: dict[str, Any], difference_s: float) -> Iterator[Finding]:
    is_valkey = "valkey_version" in facts
    version = str(facts.get("valkey_version" if is_valkey else "redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < _OLDEST:
        yield found("queue_version", place=place, version=version, oldest=".".join(map(str, _OLDEST)))
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield found("queue_memory", place=place, policy=policy)
    elif facts.get("maxmemory") == 0:
        yield found("queue_memory/unlimited", place=place)
    if facts.get("aof_enabled") == 0:
        yield found("queue_persistence", place=place)
    elif facts["appendfsync"] not in ("always", ""):
        yield found("queue_persistence/late", place=place, how=facts["appendfsync"])
    if abs(difference_s) >= _CLOCKS_DIFFER_S:
        yield found("queue_clock", place=place, difference_s=difference_s)
