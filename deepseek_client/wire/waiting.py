"""How blocking code waits: by sleeping in its thread, or by yielding to the event loop that it runs on.

The only place that knows. An engine that runs calls on an event loop names a Waiter; without one, code blocks.
"""

from __future__ import annotations

import contextvars
import functools
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from urllib3.util.wait import wait_for_write

__all__ = ["Waiter", "current", "for_event", "looking_up", "set_current", "writable"]


class Waiter(Protocol):
    """Lets one call wait without blocking the thread that it shares with others.

    Threads: `is_here` and `wake` any; the rest only where `is_here` is true.
    """

    def is_here(self) -> bool:
        """Whether the running code is the call's own, and not that of a thread which its client has started."""

    def wait_for(self, sock: socket.socket, *, writes: bool, timeout_s: float | None) -> bool:
        """Waits until the socket can be read or written; False when the time is over, or when it was woken."""

    def give_way(self) -> None:
        """Lets others go on if the call has run for long: one that always finds bytes would never wait for them."""

    def sleep(self, seconds: float) -> None:
        """Waits that long, or until it is woken."""

    def run_in_thread(self, function: Callable[[], Any]) -> Any:
        """Waits for what the function gives in another thread; or until it is woken, and then raises TimeoutError."""

    def wake(self) -> None:
        """Ends the wait of now."""


_current: contextvars.ContextVar[Waiter | None] = contextvars.ContextVar("llm_waiter", default=None)
set_current = _current.set


def current() -> Waiter | None:
    """What the running code waits by; None if it may block."""
    waiter = _current.get()
    return None if waiter is None or not waiter.is_here() else waiter


def writable(sock: socket.socket, timeout_s: float | None) -> bool:
    """Waits until the socket can be written, or its connecting has failed; False when the time is over."""
    waiter = current()
    if waiter is None:
        return wait_for_write(sock, timeout_s)
    return waiter.wait_for(sock, writes=True, timeout_s=timeout_s)


def for_event(event: threading.Event, timeout_s: float) -> bool:
    """Waits until the event is set; False when the time is over."""
    waiter = current()
    if waiter is None or event.is_set():
        return event.wait(timeout_s)
    try:
        return bool(waiter.run_in_thread(functools.partial(event.wait, timeout_s)))
    except TimeoutError:  # its call was ended
        return event.is_set()


def looking_up(getaddrinfo: Callable[..., Any]) -> Callable[..., Any]:
    """`socket.getaddrinfo` that holds no event loop up: the system's resolver blocks for as long as it likes."""

    @functools.wraps(getaddrinfo)
    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        waiter = current()
        if waiter is None or _is_address(host):
            return getaddrinfo(host, *args, **kwargs)
        return waiter.run_in_thread(functools.partial(getaddrinfo, host, *args, **kwargs))

    lookup.is_watching = True  # type: ignore[attr-defined]
    return lookup


def _is_address(host: Any) -> bool:
    try:
        return host is None or bool(ipaddress.ip_address(host))
    except ValueError:
        return False
