"""One thread per process, started by the first abort, that ends aborted calls again until their threads are back."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import Any, Protocol

__all__ = ["Watched", "chase"]

_logger = logging.getLogger(__name__)

# Most threads are back by the first look. One that is not is looked at ever more seldom: hundreds may never come back.
_LOOK_AGAIN_S = 0.005
_LOOK_SELDOM_S = 1.0
_AGE_SHARE = 0.05  # of the time since its end, between the two
_WARN_AFTER_S = 1.0
_WARN_EVERY_S = 60.0  # of one client's one method


class Watched(Protocol):
    """A call's attempt on the wire: an Exchange.

    Threads: its methods are called in the watchdog's.
    """

    ended: float | None
    aborted: str | None
    client: Any
    method: str

    def end_again(self) -> None:
        """Ends what its thread is blocked on by now."""


class _Watchdog:
    """The thread, and what it looks after.

    Threads: any may call `chase`; the dict is changed in one step each time.
    """

    def __init__(self) -> None:
        self._chased: dict[
            Watched, tuple[float, float]
        ] = {}  # the moments of their ends, and of the next look
        self._bell = threading.Event()
        self._warned_at: dict[str, float] = {}
        self._has_begun = False  # guarded by _lock
        self._lock = threading.Lock()

    def chase(self, watched: Watched) -> None:
        """Ends what it is blocked on again and again, until it has ended."""
        now = time.monotonic()
        self._chased[watched] = now, now + _LOOK_AGAIN_S
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            if not self._has_begun:
                try:
                    threading.Thread(target=self._run, name="llm-watchdog", daemon=True).start()
                    self._has_begun = True
                except RuntimeError:  # no more threads, or Python is about to end
                    pass
        self._bell.set()

    def _run(self) -> None:
        while True:
            self._bell.clear()
            try:
                wait_s = self._look_at_chased()
            except Exception:
                _logger.exception("the watchdog failed")
                wait_s = _LOOK_SELDOM_S
            self._bell.wait(wait_s)

    def _look_at_chased(self) -> float | None:
        """Ends them again; returns how long to wait until the next look, None with nothing to look at."""
        now = time.monotonic()
        wait_s = None
        for watched, (since, due) in list(self._chased.items()):
            if watched.ended is not None:
                del self._chased[watched]
                continue
            if now >= due:
                watched.end_again()
                age_s = now - since
                if age_s >= _WARN_AFTER_S:
                    self._warn(watched, now)
                due = now + min(max(_LOOK_AGAIN_S, _AGE_SHARE * age_s), _LOOK_SELDOM_S)
                self._chased[watched] = since, due
            wait_s = min(wait_s or math.inf, due - now)
        return wait_s

    def _warn(self, watched: Watched, now: float) -> None:
        name = getattr(watched.client, "__name__", None) or type(watched.client).__name__
        what = f"{name}.{watched.method}"
        if now - self._warned_at.get(what, -math.inf) >= _WARN_EVERY_S:
            self._warned_at[what] = now
            _logger.warning(
                "%s goes on although its call has ended (%s): its thread waits for something that is no socket of its "
                "own, and keeps its place until it comes back. AsyncFacade(client, abort=...) can end it", what,
                watched.aborted,
            )  # fmt: skip


_watchdog = _Watchdog()


def chase(watched: Watched) -> None:
    """Ends an aborted call's thread again and again until it is back, and warns of one that is not after a second."""
    _watchdog.chase(watched)


def _after_fork_in_child() -> None:
    # Its thread, and all that it looked after, are the parent's.
    global _watchdog
    _watchdog = _Watchdog()


os.register_at_fork(after_in_child=_after_fork_in_child)
