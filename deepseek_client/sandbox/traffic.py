"""What went over the sandbox's wires: counts of completion requests and of their connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from aiohttp import web

__all__ = ["Traffic"]


class Traffic:
    """Counts completion requests; every other route leaves it alone.

    A request is in flight from the moment its headers are read until its reply is complete or its connection
    is gone. One that is refused for the concurrency limit was in flight for that moment too, so the peak
    counts it, as the figure in the API's 429 does. A connection counts as opened once it carried a completion
    request.

    Threads: everything runs in the event loop's thread; there is no lock.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.watchers: list[Callable[[], None]] = []
        self._connections: WeakSet[asyncio.BaseTransport] = WeakSet()
        self.reset()

    def reset(self) -> None:
        """Zero all figures but `in_flight`, which belongs to requests that are still there."""
        self.requests = 0
        self.peak_in_flight = self.in_flight
        self._connections_opened = 0
        self._connections.clear()
        self._last_request: web.Request | None = None
        self._last_body = b""

    def arrived(self, request: web.Request) -> None:
        """Count a request whose headers were read; `departed` must follow."""
        self.requests += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        transport = request.transport
        if transport is not None and transport not in self._connections:
            self._connections.add(transport)
            self._connections_opened += 1
        if self.watchers:
            self._tell()

    def body_read(self, request: web.Request, body: bytes) -> None:
        """Keep the newest request for `snapshot`."""
        self._last_request = request
        self._last_body = body
        if self.watchers:
            self._tell()

    def departed(self) -> None:
        """Count off a request whose reply is complete or whose connection is gone."""
        self.in_flight -= 1
        if self.watchers:
            self._tell()

    def snapshot(self, scripted: int) -> dict[str, Any]:
        """The body of ``GET /sandbox/stats``; `scripted` is how many scripted replies are still queued."""
        request = self._last_request
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "connections_opened": self._connections_opened,
            "last_request_body": _readable(self._last_body) if request else None,
            "last_request_headers": _redacted(request) if request else None,
            "scripted": scripted,
        }

    def _tell(self) -> None:
        for watcher in tuple(self.watchers):
            watcher()


def _readable(body: bytes) -> Any:
    text = body.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _redacted(request: web.Request) -> dict[str, str]:
    return {
        name: "[redacted]" if name.lower() == "authorization" else value
        for name, value in request.headers.items()
    }
