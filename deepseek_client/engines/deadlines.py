"""The end of an event loop's wait for a job: at its deadline, or when the loop is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

__all__ = ["Deadline", "Waited", "wake"]


class Waited(Protocol):
    """A job of a pool.

    Threads: as the pool's.
    """

    notify: Callable[[], object] | None

    def give_up(self, reason: str) -> None:
        """Nobody waits for it any more."""


class Deadline:
    """Wakes a job's waiter, or gives the job up if its event loop is closed before: nobody would end it any more.

    Threads: the loop's, or that of whoever closes it.
    """

    __slots__ = ("_job", "_waiter")

    def __init__(self, job: Waited, waiter: asyncio.Future[None]) -> None:
        self._job: Waited | None = job
        self._waiter = waiter

    def __call__(self) -> None:
        """The moment has come."""
        self._job = None
        wake(self._waiter)

    def __del__(self) -> None:
        job = self._job
        if job is not None and job.notify is not None:
            job.give_up("cancelled")


def wake(waiter: asyncio.Future[None]) -> None:
    """Ends the wait for the waiter, if nothing has."""
    if not waiter.done():
        waiter.set_result(None)
