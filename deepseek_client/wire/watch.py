"""Who uses which socket, so that ending one call never ends another."""

from __future__ import annotations

import socket
import weakref
from contextlib import suppress
from typing import Any, Protocol

from ..fork_safe import ForkSafeLock

__all__ = ["User", "Watch", "numbers_of_watched_sockets", "socket_lock", "watch_of", "watch_of_locked"]

_set_timeout: Any = socket.socket.settimeout

socket_lock = ForkSafeLock()
"""Held while a watched socket is registered, shut down or closed: a closed one's number may be a neighbour's next."""


class User(Protocol):
    """A call's attempt on the wire: an Exchange.

    Threads: any.
    """

    aborted: str | None


class Watch:
    """Who uses one socket.

    Attributes:
        owner: the exchange that alone uses it, and may shut it down; None without one, or with several.
        sharers: the exchanges that use it at once, if there are several.
        is_busy: whether the owner is inside of one of its methods, or has written and read nothing since.
        yields: whether it is non-blocking for the system, because code that uses it yields to an event loop.
        timeout_s: what its users take for its timeout while it yields.

    Threads: guarded by socket_lock, but for `is_busy`, which the owner's thread sets.
    """

    __slots__ = ("is_busy", "owner", "sharers", "timeout_s", "yields")

    def __init__(self) -> None:
        self.owner: User | None = None
        self.sharers: set[User] = set()
        self.is_busy = False
        self.yields = False
        self.timeout_s: float | None = None

    def add_locked(self, exchange: User, *, goes_on_reading: bool) -> None:
        """A further exchange uses it. It takes it over, unless the one before it is seen to be at work on it still.

        Args:
            goes_on_reading: it has used the socket before, and wrote nothing since another one did.
        """
        owner = self.owner
        if self.sharers:
            self.sharers.add(exchange)
        elif owner is None or owner is exchange or not (self.is_busy or goes_on_reading):
            self.owner, self.is_busy = exchange, False
        else:
            self.owner, self.sharers = None, {owner, exchange}

    def remove_locked(self, exchange: User) -> None:
        """The exchange is done with it."""
        if self.owner is exchange:
            self.owner = None
        self.sharers.discard(exchange)
        if len(self.sharers) == 1:
            self.owner = self.sharers.pop()

    def let_block_locked(self, sock: socket.socket) -> None:
        """Gives the socket its timeout back once nobody uses it: a thread may use it next."""
        if self.yields and self.owner is None and not self.sharers:
            self.yields = False
            with suppress(OSError):  # closed
                _set_timeout(sock, self.timeout_s)

    def may_be_ended_locked(self, exchange: User) -> bool:
        """Whether no call that goes on uses it beside that one."""
        if self.sharers:
            return all(each.aborted is not None for each in self.sharers)
        return self.owner is exchange


def watch_of(sock: socket.socket) -> Watch | None:
    """Who uses the socket; None if no exchange has."""
    return _watches.get(weakref.ref(sock))


# Of every socket that some exchange has used. No WeakKeyDictionary, whose every look costs a Python function.
_watches: dict[weakref.ref[socket.socket], Watch] = {}  # guarded by socket_lock


def watch_of_locked(sock: socket.socket) -> Watch:
    """Who uses the socket; made when an exchange uses it for the first time."""
    watch = _watches.get(weakref.ref(sock))
    if watch is None:
        watch = _watches[weakref.ref(sock, _forget)] = Watch()
    return watch


def numbers_of_watched_sockets() -> set[int]:
    """The descriptors that a lock guards, so that nobody has to look for them."""
    return {sock.fileno() for reference in list(_watches) if (sock := reference()) is not None}


def _forget(reference: weakref.ref[socket.socket]) -> None:
    _watches.pop(reference, None)
