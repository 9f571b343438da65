"""Ends what a greenlet of gevent's waits for: under its patch one thread runs all calls, and blocks in none of them.

There sockets stay as they are. What ends a call is raised in its greenlet, at whatever that waits for by then.
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any

from ..errors import ConfigError

__all__ = ["Greenlet", "are_in_use", "current", "refuse_eventlet"]


class Greenlet:
    """The greenlet that runs a call's method, until `leave`.

    Threads: made, and left, in the greenlet itself; `end` may be called from any thread.
    """

    def __init__(self, gevent: Any) -> None:
        self._spawn = gevent.spawn_raw
        self._greenlet = gevent.getcurrent()
        self._loop = gevent.get_hub().loop
        self._timer: Any = None

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Calls the function in a greenlet of its own after that time, unless the method has ended by then."""
        self._timer = self._loop.timer(max(0.0, seconds))
        self._timer.start(self._spawn, function)

    def leave(self) -> None:
        """The method has ended."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def end(self, interruption: Callable[[], BaseException | None]) -> None:
        """Raises in the greenlet what the function gives; it is asked when the greenlet waits, and None raises nothing.

        Args:
            interruption: called in the greenlet's thread.
        """
        self._loop.run_callback_threadsafe(self._throw, interruption)

    def _throw(self, interruption: Callable[[], BaseException | None]) -> None:
        # Called by the hub: every other greenlet of the thread waits.
        exc = interruption()
        if exc is not None:
            self._greenlet.throw(exc)


def are_in_use() -> bool:
    """Whether a patch has put greenlets in the place of threads: one thread runs all calls, and waits for all.

    Threads: any.
    """
    return not isinstance(_thread.get_ident, BuiltinFunctionType)


def current() -> Greenlet | None:
    """The running greenlet, where gevent's patch holds; None under another one."""
    gevent = sys.modules.get("gevent")
    return None if gevent is None else Greenlet(gevent)


def refuse_eventlet() -> None:
    """Refuses a process that eventlet has patched: its threads and sockets wait in ways that nothing here can end.

    Raises:
        ConfigError: it has.

    Threads: any.
    """
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and any(patcher.is_monkey_patched(name) for name in ("socket", "thread")):
        raise ConfigError(
            "eventlet has patched this process, and calls cannot run under it: use gevent's patch and worker instead, "
            "or threads (in Flask-SocketIO async_mode='gevent' or 'threading')"
        )
