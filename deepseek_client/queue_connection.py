"""How every part that uses the queue's server connects to it."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["TIMEOUT_S", "connect"]

TIMEOUT_S = 1.0
"""Seconds within which the server has to answer a command, or to take a connection."""


def connect(url: str, **options: Any) -> redis.Redis:
    """A client of the server, which connects at its first command and never waits longer than a second.

    Its `close()` ends the connections; the next command opens new ones.

    Args:
        url: as in CELERY_BROKER_URL, a unix socket as `redis+socket:///path`.
        options: of redis-py's connection, in place of ours.

    Threads: any; after a fork the child has connections of its own.
    """
    if url.startswith("redis+socket://"):
        url = url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")
    given: dict[str, Any] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "health_check_interval": 10,
        # redis-py would send a submission again of which it does not know what became.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        **options,
    }
    if url.startswith("unix://"):
        given.pop("socket_connect_timeout", None)
    else:
        given["socket_keepalive"] = True
    # Redis(connection_pool=...) would leave the pool's connections open when it is closed.
    return redis.Redis.from_pool(redis.ConnectionPool.from_url(url, **given))
